"""Corruptions of files: each function returns a function of the folder that holds the file."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Corruption = Callable[[Path], None]
NO_IMAGE = b'<html>404 not found</html>'


class _Code:
    """Touches a file named `executed` in the working folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ('touch executed',)


def text(name: str, content: str | bytes) -> Corruption:
    """Write a file, folders included."""

    def corrupt(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return corrupt


def both(*corruptions: Corruption) -> Corruption:
    """Do one after the other."""

    def corrupt(folder: Path) -> None:
        for corrupt_one in corruptions:
            corrupt_one(folder)

    return corrupt


def edited_json(name: str, edit: Callable[[Any], Any]) -> Corruption:
    """Edit a JSON file."""

    def corrupt(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        edit(tree)
        (folder / name).write_text(json.dumps(tree))

    return corrupt


def labels(name: str, values: dict[int, Any]) -> Corruption:
    """Set the category_id of entries, by their position."""

    def edit(tree: dict) -> None:
        for position, value in values.items():
            tree['annotations'][position]['category_id'] = value

    return edited_json(name, edit)


def removed(*names: str) -> Corruption:
    """Remove files, and folders with all that is in them."""

    def corrupt(folder: Path) -> None:
        for path in (folder / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return corrupt


def linked(name: str, target: str) -> Corruption:
    """Make a file a link to a device."""

    def corrupt(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return corrupt


def truncated(name: str, fraction: float = 0.5) -> Corruption:
    """Cut a file short."""

    def corrupt(folder: Path) -> None:
        os.truncate(folder / name, int((folder / name).stat().st_size * fraction))

    return corrupt


def zipped(name: str) -> Corruption:
    """Write a zip archive that holds a text."""

    def corrupt(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, 'w') as archive:
            archive.writestr('readme.txt', 'hello')

    return corrupt


def saved(name: str, content: Any) -> Corruption:
    """Write a file as torch.save does."""
    return lambda folder: torch.save(content, folder / name)


def edited_checkpoint(name: str, edit: Callable[[dict], Any]) -> Corruption:
    """Write `name`, a copy of the finished run's best model that was edited."""

    def corrupt(folder: Path) -> None:
        content = torch.load(folder / 'log' / 'tiny' / 'best_model.pth', weights_only=True)
        edit(content)
        torch.save(content, folder / name)

    return corrupt


def pickled_code(name: str) -> Corruption:
    """Write a bare pickle that runs a command when it is read as such."""
    return text(name, pickle.dumps({'state_dict': _Code()}))


def checkpoint_with_code(name: str) -> Corruption:
    """Write a complete checkpoint with one more entry, which runs a command when it is unpickled."""
    return edited_checkpoint(name, lambda content: content.update(scheduler=_Code()))


def unreadable_images(number: int, label: int | None = None) -> Corruption:
    """Make the first training images (of one class) undecodable."""

    def corrupt(folder: Path) -> None:
        entries = json.loads((folder / 'shop' / 'converted_train.json').read_text())['annotations']
        paths = [entry['fpath'] for entry in entries if label in (None, entry['category_id'])]
        for path in paths[:number]:
            (folder / 'shop' / path).write_bytes(NO_IMAGE)

    return corrupt
