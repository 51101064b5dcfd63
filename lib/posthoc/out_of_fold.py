"""Out-of-fold logits of images, each by a classifier that was fitted without the image: the K best classes of each."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """The K best classes of each of n images, by a classifier that was fitted without the image; memory O(n K).

    Attributes:
        classes: (n, K) int32, the best first.
        logits: (n, K) float32, theirs.
        own: (n,) float32 logit of the image's label; -inf where no other image has that label.
        log_sum: (n,) float32 logsumexp of the logits of all classes.
        log_sum_2: (n,) float32 logsumexp of twice the logits: the exponentials of `log_sum`, squared before they are
            summed. With it the log-sum at other temperatures is known well without another pass.
        labels: (n,) int64, as given; no -1.
        num_classes: the number of classes, C.
        own_similarity: (n,) float32 cosine similarity of the image and the mean of the other images with its label,
            both minus the mean of all images; nan where there is no other image.
        best_similarity: (n,) float32, the largest such similarity over the K candidates and the label.
        nearest: (n,) int32, the class of `best_similarity`; -1 where that is nan.
    """

    classes: np.ndarray
    logits: np.ndarray
    own: np.ndarray
    log_sum: np.ndarray
    log_sum_2: np.ndarray
    labels: np.ndarray
    num_classes: int
    own_similarity: np.ndarray
    best_similarity: np.ndarray
    nearest: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)
