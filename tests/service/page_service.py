"""A service with the page, in a thread of the test's process, and a network that reads the class from the color."""

import asyncio
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from PIL import Image, ImageDraw

from lib.api import ImageError, Record
from lib.dataset.decode_cost import DecodeError
from lib.dataset.lazy_image import open_lazy_image
from lib.service.app import create_app
from lib.service.connection import bound_socket
from lib.service.feedback import FeedbackStore
from lib.service.interface import Served
from lib.service.page import build_page
from lib.service.service import Service, ServiceOptions

PROBABILITIES = (0.62, 0.21, 0.09, 0.05, 0.03)


def product(number: int, *, sure: bool = True, kind: str = 'JPEG', size: tuple[int, int] = (160, 120)) -> bytes:
    """Return a photo whose best answer is the class `number`, below 24; the model is not sure of it if it is green."""
    image = Image.new('RGB', size, (10 * number + 5, 30 if sure else 220, 90))
    ImageDraw.Draw(image).ellipse((size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2), (10 * number + 5, 60, 120))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@dataclass
class ColorModel:
    """The mean red, divided by 10, is the class; the classes after it are the next answers."""

    classes: Sequence[str]
    version: str = 'c010r'

    def pixels(self, image: bytes) -> torch.Tensor:
        try:
            pixels, _ = open_lazy_image(image).pixels(1)
        except DecodeError as error:
            raise ImageError(str(error)) from None
        return torch.from_numpy(np.array(Image.fromarray(pixels).resize((8, 8))))

    def features_of_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        return pixels.float().mean((1, 2)).numpy()

    def predict_features(self, features: np.ndarray, top_k: int) -> list[Record]:
        num_classes = len(self.classes)
        return [
            Record(
                [(self.classes[(int(red // 10) + k) % num_classes], p) for k, p in enumerate(PROBABILITIES[:top_k])],
                accepted=bool(green < 128),
            )
            for red, green, _ in features
        ]


@dataclass
class ColorPhotos:
    """Three training photos of each class, which are drawn."""

    classes: Sequence[str]

    def nearest(self, features: np.ndarray, names: Sequence[Sequence[str]]) -> list[list[dict[str, Any]]]:
        rows = {name: 3 * label for label, name in enumerate(self.classes)}
        return [
            [{'row': rows[name] + k, 'name': name, 'similarity': 0.9} for name in answer for k in range(3)]
            for answer in names
        ]

    def thumbnail(self, row: int) -> bytes:
        return product(row // 3 % 24, size=(96, 96))


@dataclass
class PageService:
    """A running service."""

    address: str
    service: Service
    folder: Path | None
    requests: list[str] = field(default_factory=list)


@contextmanager
def page_service(
    names: Sequence[str], folder: Path | None = None, *, photos: bool = True, **options: Any
) -> Iterator[PageService]:
    """Serve the page within the block; `folder`: for feedback."""
    settings = ServiceOptions(**options)
    service = Service(Served(ColorModel(names), ColorPhotos(names) if photos else None), settings)

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        async with service.running():
            yield

    page = build_page(title='shop', max_bytes=settings.max_bytes, feedback=folder is not None)
    app = create_app(service, lifespan=lifespan, page=page, feedback=FeedbackStore(folder) if folder else None)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level='error', timeout_graceful_shutdown=1))
    with bound_socket('127.0.0.1', 0) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            yield PageService(f'http://127.0.0.1:{listening.getsockname()[1]}/', service, folder)
        finally:
            server.should_exit = True
            thread.join()
