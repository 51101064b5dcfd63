"""The Python interface: predict images in your own program, as test.py does.

    from lib.api import load

    model = load('log/demo/best_model.pth')
    model.predict('photo.jpg').name

Importing this module takes 0.2 s; `load` imports torch. Nothing is printed: messages go to the logger
`recognizer`. Signal handlers, the state of torch's random numbers and its number of threads do not change.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from lib.dataset.decode_cost import DecodeError, TooLargeError
from lib.dataset.given_image import GivenImage, check_image, check_images, is_image
from lib.errors import UserError, shown

if TYPE_CHECKING:
    import torch

    from lib.commands.loaded_model import LoadedModel
    from lib.inference.image_predictor import PixelBatch, TopClasses


class ImageError(UserError):
    """An image that cannot be read or decoded; the message is the reason, in one line.

    Attributes:
        is_too_large: it has more pixels, or would take more memory or time, than an image may.
    """

    def __init__(self, message: str, *, is_too_large: bool = False) -> None:
        super().__init__(message)
        self.is_too_large = is_too_large


@dataclass(frozen=True, slots=True)
class Record:
    """The prediction of an image.

    Attributes:
        classes: (name, probability) of the most probable classes, the most probable first; empty for an image that
            cannot be decoded.
        accepted: whether the probability of the first class reaches the model's threshold; None without a threshold.
        error: the reason why the image cannot be decoded, in one line; None for a good image.
        unknown: whether the product is none of the classes, which are the nearest ones then; None unless `test.py
            --TEST_REJECT_UNKNOWN` has chosen a threshold for this model.
    """

    classes: list[tuple[str, float]]
    accepted: bool | None = None
    error: str | None = None
    unknown: bool | None = None

    @property
    def name(self) -> str | None:
        """The name of the most probable class; None for an image that cannot be decoded."""
        return self.classes[0][0] if self.classes else None

    @property
    def probability(self) -> float:
        """The probability of the most probable class, from 0 to 1; 0 for an image that cannot be decoded."""
        return self.classes[0][1] if self.classes else 0.0


def load(
    path: str | os.PathLike[str],
    *,
    engine: str = 'auto',
    precision: str = 'float32',
    device: str = 'auto',
    threads: int | None = None,
    batch_size: int | None = None,
    threshold: float | None = None,
) -> 'Model':
    """Load a model from a checkpoint, which runs no code of the file.

    Args:
        path: a checkpoint, such as log/demo/best_model.pth, or an exported .safetensors file.
        engine: 'torch', 'openvino', 'onnxruntime', 'compile' or 'auto'. On a CPU, 'auto' uses OpenVINO if it is
            installed, which is faster and gives the same answers. It is prepared with the first image; its graph is
            cached in the folder `engines` beside the checkpoint.
        precision: 'float32', or with OpenVINO 'bf16' or 'int8', whose loss of accuracy is logged if the validation
            split is available.
        device: 'auto', 'cpu', 'mps', 'cuda' or 'cuda:1'.
        threads: CPU threads of the network, and threads that decode; None: one per core.
        batch_size: images per step of `predict` and `stream`; None: that of test.py.
        threshold: probability below which an answer is not accepted. None: the one that `test.py --TEST_ABSTAIN_ERROR`
            chose last for this model, if any. 0: every answer is accepted.

    Raises:
        UserError: the file does not exist, is not a checkpoint or is damaged, or there is no such device.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f'path is of type {type(path).__name__}, but must be the path of a checkpoint')
    for name, text in (('engine', engine), ('precision', precision), ('device', device)):
        if not isinstance(text, str):
            raise TypeError(f'{name} is of type {type(text).__name__}, but must be a text')
    for name, number in (('threads', threads), ('batch_size', batch_size)):
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f'{name} is {shown(number)}, but must be a whole number from 1 on, or None')
    if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise ValueError(f'threshold is {shown(threshold)}, but must be a probability from 0 to 1, or None')
    from lib.commands.library_model import load_for_library

    trained = load_for_library(Path(path), engine=engine, precision=precision, device=device, batch_size=batch_size)
    return Model(trained, threads=threads, threshold=threshold)


