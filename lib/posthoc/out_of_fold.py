"""Out-of-fold logits of images, each by a classifier that was fitted without the image: the K best classes of each.

Two classifiers: linear discriminant analysis, fitted once per fold; and leave-one-out class means, which need less
memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.posthoc.class_neighbors import MAX_MEMBERS, NUM_NEIGHBORS, NeighborSearch
from lib.posthoc.crossfit import stratified_folds
from lib.posthoc.discriminant import FoldedDiscriminants
from lib.posthoc.judged_images import JudgedImages, LeaveOneOutMeans, row_blocks
from lib.posthoc.linear_head import LinearHead
from lib.posthoc.tau_sweep import NEVER
from lib.runtime.column_store import ColumnStore, open_or_create
from lib.runtime.log import progress_bar

HEADS = ('linear', 'cosine')
MAX_HEAD_BYTES = 2e9  # of all folds; a fit takes three times as much
_GROUP = 64  # classes: the K best are in the K groups with the largest logits
_ROWS_PER_PART = 4096  # scored and written at a time


@dataclass(frozen=True)
class Candidates:
    """The K best classes of each of n images, by a classifier that was fitted without the image; memory O(n K).

    Attributes:
        classes: (n, K) int32, the best first.
        logits: (n, K) float32, theirs.
        own: (n,) float32 logit of the image's label; -1e30 where no other image has that label.
        log_sum: (n,) float32 logsumexp of the logits of all classes.
        log_sum_2: (n,) float32 logsumexp of twice the logits: the exponentials of `log_sum`, squared before they are
            summed. With it the log-sum at other temperatures is known well without another pass.
        labels: (n,) int64, as given; no -1.
        num_classes: the number of classes, C.
        own_similarity: (n,) float32 cosine similarity of the image and the mean of the other images with its label,
            both minus the mean of all images; nan where there is no other image.
        similarities: (n, K) float32, those to the candidates.
        neighbors: (n, k) int32, the nearest images of the candidates and of the label (see NeighborSearch); -1: none.
        neighbor_similarities: (n, k) float32, theirs.
    """

    classes: np.ndarray
    logits: np.ndarray
    own: np.ndarray
    log_sum: np.ndarray
    log_sum_2: np.ndarray
    labels: np.ndarray
    num_classes: int
    own_similarity: np.ndarray
    similarities: np.ndarray
    neighbors: np.ndarray
    neighbor_similarities: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def choose_head(num_classes: int, num_features: int, num_folds: int) -> str:
    """Return 'linear' where the classifiers of all folds take at most MAX_HEAD_BYTES, else 'cosine'."""
    num_bytes = 4 * num_folds * (num_classes * num_features + 2 * num_features**2)
    return 'linear' if num_bytes <= MAX_HEAD_BYTES else 'cosine'


def out_of_fold_candidates(
    images: JudgedImages,
    folder: Path,
    *,
    head: str,
    num_candidates: int = 10,
    num_folds: int = 5,
    seed: int = 0,
    device: torch.device | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Candidates:
    """Score the images, and keep the results in `folder`, from which an interrupted command resumes.

    Every rank fits; they share the images to score, and must share the folder.

    Args:
        head: one of HEADS.
        num_candidates: K, limited by the number of classes.
        num_folds: number of folds of the linear head; fewer if there are fewer images.
        seed: seed of the folds.

    Raises:
        ValueError: fewer than two images, or an unknown head.
        OSError: no space for the results.
    """
    if head not in HEADS or len(images) < 2:
        raise ValueError(f'head {head}, {len(images)} images: must be one of {", ".join(HEADS)}, for 2 images or more')
    device = device or torch.device('cpu')
    num_candidates = min(num_candidates, images.num_classes)
    num_folds = min(num_folds, len(images)) if head == 'linear' else 0
    key: dict[str, Any] = {}
    if group.is_main:
        key = {**images.key(), 'head': head, 'folds': num_folds, 'seed': seed, 'members': MAX_MEMBERS}
    columns: dict[str, tuple[type, tuple[int, ...]]] = {
        'classes': (np.int32, (num_candidates,)),
        **dict.fromkeys(('logits', 'similarities'), (np.float32, (num_candidates,))),
        **dict.fromkeys(('own', 'log_sum', 'log_sum_2', 'own_similarity'), (np.float32, ())),
        'neighbors': (np.int32, (NUM_NEIGHBORS,)),
        'neighbor_similarities': (np.float32, (NUM_NEIGHBORS,)),
    }
    store = _shared_store(folder / 'scores', len(images), columns, key, group)
    if not store.is_complete:
        means = LeaveOneOutMeans(images, device)
        folds, heads = np.zeros(len(images), np.int64), list[LinearHead]()
        if head == 'linear':
            folds = stratified_folds(images.labels, num_folds, seed=seed)
            heads = FoldedDiscriminants(images, folds, device).heads()
        scorer = _Scorer(images, means, folds, heads, num_candidates)
        _fill(store, scorer, group)
        store = ColumnStore(folder / 'scores', done=np.ones(len(images), bool))
    return Candidates(labels=images.labels, num_classes=images.num_classes, **store.columns)


def _shared_store(
    folder: Path, num_rows: int, columns: Mapping[str, Any], key: Mapping[str, Any], group: ProcessGroup
) -> ColumnStore:
    """Open or create a store on the main rank, then on the others."""
    done = open_or_create(folder, num_rows, columns, key).done if group.is_main else None
    return ColumnStore(folder, writer=group.rank, done=group.broadcast_object(done))


def _fill(store: ColumnStore, scorer: '_Scorer', group: ProcessGroup) -> None:
    """Score this rank's parts of the images that are not done; return when all ranks have."""
    starts = range(0, len(store.done), _ROWS_PER_PART)
    parts = [slice(start, min(start + _ROWS_PER_PART, len(store.done))) for start in starts][group.shard(len(starts))]
    left = [part for part in parts if not store.done[part].all()]
    for part in progress_bar(left, total=len(parts), label='candidates', start=len(parts) - len(left)):
        store.write(part, scorer.scores(np.arange(part.start, part.stop)))
    store.flush()
    group.barrier()


