"""Dynamic batching: the images of concurrent requests are decoded in threads and computed together.

A job is one image. It waits for one of the decoding threads, then for the batch of the compute thread, which takes what
is decoded as soon as the network is idle: it waits for more images only while some are being decoded, and never longer
than `batch_seconds`. A job that no client waits for any more is dropped before either step.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from lib.api import ImageError
from lib.errors import shown
from lib.runtime.log import LOGGER
from lib.runtime.workers import num_cores
from lib.service.interface import Served, ServiceError, photo_id


@dataclass(eq=False)
class Job:
    """One image of a request, and its result.

    Attributes:
        data: bytes of an image file, until it is decoded.
        top_k: number of classes; 0: features only.
        is_connected: returns False once the client has gone.
        served: the model that was served when the job was submitted; the pixels fit no other.
        done: set when there is a result or an error; canceled when no client waits any more.
        id: id of the photo.
        record, neighbors, features: the result, by what was asked for.
        error: why there is no result.
    """

    data: bytes
    top_k: int
    is_connected: Callable[[], bool]
    served: Served
    done: asyncio.Future
    with_neighbors: bool = False
    id: str = ''
    pixels: torch.Tensor | None = None
    ready_at: float = 0.0
    features: np.ndarray | None = None
    record: Any = None
    neighbors: list[dict[str, Any]] | None = None
    error: ServiceError | None = None

    @property
    def is_wanted(self) -> bool:
        """Return whether a client waits for the result."""
        return not self.done.done() and self.is_connected()


class Batcher:
    """Threads that decode and compute the images of a service. `submit` is for the thread of the event loop.

    Attributes:
        served: the model of the jobs to come; it is replaced between two batches.
        num_waiting: images that are submitted and not answered.
        seconds_per_image: moving average while there is work.
    """

    def __init__(
        self,
        served: Served,
        *,
        batch_size: int,
        batch_seconds: float,
        queue: int,
        on_batch: Callable[[int, float], None] = lambda num_images, seconds: None,
    ) -> None:
        """Start the threads: one that computes, and as many that decode as there are cores.

        Args:
            batch_size: most images that are computed together.
            batch_seconds: longest wait for images that are being decoded.
            queue: most images that wait.
            on_batch: called with the number of images and the seconds of each batch.
        """
        self.served = served
        self.batch_size, self.batch_seconds, self.queue = batch_size, batch_seconds, queue
        self.num_waiting, self.seconds_per_image = 0, 0.01
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._encoded: SimpleQueue[Job | None] = SimpleQueue()
        self._ready: deque[Job] = deque()
        self._changed = threading.Condition()
        self._num_encoded, self._last_done, self._is_closed = 0, time.monotonic(), False
        self._decoders = [
            threading.Thread(target=self._decode, name=f'decode-{number}', daemon=True) for number in range(num_cores())
        ]
        self._computer = threading.Thread(target=self._compute, name='compute', daemon=True)
        for thread in (*self._decoders, self._computer):
            thread.start()

    def check_space(self, num_images: int = 1) -> None:
        """Raise ServiceError if images find no space: 429, for now; 413, never."""
        if num_images > self.queue:
            raise ServiceError(413, f'{num_images} images in one request; at most {self.queue} are allowed')
        if self.num_waiting + num_images > self.queue:
            raise ServiceError(429, 'too many images are waiting; try again later', self.retry_after)

    def submit(
        self, images: Sequence[bytes], *, top_k: int, is_connected: Callable[[], bool], with_neighbors: bool = False
    ) -> list[Job]:
        """Queue the images of a request, all or none.

        Raises:
            ServiceError: as check_space.
        """
        self.check_space(len(images))
        jobs = [
            Job(data, top_k, is_connected, self.served, self._loop.create_future(), with_neighbors) for data in images
        ]
        self.num_waiting += len(jobs)
        with self._changed:
            self._num_encoded += len(jobs)
        for job in jobs:
            self._encoded.put(job)
        return jobs

    @property
    def is_alive(self) -> bool:
        """Return whether all threads run."""
        return all(thread.is_alive() for thread in (*self._decoders, self._computer))

    @property
    def retry_after(self) -> int:
        """Seconds until the images that wait now are answered, at the measured rate; at least 1."""
        return max(1, math.ceil(self.num_waiting * self.seconds_per_image))

    def close(self) -> None:
        """Answer what is queued, then end the threads."""
        for _ in self._decoders:
            self._encoded.put(None)
        for thread in self._decoders:
            thread.join()
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._computer.join()

    def _decode(self) -> None:
        """Decode images until the service is closed. This is the main function of a decoding thread."""
        torch.set_num_threads(1)  # in this thread: teams of threads per image would wait for each other
        while (job := self._encoded.get()) is not None:
            if job.is_wanted:
                self._decode_one(job)
            is_done = job.pixels is None
            with self._changed:
                self._num_encoded -= 1
                if not is_done:
                    job.ready_at = time.monotonic()
                    self._ready.append(job)
                # Fewer wake-ups: for the first image, a full batch, and when no other image can be waited for.
                if len(self._ready) in (1, self.batch_size) or not self._num_encoded:
                    self._changed.notify()
            if is_done:
                self._deliver([job])

    def _decode_one(self, job: Job) -> None:
        try:
            job.id = photo_id(job.data)
            job.pixels = job.served.model.pixels(job.data)
        except ImageError as error:
            job.error = image_error(error)
        except Exception as error:
            job.error = _fault(error)
        job.data = b''

    def _compute(self) -> None:
        """Compute batches until the service is closed. This is the main function of the compute thread."""
        torch.set_num_threads(1)  # in this thread, which joins images; the model computes with its own
        while batch := self._next_batch():
            wanted = [job for job in batch if job.is_wanted]
            if wanted:
                self._compute_one(wanted)
            self._deliver(batch)

    def _next_batch(self) -> list[Job]:
        """Return the next images, all for one model; none when the service is closed and all are computed."""
        with self._changed:
            while not self._ready:
                if self._is_closed:
                    return []
                self._changed.wait()
            until = self._ready[0].ready_at + self.batch_seconds
            while len(self._ready) < self.batch_size and self._num_encoded and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            batch = [self._ready.popleft()]
            while self._ready and len(batch) < self.batch_size and self._ready[0].served is batch[0].served:
                batch.append(self._ready.popleft())
            return batch

    def _compute_one(self, jobs: list[Job]) -> None:
        started = time.monotonic()
        try:
            _set_results(jobs)
        except Exception as error:  # such as no memory on the GPU: the next batch may be smaller
            fault = _fault(error)
            for job in jobs:
                job.error = fault
        done = time.monotonic()
        self._on_batch(len(jobs), done - started)
        busy = done - max(self._last_done, started - self.batch_seconds)  # with the wait for decoding
        self.seconds_per_image += 0.2 * (busy / len(jobs) - self.seconds_per_image)
        self._last_done = done

    def _deliver(self, jobs: list[Job]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._finish, jobs)
        except RuntimeError:  # the loop is closed: the service was stopped before its time was over
            return

    def _finish(self, jobs: list[Job]) -> None:
        self.num_waiting -= len(jobs)
        for job in jobs:
            if not job.done.done():
                job.done.set_result(None)


def _set_results(jobs: list[Job]) -> None:
    """Compute the results of jobs for one model: one pass of the network, whatever was asked for."""
    model, photos = jobs[0].served.model, jobs[0].served.photos
    features = model.features_of_pixels(torch.stack([job.pixels for job in jobs if job.pixels is not None]))
    for job, values in zip(jobs, features, strict=True):
        job.features, job.pixels = values, None
    rows = [row for row, job in enumerate(jobs) if job.top_k]
    if not rows:
        return
    records = model.predict_features(features[rows], max(jobs[row].top_k for row in rows))
    for row, record in zip(rows, records, strict=True):
        jobs[row].record = record
    rows = [row for row in rows if jobs[row].with_neighbors]
    if not rows or photos is None:
        return
    names = [[name for name, _ in jobs[row].record.classes[: jobs[row].top_k]] for row in rows]
    for row, neighbors in zip(rows, photos.nearest(features[rows], names), strict=True):
        jobs[row].neighbors = neighbors


def image_error(error: ImageError) -> ServiceError:
    """Return the answer for an image that cannot be decoded."""
    return ServiceError(413 if error.is_too_large else 400, f'not a usable image: {shown(error)}')


def _fault(error: Exception) -> ServiceError:
    LOGGER.warning('an image could not be computed: %s: %s', type(error).__name__, shown(error))
    return ServiceError(503 if isinstance(error, MemoryError) else 500, 'the image could not be computed')