class Model:
    """A trained model for prediction; `load` returns one. Its methods may be called from several threads at a time.

    Images are paths, the bytes of image files, Pillow images, or uint8 arrays (height, width, 3) in RGB. Files are
    decoded as in test.py: rotated upright, transparency composited over white, within limits of memory and time.

    Attributes:
        classes: names of the classes.
        version: fingerprint of the weights, the preprocessing and the names.
        threshold: probability below which an answer is not accepted; None: there is no threshold.
    """

    def __init__(self, trained: 'LoadedModel', *, threads: int | None = None, threshold: float | None = None) -> None:
        """Wrap a loaded model; arguments as in `load`, which programs call instead."""
        from lib.commands.library_model import with_predictor

        self._opened = opened = with_predictor(trained, threads)
        self._predictor = opened.predictor
        self.classes: Sequence[str] = tuple(trained.class_names)
        self.version = opened.version
        self.threshold = opened.threshold if threshold is None else threshold

    @property
    def num_features(self) -> int:
        """Width of the features."""
        return self._predictor.engine.num_features

    @property
    def image_size(self) -> int:
        """Side of the square input of the network, in pixels."""
        return self._predictor.transform.size

    def __repr__(self) -> str:
        return f'<Model {self.version}: {len(self.classes)} classes, {self.image_size} px>'

    @overload
    def predict(self, images: GivenImage, top_k: int = 3) -> Record: ...  # type: ignore[overload-overlap]  # str
    @overload
    def predict(self, images: Iterable[GivenImage], top_k: int = 3) -> list[Record]: ...
    def predict(self, images: Any, top_k: int = 3) -> Record | list[Record]:
        """Predict one image, or a sequence of images.

        Args:
            top_k: number of classes per record; fewer where the model has fewer.

        Returns:
            A record, or a list of records in the order of the images. An image that cannot be decoded has an error.

        Raises:
            TypeError, ValueError: an argument is not an image.
        """
        if not is_image(images):
            return list(self.stream(images, top_k))
        try:
            return self.predict_pixels(self.pixels(images)[None], top_k)[0]
        except ImageError as error:
            return self._failed(str(error))

    def stream(self, images: Iterable[GivenImage], top_k: int = 3) -> Iterator[Record]:
        """Yield the record of each image, in order; memory does not grow with the number of images.

        Images are decoded while the network runs, so a few batches are taken from `images` ahead.

        Raises:
            TypeError, ValueError: an entry is not an image.
        """
        num_top = self._num_top(top_k)
        return (
            record
            for top, errors in self._predictor.stream_top_classes(check_images(images), num_top)
            for record in self._records(top, top_k, errors)
        )

    def features(self, images: Any) -> np.ndarray:
        """Return the features of images, (n, num_features) float32, or of one image, (num_features,).

        The features of an image that cannot be decoded are NaN.
        """
        is_one = is_image(images)
        parts = [np.zeros((0, self.num_features), np.float32)]
        for features, errors in self._predictor.stream_features([images] if is_one else check_images(images)):
            features[list(errors)] = np.nan
            parts.append(features)
        joined = np.concatenate(parts)
        return joined[0] if is_one else joined

    def pixels(self, image: GivenImage) -> 'torch.Tensor':
        """Return the input pixels of the network, uint8 (image_size, image_size, 3), decoded in the calling thread.

        Raises:
            ImageError: the image cannot be read or decoded.
            TypeError, ValueError: the argument is not an image.
        """
        check_image(image)
        try:
            return self._predictor.pixels(image)
        except DecodeError as error:
            raise ImageError(str(error), is_too_large=isinstance(error, TooLargeError)) from None

    def predict_pixels(self, pixels: Any, top_k: int = 3) -> list[Record]:
        """Return the records of a batch of `pixels`, uint8 (n, image_size, image_size, 3)."""
        top = self._predictor.top_classes(self._batch(pixels), self._num_top(top_k))
        return self._records(top, top_k)

    def features_of_pixels(self, pixels: Any) -> np.ndarray:
        """Return the features (n, num_features) float32 of a batch of `pixels`, as for `predict_pixels`."""
        return self._predictor.features(self._batch(pixels))

    def predict_features(self, features: np.ndarray, top_k: int = 3) -> list[Record]:
        """Return the records of features (n, num_features); NaN, as for a damaged image, gives an error."""
        values = np.asarray(features, np.float32)
        if values.ndim != 2 or values.shape[1] != self.num_features:
            raise ValueError(f'features are of shape {shown(values.shape)}, but must be (n, {self.num_features})')
        undefined = dict.fromkeys(np.flatnonzero(~np.isfinite(values).all(1)).tolist(), 'the features are not numbers')
        return self._records(self._predictor.classify(values, self._num_top(top_k)), top_k, undefined)

    def enroll(
        self,
        classes: Mapping[str, Sequence[GivenImage]],
        *,
        known: Mapping[str, Sequence[GivenImage]] | None = None,
        max_loss: float = 0.02,
        retire: Sequence[str] = (),
    ) -> 'Model':
        """Return a model with other classes, from a few images of each, as tools/enroll.py does.

        This model does not change. `save` writes the new one.

        Args:
            classes: name of a new class -> its images; or name of a class of this model -> further images, towards
                which its weights move.
            known: name of a class of this model -> images that the model was not trained on. The new classes get the
                largest weights for which the accuracy on these images, averaged over classes, falls by at most
                `max_loss`. Without them, the loss of accuracy on the old classes is not limited.
            retire: names of classes to remove.

        Raises:
            UserError: a class has no images, a class to remove does not exist, or an image cannot be decoded.
        """
        from lib.commands.library_model import enroll_images

        trained = enroll_images(self._opened, classes, known or {}, max_loss, retire)
        return Model(trained, threads=self._opened.threads, threshold=self.threshold)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a checkpoint that `load` and all scripts read.

        Raises:
            UserError: the file exists and `overwrite` is False, or its name does not end with .pth.
        """
        from lib.commands.library_model import save_model

        save_model(self._opened.trained, Path(path), overwrite=overwrite)

    def _batch(self, pixels: Any) -> 'PixelBatch':
        from lib.inference.image_predictor import batch_of

        return batch_of(pixels, self.image_size)

    def _num_top(self, top_k: int) -> int:
        """Return the number of classes to compute: at least those that test.py stores, in the same order."""
        from lib.metrics.predictions import NUM_TOP

        if type(top_k) is not int or top_k < 1:
            raise ValueError(f'top_k is {shown(top_k)}, but must be a whole number from 1 on')
        return max(top_k, NUM_TOP)

    def _records(self, top: 'TopClasses', top_k: int, errors: Mapping[int, str] = {}) -> list[Record]:
        names, threshold, known_threshold = self.classes, self.threshold, self._opened.known_threshold
        records = []
        labels, probabilities = top.classes[:, :top_k].tolist(), top.probabilities[:, :top_k].tolist()
        for position, chances in enumerate(probabilities):
            if position in errors:
                records.append(self._failed(errors[position]))
                continue
            best = [(names[label], chance) for label, chance in zip(labels[position], chances, strict=True)]
            accepted = None if threshold is None else chances[0] >= threshold
            unknown = None if known_threshold is None else not top.scores[position] >= known_threshold
            records.append(Record(best, accepted, unknown=unknown))
        return records

    def _failed(self, reason: str) -> Record:
        return Record([], None if self.threshold is None else False, reason)
