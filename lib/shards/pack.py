"""Pack a split into shards: by workers and ranks, resumed where an earlier call stopped, and verified afterwards."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.annotations import ClassNames
from lib.dataset.images import EncodedImages
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.distributed.tasks import run_on_ranks
from lib.errors import UserError, unquoted
from lib.runtime.files import remove, replace_atomically, sync_folder, write_json
from lib.runtime.log import LOGGER, progress_bar
from lib.runtime.read_file import read_text
from lib.shards.encode import Encoding
from lib.shards.images import ShardImages, ShardReader
from lib.shards.index import COLUMNS, FORMAT, INDEX, SETTINGS, Contents, Shard, write_table
from lib.shards.write import PARTS, ShardTask, ShardWriter, part_path, read_part, shard_name

_MIN_SHARD, _MAX_SHARD, _NUM_SHARDS = 256, 10_000, 64
_SAMPLE = 500
_TAR_BYTES = 2560  # headers, padding, label and path of one image


@dataclass(frozen=True)
class SplitJob:
    """The images of a split, their encoding and their folder.

    Attributes:
        folder: folder of this split's shards.
        images, labels, names: by row; names as annotated, labels -1 if unknown.
        digest: digest of names and labels.
        classes: their names; None if they have none.
        images_per_shard: the last shard may have fewer.
        max_bad_fraction: as in ShardWriter.
    """

    folder: Path
    images: EncodedImages
    labels: np.ndarray
    names: pa.LargeStringArray
    num_classes: int
    digest: str
    classes: ClassNames | None
    encoding: Encoding
    images_per_shard: int
    max_bad_fraction: float

    @property
    def num_shards(self) -> int:
        """Return the number of shards."""
        return -(-len(self.labels) // self.images_per_shard)

    def settings(self) -> dict[str, Any]:
        """Return the settings that must be equal to resume with the shards of an earlier call."""
        return {
            'format': FORMAT,
            'digest': self.digest,
            'classes': hashlib.sha256(msgspec.json.encode(self.classes)).hexdigest(),
            'num_images': len(self.labels),
            'images_per_shard': self.images_per_shard,
            **self.encoding.settings(),
        }

    def task(self, number: int) -> ShardTask:
        """Return the task of one shard."""
        rows = slice(number * self.images_per_shard, (number + 1) * self.images_per_shard)
        return ShardTask(number, rows.start, self.labels[rows], self.names[rows])


@dataclass(frozen=True)
class PackedSplit:
    """The result of packing.

    Attributes:
        shards: shards of the split.
        num_images: number of images of the split, with and without pixels.
        bad: (row, reason) of the images that cannot be decoded.
    """

    shards: list[Shard]
    num_images: int
    bad: list[tuple[int, str]]

    @property
    def bytes_before(self) -> int:
        """Return the size of the source images."""
        return sum(shard.source_bytes for shard in self.shards)

    @property
    def bytes_after(self) -> int:
        """Return the size of the shards."""
        return sum(shard.size for shard in self.shards)


def images_per_shard(num_images: int) -> int:
    """Return the images per shard: few images keep every core busy, many images make few files."""
    return min(_MAX_SHARD, max(_MIN_SHARD, -(-num_images // _NUM_SHARDS)))


class FolderConflict(Exception):
    """The folder of a split cannot be packed into; the message states the reason.

    Attributes:
        is_packed: the folder holds packed images, which may be replaced.
    """

    def __init__(self, message: str, *, is_packed: bool) -> None:
        super().__init__(message)
        self.is_packed = is_packed


def check_folder(job: SplitJob) -> None:
    """Check that the folder is new, or holds shards of the same images with the same settings.

    Raises:
        FolderConflict: it does not.
    """
    folder, path = job.folder, job.folder / SETTINGS
    if not path.exists():
        # A process that was killed before its first file was complete leaves names with a dot.
        if folder.exists() and any(not path.name.startswith('.') for path in folder.iterdir()):
            raise FolderConflict(f'{folder} holds files that are not packed images', is_packed=False)
        return
    settings = job.settings()
    try:
        earlier = json.loads(read_text(path))
        differing = [name for name, value in settings.items() if earlier.get(name) != value]
    except (OSError, ValueError, AttributeError, RecursionError):
        raise FolderConflict(f'{path} cannot be read', is_packed=True) from None
    if differing:
        name = differing[0]
        texts = {'digest': 'other images or labels', 'num_images': 'other images', 'classes': 'other class names'}
        difference = texts.get(name) or f'{name} {unquoted(str(earlier.get(name)))} (now {settings[name]})'
        raise FolderConflict(f'{folder} was packed with {difference}', is_packed=True)


def bytes_needed(job: SplitJob) -> int:
    """Return an estimate of the bytes that packing adds to the disk, from the sizes of a sample.

    It is 0 for a complete folder, and for images that are encoded again, which take little.
    """
    num_left = len(_unfinished(job)) * job.images_per_shard
    if (job.folder / INDEX).exists() or not num_left:
        return 0
    rows = np.unique(np.linspace(0, len(job.labels) - 1, _SAMPLE).astype(int)).tolist()
    sizes = [size for row in rows if (size := job.encoding.num_bytes(job.images, row))]
    return int(min(num_left, len(job.labels)) * (np.mean(sizes) + _TAR_BYTES)) if sizes else 0


def pack_split(job: SplitJob, *, num_workers: int, group: ProcessGroup = SINGLE_PROCESS) -> PackedSplit:
    """Write the missing shards, read all of them back, then write the index. Ranks share the shards, and the folder.

    Raises:
        FolderConflict: as check_folder.
        UserError: as ShardWriter; also if the bytes read back differ from the written ones.
        OSError: writing fails.
    """
    run, index = _Run(job, num_workers, group), job.folder / INDEX
    if group.is_main:
        _prepare_folder(job)
    if group.broadcast_object(group.is_main and index.exists()):
        _restore_parts(job, run.damaged_shards(index))
    if not group.broadcast_object(group.is_main and index.exists()):
        run.write_shards()
        with replace_atomically(index) if group.is_main else nullcontext(index) as temporary:
            if group.is_main:
                _join_parts(job, temporary)
            damaged = run.damaged_shards(group.broadcast_object(temporary))
            if damaged:
                for number in damaged:
                    remove(part_path(job.folder, number))
                first = min(damaged)
                raise UserError(f'{damaged[first]}; run the same command again to write this shard again')
    if group.is_main:
        remove(job.folder / PARTS)
    group.barrier()  # until the index has its name
    return _result(ShardImages(index))


def _prepare_folder(job: SplitJob) -> None:
    """Check the folder, write the settings, and remove what a call that was stopped left. Raises: FolderConflict."""
    check_folder(job)
    write_json(job.folder / SETTINGS, job.settings())
    (job.folder / PARTS).mkdir(exist_ok=True)
    for temporary in (*job.folder.glob('.*.tmp*'), *(job.folder / PARTS).glob('.*.tmp*')):
        remove(temporary)


def _unfinished(job: SplitJob) -> list[int]:
    return [number for number in range(job.num_shards) if read_part(job.folder, number) is None]


@dataclass(frozen=True)
class _Run:
    """The passes over the shards, which ranks and their worker processes share."""

    job: SplitJob
    num_workers: int
    group: ProcessGroup

    def write_shards(self) -> None:
        """Write the shards that are missing."""
        job = self.job
        missing = self.group.broadcast_object(_unfinished(job) if self.group.is_main else [])
        num_done = len(job.labels) - sum(len(job.task(number).labels) for number in missing)
        if num_done:
            LOGGER.info('%s: resuming after %d of %d images', job.folder, num_done, len(job.labels))
        writer = ShardWriter(job.folder, job.images, job.encoding, job.max_bad_fraction)
        self._results(writer, _Tasks(job, missing), label=f'pack {job.folder.name}', start=num_done)
        sync_folder(job.folder)

    def damaged_shards(self, index: Path) -> dict[int, str]:
        """Read all shards back; return {number: fault} of those that differ from the written ones, on rank 0."""
        reader, numbers = ShardReader(ShardImages(index)), range(self.job.num_shards)
        results = self._results(reader, numbers, label=f'verify {self.job.folder.name}')
        return {number: fault for number, fault in results if fault}

    def _results(self, work: Callable, tasks: Sequence, *, label: str, start: int = 0) -> list[Any]:
        with progress_bar((), total=len(self.job.labels), label=label, unit='image', start=start) as bar:

            def progress(num_images: int) -> None:
                bar.update(num_images)

            return list(run_on_ranks(work, tasks, num_workers=self.num_workers, progress=progress, group=self.group))


@dataclass(frozen=True)
class _Tasks(Sequence):
    """The tasks of some shards, created on access, so that names and labels are not copied before."""

    job: SplitJob
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, position: int) -> ShardTask: ...
    @overload
    def __getitem__(self, position: slice) -> '_Tasks': ...
    def __getitem__(self, position: int | slice) -> 'ShardTask | _Tasks':
        if isinstance(position, slice):
            return _Tasks(self.job, self.numbers[position])
        return self.job.task(self.numbers[position])


def _join_parts(job: SplitJob, path: Path) -> None:
    parts = []
    for number in range(job.num_shards):
        part = read_part(job.folder, number)
        if part is None:
            raise UserError(f'{job.folder / shard_name(number)}: was changed while packing; run the same command again')
        parts.append(part)
    table = pa.concat_tables(table.replace_schema_metadata() for table, _ in parts)
    contents = Contents(
        settings=job.settings(),
        digest=job.digest,
        num_classes=job.num_classes,
        shards=[shard for _, shard in parts],
        class_names=job.classes.names if job.classes else None,
        parents=job.classes.parents if job.classes else [],
    )
    write_table(path, table, contents)


def _restore_parts(job: SplitJob, damaged: dict[int, str]) -> None:
    """Split the index into parts again, without those of damaged shards; do nothing if no shard is damaged."""
    if not damaged:
        return
    for fault in damaged.values():
        LOGGER.warning('%s; this shard is written again', fault)
    index = job.folder / INDEX
    packed = ShardImages(index).index
    for number, shard in enumerate(packed.contents.shards):
        if number not in damaged:
            rows = packed.table.slice(number * job.images_per_shard, job.images_per_shard)
            with replace_atomically(part_path(job.folder, number)) as temporary:
                write_table(temporary, rows.select(COLUMNS.names), shard)
    remove(index)


def _result(images: ShardImages) -> PackedSplit:
    faults = np.flatnonzero(np.asarray(pc.not_equal(images.index.faults, '')))
    bad = [(row, images.index.faults[row].as_py()) for row in faults.tolist()]
    return PackedSplit(images.index.contents.shards, len(images), bad)
