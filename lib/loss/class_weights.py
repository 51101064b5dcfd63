"""Weights that make up for how many images a class has."""

import math

import numpy as np
import torch

from lib.loss.per_class import checked_counts


def effective_number(class_counts: np.ndarray | torch.Tensor, beta: float) -> torch.Tensor:
    """Return weights in proportion to (1 - beta) / (1 - beta^n_c) (class-balanced loss: Cui et al., CVPR 2019, eq. 9).

    float32 (num_classes,), averaging to 1 over the classes that have images; 0 for the others. beta in [0, 1): 0 is no
    weights, towards 1 it is inverse frequency.
    """
    counts = checked_counts(class_counts)
    # expm1 keeps the digits of 1 - beta^n for beta near 1.
    numbers = -torch.expm1(counts * math.log(beta)) if beta else (counts > 0).double()
    return _averaging_to_one(numbers.reciprocal(), counts)


def inverse_frequency(class_counts: np.ndarray | torch.Tensor, exponent: float) -> torch.Tensor:
    """Return weights in proportion to n_c^-exponent: 1 is cost-sensitive learning, 0 no weights.

    float32 (num_classes,), averaging to 1 over the classes that have images; 0 for the others.
    """
    counts = checked_counts(class_counts)
    return _averaging_to_one(counts**-exponent, counts)


def _averaging_to_one(weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    has_images = counts > 0
    weights = weights.masked_fill(~has_images, 0)
    return (weights * (has_images.sum() / weights.sum())).float()
