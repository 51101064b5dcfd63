"""The folder of a run: its checkpoints, metrics and list of undecodable images, consistent across interruptions."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.dataset.image_format import hint_of
from lib.errors import UserError, shown, unquoted
from lib.runtime.checkout import describe_commit
from lib.runtime.csv_file import without_quote, write_rows
from lib.runtime.files import (
    operation,
    remove,
    remove_leftovers,
    replace_atomically,
    replace_together,
    wait_for_lock,
    write_json,
    write_text,
)
from lib.runtime.log import LOGGER
from lib.runtime.read_file import open_text, reason_of
from lib.runtime.uploads import push
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.latest import checkpoints_in, find_epoch, position_of, shard_folder_of
from lib.trainer.checkpointing.sharded import write_shard_and_index
from lib.trainer.checkpointing.state import METRICS, Checkpoint, TrainProgress, read_history, shard_folder_name

BEST, LAST, BAD_IMAGES = 'best_model.pth', 'last.pth', 'bad_images.csv'
# Endings of files that only the run itself writes, under its lock; test.py may write .csv and .npy at any time.
_RUN_SUFFIXES = ('.pth', '.jsonl', '.yaml', '.txt', '.png', '.html')
_SPLITS = ('train', 'valid')  # whose undecodable images are saved in checkpoints


class RunFolder:
    """Metrics, checkpoints and lists of one run.

    Args:
        path: the folder; created by `start_from` or the first write.
        save_every: epochs between two epoch_N.pth.
        keep: number of epoch_N.pth files that remain.
        writes: True on the main rank; the other ranks write nothing but their classifier shards.
    """

    def __init__(self, path: Path, *, save_every: int = 10, keep: int = 3, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self._save_every, self._keep = save_every, keep
        self._best_position: tuple[int, int] | None = None  # of best_model.pth, when the run was resumed
        self._shard_folders: dict[str, Path | None] | None = None  # by checkpoint

    def start_from(self, checkpoint: Checkpoint | None) -> None:
        """Restore the metrics and the list of undecodable images from the checkpoint to resume; None: a new run.

        Entries written after the checkpoint are dropped, since they will be written again, and partial files of a
        killed process are removed. best_model.pth is written if it is not of the selected epoch: the process was killed
        before it wrote it, or the checkpoint is of another folder. Call it while holding the folder's lock.
        """
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path, _RUN_SUFFIXES)
        self._remove_unreferenced_shards()
        if checkpoint is None or checkpoint.history is None:
            self.forget_after(checkpoint.progress.epoch if checkpoint and checkpoint.progress else 0)
        else:
            self._write_history(checkpoint.history)
        if checkpoint is not None and checkpoint.bad_images is not None:
            for split in _SPLITS:
                write_bad_images(self.path, split, checkpoint.bad_images.get(split, {}))
        if checkpoint is not None and checkpoint.progress and checkpoint.selection.selected_epoch is not None:
            self._restore_best(checkpoint, checkpoint.selection.selected_epoch)
        if checkpoint is not None and checkpoint.progress and checkpoint.path and _is_in(checkpoint, self.path):
            # The rest of its save, if the process was killed before it wrote last.pth or removed an old epoch.
            is_last = checkpoint.path.name == LAST
            if not is_last and (position_of(self.path / LAST) or (-1, 0)) < checkpoint.progress.position:
                _copy(checkpoint.path, self.path / LAST)
            self._remove_old_epochs()
            self._remove_unreferenced_shards()

    def _restore_best(self, checkpoint: Checkpoint, epoch: int) -> None:
        """Write best_model.pth, unless it is there, of the selected epoch; if no file has that, of the newest one."""
        self._best_position = position_of(self.path / BEST)
        if self.has_best_of(epoch):
            return
        selected = find_epoch(checkpoint, epoch) or checkpoint
        has_rows = not selected.is_sharded or _is_in(selected, self.path)
        if has_rows and selected.progress is not None and selected.progress.step == 0:
            write_checkpoint(self.path / BEST, selected.for_prediction())
            self._best_position = selected.progress.position

    def has_best_of(self, epoch: int) -> bool:
        """Return whether best_model.pth was of this epoch when the run was resumed; on the writing rank only."""
        return self._best_position == (epoch, 0)

    def write_environment(self, config_text: str, environment: dict[str, str]) -> None:
        """Write the resolved config, and the git commit and versions that the run depends on."""
        if not self.writes:
            return
        lines = (f'{name}: {value}\n' for name, value in {'commit': describe_commit(), **environment}.items())
        with replace_together(self.path):
            write_text(self.path / 'config.yaml', config_text)
            write_text(self.path / 'environment.txt', ''.join(lines))

    def write_classes(self, names: list[str], parents: list[list[str]]) -> None:
        """Write classes.json: the name of each category_id, and its parents, as converters write it."""
        if self.writes:
            write_json(self.path / 'classes.json', {'names': names, 'parents': parents})

    def history(self) -> list[dict[str, Any]]:
        """Return the objects of metrics.jsonl, without a last line that a crash truncated. Raises: UserError."""
        return read_history(self.path)

    def forget_after(self, epoch: int) -> None:
        """Drop the metrics of later epochs, which will run again."""
        if self.writes and (self.path / METRICS).exists():
            self._write_history([entry for entry in self.history() if entry['epoch'] <= epoch])

    def append(self, entry: dict[str, Any]) -> None:
        """Add one object to metrics.jsonl."""
        if not self.writes:
            return
        path = self.path / METRICS
        with operation('write', path), open(path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(entry) + '\n')
            file.flush()
            os.fsync(file.fileno())

    def bad_images(self) -> dict[str, dict[str, str]]:
        """Return the undecodable images of training and validation: {split: {name: reason}}."""
        return {split: reasons for split, reasons in read_bad_images(self.path).items() if split in _SPLITS}

    def save(
        self,
        checkpoint: Checkpoint,
        *,
        is_selected: bool = False,
        end_of_epoch: bool = False,
        canceled: Callable[[], bool] = lambda: False,
        ending: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write last.pth; best_model.pth with `is_selected`; epoch_N.pth at the end of every `save_every`-th epoch.

        A run that is killed before last.pth is written resumes from the previous one and writes epoch_N.pth again;
        after it, `start_from` writes best_model.pth. So best_model.pth, which cannot be resumed, is never alone.
        `canceled` as in write_checkpoint, `ending` as in write_shard_and_index.

        Raises:
            OSError: for example no space left.
            UserError: the shard of another rank is missing.
        """
        assert checkpoint.progress is not None
        if checkpoint.classifier_shard is not None:
            folder = self.path / shard_folder_name(checkpoint.progress)
            write_shard_and_index(folder, checkpoint.classifier_shard, ending)
        if not self.writes:
            return
        epoch = checkpoint.progress.epoch
        names = [LAST]
        if end_of_epoch and self._keep and epoch % self._save_every == 0:
            names.insert(0, f'epoch_{epoch}.pth')
        first, *others = [self.path / name for name in names]
        write_checkpoint(first, checkpoint, canceled)
        for other in others:
            _copy(first, other)
        if is_selected:
            write_checkpoint(self.path / BEST, checkpoint.for_prediction(), canceled)
            names.append(BEST)
        if end_of_epoch:
            self._remove_old_epochs()
        if checkpoint.classifier_shard is not None:
            self._remove_old_shards(checkpoint.progress, names)
        push(self.path)  # the log, the curves and the metrics

    def _write_history(self, entries: list[dict[str, Any]]) -> None:
        write_text(self.path / METRICS, ''.join(json.dumps(entry) + '\n' for entry in entries))

    def _remove_unreferenced_shards(self) -> None:
        """Remove shards of an unfinished save, which would pass for those of the same step when it is saved again."""
        folders = [folder for folder in self.path.glob('head-*-*') if _position_of_shards(folder)]
        referenced = {shard_folder_of(path) for path in checkpoints_in(self.path)} if folders else set()
        for folder in folders:
            if folder not in referenced:
                remove(folder)

    def _remove_old_shards(self, progress: TrainProgress, written: list[str]) -> None:
        """Remove shards that no checkpoint refers to, except later ones, which a faster rank may have written."""
        if self._shard_folders is None:
            self._shard_folders = {path.name: shard_folder_of(path) for path in checkpoints_in(self.path)}
        self._shard_folders |= dict.fromkeys(written, self.path / shard_folder_name(progress))
        referenced = {self._shard_folders.get(path.name) for path in checkpoints_in(self.path)}
        for folder in self.path.glob('head-*-*'):
            position = _position_of_shards(folder)
            if folder not in referenced and position and position < progress.position:
                remove(folder)

    def _remove_old_epochs(self) -> None:
        numbered = {int(path.stem[6:]): path for path in self.path.glob('epoch_*.pth') if path.stem[6:].isdecimal()}
        for epoch in sorted(numbered)[: -self._keep or None]:
            remove(numbered[epoch])


