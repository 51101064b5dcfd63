"""DATASET and PACK in the config -> packed shards, and what to say about them."""

import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lib.builders.data import has_test_split, open_test_split, open_training_data
from lib.builders.loader import num_workers, stored_short_side
from lib.builders.split import Split, TrainingData
from lib.config.defaults import Config
from lib.errors import UserError
from lib.runtime.files import lock_folder, write_json
from lib.runtime.log import LOGGER
from lib.shards.pack import (
    SETTINGS,
    PackedSplit,
    SplitJob,
    bytes_needed,
    check_folder,
    images_per_shard,
    pack_split,
)
from lib.shards.write import Copy, Reencode
from lib.trainer.run_folder import BAD_IMAGES, set_aside, write_bad_images

_SPLITS = ('train', 'valid', 'test')
# What packing leaves in OUT beside the splits' folders; _info.json is where timm looks.
_OWN = {*_SPLITS, '_info.json', BAD_IMAGES, '.lock'}
_SHOWN_BAD = 5


def pack(cfg: Config) -> list[str]:
    """Pack the splits that DATASET opens into PACK.OUT/train, /valid and /test; return a summary, a line each.

    The same call goes on where an earlier one was stopped, and writes anew what was lost since.

    Raises:
        UserError: faults in the data; OUT holds something else; too little space; too many undecodable images.
    """
    started = time.perf_counter()
    out = _out(cfg)
    if cfg.OVERWRITE and out.is_dir() and any(out.iterdir()):
        _check_own(out)
        LOGGER.info('the earlier result is kept as %s', set_aside(out))
    data = open_training_data(cfg)
    jobs = {kind: _job(cfg, data, split, out / kind) for kind, split in _splits(cfg, data)}
    for job in jobs.values():
        check_folder(job)
    if cfg.PACK.IMAGES == 'copy':
        _check_space(out, sum(map(bytes_needed, jobs.values())))
    lines, info = [], {}
    with lock_folder(out, key='PACK.OUT'):
        for kind, job in jobs.items():
            try:
                packed = pack_split(job, num_workers=num_workers(cfg.RUN.NUM_WORKERS))
            except KeyboardInterrupt:
                LOGGER.info('finished shards are kept; the same command goes on from there')
                raise
            _tell_bad(out, kind, job, packed)
            lines.append(_summary(kind, packed))
            info[kind] = _info(kind, packed)
        write_json(out / '_info.json', {'splits': info})
    return [*lines, f'packed and read back in {time.perf_counter() - started:.0f} s']


def next_command(argv: Sequence[str], out: str) -> str:
    """Return what trains on the result: main.py with the options given, but for those of packing."""
    kept, words = [], list(argv)
    while words:
        word = words.pop(0)
        if word.startswith('--PACK_') or word.partition('=')[0] in ('--OVERWRITE', '--DATASET_SHARDS'):
            while '=' not in word and words and not words[0].startswith('--'):
                words.pop(0)
        else:
            kept.append(word)
    return shlex.join(['python', 'main.py', *kept, '--DATASET_SHARDS', out])


def _out(cfg: Config) -> Path:
    if not cfg.PACK.OUT:
        raise UserError('PACK.OUT is empty: --PACK_OUT FOLDER says where the shards are written')
    if cfg.DATASET.NAME.startswith('cifar') and not cfg.DATASET.SHARDS:
        raise UserError(f'DATASET.NAME {cfg.DATASET.NAME} is held in memory: there are no image files to pack')
    out = Path(cfg.PACK.OUT)
    if out.exists() and not out.is_dir():
        raise UserError(f'PACK.OUT {out}: is a file, but must be a folder')
    if cfg.DATASET.SHARDS and out.resolve() == Path(cfg.DATASET.SHARDS).resolve():
        raise UserError(f'PACK.OUT {out} is DATASET.SHARDS too; give another folder')
    return out


def _check_own(out: Path) -> None:
    """Renaming aside what is no earlier result, such as the photos themselves, cannot be meant."""
    foreign = sorted(path.name for path in out.iterdir() if path.name not in _OWN)
    foreign += [kind for kind in _SPLITS if (out / kind).exists() and not (out / kind / SETTINGS).exists()]
    if foreign:
        raise UserError(f'PACK.OUT {out} holds {foreign[0]}, which is no packed data; give another folder')


def _splits(cfg: Config, data: TrainingData) -> Iterator[tuple[str, Split]]:
    yield 'train', data.train
    if data.valid is not None:
        yield 'valid', data.valid
    if has_test_split(cfg):
        yield 'test', open_test_split(cfg, data.class_names)


def _job(cfg: Config, data: TrainingData, split: Split, folder: Path) -> SplitJob:
    return SplitJob(
        folder=folder,
        images=split.images,
        labels=split.labels,
        names=split.names,
        num_classes=split.num_classes,
        digest=split.digest(),
        classes=data.classes,
        encoding=Copy()
        if cfg.PACK.IMAGES == 'copy'
        else Reencode(cfg.PACK.SHORT_SIDE or stored_short_side(cfg), cfg.PACK.QUALITY),
        images_per_shard=cfg.PACK.SHARD_IMAGES or images_per_shard(len(split)),
        max_bad_fraction=cfg.DATASET.MAX_BAD_FRACTION,
    )


def _check_space(out: Path, needed: int) -> None:
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f'PACK.OUT {out}: copying needs about {_size(needed)}, and {_size(free)} are free; '
            '--PACK_IMAGES reencode needs far less'
        )


def _tell_bad(out: Path, kind: str, job: SplitJob, packed: PackedSplit) -> None:
    bad = {job.names[row].as_py(): reason for row, reason in packed.bad}
    write_bad_images(out, kind, bad)
    if bad:
        shown = '; '.join(f'{name}: {reason}' for name, reason in list(bad.items())[:_SHOWN_BAD])
        LOGGER.warning(
            '%s: %d of %d images cannot be decoded, listed in %s (%s%s)',
            kind, len(bad), packed.num_images, out / BAD_IMAGES, shown, '; ...' * (len(bad) > _SHOWN_BAD),
        )  # fmt: skip


def _summary(kind: str, packed: PackedSplit) -> str:
    unreadable = f', {len(packed.bad)} cannot be decoded' if packed.bad else ''
    return (
        f'{kind}: {packed.num_images} images in {len(packed.shards)} shards, '
        f'{_size(packed.bytes_before)} -> {_size(packed.bytes_after)}{unreadable}'
    )


def _info(kind: str, packed: PackedSplit) -> dict:
    """What timm's reader of WebDatasets wants to know of a split."""
    lengths = [shard.num_images for shard in packed.shards]
    names = [f'{kind}/{shard.name}' for shard in packed.shards]
    return {'name': kind, 'num_samples': sum(lengths), 'filenames': names, 'shard_lengths': lengths}


def _size(num_bytes: int) -> str:
    value, units = float(num_bytes), ['bytes', 'kB', 'MB', 'GB', 'TB']
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f'{value:.3g} {units[0]}' if value < 100 else f'{value:.0f} {units[0]}'
