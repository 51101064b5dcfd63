"""Download published weights: from the cache if they are there, else with a limit on the time to reach the server."""

import re
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError
from torch.hub import download_url_to_file, get_dir

from lib.errors import UserError

HUB_PREFIXES = ('hf-hub:', 'hf_hub:')
WEIGHTS_FILES = ('model.safetensors', 'pytorch_model.bin')
# Until the server has answered. The download itself may take as long as it takes.
_REACH_SECONDS = 6.0


class PublishedWeights(NamedTuple):
    """A file of published weights.

    Attributes:
        path: path of the file in the cache.
        license: license of the weights; 'unknown' if it is not stated.
    """

    path: Path
    license: str


def config_folder(name: str) -> str:
    """Return the folder with the config.json of a backbone on a hub ('hf-hub:timm/resnet50.a1_in1k')."""
    return str(download_from_hub(name.partition(':')[2], ('config.json',)).parent)


def download_from_hub(repository: str, names: Sequence[str]) -> Path:
    """Return the first of these files of a repository that exists, from the cache or downloaded.

    Args:
        repository: such as 'timm/resnet50.a1_in1k', with '@revision' if it is not the newest.

    Raises:
        UserError: the server does not answer within a few seconds, or has no such file.
    """
    repo, _, revision = repository.partition('@')
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)

    def find() -> str:
        for name in names:
            url = huggingface_hub.hf_hub_url(repo, name, revision=revision or None)
            try:
                huggingface_hub.get_hf_file_metadata(url, timeout=_REACH_SECONDS, token=huggingface_hub.get_token())
            except EntryNotFoundError:
                if name == names[-1]:
                    raise
            else:
                return name
        raise ValueError('no names')

    try:
        name = _within(_REACH_SECONDS, find)
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision or None))
    except Exception as error:  # the network and its libraries raise errors of many types
        source = f'{huggingface_hub.constants.ENDPOINT}/{repo}'
        raise _unavailable(error, source, names[0], f'{repo.rpartition("/")[2]}{Path(names[0]).suffix}') from error


def download_url(url: str) -> Path:
    """Return the file at a URL, from torch's cache or downloaded.

    Raises:
        UserError: the server does not answer within a few seconds, or has no such file.
    """
    folder, _, name = url.rpartition('/')
    name = Path(urlparse(url).path).name
    cached = Path(get_dir(), 'checkpoints', name)
    if cached.is_file():
        return cached
    request = urllib.request.Request(url, method='HEAD')
    try:
        _within(_REACH_SECONDS, lambda: urllib.request.urlopen(request, timeout=_REACH_SECONDS).close())
        cached.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(url, str(cached), progress=False)
        return cached
    except Exception as error:
        raise _unavailable(error, folder, name, name) from error


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return the result of a function that waits for the network, or raise TimeoutError after some seconds.

    A thread, because neither the search for a host's address nor several attempts together obey a timeout.
    """
    results: list[Any] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            results.append(function())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f'no answer within {seconds:g} s')
    return results[0]


def _unavailable(error: Exception, source: str, name: str, local: str) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = re.sub(r'\s*\(Request ID:.*?\)', '', lines[0])
    path = f'pretrain_models/{local}'
    if name == 'config.json':
        return UserError(
            f'MODEL.BACKBONE: {name} of {source} cannot be downloaded ({reason}); download its weights elsewhere, put '
            'them into pretrain_models/, and set --MODEL_PRETRAINED to that file and --MODEL_BACKBONE to the name of '
            'the architecture in timm'
        )
    return UserError(
        f'MODEL.PRETRAINED timm: {name} of {source} cannot be downloaded ({reason}); download it elsewhere, put it '
        f'at {path} and set --MODEL_PRETRAINED {path}'
    )
