"""tools/pack.py: write the splits of DATASET into shards and report the result."""

import shlex
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from lib.builders.data import has_test_split, open_test_split, open_training_data
from lib.builders.loader import num_workers, stored_short_side
from lib.builders.recipe import resolve_recipe
from lib.builders.split import DatasetSplit
from lib.builders.training_data import TrainingData
from lib.config.defaults import Config
from lib.dataset.image_format import hint_of
from lib.dataset.images import EncodedImages
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.runtime.checkout import path_to_type
from lib.runtime.files import file_exists, write_json
from lib.runtime.folders import fresh_folder, has_content
from lib.runtime.log import LOGGER
from lib.runtime.mirror import is_mirrored
from lib.runtime.text import count_of, size_text
from lib.runtime.uploads import refresh
from lib.shards.encode import Copy, Encoding, Raw, Reencode
from lib.shards.index import INFO, SETTINGS
from lib.shards.pack import (
    FolderConflict,
    PackedSplit,
    SplitJob,
    bytes_needed,
    check_folder,
    images_per_shard,
    pack_split,
)
from lib.shards.write import TooManyBadImages
from lib.trainer.run_folder import BAD_IMAGES, write_bad_images

_SPLITS = ('train', 'valid', 'test')
# The files and folders that packing writes into PACK.OUT.
_OUTPUTS = {*_SPLITS, INFO, BAD_IMAGES}
_MAX_SHOWN = 5


def pack(cfg: Config, group: ProcessGroup = SINGLE_PROCESS) -> list[str]:
    """Pack the splits of DATASET into PACK.OUT/train, /valid and /test; return one summary line per split.

    The same call resumes where an earlier one was stopped, and writes damaged shards again. Ranks share the shards; the
    main rank prepares the folder, and the others wait for it.

    Raises:
        UserError: faults in the data; PACK.OUT holds other files; too little space; too many undecodable images.
    """
    started = time.perf_counter()
    out = _output_folder(cfg)
    with group.main_first():
        refresh(out, without=('',))

    def is_old() -> bool:
        if not cfg.OVERWRITE or not has_content(out):
            return False
        _check_is_packed(out)
        # What a command that was stopped left is resumed, also if it has renamed an earlier result.
        return file_exists(out / INFO) or not all(map(_can_resume, jobs.values()))

    if cfg.OVERWRITE and has_content(out):
        _check_is_packed(out)
    with group.main_first():
        data = open_training_data(cfg, quarantine=False)
        cfg = resolve_recipe(cfg, len(data.index()))
        _log_corrections(data)
        jobs = {kind: _job(cfg, data, split, out / kind) for kind, split in _splits(cfg, data)}
        if group.is_main and not is_old():
            _check_folders(cfg, out, jobs.values())
    lines, info = [], {}
    with fresh_folder(out, 'PACK.OUT', is_old) if group.is_main else nullcontext():
        needed = _check_folders(cfg, out, jobs.values()) if group.is_main else 0
        if needed:
            LOGGER.info('about %s are written to %s', size_text(needed), out)
        for kind, job in jobs.items():
            try:
                packed = pack_split(job, num_workers=num_workers(cfg.RUN.NUM_WORKERS), group=group)
            except KeyboardInterrupt:
                LOGGER.info('finished shards stay; run the same command again to resume')
                raise
            except TooManyBadImages as error:
                raise UserError(
                    f'{error.num_bad} of {error.num_images} images cannot be decoded, more than '
                    f'DATASET.MAX_BAD_FRACTION {job.max_bad_fraction:g}; the first is {error.first}. '
                    'Finished shards stay'
                ) from None
            if not group.is_main:
                continue
            _report_bad(out, kind, job, packed)
            lines.append(_summary(kind, packed))
            info[kind] = _info(kind, packed)
        if group.is_main:
            write_json(out / INFO, {'splits': info})  # last: with it, the folder can be trained on
    return [*lines, f'packed and verified in {time.perf_counter() - started:.0f} s']


def next_command(argv: Sequence[str], out: str) -> str:
    """Return the command that trains on the result: main.py with the given options, except those of packing."""
    options, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        if word.startswith('--PACK_') or word.partition('=')[0] in ('--OVERWRITE', '--DATASET_SHARDS'):
            while '=' not in word and rest and not rest[0].startswith('--'):
                rest.pop(0)
        else:
            options.append(word)
    return shlex.join(['python', path_to_type('main.py'), *options, '--DATASET_SHARDS', out])


def _output_folder(cfg: Config) -> Path:
    if not cfg.PACK.OUT:
        raise UserError('PACK.OUT is empty: give the folder of the shards, --PACK_OUT FOLDER')
    if cfg.DATASET.NAME.startswith('cifar') and not cfg.DATASET.SHARDS:
        raise UserError(f'DATASET.NAME {cfg.DATASET.NAME} is in memory: it has no image files to pack')
    out = Path(cfg.PACK.OUT)
    if out.exists() and not out.is_dir():
        raise UserError(f'PACK.OUT {out}: is a file, but must be a folder')
    if cfg.DATASET.SHARDS and out.resolve() == Path(cfg.DATASET.SHARDS).resolve():
        raise UserError(f'PACK.OUT {out} is DATASET.SHARDS, too; give another --PACK_OUT')
    return out


