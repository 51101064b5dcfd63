"""Metrics of the service in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

_PREFIX = 'recognizer'
CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
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
