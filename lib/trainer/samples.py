"""Records of single training images over the epochs: the area under the margin, and forgetting events.

A mislabeled image is predicted as its true class by what the model learns from others, so its margin stays low and its
predictions change more often. Only what a step computes anyway is recorded, so the images are augmented ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.loss.sharded_logits import LabelIndex, Logits, values_and_subset
from lib.runtime.column_files import create, describe
from lib.runtime.column_store import ColumnStore, open_complete
from lib.runtime.log import LOGGER

SAMPLES = 'samples'  # folder in a run folder
_COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    'aum': (np.float32, ()),
    'num_seen': (np.int32, ()),
    'num_forgotten': (np.int32, ()),
    'is_learned': (np.bool_, ()),
}
_STATE: dict[str, type] = {
    'margin_sum': np.float64,
    'num_seen': np.int32,
    'num_forgotten': np.int32,
    'was_correct': np.bool_,
    'is_learned': np.bool_,
}


@dataclass(frozen=True)
class Samples:
    """The record of a run, one row per image of the training split, in its order.

    Attributes:
        aum: (n,) float32 area under the margin: the mean margin (see margins_of) over the times that the image was
            seen; NaN if it never was (Pleiss et al., NeurIPS 2020).
        num_seen: (n,) int32, times that a step used the image; a sampler may repeat it within an epoch.
        num_forgotten: (n,) int32 forgetting events: it was predicted correctly, and the next time it was seen it was
            not (Toneva et al., ICLR 2019).
        is_learned: (n,) bool, it was predicted correctly at least once.
    """

    aum: np.ndarray
    num_seen: np.ndarray
    num_forgotten: np.ndarray
    is_learned: np.ndarray


def read_samples(folder: Path, num_images: int, digest: str) -> Samples | None:
    """Return the record of a run, memory-mapped; None if it has no record of this training split.

    Args:
        folder: folder of the run.
        num_images, digest: size and digest of the training split (DatasetSplit.digest), which covers names and labels.
    """
    store = open_complete(folder / SAMPLES, num_images, _COLUMNS, {'split': digest})
    return None if store is None else Samples(**store.columns)


@torch.no_grad()
def margins_of(logits: Logits, labels: torch.Tensor) -> torch.Tensor:
    """Return (batch,) float32: the logit of the label minus the largest other one; above 0 if the label is predicted.

    Pleiss et al., equation 1. If the logits are sharded, all ranks call it, and the largest one is over all shards.
    With sampled classes, it would ignore the other classes. With a single class, it is infinite.
    """
    values, subset = values_and_subset(logits)
    index = LabelIndex(labels[:, None], subset)
    own = index.gather(values)[:, 0]  # 0 where the label is in another shard
    top, classes = values.topk(min(2, values.shape[1]), dim=1)  # no copy of the logits
    classes = classes if subset is None else subset.to_classes(classes)
    rest = top.masked_fill_(classes == labels[:, None], -torch.inf).amax(dim=1)
    if subset is not None:
        own, rest = subset.all_gather(own).sum(dim=0), subset.all_gather(rest).amax(dim=0)
    return (own - rest).float()


class SampleRecord:
    """Collects the margins and predictions of every step, in memory of 18 bytes per image on the main rank.

    Margins of a step stay on its device until `flush`, which waits for it. The images are counted in the order of
    the epoch, so the record depends neither on the number of ranks nor on interruptions.

    Args:
        num_images: number of images of the training split.
        digest: digest of the training split.
        group: ranks that share each batch.
    """

    def __init__(self, num_images: int, digest: str, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._num_images, self._digest, self._group = num_images, digest, group
        self._state: dict[str, np.ndarray] = {}
        if group.is_main:
            self._state = {name: np.zeros(num_images, dtype) for name, dtype in _STATE.items()}
        self._pending: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(
        self, rows: torch.Tensor, bad: Sequence[tuple[int, str]], margins: torch.Tensor, correct: torch.Tensor
    ) -> None:
        """Add a step of this rank; every rank has the same number of images in every step.

        Args:
            rows: (batch,) int64 of the training split, on the CPU.
            bad: (row, reason) of images that could not be decoded, in place of which others were used.
            margins: (batch,).
            correct: (batch,) bool, predictions that are the label.
        """
        if bad:
            unread = torch.tensor([row for row, _ in bad], dtype=rows.dtype)
            rows = rows.masked_fill(torch.isin(rows, unread), -1)
        self._pending.append((rows, margins, correct))

    def flush(self) -> None:
        """Move the pending steps of all ranks into the record of the main rank. All ranks call it together."""
        if not self._pending:
            return
        steps = zip(*self._pending, strict=True)
        arrays = [torch.stack(tensors).cpu().numpy() for tensors in steps]  # (steps, batch) each
        self._pending = []
        ranks = self._group.all_gather_objects(arrays)
        if self._group.is_main:
            # Step after step, and within a step rank after rank: the order of the slots.
            rows, margins, correct = (np.concatenate(parts, axis=1).ravel() for parts in zip(*ranks, strict=True))
            seen = rows >= 0
            self._update(rows[seen], margins[seen].astype(np.float64), correct[seen])

    def _update(self, rows: np.ndarray, margins: np.ndarray, correct: np.ndarray) -> None:
        """Count images in the order in which they were seen; a row may occur several times."""
        state = self._state
        np.add.at(state['margin_sum'], rows, margins)  # one after the other, so the sum is always rounded alike
        np.add.at(state['num_seen'], rows, 1)
        state['is_learned'][rows[correct]] = True
        order = np.argsort(rows, kind='stable')
        rows, correct = rows[order], correct[order]
        is_first = np.diff(rows, prepend=-1) != 0
        before = np.where(is_first, state['was_correct'][rows], np.roll(correct, 1))
        np.add.at(state['num_forgotten'], rows[before & ~correct], 1)
        is_last = np.roll(is_first, -1)
        state['was_correct'][rows[is_last]] = correct[is_last]

    def state_dict(self) -> dict[str, torch.Tensor] | None:
        """Return tensors that share memory with the record, for a checkpoint; None on other ranks than the main one."""
        return {name: torch.from_numpy(array) for name, array in self._state.items()} or None

    def load_state_dict(self, state: Mapping[str, torch.Tensor] | None, source: Path | None) -> None:
        """Continue the record in a checkpoint; `state` None: the run had none until now, so it begins here.

        Raises:
            UserError: it is of another number of images, or damaged.
        """
        if not self._group.is_main:
            return
        if state is None:
            LOGGER.info('images are recorded from here on: %s has no record of them', source)
            return
        for name, array in self._state.items():
            saved = state.get(name) if isinstance(state, Mapping) else None
            values = saved.numpy() if isinstance(saved, torch.Tensor) else np.zeros(())
            if values.shape != array.shape or values.dtype != array.dtype or not np.isfinite(values).all():
                raise UserError(
                    f'{source}: its record of the training images is damaged ({name}); --TRAIN_TRACK_SAMPLES False '
                    'resumes without it'
                )
            array[:] = values

    def write(self, folder: Path) -> None:
        """Write the record into a run folder, where read_samples finds it. Raises: OSError."""
        state, num_seen = self._state, self._state['num_seen']
        aum = np.full(self._num_images, np.nan, np.float32)
        np.divide(state['margin_sum'], num_seen, out=aum, where=num_seen > 0, casting='same_kind')
        values = {name: state.get(name, aum) for name in _COLUMNS}
        create(folder / SAMPLES, describe(self._num_images, _COLUMNS, {'split': self._digest}))
        store = ColumnStore(folder / SAMPLES, done=np.zeros(self._num_images, bool))
        store.write(slice(0, self._num_images), values)
        store.flush()
