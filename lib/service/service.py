"""The service behind the routes: a batcher for the model, with limits, and metrics."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from lib.service.batcher import Batcher, Job
from lib.service.body import BodyMemory, boundary_of, images_in, read_body
from lib.service.interface import Served, ServiceError

_BODY_MEMORY = 512 << 20  # bytes of all bodies
_PREFIX = 'recognizer'
METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

disable_created_metrics()  # a time per series would double their number


class ServiceMetrics:
    """Counters, histograms and gauges of one service; safe in several threads."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(f'{_PREFIX}_requests', 'Requests.', ['route', 'status'], registry=registry)
        self.seconds = Histogram(
            f'{_PREFIX}_request_seconds', 'Time from head to answer.', ['route'], buckets=_SECONDS, registry=registry
        )
        self.images = Counter(f'{_PREFIX}_images', 'Images that were computed.', registry=registry)
        self.rejected = Counter(
            f'{_PREFIX}_rejected_requests', 'Requests that were refused.', ['status'], registry=registry
        )
        self.batch_images = Histogram(f'{_PREFIX}_batch_images', 'Images per batch.', buckets=_SIZES, registry=registry)
        self.batch_seconds = Histogram(
            f'{_PREFIX}_batch_seconds', 'Time per batch.', buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge(f'{_PREFIX}_waiting_images', 'Images that wait or are computed.', registry=registry)
        self.connections = Gauge(f'{_PREFIX}_connections', 'Open connections.', registry=registry)
        self.swaps = Counter(f'{_PREFIX}_model_swaps', 'Models that replaced another one.', registry=registry)
        self._model = Gauge(f'{_PREFIX}_model_info', 'The model that answers; 1.', ['version'], registry=registry)

    def set_model(self, version: str) -> None:
        """Name the model that answers from now on."""
        self._model.clear()
        self._model.labels(version).set(1)

    def batch(self, num_images: int, seconds: float) -> None:
        """Count a batch."""
        self.images.inc(num_images)
        self.batch_images.observe(num_images)
        self.batch_seconds.observe(seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        if status >= 400:
            self.rejected.labels(str(status)).inc()

    def totals(self) -> tuple[int, int]:
        """Return the numbers of all requests, and of those with an error of the service as answer."""
        samples = [sample for metric in self.requests.collect() for sample in metric.samples]
        totals = [sample for sample in samples if sample.name == f'{_PREFIX}_requests_total']
        failed = sum(sample.value for sample in totals if sample.labels['status'].startswith('5'))
        return int(sum(sample.value for sample in totals)), int(failed)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class ServiceOptions:
    """Limits and switches of a service; see the section SERVE of the config.

    Attributes:
        token: secret that requests must contain; '': none.
    """

    batch_size: int = 32
    batch_seconds: float = 0.005
    queue: int = 256
    max_bytes: int = 20_000_000
    seconds: float = 30.0
    token: str = ''


class Service:
    """The batcher, the limits and the metrics, which all routes share.

    Attributes:
        memory: bytes of bodies in memory.
        is_stopping: requests are finished, and /ready answers 503.
    """

    def __init__(self, served: Served, options: ServiceOptions) -> None:
        self.options, self.metrics = options, ServiceMetrics()
        self.memory = BodyMemory(max(_BODY_MEMORY, 2 * options.max_bytes))
        self.is_stopping = False
        self._first = served
        self._batcher: Batcher | None = None
        self.metrics.set_model(served.model.version)

    @property
    def batcher(self) -> Batcher:
        """The batcher, which starts with the event loop."""
        assert self._batcher is not None, 'the service has not been started'
        return self._batcher

    @property
    def served(self) -> Served:
        """The model that answers the next request."""
        return self._first if self._batcher is None else self._batcher.served

    def stop(self) -> None:
        """Let /ready answer that the service is stopping."""
        self.is_stopping = True

    def swap(self, served: Served) -> None:
        """Answer further requests with another model; those that are submitted get the answers of theirs."""
        self.batcher.served = served
        self.metrics.set_model(served.model.version)
        self.metrics.swaps.inc()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the batcher within the block; at its end, the images that are submitted are computed."""
        options = self.options
        batcher = self._batcher = Batcher(
            self._first,
            batch_size=options.batch_size,
            batch_seconds=options.batch_seconds,
            queue=options.queue,
            on_batch=self.metrics.batch,
        )
        try:
            yield
        finally:
            await asyncio.to_thread(batcher.close)

    async def images(self, request: Request, hold: Callable[[int], None]) -> list[bytes]:
        """Return the images in the body of a request. Raises: ServiceError."""
        headers = dict(request.scope['headers'])
        boundary = boundary_of(headers)
        body = await read_body(
            request.receive, headers, max_bytes=self.options.max_bytes, seconds=self.options.seconds, hold=hold
        )
        return images_in(body, boundary)

    async def jobs(self, request: Request, *, top_k: int, with_neighbors: bool = False) -> list[Job]:
        """Return the finished jobs of the images in a request.

        Raises:
            ServiceError: an invalid request, one that took too long, or no image of it could be computed.
        """
        self.batcher.check_space()  # before the body is read
        deadline = asyncio.get_running_loop().time() + self.options.seconds
        connection = request.scope.get('connection')
        with self.memory.request() as hold:
            jobs = self.batcher.submit(
                await self.images(request, hold),
                top_k=top_k,
                with_neighbors=with_neighbors,
                is_connected=lambda: connection is None or not connection.is_lost,
            )
            try:
                async with asyncio.timeout_at(deadline):
                    for job in jobs:
                        await job.done
            except TimeoutError:
                raise ServiceError(
                    503, f'the request took more than {self.options.seconds:g} s', self.batcher.retry_after
                ) from None
            finally:
                for job in jobs:
                    job.done.cancel()
        if all(job.error for job in jobs):
            error = jobs[0].error
            assert error is not None
            raise error
        return jobs
