"""The folder of a run: what lies in it, and how it is kept whole over stops and starts.

Training images that cannot be decoded: which, and how many are too many.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.runtime.files import lock_folder, remove_leftovers, replace_atomically, write_text
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.latest import checkpoints_in, head_folder_of
from lib.trainer.checkpointing.sharded import write_head
from lib.trainer.checkpointing.state import Checkpoint, TrainProgress, head_name, write_checkpoint

METRICS, BAD_IMAGES = 'metrics.jsonl', 'bad_images.csv'
# What only the run itself writes, whose lock is held; predictions (.csv, .npy) may come from test.py at any time.
_OWN_SUFFIXES = ('.pth', '.jsonl', '.yaml', '.txt', '.png', '.html')
# Whose bad images a checkpoint knows.
_SPLITS = ('train', 'valid')


def set_aside(folder: Path) -> Path:
    """Rename a folder to folder_old, folder_old_2, ... and return its new name. Nothing is deleted.

    Raises:
        UserError: a run is writing into it.
    """
    with lock_folder(folder):
        pass  # nobody holds it; Windows could not rename it while we do
    number = 1
    while True:
        aside = folder.with_name(f'{folder.name}_old' + (f'_{number}' if number > 1 else ''))
        if not aside.exists():
            folder.rename(aside)
            return aside
        number += 1


class RunFolder:
    """Metrics, checkpoints and lists of one run.

    Args:
        path: the folder; made if needed.
        save_every: epochs between two epoch_N.pth.
        keep: how many of those are kept.
        writes: False in all ranks but the main one: nothing is written then.
    """

    def __init__(self, path: Path, *, save_every: int = 10, keep: int = 3, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self._save_every = save_every
        self._keep = keep
        self._heads: dict[str, Path | None] | None = None  # by checkpoint, where its classifier's rows lie
        if writes:
            path.mkdir(parents=True, exist_ok=True)

    def start_from(self, checkpoint: Checkpoint | None) -> None:
        """Make the lists those of the checkpoint that the run goes on from; None: of a new run.

        Whatever was written after it is written again, and what a kill left half written is mended. Call it when the
        folder's lock is held.
        """
        if not self.writes:
            return
        remove_leftovers(self.path, _OWN_SUFFIXES)
        self._remove_unneeded_heads()
        if checkpoint is None or checkpoint.history is None:
            self.forget_after(checkpoint.progress.epoch if checkpoint else 0)
        else:
            self._write_history(checkpoint.history)
        if checkpoint is not None and checkpoint.bad_images is not None:
            for split in _SPLITS:
                write_bad_images(self.path, split, checkpoint.bad_images.get(split, {}))

    def write_about(self, config_text: str, environment: dict[str, str]) -> None:
        """Write the resolved config and the versions that the run depends on."""
        if not self.writes:
            return
        write_text(self.path / 'config.yaml', config_text)
        write_text(
            self.path / 'environment.txt',
            ''.join(f'{name}: {value}\n' for name, value in environment.items()),
        )

    def history(self) -> list[dict[str, Any]]:
        """Return the objects of metrics.jsonl; a last line that a crash cut short is left out."""
        file = self.path / METRICS
        if not file.exists():
            return []
        entries = []
        for line in file.read_text(encoding='utf-8').splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return entries

    def forget_after(self, epoch: int) -> None:
        """Drop the metrics of epochs that will be run again."""
        if self.writes and (self.path / METRICS).exists():
            self._write_history([entry for entry in self.history() if entry['epoch'] <= epoch])

    def append(self, entry: dict[str, Any]) -> None:
        """Add one object to metrics.jsonl."""
        if not self.writes:
            return
        with open(self.path / METRICS, 'a', encoding='utf-8') as file:
            file.write(json.dumps(entry) + '\n')
            file.flush()
            os.fsync(file.fileno())

    def bad_images(self) -> dict[str, dict[str, str]]:
        """Return the images of training and validation that could not be decoded: {split: {name: reason}}."""
        return {split: found for split, found in read_bad_images(self.path).items() if split in _SPLITS}

    def save(
        self,
        checkpoint: Checkpoint,
        *,
        is_best: bool = False,
        end_of_epoch: bool = False,
        abandoned: Callable[[], bool] = lambda: False,
        ending: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write last.pth, and best_model.pth and epoch_N.pth when it is their turn.

        last.pth comes last: a run that is killed in between goes on from the one before and writes the others again.
        `abandoned` as in write_checkpoint, `ending` as in write_head.
        """
        if checkpoint.head is not None:
            write_head(self.path / head_name(checkpoint.progress), checkpoint.head, ending)
        if not self.writes:
            return
        epoch = checkpoint.progress.epoch
        names = ['best_model.pth'] * is_best
        if end_of_epoch and self._keep and epoch % self._save_every == 0:
            names.append(f'epoch_{epoch}.pth')
        first, *others = [self.path / name for name in [*names, 'last.pth']]
        write_checkpoint(first, checkpoint, abandoned)
        for other in others:
            with replace_atomically(other) as temporary:
                shutil.copyfile(first, temporary)
        if names:
            self._remove_old_epochs()
        if checkpoint.head is not None:
            self._remove_old_heads(checkpoint.progress, [*names, 'last.pth'])

    def _write_history(self, entries: list[dict[str, Any]]) -> None:
        write_text(self.path / METRICS, ''.join(json.dumps(entry) + '\n' for entry in entries))

    def _remove_unneeded_heads(self) -> None:
        """Remove rows whose saving was cut short: they must not pass for those of the same step done again."""
        heads = [folder for folder in self.path.glob('head-*-*') if _place_of_head(folder)]
        needed = {head_folder_of(path) for path in checkpoints_in(self.path)} if heads else set()
        for folder in heads:
            if folder not in needed:
                shutil.rmtree(folder)

    def _remove_old_heads(self, place: TrainProgress, written: list[str]) -> None:
        """Remove rows that no checkpoint refers to. Of a later place there may be some already, by a faster rank."""
        if self._heads is None:
            self._heads = {path.name: head_folder_of(path) for path in checkpoints_in(self.path)}
        self._heads |= dict.fromkeys(written, self.path / head_name(place))
        needed = {self._heads.get(path.name) for path in checkpoints_in(self.path)}
        for folder in self.path.glob('head-*-*'):
            its_place = _place_of_head(folder)
            if folder not in needed and its_place and its_place < place.position:
                shutil.rmtree(folder)

    def _remove_old_epochs(self) -> None:
        numbered = {int(path.stem[6:]): path for path in self.path.glob('epoch_*.pth') if path.stem[6:].isdigit()}
        for epoch in sorted(numbered)[: -self._keep or None]:
            numbered[epoch].unlink()


