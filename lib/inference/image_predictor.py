"""Prediction of images that a program passes, one at a time or as a stream, from any number of threads.

Threads decode the images of a stream ahead of the network, which runs in a separate thread: passes of several callers
follow each other, each with all cores, and torch's settings in the callers' threads do not change.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from lib.dataset.crop_resize import crop_resize
from lib.dataset.decode_cost import DecodeError
from lib.dataset.given_image import GivenImage, check_image, open_image
from lib.dataset.transforms import Transform
from lib.errors import shown
from lib.inference.engine import Engine
from lib.inference.ensemble import pad_batch
from lib.inference.run import logit_batch_size
from lib.inference.sinks import Score

_BATCHES_AHEAD = 2  # decoded batches beside the next one for the network
_IMAGES_PER_TASK = 4
Result = TypeVar('Result')


class TopClasses(NamedTuple):
    """The most probable classes of n images.

    Attributes:
        classes: (n, k) int64, the most probable first.
        probabilities: (n, k) float32.
        scores: (n,) float32, higher for known products; 0 without a score.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class PixelBatch:
    """The pixels of n images.

    Attributes:
        pixels: (n, size, size, 3) uint8 RGB; zeros where the image cannot be decoded.
        errors: position in the batch -> the reason why the image cannot be decoded.
        min_batch: a smaller batch is padded to this number of images, since the network's sums then have the same order
            as in a batch of that size.
    """

    pixels: torch.Tensor
    errors: dict[int, str] = field(default_factory=dict)
    min_batch: int = 0


def batch_of(pixels: Any, size: int) -> PixelBatch:
    """Return a batch of pixels, a tensor or an array. Raises: ValueError, if it is not uint8 (n, size, size, 3)."""
    batch = torch.as_tensor(pixels)
    if batch.dtype != torch.uint8 or batch.shape[1:] != (size, size, 3):
        shape = shown(tuple(batch.shape))
        raise ValueError(f'pixels are {batch.dtype} {shape}, but must be uint8 (n, {size}, {size}, 3)')
    return PixelBatch(batch)


