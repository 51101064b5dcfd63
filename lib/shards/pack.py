"""One split into shards: in parallel, going on where an earlier call stopped, read back before it counts as done."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.annotations import ClassNames
from lib.dataset.images import EncodedImages
from lib.errors import UserError
from lib.runtime.files import replace_atomically, sync_folder, write_json
from lib.runtime.log import LOGGER, progress_bar
from lib.runtime.workers import run_tasks
from lib.shards.images import ShardImages, ShardReader
from lib.shards.index import COLUMNS, FORMAT, INDEX, Contents, Shard, write_table
from lib.shards.write import (
    PARTS,
    Encoding,
    ShardTask,
    ShardWriter,
    part_path,
    read_part,
    shard_name,
)

SETTINGS = 'pack.json'
_MIN_SHARD, _MAX_SHARD, _WANTED_SHARDS = 256, 10_000, 64
_SAMPLE = 500
_TAR_BYTES = 2560  # headers, padding, label and path of one image


@dataclass(frozen=True)
class SplitJob:
    """What is packed, how, and where to.

    Attributes:
        folder: of this split's shards.
        images, labels, names: by row; names as annotated, labels -1 where unknown.
        digest: of names and labels.
        classes: their names; None where they have none.
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
        return -(-len(self.labels) // self.images_per_shard)

    def settings(self) -> dict[str, Any]:
        """Return what must be the same for a call to go on with the shards of an earlier one."""
        return {
            'format': FORMAT,
            'digest': self.digest,
            'classes': hashlib.sha256(msgspec.json.encode(self.classes)).hexdigest(),
            'num_images': len(self.labels),
            'images_per_shard': self.images_per_shard,
            **self.encoding.settings(),
        }

    def task(self, number: int) -> ShardTask:
        """Return the work of one shard."""
        rows = slice(number * self.images_per_shard, (number + 1) * self.images_per_shard)
        return ShardTask(number, rows.start, self.labels[rows], self.names[rows])


@dataclass(frozen=True)
class PackedSplit:
    """What came of it: sums over the shards, and (row, reason) of the images that cannot be decoded."""

    shards: list[Shard]
    num_images: int
    bad: list[tuple[int, str]]

    @property
    def bytes_before(self) -> int:
        return sum(shard.source_bytes for shard in self.shards)

    @property
    def bytes_after(self) -> int:
        return sum(shard.size for shard in self.shards)


def images_per_shard(num_images: int) -> int:
    """Return a portion that keeps every core busy with few images, and the number of files low with many."""
    return min(_MAX_SHARD, max(_MIN_SHARD, -(-num_images // _WANTED_SHARDS)))


def check_folder(job: SplitJob) -> None:
    """See that the folder is new, or holds shards of the same images with the same settings.

    Raises:
        UserError: it does not.
    """
    folder, path = job.folder, job.folder / SETTINGS
    if not path.exists():
        # What a killed process left before its first file was whole has a name with a dot.
        if folder.exists() and any(not path.name.startswith('.') for path in folder.iterdir()):
            raise UserError(f'{folder} holds files that are no packed images; give another --PACK_OUT')
        return
    try:
        earlier = json.loads(path.read_bytes())
        differing = [name for name, value in job.settings().items() if earlier.get(name) != value]
    except (OSError, ValueError, AttributeError):
        raise UserError(f'{path}: cannot be read; --OVERWRITE True renames {folder.parent} aside') from None
    if differing:
        name = differing[0]
        plainly = {'digest': 'other images or labels', 'num_images': 'other images', 'classes': 'other class names'}
        what = plainly.get(name) or f'{name} {earlier.get(name)} (now {job.settings()[name]})'
        raise UserError(
            f'{folder} was packed with {what}: give another --PACK_OUT, or --OVERWRITE True, which renames '
            f'{folder.parent} aside'
        )


def bytes_needed(job: SplitJob) -> int:
    """Estimate what copying will add to the disk, from the sizes of a sample."""
    left = len(_unfinished(job)) * job.images_per_shard
    if (job.folder / INDEX).exists() or not left:
        return 0
    sizes = []
    for row in np.unique(np.linspace(0, len(job.labels) - 1, _SAMPLE).astype(int)).tolist():
        try:
            sizes.append(Path(job.images.name(row)).stat().st_size)
        except OSError:  # said when it is packed
            continue
    return int(min(left, len(job.labels)) * (np.mean(sizes) + _TAR_BYTES)) if sizes else 0


def pack_split(job: SplitJob, *, num_workers: int) -> PackedSplit:
    """Write the shards that are missing, read all of them back, then write the index.

    Raises:
        UserError: as `check_folder` and ShardWriter; what was read back is not what was written.
        OSError: writing fails.
    """
    check_folder(job)
    write_json(job.folder / SETTINGS, job.settings())
    (job.folder / PARTS).mkdir(exist_ok=True)
    for left_over in (*job.folder.glob('.*.tmp*'), *(job.folder / PARTS).glob('.*.tmp*')):
        left_over.unlink(missing_ok=True)
    index = job.folder / INDEX
    if index.exists():
        _take_apart(job, _damaged(job, index, num_workers))
    if not index.exists():
        _write_shards(job, num_workers)
        with replace_atomically(index) as temporary:
            _join_parts(job, temporary)
            damaged = _damaged(job, temporary, num_workers)
            if damaged:
                for number in damaged:
                    part_path(job.folder, number).unlink(missing_ok=True)
                first = next(iter(damaged.values()))
                raise UserError(f'{first}; the same command again writes this shard anew')
    shutil.rmtree(job.folder / PARTS)
    return _packed(ShardImages(index))


def _unfinished(job: SplitJob) -> list[int]:
    return [number for number in range(job.num_shards) if read_part(job.folder, number) is None]


def _write_shards(job: SplitJob, num_workers: int) -> None:
    missing = _unfinished(job)
    done = len(job.labels) - sum(len(job.task(number).labels) for number in missing)
    if done:
        LOGGER.info('%s: goes on after %d of %d images', job.folder, done, len(job.labels))
    writer = ShardWriter(job.folder, job.images, job.encoding, job.max_bad_fraction)
    tasks = _Tasks(job, missing)
    for _ in _with_bar(writer, tasks, job, num_workers, label=f'pack {job.folder.name}', start=done):
        pass
    sync_folder(job.folder)


def _damaged(job: SplitJob, index: Path, num_workers: int) -> dict[int, str]:
    """Read everything back; return {number: what is wrong} of the shards that are not what was written."""
    reader = ShardReader(ShardImages(index))
    numbers = range(job.num_shards)
    found = _with_bar(reader, numbers, job, num_workers, label=f'verify {job.folder.name}')
    return {number: fault for number, fault in found if fault}


def _with_bar(
    work: Callable, tasks: Sequence, job: SplitJob, num_workers: int, *, label: str, start: int = 0
) -> Iterator[Any]:
    with progress_bar((), total=len(job.labels), label=label, unit='image', start=start) as bar:
        results = run_tasks(work, tasks, num_workers=num_workers, progress=bar.update)
        with closing(results):
            yield from results


@dataclass(frozen=True)
class _Tasks(Sequence):
    """The tasks of some shards, made when they are handed out: names and labels are not copied before."""

    job: SplitJob
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> ShardTask:
        return self.job.task(self.numbers[place])


def _join_parts(job: SplitJob, path: Path) -> None:
    parts = [read_part(job.folder, number) for number in range(job.num_shards)]
    lost = [shard_name(number) for number, part in enumerate(parts) if part is None]
    if lost:
        raise UserError(f'{job.folder / lost[0]}: was changed while packing; run the same command again')
    table = pa.concat_tables(table.replace_schema_metadata() for table, _ in parts)
    contents = Contents(
        settings=job.settings(),
        digest=job.digest,
        num_classes=job.num_classes,
        shards=[shard for _, shard in parts],
        class_names=job.classes and job.classes.names,
        parents=job.classes.parents if job.classes else [],
    )
    write_table(path, table, contents)


def _take_apart(job: SplitJob, damaged: dict[int, str]) -> None:
    """Make parts of an index again where shards must be written anew; nothing to do when all are whole."""
    if not damaged:
        return
    for fault in damaged.values():
        LOGGER.warning('%s; this shard is written anew', fault)
    index = job.folder / INDEX
    packed = ShardImages(index).index
    for number, shard in enumerate(packed.contents.shards):
        if number not in damaged:
            rows = packed.table.slice(number * job.images_per_shard, job.images_per_shard)
            with replace_atomically(part_path(job.folder, number)) as temporary:
                write_table(temporary, rows.select(COLUMNS.names), shard)
    index.unlink()


def _packed(images: ShardImages) -> PackedSplit:
    faults = np.flatnonzero(np.asarray(pc.not_equal(images.index.faults, '')))
    bad = [(row, images.index.faults[row].as_py()) for row in faults.tolist()]
    return PackedSplit(images.index.contents.shards, len(images), bad)
