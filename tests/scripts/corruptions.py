"""Ways to spoil a file: each returns what does it to a folder."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Spoil = Callable[[Path], None]
NO_IMAGE = b'<html>404 not found</html>'


class _Code:
    """Touches a file named `executed` in the working folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ('touch executed',)


def text(name: str, content: str | bytes) -> Spoil:
    """Write a file, folders included."""

    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """Do one after the other."""

    def spoil(folder: Path) -> None:
        for each in spoils:
            each(folder)

    return spoil


def edited_json(name: str, edit: Callable[[Any], Any]) -> Spoil:
    """Edit a JSON file."""

    def spoil(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        edit(tree)
        (folder / name).write_text(json.dumps(tree))

    return spoil


def labels(name: str, values: dict[int, Any]) -> Spoil:
    """Set the category_id of entries, by their position."""

    def edit(tree: dict) -> None:
        for position, value in values.items():
            tree['annotations'][position]['category_id'] = value

    return edited_json(name, edit)


def removed(*names: str) -> Spoil:
    """Remove files, and folders with all that is in them."""

    def spoil(folder: Path) -> None:
        for path in (folder / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def linked(name: str, target: str) -> Spoil:
    """Make a file a link to a device."""

    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def truncated(name: str, share: float = 0.5) -> Spoil:
    """Cut a file short."""

    def spoil(folder: Path) -> None:
        os.truncate(folder / name, int((folder / name).stat().st_size * share))

    return spoil


def zipped(name: str) -> Spoil:
    """Write a zip archive that holds a text."""

    def spoil(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, 'w') as archive:
            archive.writestr('readme.txt', 'hello')

    return spoil


def saved(name: str, content: Any) -> Spoil:
    """Write a file as torch.save does."""
    return lambda folder: torch.save(content, folder / name)


def edited_checkpoint(name: str, edit: Callable[[dict], Any]) -> Spoil:
    """Write `name`, a copy of the finished run's best model that was edited."""

    def spoil(folder: Path) -> None:
        content = torch.load(folder / 'log' / 'tiny' / 'best_model.pth', weights_only=True)
        edit(content)
        torch.save(content, folder / name)

    return spoil


def pickled_code(name: str) -> Spoil:
    """Write a bare pickle that runs a command when it is read as such."""
    return text(name, pickle.dumps({'state_dict': _Code()}))


def checkpoint_with_code(name: str) -> Spoil:
    """Write a checkpoint, whole but for one more entry that runs a command when it is unpickled."""
    return edited_checkpoint(name, lambda content: content.update(scheduler=_Code()))


def unreadable_images(number: int, label: int | None = None) -> Spoil:
    """Make the first training images (of one class) undecodable."""

    def spoil(folder: Path) -> None:
        entries = json.loads((folder / 'shop' / 'converted_train.json').read_text())['annotations']
        paths = [entry['fpath'] for entry in entries if label in (None, entry['category_id'])]
        for path in paths[:number]:
            (folder / 'shop' / path).write_bytes(NO_IMAGE)

    return spoil
