"""The model of a service, and the errors that are answers to requests."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import msgspec
import numpy as np
import torch

from lib.catalog.catalog import Catalog
from lib.errors import is_unicode
from lib.runtime.text import nfc

MAX_NAME = 1000  # characters of the name of a class or product


class ServiceError(Exception):
    """A request that gets an error as its answer.

    Attributes:
        status: HTTP status.
        text: one line for the client, without anything that the client sent.
        retry_after: seconds after which the client should try again; 0: unknown.
    """

    def __init__(self, status: int, text: str, retry_after: int = 0) -> None:
        super().__init__(text)
        self.status, self.text, self.retry_after = status, text, retry_after


def error_body(text: str) -> bytes:
    """Return the JSON of an error."""
    return msgspec.json.encode({'error': text})


def photo_id(photo: bytes) -> str:
    """Return the identifier of a photo: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(photo).hexdigest()[:32]


class Model(Protocol):
    """The part of lib.api.Model that a service needs."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    @property
    def version(self) -> str:
        """Fingerprint of weights and preprocessing."""

    def pixels(self, image: bytes) -> torch.Tensor:
        """Return the input pixels of the network, uint8 (S, S, 3). Raises: lib.api.ImageError.

        It is called in several threads at a time.
        """

    def features_of_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """Return the features (n, num_features) of pixels (n, S, S, 3)."""

    def predict_features(self, features: np.ndarray, top_k: int) -> list[Any]:
        """Return the records of features."""


class Photos(Protocol):
    """Training photos with features of the same model."""

    def nearest(self, features: np.ndarray, names: Sequence[Sequence[str]]) -> list[list[dict[str, Any]]]:
        """Return the nearest photos for features (n, num_features) and the names of the classes of each answer."""

    def thumbnail(self, row: int) -> bytes:
        """Return a JPEG. Raises: IndexError, OSError, ImageError."""


def checked_name(name: str, what: str) -> str:
    """Return the name of a class or product from a request in NFC. Raises: ServiceError."""
    name = nfc(name)
    if not name.strip() or len(name) > MAX_NAME or not is_unicode(name) or '\0' in name:
        raise ServiceError(400, f'the name of a {what} is missing, or longer than {MAX_NAME} characters')
    return name


@dataclass(frozen=True, eq=False)
class Served:
    """A model as it is served, replaced as a whole.

    Attributes:
        photos: None where no training photos are shown.
        catalog: catalog of products, with features of this model; None: there is none.
    """

    model: Model
    photos: Photos | None = None
    catalog: Catalog | None = None

    @cached_property
    def classes_json(self) -> bytes:
        """The answer of /classes: 1 MB for 50,000 classes, so it is encoded once."""
        return msgspec.json.encode({'model': self.model.version, 'classes': list(self.model.classes)})
