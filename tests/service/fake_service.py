"""A service whose network answers with the mean color of an image, in a time that the image determines.

python fake_service.py MODEL_FILE OPTIONS. The file contains the version of the model; one that contains 'broken' cannot
be loaded, and one that contains 'slow' takes a minute. OPTIONS is a JSON object: those of ServiceOptions, and
`feedback` (a folder). An image that is one pixel high takes 20 ms per pixel of its width.
"""

import json
import sys
import time
from collections import namedtuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from lib.api import ImageError
from lib.commands.cli import cli_main
from lib.dataset.crop_resize import resize
from lib.dataset.decode_cost import DecodeError, TooLargeError
from lib.dataset.lazy_image import open_lazy_image
from lib.runtime.log import LOGGER, start_console
from lib.service import server
from lib.service.feedback import FeedbackStore
from lib.service.interface import Served
from lib.service.service import ServiceOptions

Record = namedtuple('Record', 'classes accepted unknown', defaults=(None,))
CLASSES = ('red', 'green', 'blue')


class MeanColor:
    """Class 0, 1 or 2 by the channel with the largest mean."""

    classes = CLASSES

    def __init__(self, version: str) -> None:
        self.version = version

    def pixels(self, image: bytes) -> torch.Tensor:
        try:
            pixels, _ = open_lazy_image(image).pixels(0.01)
        except DecodeError as error:
            raise ImageError(str(error), is_too_large=isinstance(error, TooLargeError)) from None
        out = np.zeros((9, 8, 3), np.uint8)
        resize(np.array(pixels), out[:8])
        if len(pixels) == 1:
            out[8] = min(pixels.shape[1], 255)
        return torch.from_numpy(out)

    def features_of_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        time.sleep(int(pixels[:, 8].max()) * 0.02)
        return pixels[:, :8].float().mean((1, 2)).numpy() / 255

    def predict_features(self, features: np.ndarray, top_k: int) -> list[Record]:
        probabilities = np.exp(features) / np.exp(features).sum(1, keepdims=True)
        order = np.argsort(-features, axis=1)[:, :top_k]
        return [
            Record([(CLASSES[c], float(row[c])) for c in chosen], bool(row.max() > 0.4))
            for row, chosen in zip(probabilities, order, strict=True)
        ]


def main() -> None:
    path, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    start_console()
    folder = options.pop('feedback', '')

    def load() -> Served:
        version = path.read_text(encoding='utf-8')
        if 'broken' in version:
            raise ValueError('this model is broken')
        if 'slow' in version:
            LOGGER.info('loading slowly')
            time.sleep(60)
        return Served(MeanColor(version))

    feedback = FeedbackStore(folder) if folder else None
    server.SECONDS_BETWEEN_CHECKS = 0.3  # of the file
    server.serve(load, path, ServiceOptions(**options), host='127.0.0.1', port=0, feedback=feedback)


if __name__ == '__main__':
    cli_main(main)
