"""The routes of the HTTP interface."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from fastapi import FastAPI, Path, Query, Request, Response

from lib.api import ImageError
from lib.catalog.catalog import Catalog, Matches
from lib.errors import UserError, shown
from lib.runtime.log import LOGGER
from lib.service.batcher import Job, image_error
from lib.service.feedback import Feedback, FeedbackStore
from lib.service.interface import Served, ServiceError, checked_name
from lib.service.schema import (
    CatalogSize,
    Classes,
    Features,
    FeedbackStored,
    FoundProducts,
    PhotosAdded,
    PhotosRemoved,
    Predictions,
    Status,
    documented,
    errors,
    images_route,
)
from lib.service.service import METRICS_TYPE, Service

MAX_TOP_K = 100
_MAX_WRITES = 16  # requests that wait for the disk
Result = TypeVar('Result')


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type='application/json')


def add_predictions(app: FastAPI, service: Service) -> None:
    @app.post('/predict', **images_route(Predictions))
    async def predict(
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=MAX_TOP_K, description='Classes per image.')] = 5,
        neighbors: Annotated[bool, Query(description='Add the nearest training photos.')] = False,
    ) -> Response:
        """Recognize the product in each image."""
        jobs = await service.jobs(request, top_k=top_k, with_neighbors=neighbors)
        results = [_result(job, top_k) for job in jobs]
        return _json({'model': jobs[0].served.model.version, 'results': results})

    @app.post('/features', **images_route(Features))
    async def features(request: Request) -> Response:
        """Compute the features of each image."""
        jobs = await service.jobs(request, top_k=0)
        results = [
            {
                'features': None if job.features is None else job.features.tolist(),
                'id': job.id,
                'error': job.error.text if job.error else None,
            }
            for job in jobs
        ]
        return _json({'model': jobs[0].served.model.version, 'results': results})


def _result(job: Job, top_k: int) -> dict[str, Any]:
    record = job.record
    result = {
        'classes': [{'name': name, 'probability': value} for name, value in record.classes[:top_k]] if record else [],
        'accepted': record.accepted if record else None,
        'unknown': record.unknown if record else None,
        'id': job.id,
        'error': job.error.text if job.error else None,
    }
    return result if job.neighbors is None else {**result, 'neighbors': job.neighbors}


def add_status(app: FastAPI, service: Service) -> None:
    @app.get('/classes', **documented(Classes, 401))
    async def classes() -> Response:
        """List the classes of the model."""
        return Response(service.served.classes_json, media_type='application/json')

    @app.head('/health', include_in_schema=False)  # for monitors
    @app.get('/health', **documented(Status, 503))
    async def health() -> Response:
        """Answer while the process works; a container that does not is restarted."""
        if not service.batcher.is_alive:
            raise ServiceError(503, 'a thread of the service has ended')
        return _json({'status': 'ok'})

    @app.head('/ready', include_in_schema=False)
    @app.get('/ready', **documented(Status, 503))
    async def ready() -> Response:
        """Answer 200 if requests should be sent here, 503 while the service stops."""
        if service.is_stopping:
            raise ServiceError(503, 'the service is stopping')
        return _json({'status': 'ready', 'model': service.served.model.version})

    @app.get('/metrics', responses={200: {'content': {'text/plain': {}}}})
    async def metrics(request: Request) -> Response:
        """Return the metrics of this process in the text format of Prometheus."""
        service.metrics.waiting.set(service.batcher.num_waiting)
        if 'connection' in request.scope:
            service.metrics.connections.set(len(request.scope['connection'].connections))
        return Response(service.metrics.text(), media_type=METRICS_TYPE)


def add_page(app: FastAPI, html: bytes, headers: Mapping[str, str]) -> None:
    """Add the page, which contains no data and so needs no token."""

    @app.get('/', include_in_schema=False)
    async def page() -> Response:
        return Response(html, headers=dict(headers), media_type='text/html')


def add_photos(app: FastAPI, service: Service) -> None:
    """Add the thumbnails of training photos."""

    @app.get('/photos/{row}.jpg', responses={200: {'content': {'image/jpeg': {}}}, **errors(401, 404, 422)})
    async def photo(row: Annotated[int, Path(ge=0)]) -> Response:
        """Return a small version of a training photo that /predict named as a neighbor."""
        photos = service.served.photos
        try:
            if photos is None:
                raise IndexError
            content = await asyncio.to_thread(photos.thumbnail, row)
        except (IndexError, ImageError, OSError):
            raise ServiceError(404, 'there is no such photo') from None
        return Response(content, headers={'Cache-Control': 'private, max-age=3600'}, media_type='image/jpeg')


class _Turns:
    """Calls of functions that write files, one after the other in a thread.

    Args:
        what: is stored, for errors.
    """

    def __init__(self, what: str) -> None:
        self._what, self._thread, self._num_waiting = what, ThreadPoolExecutor(1, what), 0

    async def __call__(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function, and return its result. Raises: ServiceError."""
        if self._num_waiting >= _MAX_WRITES:
            raise ServiceError(429, f'too many changes of the {self._what} at a time; try again later', 1)
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        except ImageError as error:
            raise image_error(error) from None
        except (UserError, OSError) as error:
            LOGGER.warning('the %s cannot be changed: %s', self._what, shown(error))
            raise ServiceError(
                507, f'the {self._what} cannot be stored; the log of the service has the reason'
            ) from None
        finally:
            self._num_waiting -= 1


