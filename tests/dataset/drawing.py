"""How tests see through a transform: a whole picture in, the canvas out, mirrored where it is to be."""

import numpy as np
from PIL import Image

from lib.dataset.crop_resize import crop_resize
from lib.dataset.lazy_image import LazyImage, LazyPixelImage
from lib.dataset.transforms import Transform


def draws_of(transform: Transform, random: np.random.Generator) -> list[float]:
    return random.random(transform.num_draws).tolist()


def draw(transform: Transform, picture: LazyImage | Image.Image, draws: list[float] = ()) -> np.ndarray:
    """Return uint8 (size, size, 3)."""
    if isinstance(picture, Image.Image):
        picture = LazyPixelImage(np.array(picture))
    canvas = np.zeros((transform.size, transform.size, 3), np.uint8)
    view = transform.crop_params(picture.width, picture.height, draws)
    crop_resize(picture, view, canvas)
    return canvas[:, ::-1] if view.flip else canvas
