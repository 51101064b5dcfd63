"""The ASGI application: routes behind a gate, with errors as JSON and a description at /openapi.json."""

import hmac
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.errors import shown
from lib.runtime.log import LOGGER
from lib.service.feedback import FeedbackStore
from lib.service.interface import ServiceError, error_body
from lib.service.routes import add_catalog, add_feedback, add_page, add_photos, add_predictions, add_status
from lib.service.schema import DESCRIPTION
from lib.service.service import Service

# Without data: they need no token. A browser cannot send one with the address of the page.
_OPEN_PATHS = ('/', '/health', '/ready', '/openapi.json')


class Gate:
    """The outermost part of the app: token, origin, unknown errors and metrics, for all routes.

    ASGI without Starlette's BaseHTTPMiddleware, which costs a task and a queue per request.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self._token = b'Bearer ' + service.options.token.encode() if service.options.token else b''

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, send_noted)
            else:
                await error_response(refusal)(scope, receive, send_noted)
        finally:
            route = getattr(scope.get('route'), 'path', 'other')
            self.service.metrics.request(route, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        headers = dict(scope['headers'])
        origin = headers.get(b'origin', b'').decode('latin-1')
        if origin and scope['method'] not in ('GET', 'HEAD'):
            # A page of another site can send forms to a service on the same machine or network.
            host = headers.get(b'host', b'').decode('latin-1')
            if origin.partition('://')[2] != host:
                return ServiceError(
                    403, 'requests from pages of other sites are not answered; a proxy must pass the header Host on'
                )
        if not self._token or scope['path'] in _OPEN_PATHS:
            return None
        if hmac.compare_digest(headers.get(b'authorization', b'').strip(), self._token):
            return None
        return ServiceError(401, 'the header Authorization: Bearer TOKEN is missing, or the token is another one')


def error_response(error: ServiceError) -> Response:
    """Return the answer for an error."""
    headers = {'Retry-After': str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers['WWW-Authenticate'] = 'Bearer'
    return Response(error_body(error.text), error.status, headers, 'application/json')


def create_app(
    service: Service,
    *,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    page: tuple[bytes, Mapping[str, str]] | None = None,
    feedback: FeedbackStore | None = None,
) -> FastAPI:
    """Return the ASGI application of a service.

    Args:
        lifespan: runs the service.
        page: HTML for /, with headers.
        feedback: store for what users of the page confirm and correct.
    """
    app = FastAPI(
        title='Product recognition',
        description=DESCRIPTION,
        version='1',
        docs_url=None,  # these pages load scripts from other servers
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, service=service)
    _add_error_handlers(app)
    add_predictions(app, service)
    add_status(app, service)
    add_photos(app, service)
    if service.served.catalog is not None:
        add_catalog(app, service)
    if page is not None:
        add_page(app, *page)
    if feedback is not None:
        add_feedback(app, service, feedback)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    async def on_service_error(_: Request, error: Any) -> Response:
        return error_response(error)

    async def on_http_error(_: Request, error: Any) -> Response:
        texts = {404: 'no such path; /openapi.json lists them', 405: 'this path has other methods'}
        response = error_response(ServiceError(error.status_code, texts.get(error.status_code, 'invalid request')))
        response.headers.update(error.headers or {})
        return response

    async def on_invalid(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        return error_response(ServiceError(422, f'{".".join(map(str, first["loc"]))}: {first["msg"]}'.lower()))

    async def on_fault(_: Request, error: Exception) -> Response:
        LOGGER.warning('a request failed: %s: %s', type(error).__name__, shown(error))
        return error_response(ServiceError(500, 'the service failed; its log has the reason'))

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_fault)
