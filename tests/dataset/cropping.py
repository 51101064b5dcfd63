"""Apply a transform to a whole image, including the flip that is left to the device."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from lib.dataset.crop_resize import crop_resize
from lib.dataset.lazy_image import LazyImage, LazyPixelImage
from lib.dataset.transforms import Transform


def draws_of(transform: Transform, random: np.random.Generator) -> list[float]:
    """Return the random numbers of one slot."""
    return random.random(transform.num_draws).tolist()


def crop(transform: Transform, image: LazyImage | Image.Image, draws: Sequence[float] = ()) -> np.ndarray:
    """Return the crop, uint8 (size, size, 3)."""
    if isinstance(image, Image.Image):
        image = LazyPixelImage(np.array(image))
    canvas = np.zeros((transform.size, transform.size, 3), np.uint8)
    params = transform.crop_params(image.width, image.height, draws)
    crop_resize(image, params, canvas, transform.interpolation)
    return canvas[:, ::-1] if params.flip else canvas
