"""Feedback about answers: photos in a folder, and decisions that make them training images.

FOLDER/decisions.json has the form that the review page for photos without labels exports, and FOLDER/photos the photos,
as they were uploaded. `tools/convert.py decisions` and `tools/enroll.py --ENROLL_IMAGES` read it.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lib.dataset.corrections import Decision, read_decisions, write_decisions
from lib.dataset.image_format import HEADER_BYTES, image_format
from lib.formats.decisions import UNLABELED
from lib.runtime.files import remove, wait_for_lock, write_bytes
from lib.runtime.read_file import GB
from lib.runtime.text import count_of, size_text
from lib.service.interface import ServiceError, checked_name, photo_id

DECISIONS, PHOTOS = 'decisions.json', 'photos'
MAX_PHOTOS, MAX_BYTES = 100_000, 20 * GB
_SECONDS = 10  # to wait for another process that stores feedback in the same folder
# By format, since a client's file name is not used.
_SUFFIXES = {
    'JPEG': '.jpg', 'PNG': '.png', 'WebP': '.webp', 'BMP': '.bmp', 'GIF': '.gif', 'TIFF': '.tif', 'JPEG 2000': '.jp2',
    'AVIF': '.avif', 'HEIC': '.heic',
}  # fmt: skip


@dataclass(frozen=True)
class Feedback:
    """A decision that was stored.

    Attributes:
        photo_id: hexadecimal digits of the photo's SHA-256.
        before: the decision about the same photo that it replaces.
    """

    photo_id: str
    before: Decision | None


class FeedbackStore:
    """Photos and the decisions about them, in one folder; for any number of threads and processes.

    The photo is written before the decision that names it, and removed after it, so that after a kill at any moment
    decisions.json is complete and every photo in it exists. The file is read again if it was moved or edited.
    """

    def __init__(self, folder: str | Path, *, max_photos: int = MAX_PHOTOS, max_bytes: int = MAX_BYTES) -> None:
        """Set the folder, which is created with the first photo, and limits on what is stored in it.

        Raises:
            UserError: its decisions.json is damaged, or about images of a split.
        """
        self.folder, self._max_photos, self._max_bytes = Path(folder), max_photos, max_bytes
        self._lock = threading.Lock()
        self._file_version: tuple[int, ...] | None = None
        self._decisions: dict[str, Decision] = {}  # by fpath, in the order of the file
        self._num_bytes = 0
        self._refresh()

    def put(self, photo: bytes, action: str, name: str = '') -> Feedback:
        """Store the decision about a photo in place of an earlier one.

        Args:
            photo: an image file that can be decoded.
            action: 'relabel': it shows the class `name`, of the model or a new one; 'drop': it is not stored.

        Raises:
            ServiceError: an invalid decision, no image file, or the limit is reached.
            UserError, OSError: the folder cannot be used.
        """
        suffix = _SUFFIXES.get(image_format(photo[:HEADER_BYTES]) or '')
        if suffix is None:
            raise ServiceError(415, 'this is no image file')
        identifier = photo_id(photo)
        decision = _decision(f'{PHOTOS}/{identifier}{suffix}', action, name)
        with self._updating():
            before = self._decisions.get(decision.fpath)
            path = self.folder / decision.fpath
            size = path.stat().st_size if path.exists() else 0
            if not size and action == 'relabel':
                self._check_space(len(photo))
                write_bytes(path, photo)
                self._num_bytes += len(photo)
            self._write({**self._decisions, decision.fpath: decision})
            if size and action == 'drop':
                self._remove(path, size)
        return Feedback(identifier, before)

    def withdraw(self, identifier: str) -> None:
        """Remove the decision about a photo, and the photo. Raises: ServiceError if there is none."""
        with self._updating():
            names = [f'{PHOTOS}/{identifier}{suffix}' for suffix in _SUFFIXES.values()]
            known = [fpath for fpath in names if fpath in self._decisions]
            if not known:
                raise ServiceError(404, 'there is no feedback about this photo')
            self._write({fpath: one for fpath, one in self._decisions.items() if fpath not in known})
            for path in (self.folder / fpath for fpath in known):
                if path.exists():
                    self._remove(path, path.stat().st_size)

    @contextmanager
    def _updating(self) -> Iterator[None]:
        """Hold the folder's locks in the block, in which `_decisions` are those of the file."""
        with self._lock, wait_for_lock(self.folder, _SECONDS):
            self._refresh()
            yield

    def _refresh(self) -> None:
        """Read decisions.json if it is another one than that which was read or written last."""
        path = self.folder / DECISIONS
        version = _version(path)
        if version == self._file_version and version is not None:
            return
        decisions = [] if version is None else read_decisions(path, UNLABELED)
        self._decisions = {one.fpath: one for one in decisions}
        self._file_version = version
        folder = self.folder / PHOTOS
        with os.scandir(folder) if folder.is_dir() else nullcontext(()) as entries:
            self._num_bytes = sum(entry.stat().st_size for entry in entries)

    def _check_space(self, num_bytes: int) -> None:
        num_photos = sum(one.action == 'relabel' for one in self._decisions.values())
        if num_photos >= self._max_photos or self._num_bytes + num_bytes > self._max_bytes:
            held = f'{count_of(num_photos, "photo")} ({size_text(self._num_bytes)})'
            raise ServiceError(507, f'the feedback folder is full with {held}: convert its decisions, and empty it')

    def _write(self, decisions: dict[str, Decision]) -> None:
        path = self.folder / DECISIONS
        write_decisions(path, decisions.values(), split=UNLABELED)
        self._decisions, self._file_version = decisions, _version(path)

    def _remove(self, path: Path, num_bytes: int) -> None:
        remove(path)
        self._num_bytes -= num_bytes


def _decision(fpath: str, action: str, name: str) -> Decision:
    if action == 'drop':
        return Decision(fpath, 'drop', label='', by='review')
    if action != 'relabel':
        raise ServiceError(400, 'action must be relabel or drop')
    return Decision(fpath, 'relabel', label='', to=checked_name(name, 'class'), by='review')


def _version(path: Path) -> tuple[int, ...] | None:
    """Return values that change when another file is put at `path`; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
