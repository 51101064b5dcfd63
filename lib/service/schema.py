"""The description of the HTTP interface for /openapi.json: bodies of requests and of answers."""

from typing import Any

from pydantic import BaseModel

from lib.service.body import BINARY, FORM

# Examples: bodies of all image types are read.
_IMAGE_TYPES = (
    'image/jpeg', 'image/png', 'image/webp', 'image/heic', 'image/heif', 'image/avif', 'image/gif', 'image/bmp',
    'image/tiff', 'image/jp2', BINARY,
)  # fmt: skip
DESCRIPTION = (
    'Recognizes products in photos. Images are sent as the body of a request, or several in a form. Every error is a '
    'JSON object with one line of text. With a token, all requests but those for /, /health, /ready and '
    '/openapi.json need the header Authorization: Bearer TOKEN.'
)


class ClassProbability(BaseModel):
    """A class with its probability."""

    name: str
    probability: float


class Neighbor(BaseModel):
    """A training photo that resembles the image; its thumbnail is /photos/ROW.jpg."""

    row: int
    name: str
    similarity: float


class Prediction(BaseModel):
    """The answer for one image: `error` and no class, or classes, the most probable first."""

    classes: list[ClassProbability]
    accepted: bool | None
    unknown: bool | None
    id: str
    error: str | None
    neighbors: list[Neighbor] | None = None


class Predictions(BaseModel):
    """The answers for the images of a request, in their order."""

    model: str
    results: list[Prediction]


class FeatureVector(BaseModel):
    """The features of one image: `error`, or one number per feature."""

    features: list[float] | None
    id: str
    error: str | None


class Features(BaseModel):
    """The features of the images of a request, in their order."""

    model: str
    results: list[FeatureVector]


class Classes(BaseModel):
    """The classes of the model."""

    model: str
    classes: list[str]


class Status(BaseModel):
    """The state of the service."""

    status: str
    model: str | None = None


class Error(BaseModel):
    """Why there is no answer, in one line."""

    error: str


class FeedbackStored(BaseModel):
    """The photo that feedback was stored about, and the earlier feedback that it replaces."""

    id: str
    before: dict[str, str] | None


class Product(BaseModel):
    """A product of the catalog: cosine similarity of its most similar photo, and the name of that."""

    name: str
    similarity: float
    photo: str


class Found(BaseModel):
    """The answer for one image: `error` and no product, or products, the most similar first."""

    products: list[Product]
    id: str
    error: str | None


class FoundProducts(BaseModel):
    """The answers for the images of a request, in their order."""

    model: str
    results: list[Found]


class CatalogSize(BaseModel):
    """Photos that can be found, and bytes of all files."""

    photos: int
    bytes: int


class PhotosAdded(BaseModel):
    """The ids of the photos, by which the catalog names them, and how many of them replaced earlier ones."""

    photos: list[str]
    replaced: int


class PhotosRemoved(BaseModel):
    """How many photos the product had."""

    photos: int


_ERRORS = {
    400: 'No image, or one that cannot be decoded.',
    401: 'The token is missing or another one.',
    403: 'The request comes from a page of another site, or the service has no token that allows changes.',
    404: 'There is no such photo or product.',
    408: 'The request was sent too slowly.',
    413: 'Too many bytes, images or pixels.',
    415: 'Neither an image nor a form.',
    422: 'An invalid parameter.',
    429: 'Too many images or changes are waiting; Retry-After has the seconds to wait.',
    503: 'The request took too long, or the service is stopping.',
    507: 'The feedback or the catalog cannot be stored.',
}
_OF_IMAGES = (400, 401, 403, 408, 413, 415, 422, 429, 503)


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of answers with an error, by status."""
    return {code: {'model': Error, 'description': _ERRORS[code]} for code in codes}


def documented(answer: type[BaseModel], *codes: int) -> dict[str, Any]:
    """Return the arguments of a route that describe its answer and its errors."""
    description = (answer.__doc__ or '').strip()
    return {'responses': {200: {'model': answer, 'description': description}, **errors(*codes)}}


def images_route(answer: type[BaseModel], *codes: int) -> dict[str, Any]:
    """Return the arguments of a route whose body is images; `codes` are further errors."""
    binary = {'type': 'string', 'format': 'binary'}
    files = {'type': 'object', 'properties': {'images': {'type': 'array', 'items': binary}}}
    content = {**{kind: {'schema': binary} for kind in _IMAGE_TYPES}, FORM: {'schema': files}}
    body = {'requestBody': {'required': True, 'content': content}}
    return {**documented(answer, *_OF_IMAGES, *codes), 'openapi_extra': body}