def _log_corrections(data: TrainingData) -> None:
    if 'train' in data.corrections:
        LOGGER.info('train: packed with corrected labels, and with all images')
        LOGGER.info('  --DATASET_CORRECTIONS leaves out dropped ones when the shards are trained on')
    if data.train.weights is not None:
        LOGGER.warning('train: weights of images are not packed; --DATASET_CORRECTIONS or the annotations have them')


def _check_is_packed(out: Path) -> None:
    """Raise UserError if a folder to be renamed holds other files, such as the photos themselves."""
    others = sorted(path.name for path in out.iterdir() if path.name not in _OUTPUTS and path.name[0] != '.')
    others += [kind for kind in _SPLITS if has_content(out / kind) and not (out / kind / SETTINGS).exists()]
    if others:
        raise UserError(f'PACK.OUT {out} holds {others[0]}, which is not packed data; give another --PACK_OUT')


def _can_resume(job: SplitJob) -> bool:
    try:
        check_folder(job)
    except FolderConflict:
        return False
    return True


def _check_folders(cfg: Config, out: Path, jobs: Collection[SplitJob]) -> int:
    """Return about how many bytes packing adds. Raises: UserError, if a folder or the disk cannot take them."""
    for job in jobs:
        _check_folder(job)
    needed = sum(map(bytes_needed, jobs))
    _check_space(out, needed, cfg.PACK.IMAGES)
    return needed


def _check_folder(job: SplitJob) -> None:
    """Raise UserError if the folder of a split holds other files or other packed images."""
    try:
        check_folder(job)
    except FolderConflict as error:
        rename = f', or --OVERWRITE True, which renames {job.folder.parent}' if error.is_packed else ''
        raise UserError(f'{error}; give another --PACK_OUT{rename}') from None


def _splits(cfg: Config, data: TrainingData) -> Iterator[tuple[str, DatasetSplit]]:
    yield 'train', data.train
    if data.valid is not None:
        yield 'valid', data.valid
    if has_test_split(cfg):
        yield 'test', open_test_split(cfg, data.class_names)


def _job(cfg: Config, data: TrainingData, split: DatasetSplit, folder: Path) -> SplitJob:
    assert isinstance(split.images, EncodedImages)  # _output_folder rejects arrays in memory
    return SplitJob(
        folder=folder,
        images=split.images,
        labels=split.labels,
        names=split.names,
        num_classes=split.num_classes,
        digest=split.digest(),
        classes=data.classes,
        encoding=_encoding(cfg),
        images_per_shard=cfg.PACK.SHARD_IMAGES or images_per_shard(len(split)),
        max_bad_fraction=cfg.DATASET.MAX_BAD_FRACTION,
    )


def _encoding(cfg: Config) -> Encoding:
    if cfg.PACK.IMAGES == 'copy':
        return Copy()
    short_side = cfg.PACK.SHORT_SIDE or stored_short_side(cfg)
    return Raw(short_side) if cfg.PACK.IMAGES == 'raw' else Reencode(short_side, cfg.PACK.QUALITY)


def _check_space(out: Path, needed: int, images: str) -> None:
    if is_mirrored(out):  # each shard is on the disk only until it is uploaded
        return
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    if needed > (free := shutil.disk_usage(parent).free):
        raise UserError(
            f'PACK.OUT {out}: PACK.IMAGES {images} needs about {size_text(needed)}, and {size_text(free)} are free; '
            '--PACK_IMAGES reencode needs much less'
        )


def _report_bad(out: Path, kind: str, job: SplitJob, packed: PackedSplit) -> None:
    bad = {job.names[row].as_py(): reason for row, reason in packed.bad}
    write_bad_images(out, kind, bad)
    if bad:
        shown = '; '.join(f'{name}: {reason}' for name, reason in list(bad.items())[:_MAX_SHOWN])
        LOGGER.warning(
            '%s: %d of %d images cannot be decoded, listed in %s (%s%s)%s',
            kind, len(bad), packed.num_images, out / BAD_IMAGES, shown, '; ...' * (len(bad) > _MAX_SHOWN),
            hint_of(bad.values()),
        )  # fmt: skip


def _summary(kind: str, packed: PackedSplit) -> str:
    unreadable = f', {len(packed.bad)} cannot be decoded' if packed.bad else ''
    return (
        f'{kind}: {count_of(packed.num_images, "image")} in {count_of(len(packed.shards), "shard")}, '
        f'{size_text(packed.bytes_before)} -> {size_text(packed.bytes_after)}{unreadable}'
    )


def _info(kind: str, packed: PackedSplit) -> dict:
    """Return the entry of a split in _info.json, in the form of timm's WebDataset reader."""
    lengths = [shard.num_images for shard in packed.shards]
    names = [f'{kind}/{shard.name}' for shard in packed.shards]
    return {'name': kind, 'num_samples': sum(lengths), 'filenames': names, 'shard_lengths': lengths}