def add_feedback(app: FastAPI, service: Service, store: FeedbackStore) -> None:
    """Add the routes that store and withdraw feedback, one request after the other."""
    in_turn = _Turns('feedback')

    def put(photo: bytes, action: str, name: str) -> Feedback:
        service.served.model.pixels(photo)
        return store.put(photo, action, name)

    @app.post('/feedback', **images_route(FeedbackStored, 507))
    async def feedback(
        request: Request,
        action: Annotated[str, Query(description='relabel, or drop for a photo of no product.')],
        name: Annotated[str, Query(description='The class that the photo shows.')] = '',
    ) -> Response:
        """Store a photo with its class, in place of earlier feedback about it."""
        with service.memory.request() as hold:
            images = await service.images(request, hold)
            if len(images) > 1:
                raise ServiceError(400, f'{len(images)} photos; feedback is about one')
            stored = await in_turn(put, images[0], action, name)
        before = stored.before and {'action': stored.before.action, 'name': stored.before.to}
        return _json({'id': stored.photo_id, 'before': before})

    @app.delete('/feedback/{photo_id}', responses=errors(401, 404, 507))
    async def withdraw(photo_id: str) -> Response:
        """Remove a photo and the feedback about it."""
        await in_turn(store.withdraw, photo_id)
        return _json({})


def _found(job: Job, names: list[str], photos: list[str], values: list[float]) -> dict[str, Any]:
    found = zip(names, photos, values, strict=True) if job.error is None else ()
    return {
        'products': [
            {'name': name, 'similarity': round(value, 4), 'photo': photo} for name, photo, value in found if name
        ],
        'id': job.id,
        'error': job.error.text if job.error else None,
    }


def add_catalog(app: FastAPI, service: Service) -> None:
    """Add the routes that search the catalog and change it."""
    in_turn = _Turns('catalog')

    def open_catalog(served: Served) -> Catalog:
        assert served.catalog is not None  # a service has one or has none
        served.catalog.refresh()
        return served.catalog

    def search_products(served: Served, features: np.ndarray, k: int) -> Matches:
        return open_catalog(served).search(features, k)

    def check_writer() -> None:
        if not service.options.token:
            raise ServiceError(403, 'changes of the catalog need a service with a token: SERVE.TOKEN_FILE')

    @app.post('/search', **images_route(FoundProducts))
    async def search(
        request: Request, k: Annotated[int, Query(ge=1, le=MAX_TOP_K, description='Products per image.')] = 5
    ) -> Response:
        """Find the products of the catalog that resemble each image most."""
        jobs = await service.jobs(request, top_k=0)
        served, width = jobs[0].served, next(len(job.features) for job in jobs if job.features is not None)
        features = np.stack([np.zeros(width) if job.features is None else job.features for job in jobs])
        matches = await asyncio.to_thread(search_products, served, features.astype(np.float32), k)
        results = [_found(job, *found) for job, *found in zip(jobs, *(part.tolist() for part in matches), strict=True)]
        return _json({'model': served.model.version, 'results': results})

    @app.get('/catalog', **documented(CatalogSize, 401))
    async def catalog() -> Response:
        """Return the size of the catalog."""
        opened = await asyncio.to_thread(open_catalog, service.served)
        return _json({'photos': opened.num_images, 'bytes': opened.num_bytes})

    @app.post('/catalog', **images_route(PhotosAdded, 507))
    async def add(
        request: Request, product: Annotated[str, Query(description='The product that the photos show.')]
    ) -> Response:
        """Add photos of a new or a known product; one that the product has already is replaced."""
        check_writer()
        name = checked_name(product, 'product')
        jobs = await service.jobs(request, top_k=0)
        fault = next((job.error for job in jobs if job.error), None)
        if fault is not None:
            raise fault
        by_id = {job.id: job.features for job in jobs}  # a photo may be in the request twice
        features = np.stack([values for values in by_id.values() if values is not None])

        def put() -> int:
            return open_catalog(jobs[0].served).add(features, [name] * len(by_id), list(by_id))

        num_replaced = await in_turn(put)
        return _json({'photos': list(by_id), 'replaced': num_replaced})

    @app.delete('/catalog', **documented(PhotosRemoved, 401, 403, 404, 422, 429, 507))
    async def remove(product: Annotated[str, Query(description='The product to remove.')]) -> Response:
        """Remove a product with all its photos."""
        check_writer()
        num_photos = await in_turn(lambda: open_catalog(service.served).remove([checked_name(product, 'product')]))
        if not num_photos:
            raise ServiceError(404, 'the catalog has no such product')
        return _json({'photos': num_photos})
