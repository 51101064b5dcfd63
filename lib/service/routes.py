"""The routes of the HTTP interface."""

from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response

from lib.service.batcher import Job
from lib.service.interface import ServiceError
from lib.service.metrics import CONTENT_TYPE
from lib.service.schema import Classes, Features, Predictions, Status, documented, images_route
from lib.service.service import Service

MAX_TOP_K = 100


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
        'id': job.id,
        'error': job.error.text if job.error else None,
    }
    return result if job.neighbors is None else {**result, 'neighbors': job.neighbors}


def add_status(app: FastAPI, service: Service) -> None:
    @app.get('/classes', **documented(Classes, 401))
    async def classes() -> Response:
        """List the classes of the model."""
        return Response(service.served.classes_json, media_type='application/json')

    @app.get('/health', **documented(Status, 503))
    async def health() -> Response:
        """Answer while the process works; a container that does not is restarted."""
        if not service.batcher.is_alive:
            raise ServiceError(503, 'a thread of the service has ended')
        return _json({'status': 'ok'})

    @app.get('/ready', **documented(Status, 503))
    async def ready() -> Response:
        """Answer 200 if requests should be sent here, 503 while the service stops."""
        if service.is_stopping:
            raise ServiceError(503, 'the service is stopping')
        return _json({'status': 'ready', 'model': service.served.model.version})

    @app.get('/metrics', responses={200: {'content': {'text/plain': {}}}})
    async def metrics() -> Response:
        """Return the metrics of this process in the text format of Prometheus."""
        service.metrics.waiting.set(service.batcher.num_waiting)
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)