def _copy(path: Path, other: Path) -> None:
    with replace_atomically(other) as temporary:
        shutil.copyfile(path, temporary)


def _is_in(checkpoint: Checkpoint, folder: Path) -> bool:
    return checkpoint.path is not None and checkpoint.path.resolve().parent == folder.resolve()


def _position_of_shards(folder: Path) -> tuple[int, ...]:
    """Return the (epoch, step) in a name made by `shard_folder_name`; () for any other name."""
    numbers = folder.name.split('-')[1:]
    return tuple(map(int, numbers)) if len(numbers) == 2 and all(map(str.isdecimal, numbers)) else ()


def read_bad_images(folder: Path) -> dict[str, dict[str, str]]:
    """Read bad_images.csv: {split: {name: reason}}. Raises: UserError."""
    listed: dict[str, dict[str, str]] = {}
    path = folder / BAD_IMAGES
    try:
        with open_text(path, newline='') as lines:
            for row in csv.reader(lines):
                if len(row) == 3 and row[0] != 'split':
                    listed.setdefault(row[0], {})[without_quote(row[1])] = row[2]
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeError, csv.Error) as error:
        reason = reason_of(error) if isinstance(error, OSError) else shown(error)
        raise UserError(f'{path}: cannot be read ({reason}); remove it') from None
    return listed


