"""What does the exact tau cost at 50,030 classes, beside one evaluation and beside a grid of ten taus?

python benchmarks/tau.py [--images N] [--rounds N] [--json FILE]

All three sides start from the same features (2,048 wide) in batches of 128: the backbone, which would make the
differences smaller, is left out. Evaluation: logits with bias, counts of right answers. Exact: TauSweep and the choice
of tau. Grid: what others do, but without repeating the backbone: weights rescaled, and all logits anew for ten taus.
Figures: tau_exact_evaluation_ratio (time, ours over an evaluation's), tau_exact_grid_speedup (the grid's over ours).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.harness import alternate, finish, parse_arguments
from lib.evaluation.accuracy import ClassCounts
from lib.evaluation.posthoc import TauSweep
from lib.runtime.entry import run_script

NUM_CLASSES, NUM_FEATURES, BATCH_SIZE, MAX_TAU = 50_030, 2048, 128, 2.0
GRID = np.linspace(0.1, 1.0, 10)


def long_tailed_classifier() -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias whose norms fall with the rank of the class, as after instance-balanced training."""
    weight = torch.nn.functional.normalize(torch.randn(NUM_CLASSES, NUM_FEATURES), dim=1)
    norms = torch.linspace(2.0, 0.7, NUM_CLASSES) * torch.empty(NUM_CLASSES).normal_(1.0, 0.05)
    return weight * norms[torch.randperm(NUM_CLASSES), None], torch.randn(NUM_CLASSES) * 0.1


def features_of(weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return features (num_images, NUM_FEATURES) that point to their class, none too clearly."""
    directions = torch.nn.functional.normalize(weight[labels], dim=1)
    return 4 * directions + 0.6 * torch.randn(len(labels), NUM_FEATURES)


@torch.inference_mode()
def main() -> None:
    question = __doc__.splitlines()[0]
    arguments = parse_arguments(question, images=(1024, 'images'), rounds=(3, 'passes of each side'))
    torch.manual_seed(0)
    weight, bias = long_tailed_classifier()
    labels = torch.randint(NUM_CLASSES, (arguments.images,))
    features = features_of(weight, labels)
    batches = list(zip(features.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))
    train_counts = np.ones(NUM_CLASSES, np.int64)
    found = {}

    def counted(weight: torch.Tensor, bias: torch.Tensor | None) -> float:
        counts = ClassCounts(NUM_CLASSES, weight.device)
        for some, their_labels in batches:
            logits = torch.nn.functional.linear(some, weight, bias)
            counts.update(logits, their_labels, torch.ones(len(some), dtype=torch.bool))
        return counts.metrics(train_counts)['mean_class_error']

    def evaluation() -> int:
        found['before'] = counted(weight, bias)
        return len(labels)

    def exact() -> int:
        sweep = TauSweep(weight, bias, max_tau=MAX_TAU)
        for some, their_labels in batches:
            sweep.update(some, their_labels)
        choice, _ = sweep.finish().choose('mean_class_error')
        found['exact'] = choice.value
        return len(labels)

    def grid() -> int:
        norms = weight.norm(dim=1, keepdim=True)
        found['grid'] = min(counted(weight / norms**tau, None) for tau in GRID)
        return len(labels)

    rates = alternate({'evaluation': evaluation, 'exact': exact, 'grid': grid}, arguments.rounds)
    figures = {f'{name}_images_per_second': rate for name, rate in rates.items()}
    figures |= {f'{name}_mean_class_error': value for name, value in found.items()}
    figures['tau_exact_evaluation_ratio'] = rates['evaluation'] / rates['exact']
    finish({**figures, 'tau_exact_grid_speedup': rates['exact'] / rates['grid']}, arguments.json)


if __name__ == '__main__':
    run_script(main)
