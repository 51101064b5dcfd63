"""The model of label errors with dense arrays (n, C) and loops over images, and plain confident learning."""

import math

import numpy as np

from lib.posthoc.out_of_fold import Candidates

PAIR_PRIOR, RATE_PRIORS = 20.0, (5, 10, 20, 40, 80)


def log_sum_exp(values: np.ndarray) -> np.ndarray:
    top = values.max(axis=1)
    return top + np.log(np.exp(values - top[:, None]).sum(axis=1))


def candidates_of(logits: np.ndarray, labels: np.ndarray, k: int, similar: np.ndarray | None = None) -> Candidates:
    """Return the k best of dense logits (n, C), with dense similarities (n, C) if there are any."""
    best = np.argsort(-logits, axis=1, kind='stable')[:, :k]
    every = np.arange(len(labels))
    similar = np.full(logits.shape, np.nan) if similar is None else similar
    return Candidates(
        classes=best.astype(np.int32),
        logits=np.take_along_axis(logits, best, 1).astype(np.float32),
        own=logits[every, labels].astype(np.float32),
        log_sum=log_sum_exp(logits).astype(np.float32),
        log_sum_2=log_sum_exp(2 * logits).astype(np.float32),
        labels=labels.astype(np.int64),
        num_classes=logits.shape[1],
        own_similarity=similar[every, labels].astype(np.float32),
        similarities=np.take_along_axis(similar, best, 1).astype(np.float32),
        neighbors=np.zeros((len(labels), 0), np.int32),
        neighbor_similarities=np.zeros((len(labels), 0), np.float32),
    )


def likeliest_prior(wrong: np.ndarray, right: np.ndarray, mean: float) -> int:
    """Return the number of images for which beta-binomial counts are the likeliest."""
    scores = []
    for worth in RATE_PRIORS:
        a, b = worth * mean, worth * (1 - mean)
        pairs = zip(wrong.tolist(), right.tolist(), strict=True)
        scores.append(sum(log_beta(a + w, b + r) - log_beta(a, b) for w, r in pairs))
    return RATE_PRIORS[int(np.argmax(scores))]


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def posterior_after(
    num_steps: int, logits: np.ndarray, labels: np.ndarray, tau: float
) -> dict[str, np.ndarray | float]:
    """Run EM steps with every class a candidate of every image and each image left out of its confusions."""
    n, num_classes = logits.shape
    likely, doubts = (np.exp(t * logits - log_sum_exp(t * logits)[:, None]) for t in (tau, 1.0))
    is_wrong = np.arange(num_classes)[None] != labels[:, None]
    doubts = doubts * is_wrong
    posterior, rate = np.zeros((n, num_classes)), np.full(num_classes, 0.1)
    likeness, uniform, error, history = 0.5, 1 / (num_classes - 1), np.zeros(n), []
    for _ in range(num_steps):
        new, alike, any_class, total = np.zeros_like(posterior), 0.0, 0.0, 0.0
        for i in range(n):
            joint, parts = np.zeros(num_classes), np.zeros((2, num_classes))
            others = np.arange(n) != i
            same = others & (labels == labels[i])
            for j in range(num_classes):
                if j == labels[i]:
                    joint[j] = (1 - rate[j]) * likely[i, j]
                    continue
                soft = doubts[same, j].sum() / max(doubts[others, j].sum(), 1e-9)
                strength = posterior[others, j].sum() + PAIR_PRIOR
                parts[0, j] = PAIR_PRIOR * likeness * min(soft, 1) / strength
                parts[1, j] = PAIR_PRIOR * (1 - likeness) * uniform / strength
                spread = posterior[same, j].sum() / strength + parts[:, j].sum()
                joint[j] = rate[j] * likely[i, j] * spread
                parts[:, j] /= spread
            new[i] = joint / joint.sum()
            total += np.log(joint.sum())
            alike += (new[i] * parts[0]).sum()
            any_class += (new[i] * parts[1]).sum()
        error = 1 - new[np.arange(n), labels]
        posterior = new * is_wrong
        wrong = posterior.sum(axis=0)
        right = np.bincount(labels, 1 - error, num_classes)
        worth = likeliest_prior(wrong, right, error.mean())
        rate = (wrong + worth * error.mean()) / (wrong + right + worth)
        likeness = (alike + 1e-3) / (alike + any_class + 2e-3)
        history.append(total / n)
    return {'error': error, 'posterior': posterior, 'rate': rate, 'likeness': likeness, 'history': np.array(history)}


def confident_learning(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which labels are wrong (Northcutt et al., JAIR 2021, eq. 1), (n,) bool."""
    probabilities = np.exp(logits - log_sum_exp(logits)[:, None])
    num_classes = logits.shape[1]
    present = [probabilities[labels == j, j] for j in range(num_classes)]
    thresholds = np.array([of_class.mean() if len(of_class) else 2.0 for of_class in present])
    above = np.where(probabilities >= thresholds, probabilities, -1)
    return (above.max(axis=1) > 0) & (above.argmax(axis=1) != labels)


def noisy_classes(
    rng: np.random.Generator, sizes: np.ndarray, rate: float, *, sharpness: float = 6.0, alike: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits (n, C), given labels and true classes of images of classes with these sizes.

    Args:
        alike: wrong labels are the next class, which the classifier also finds likely; else any class.
    """
    num_classes = len(sizes)
    true = np.repeat(np.arange(num_classes), sizes)
    logits = rng.normal(size=(len(true), num_classes))
    every = np.arange(len(true))
    logits[every, true] += rng.normal(sharpness, 1.5, len(true))
    logits[every, (true + 1) % num_classes] += 2
    labels = true.copy()
    wrong = rng.random(len(true)) < rate
    shift = 1 if alike else rng.integers(1, num_classes, wrong.sum())
    labels[wrong] = (true[wrong] + shift) % num_classes
    return logits, labels, true