def write_bad_images(folder: Path, split: str, images: dict[str, str]) -> None:
    """Write the undecodable images of `split`, {name: reason}, and leave those of other splits listed.

    Several commands may do so at the same time. The entries of a prediction have the name of its file as `split`.
    """
    if not images and not (folder / BAD_IMAGES).exists():
        return
    with wait_for_lock(folder):
        listed = {**read_bad_images(folder), split: images}
        if not any(listed.values()):
            remove(folder / BAD_IMAGES)
            return
        text = io.StringIO()
        rows = ((name, *item) for name, reasons in listed.items() for item in reasons.items())
        write_rows(text, ('split', 'image', 'reason'), rows)
        write_text(folder / BAD_IMAGES, text.getvalue())


_ALWAYS_ALLOWED = 10


class TooManyBadImages(UserError):
    """Too many training images cannot be decoded."""


class BadImages:
    """Training images that could not be decoded: each is logged once; too many end the run.

    Args:
        name_of: row -> name of the image.
        num_images: in the training set.
        max_fraction: fraction of the images that may be undecodable; ten images always may.
    """

    def __init__(self, folder: RunFolder, name_of: Callable[[int], str], num_images: int, max_fraction: float) -> None:
        self._folder, self._name_of = folder, name_of
        self._limit = max(_ALWAYS_ALLOWED, max_fraction * num_images)
        self._max_fraction = max_fraction
        # A resumed run starts with those of its checkpoint.
        self._reasons = folder.bad_images().get('train', {})

    def add(self, bad: list[tuple[int, str]]) -> None:
        """Add (row, reason) pairs.

        Raises:
            TooManyBadImages: the limit is exceeded.
        """
        new = {self._name_of(row): reason for row, reason in bad}
        for name in new.keys() - self._reasons.keys():
            LOGGER.warning('%s: %s; replaced by another image of its class', unquoted(name), new[name])
        if new.keys() <= self._reasons.keys():
            return
        self._reasons.update(new)
        if self._folder.writes:
            write_bad_images(self._folder.path, 'train', self._reasons)
        if len(self._reasons) > self._limit:
            raise TooManyBadImages(
                f'{len(self._reasons)} training images cannot be decoded, more than the allowed fraction '
                f'{self._max_fraction:g}; they are listed in {self._folder.path / BAD_IMAGES}'
                + hint_of(self._reasons.values())
            )