class _Scorer:
    """Scores images by the classifier of their fold, or without folds by the means of classes without each image."""

    def __init__(
        self,
        images: JudgedImages,
        means: LeaveOneOutMeans,
        folds: np.ndarray,
        heads: Sequence[LinearHead],
        num_candidates: int,
    ) -> None:
        self._images, self._means, self._folds, self._k = images, means, folds, num_candidates
        self._search = NeighborSearch(images, means.spread)
        self._is_cosine = not heads
        self._heads = [_padded(head) for head in heads or [means.head]]

    @torch.inference_mode()
    def scores(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns of some images."""
        columns: dict[str, np.ndarray] = {}
        for fold in np.unique(self._folds[positions]).tolist():
            in_fold = np.flatnonzero(self._folds[positions] == fold)
            for some in row_blocks(in_fold, max(self._heads[fold].num_classes, self._images.num_features)):
                for name, values in self._batch(positions[some], self._heads[fold]).items():
                    array = values.cpu().numpy()
                    columns.setdefault(name, np.empty((len(positions), *array.shape[1:]), array.dtype))[some] = array
        return columns

    def _batch(self, positions: np.ndarray, head: LinearHead) -> dict[str, torch.Tensor]:
        features, labels, weights = self._images.at(positions, self._means.directions.device)
        centered, every = self._means.centered(features), torch.arange(len(labels), device=labels.device)
        own_similarity = self._means.own_similarity(centered, labels, weights)
        logits = head.logits(centered if self._is_cosine else features)  # (batch, C or more)
        if self._is_cosine:
            logits[every, labels] = (own_similarity * self._means.scale).nan_to_num(nan=NEVER)
        columns = {'own': logits[every, labels], **_best_and_sums(logits, self._k)}
        classes = columns['classes']
        similarities = torch.einsum('nkd,nd->nk', self._means.directions[classes], centered)
        neighbors, near = self._search.nearest(features, positions, classes.cpu().numpy())
        return {
            **columns,
            'classes': classes.int(),
            'neighbors': torch.from_numpy(neighbors),
            'neighbor_similarities': torch.from_numpy(near),
            'own_similarity': own_similarity,
            'similarities': torch.where(classes == labels[:, None], own_similarity[:, None], similarities),
        }


def _padded(head: LinearHead) -> LinearHead:
    """Return the classifier with further classes, of logit -inf, so that there are whole groups."""
    rest = -head.num_classes % _GROUP
    weight = torch.nn.functional.pad(head.weight, (0, 0, 0, rest))
    return LinearHead(weight, torch.nn.functional.pad(head.bias, (0, rest), value=-torch.inf))


def _best_and_sums(logits: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
    """Return the K best classes with their logits, and the log-sums; logits are (batch, groups * _GROUP).

    topk over 50,000 columns is slow, so it compares groups first: each of the K best is the best of its group, or in
    the group of a better one. softmax is one pass per row, and fast also where exponentials are denormal.
    """
    grouped = logits.view(len(logits), -1, _GROUP)
    groups = grouped.amax(dim=2).topk(min(k, grouped.shape[1]), dim=1).indices  # (batch, k)
    among = grouped.gather(1, groups[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    best = among.topk(k, dim=1)
    classes = groups.gather(1, best.indices // _GROUP) * _GROUP + best.indices % _GROUP
    probabilities = logits.softmax(dim=1)
    log_sum = best.values[:, 0] - probabilities.gather(1, classes[:, :1])[:, 0].log()
    return {
        'classes': classes,
        'logits': best.values,
        'log_sum': log_sum,
        'log_sum_2': 2 * (probabilities.norm(dim=1).log() + log_sum),
    }
