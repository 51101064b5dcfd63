"""URLs of object storage in the config: each becomes the path of its file or folder in a local mirror."""

from collections.abc import Mapping
from typing import Any

from lib.config.defaults import KEYS
from lib.errors import UserError, shown
from lib.runtime.mirror import configure, default_cache, is_url, local_path
from lib.runtime.read_file import reason_of
from lib.runtime.storage import prepare_path

_CACHE, _CACHE_GB = 'STORAGE.CACHE', 'STORAGE.CACHE_GB'


def set_cache(values: Mapping[str, Any]) -> None:
    """Set folder and size limit of the mirror to those of some keys, if one of these keys is given.

    Raises:
        UserError: the folder is a URL, or cannot be written to.
    """
    if values.keys() & {_CACHE, _CACHE_GB}:
        folder, gigabytes = (values.get(name, KEYS[name].default) for name in (_CACHE, _CACHE_GB))
        if is_url(folder):
            raise UserError(f'{_CACHE} is {shown(folder)}, but must be a folder of this machine')
        try:
            configure(folder, int(gigabytes * 1e9))
        except OSError as error:
            folder = folder or default_cache()
            raise UserError(f'{_CACHE} {folder}: {reason_of(error)}; give a folder that can be written to') from None


def localized(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat keys with the path in the mirror for each URL; files are downloaded, folders created.

    Raises:
        UserError: a request is refused or fails.
    """
    return {name: _localized(value) if KEYS[name].is_path else value for name, value in values.items()}


def _localized(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_localized, value))
    return mirrored(value) if is_url(value) else value


def mirrored(url: str) -> str:
    """Return the path of a URL in the mirror, where its file is downloaded. Raises: UserError, as `localized`."""
    path = local_path(url)
    prepare_path(path)
    return str(path)