def _place_of_head(folder: Path) -> tuple[int, ...]:
    """Return the epoch and step that `head_name` made a folder's name of; () for any other name."""
    numbers = folder.name.split('-')[1:]
    return tuple(map(int, numbers)) if len(numbers) == 2 and all(map(str.isdigit, numbers)) else ()


def read_bad_images(folder: Path) -> dict[str, dict[str, str]]:
    """Return what bad_images.csv lists: {split: {name: reason}}."""
    listed: dict[str, dict[str, str]] = {}
    if (folder / BAD_IMAGES).exists():
        with open(folder / BAD_IMAGES, encoding='utf-8', newline='') as lines:
            for row in csv.reader(lines):
                if len(row) == 3 and row[0] != 'split':
                    listed.setdefault(row[0], {})[row[1]] = row[2]
    return listed


def write_bad_images(folder: Path, split: str, images: dict[str, str]) -> None:
    """List the images of `split` that could not be decoded, {name: reason}, beside those of other splits."""
    listed = {**read_bad_images(folder), split: images}
    if not any(listed.values()):
        (folder / BAD_IMAGES).unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(('split', 'image', 'reason'))
    writer.writerows((name, *item) for name, found in listed.items() for item in found.items())
    write_text(folder / BAD_IMAGES, text.getvalue())


_ALWAYS_PASS = 10


class BadImages:
    """Training images that could not be decoded: each is named once; too many end the run.

    Args:
        name_of: row -> what to call it.
        num_images: in the training set.
        max_fraction: share above which the run ends; ten always pass.
    """

    def __init__(self, folder: RunFolder, name_of: Callable[[int], str], num_images: int, max_fraction: float) -> None:
        self._folder, self._name_of = folder, name_of
        self._limit = max(_ALWAYS_PASS, max_fraction * num_images)
        self._max_fraction = max_fraction
        # A run that goes on knows what it found before.
        self._reasons = folder.bad_images().get('train', {})

    def add(self, bad: list[tuple[int, str]]) -> None:
        """Note (row, reason) pairs.

        Raises:
            UserError: too many by now.
        """
        new = {self._name_of(row): reason for row, reason in bad}
        for name in new.keys() - self._reasons.keys():
            LOGGER.warning('%s: %s; another image of its class takes its place', name, new[name])
        if new.keys() <= self._reasons.keys():
            return
        self._reasons.update(new)
        if self._folder.writes:
            write_bad_images(self._folder.path, 'train', self._reasons)
        if len(self._reasons) > self._limit:
            raise UserError(
                f'{len(self._reasons)} training images cannot be decoded, more than DATASET.MAX_BAD_FRACTION '
                f'{self._max_fraction:g} of all; they are listed in {self._folder.path / "bad_images.csv"}'
            )