class ImagePredictor:
    """An engine with its preprocessing.

    Args:
        engine: it holds all classes; its model is in eval mode.
        transform: the view of each image.
        normalize: uint8 (n, size, size, 3) -> float32 (n, 3, size, size), on the device.
        batch_size: images per step of a stream.
        num_threads: number of threads of the network, on the CPU.
        num_decoders: threads that decode the images of streams.
        score: score of known products, by logits and features; None: none.
    """

    def __init__(
        self,
        engine: Engine,
        transform: Transform,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        *,
        batch_size: int,
        num_threads: int,
        num_decoders: int,
        score: Score | None = None,
    ) -> None:
        self.engine, self.transform, self.batch_size = engine, transform, batch_size
        self.num_threads, self.num_decoders = num_threads, num_decoders
        self.normalize, self.score = normalize, score
        self._decoders = ThreadPoolExecutor(num_decoders, 'decoder')
        self._network = _network_thread(num_threads)

    def pixels(self, image: GivenImage) -> torch.Tensor:
        """Return the input pixels of the network, uint8 RGB (size, size, 3); decoded in the calling thread.

        Raises:
            DecodeError: the image cannot be read or decoded.
        """
        size = self.transform.size
        pixels = torch.empty((size, size, 3), dtype=torch.uint8)
        self._crop(image, pixels)
        return pixels

    def features(self, batch: PixelBatch) -> np.ndarray:
        """Return the features of a batch, (n, num_features) float32."""
        return self._network.submit(self._features, batch).result()

    def top_classes(self, batch: PixelBatch, num_top: int) -> TopClasses:
        """Return the most probable classes of a batch."""
        return self._network.submit(self._top_classes, batch, num_top).result()

    def classify(self, features: np.ndarray, num_top: int) -> TopClasses:
        """Return the most probable classes of features (n, num_features), of which there may be many."""
        return self._network.submit(self._classify, features, num_top).result()

    def stream_features(self, images: Iterable[GivenImage]) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        """Yield the features and the errors of each batch of `images`; see `PixelBatch`. Raises: as `check_image`."""
        return self._stream(images, self._features)

    def stream_top_classes(
        self, images: Iterable[GivenImage], num_top: int
    ) -> Iterator[tuple[TopClasses, dict[int, str]]]:
        """Yield the most probable classes and the errors of each batch of `images`. Raises: as `check_image`."""
        return self._stream(images, lambda batch: self._top_classes(batch, num_top))

    def _stream(
        self, images: Iterable[GivenImage], compute: Callable[[PixelBatch], Result]
    ) -> Iterator[tuple[Result, dict[int, str]]]:
        """Compute each batch while the caller uses the result of the previous one and threads decode the next ones.

        Batches are those of a pass over a split: if there are several, the last one is padded.
        """
        running: tuple[Future[Result], dict[int, str]] | None = None
        for batch in self._decoded(images):
            following = self._network.submit(compute, batch), batch.errors
            if running is not None:
                yield running[0].result(), running[1]
            running = following
        if running is not None:
            yield running[0].result(), running[1]

    def _decoded(self, images: Iterable[GivenImage]) -> Iterator[PixelBatch]:
        waiting = deque[_Decoding]()
        number, size = 0, self.transform.size
        iterator = iter(images)
        try:
            while chunk := list(islice(iterator, self.batch_size)):
                for position, image in enumerate(chunk, number * self.batch_size):
                    check_image(image, f'image {position}')
                pixels = torch.empty((len(chunk), size, size, 3), dtype=torch.uint8)
                starts = range(0, len(chunk), _IMAGES_PER_TASK)
                tasks = [self._decoders.submit(self._decode, chunk, pixels, start) for start in starts]
                waiting.append(_Decoding(pixels, tasks, self.batch_size if number else 0))
                number += 1
                if len(waiting) > _BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also if the caller stops early
            for decoding in waiting:
                decoding.cancel()

    def _decode(self, images: Sequence[GivenImage], pixels: torch.Tensor, start: int) -> dict[int, str]:
        """Decode some images of a batch into its pixels; return their errors."""
        errors = {}
        for position in range(start, min(start + _IMAGES_PER_TASK, len(images))):
            try:
                self._crop(images[position], pixels[position])
            except DecodeError as error:
                pixels[position] = 0
                errors[position] = str(error)
        return errors

    def _crop(self, image: GivenImage, pixels: torch.Tensor) -> None:
        opened = open_image(image)
        params = self.transform.crop_params(opened.width, opened.height)
        crop_resize(opened, params, pixels.numpy(), self.transform.interpolation)

    # In the thread of the network:

    def _features(self, batch: PixelBatch) -> np.ndarray:
        with self.engine.inference():
            return self._padded_features(batch)[: len(batch.pixels)].cpu().numpy()

    def _top_classes(self, batch: PixelBatch, num_top: int) -> TopClasses:
        with self.engine.inference():
            features = self._padded_features(batch)
            logits = self.engine.logits(features)
            return self._top_of(logits[: len(batch.pixels)], features[: len(batch.pixels)], num_top)

    def _classify(self, features: np.ndarray, num_top: int) -> TopClasses:
        size = logit_batch_size(self.engine.num_classes)
        with self.engine.inference():
            parts = []
            for start in range(0, max(1, len(features)), size):
                some = torch.from_numpy(features[start : start + size]).to(self.engine.device)
                parts.append(self._top_of(self.engine.logits(some), some, num_top))
        return TopClasses(*map(np.concatenate, zip(*parts, strict=True)))

    def _top_of(self, logits: torch.Tensor, features: torch.Tensor, num_top: int) -> TopClasses:
        top = logits.topk(min(num_top, logits.shape[1]), dim=1)
        probabilities = (top.values - logits.logsumexp(dim=1, keepdim=True)).exp()
        scores = torch.zeros(len(logits))
        if self.score is not None:
            scores = self.score(logits, features, torch.full_like(top.indices[:, 0], -1))
        return TopClasses(*(part.cpu().numpy() for part in (top.indices, probabilities, scores)))

    def _padded_features(self, batch: PixelBatch) -> torch.Tensor:
        images = self.normalize(batch.pixels.to(self.engine.device))
        return self.engine.features(pad_batch(images, batch.min_batch))


@dataclass(frozen=True)
class _Decoding:
    """A batch that is being decoded by several tasks, which return their errors."""

    pixels: torch.Tensor
    tasks: Sequence[Future[dict[int, str]]]
    min_batch: int

    def result(self) -> PixelBatch:
        errors: dict[int, str] = {}
        for task in self.tasks:
            errors |= task.result()
        return PixelBatch(self.pixels, errors, self.min_batch)

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()


def _network_thread(num_threads: int) -> ThreadPoolExecutor:
    """Return a pool of one thread, in which torch computes with `num_threads` threads."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, 'network')
    pool.submit(torch.set_num_threads, num_threads).result()
    # It is a setting of the calling thread, and of all threads that have not used torch yet.
    torch.set_num_threads(before)
    return pool
