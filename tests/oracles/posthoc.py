"""Slow tau search: whether an image is correct at one tau, in 40 decimal digits, and where that can change."""

from decimal import Decimal, getcontext
from fractions import Fraction
from functools import cache
from itertools import pairwise

getcontext().prec = 40
NEVER = None  # the score of a class that cannot win


@cache
def ln(x: Decimal) -> Decimal:
    return x.ln()


def norm(row) -> Decimal:
    return sum((Decimal(float(x)) ** 2 for x in row), Decimal(0)).sqrt()


def tau_scores(scores, norms, tau: Decimal) -> list:
    """Return z_j / n_j^tau of one image."""
    return [NEVER if n == 0 else Decimal(float(z)) * (-tau * ln(n)).exp() for z, n in zip(scores, norms, strict=True)]


def adjusted_scores(logits, priors, tau: Decimal) -> list:
    """Return z_j - tau ln prior_j of one image."""
    return [NEVER if p == 0 else Decimal(float(z)) - tau * ln(p) for z, p in zip(logits, priors, strict=True)]


def is_right(scores: list, label: int) -> bool:
    """Return whether the label is strictly above every other class; powers of equal numbers are equal."""
    if scores[label] is NEVER:
        return False
    return all(rival is NEVER or scores[label] > rival for j, rival in enumerate(scores) if j != label)


def tau_events(scores, norms, max_tau: float) -> set[Decimal]:
    """Return every tau in (0, max_tau) at which two classes of one image have equal scores."""
    events = set()
    for i, (z_i, n_i) in enumerate(zip(scores, norms, strict=True)):
        for z_j, n_j in list(zip(scores, norms, strict=True))[:i]:
            if n_i and n_j and n_i != n_j and float(z_i) * float(z_j) > 0:
                ratio = abs(Decimal(float(z_i)) / Decimal(float(z_j)))
                events.add(ratio.ln() / (n_i / n_j).ln())
    return {t for t in events if 0 < t < Decimal(max_tau)}


def adjusted_events(logits, priors, max_tau: float) -> set[Decimal]:
    events = set()
    for i, (z_i, p_i) in enumerate(zip(logits, priors, strict=True)):
        for z_j, p_j in list(zip(logits, priors, strict=True))[:i]:
            if p_i and p_j and p_i != p_j:
                events.add((Decimal(float(z_i)) - Decimal(float(z_j))) / (p_i / p_j).ln())
    return {t for t in events if 0 < t < Decimal(max_tau)}


def midpoints(events: set[Decimal], max_tau: float) -> list[float]:
    """Return the middle of every interval between neighboring events that is wide enough for float64."""
    edges = [Decimal(0), *sorted(events), Decimal(max_tau)]
    return [float((a + b) / 2) for a, b in pairwise(edges) if b - a > Decimal('1e-9')]


def metric(right: list[bool], labels: list[int], name: str) -> Fraction:
    """Return top1 (accuracy) or mean_class_error (mean over the classes that have images)."""
    if name == 'top1':
        return Fraction(sum(right), len(right))
    errors = []
    for c in sorted(set(labels)):
        mine = [r for r, y in zip(right, labels, strict=True) if y == c]
        errors.append(Fraction(len(mine) - sum(mine), len(mine)))
    return sum(errors) / len(errors)
