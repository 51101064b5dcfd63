"""Stored features: one row per image, read in blocks, or as the batches of a training epoch or of a split."""

import mmap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from lib.dataset.decode import DecodeError
from lib.dataset.index import ClassIndex
from lib.dataset.pipeline import Batch
from lib.dataset.reader import BatchRequest, bad_image_reason, read_replacement
from lib.runtime.read_file import available_memory


@dataclass(frozen=True)
class Features:
    """The features that a backbone computes of a split: one row per image, in input order.

    Attributes:
        values: (n, num_features) float32 or float16, usually memory-mapped; zeros where the image could not be decoded.
        labels: (n,) int64; -1 where unknown.
        readable: (n,) bool.
        bad: (row, reason) of the images that could not be decoded.
    """

    values: np.ndarray
    labels: np.ndarray
    readable: np.ndarray
    bad: list[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: np.ndarray) -> 'Features':
        """Return the given rows, in memory and renumbered from 0."""
        positions = {int(row): position for position, row in enumerate(rows)}
        bad = [(positions[row], reason) for row, reason in self.bad if row in positions]
        return Features(np.asarray(self.values[rows]), self.labels[rows], self.readable[rows], bad)

    def batches(
        self, size: int, device: torch.device, part: slice = slice(None)
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield float32 values (batch, num_features), labels and readable flags (batch,), in order, on the device.

        Args:
            size: images per batch.
            part: consecutive rows; all by default.
        """
        first, stop, _ = part.indices(len(self))
        for start in range(first, stop, size):
            rows = slice(start, min(start + size, stop))
            values = torch.from_numpy(np.array(self.values[rows]))  # copied: torch wants writable memory
            labels, readable = torch.from_numpy(self.labels[rows]), torch.from_numpy(np.asarray(self.readable[rows]))
            yield values.to(device).float(), labels.to(device), readable.to(device)


@dataclass
class FeatureReader:
    """Maps requests to batches of stored features, as BatchReader and BatchPipeline map them to batches of images.

    Images that could not be decoded are replaced by the same images as there.

    Attributes:
        views: the features of the split, once per view; epoch e reads view e mod len(views).
        device: device of the batches.
        image_name: row -> name of the image, for messages.
        seed, on_bad, index, class_names, hint: as in BatchReader.
        is_shuffled: the rows of a batch are far apart in the files.
        labels: label of each row, (n,) int64.
    """

    views: Sequence[Features]
    device: torch.device
    image_name: Callable[[int], str]
    seed: int
    on_bad: str = 'mark'
    index: ClassIndex | None = None
    class_names: Sequence[str] = ()
    hint: str = ''
    is_shuffled: bool = False
    labels: np.ndarray = field(init=False)
    sizes: ClassVar[tuple[int, ...]] = (0,)  # of images, which it does not read

    def __post_init__(self) -> None:
        self.labels = self.views[0].labels

    def name(self, row: int) -> str:
        """Return the name of an image."""
        return self.image_name(row)

    def __call__(self, requests: Iterator[BatchRequest]) -> Iterator[Batch]:
        """Yield the batch of each request, in order; its images are float32 features (batch, num_features).

        Raises:
            UserError: as BatchReader.
        """
        return map(self._batch, requests)

    def _batch(self, request: BatchRequest) -> Batch:
        view = self._open_views[request.epoch % len(self.views)]
        rows, bad = request.rows, list[tuple[int, str]]()
        readable, used = view.readable[rows], rows
        if not readable.all():
            used = rows.copy()
            for position in np.flatnonzero(~readable).tolist():
                used[position] = self._replacement(view, request, position, bad)
            readable = view.readable[used]
        # Gathered in the stored type, so that a GPU gets half the bytes of float16.
        values = view.values.index_select(0, torch.from_numpy(used)).to(self.device, non_blocking=True).float()
        labels, flags = (
            torch.from_numpy(array).to(self.device, non_blocking=True) for array in (self.labels[rows], readable)
        )
        return Batch(values, labels, flags, torch.from_numpy(rows), bad)

    def _replacement(self, view: '_OpenView', request: BatchRequest, position: int, bad: list[tuple[int, str]]) -> int:
        """Return the row to read instead of an unreadable one: that row itself if it is only marked."""
        row = int(request.rows[position])
        bad.append((row, bad_image_reason(self, row, view.reasons[row])))
        if self.on_bad != 'replace':
            return row
        slot = request.first_slot + position
        return read_replacement(self, row, view.check, bad, epoch=request.epoch, slot=slot)

    @cached_property
    def _open_views(self) -> list['_OpenView']:
        return [_OpenView(view, is_shuffled=self.is_shuffled) for view in self.views]


class _OpenView:
    """Features with a tensor that shares their memory."""

    def __init__(self, features: Features, *, is_shuffled: bool) -> None:
        with warnings.catch_warnings():  # a complete cache is mapped read-only, and nothing writes to the values
            warnings.filterwarnings('ignore', 'The given NumPy array is not writable')
            self.values = torch.from_numpy(features.values)
        if is_shuffled:
            _read_no_neighbors(features.values)
        self.readable = np.array(features.readable)
        self.reasons = dict(features.bad)

    def check(self, row: int) -> int:
        """Return the row. Raises: DecodeError."""
        if not self.readable[row]:
            raise DecodeError(self.reasons[row])
        return row


def _read_no_neighbors(values: np.ndarray) -> None:
    """Keep the system from reading 16 rows for one, which pays off only for files that stay in memory."""
    available = available_memory()
    memory = getattr(values, '_mmap', None)
    if memory is not None and available is not None and values.nbytes > available / 2 and hasattr(mmap, 'MADV_RANDOM'):
        memory.madvise(mmap.MADV_RANDOM)
