"""RUN.ENGINE and RUN.ENGINE_PRECISION -> the engine that computes the features of images."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lib.backbone.adapters import merge_into_backbone
from lib.builders.cache_key import pixel_key, weights_fingerprint
from lib.config.defaults import Config
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError, shown
from lib.export.module import fuse_linear_norms
from lib.export.openvino_model import quantize_openvino, require
from lib.inference.compiled import BACKENDS, TOLERANCE, CompiledEngine, Network, difference, reproduces
from lib.inference.engine import EagerEngine
from lib.inference.graph_cache import read_graph, write_graph
from lib.model import FEATURE_PREFIXES, Recognizer
from lib.runtime.device import Compiled, Device, failure_reason
from lib.runtime.log import LOGGER
from lib.runtime.timings import fastest, measurement_key, milliseconds, read_entry, time_steps, write_entry

ENGINES = 'engines'  # folder of graphs
# Pixels of all images of a pass, from which on `auto` tries an engine. A conversion to OpenVINO takes 2 s: 500 images
# of 112 px. One to ONNX takes 10 s and is seldom faster.
MIN_PIXELS = {'openvino': 6_000_000, 'onnxruntime': 1_000_000_000}
_MIN_PIXELS_ALONE = 60_000_000  # of onnxruntime where OpenVINO is not installed
# On GPUs, torch.compile takes a minute and gains some percent.
_MIN_GPU_SECONDS = 600.0
_TIMED_IMAGES, _TIMED_SECONDS = 32, 4.0

# Image size in pixels -> batches of training images, by which int8 is calibrated.
Calibration = Callable[[int], Iterable[torch.Tensor]]


def build_engine(
    cfg: Config,
    model: Recognizer,
    device: Device,
    group: ProcessGroup,
    *,
    num_images: int,
    folder: Path,
    precision: str = 'float32',
    calibration: Calibration | None = None,
    is_training: bool = False,
    fingerprint: Callable[[], str] | None = None,
) -> EagerEngine:
    """Return the engine for a pass over images; it is chosen when the first images arrive, for each image size.

    In training, and for several ranks, `auto` takes OpenVINO without a comparison of times, which vary: all ranks have
    the same engine, and a run can be repeated.

    Args:
        model: with its final weights.
        num_images: images in the pass, over all ranks. `auto` uses torch for few images, so these results never change.
        folder: folder of the run; graphs are cached in its folder `engines`.
        precision: that of RUN.ENGINE_PRECISION, where it applies.
        calibration: needed for int8.
        is_training: the features determine the weights of a run.
        fingerprint: returns that of the weights in FEATURE_PREFIXES, where it is known already.

    Raises:
        UserError: RUN.ENGINE is not installed, or does not fit the precision or the device.
    """
    name = _checked_name(cfg, device, precision)
    is_measured = group.world_size == 1 and not is_training
    is_torch = name == 'torch' or (name == 'auto' and device.eval_dtype is not None)
    if is_torch and precision == 'float32':
        return EagerEngine(model)
    fingerprint = fingerprint or (lambda: weights_fingerprint(model.state_dict(), FEATURE_PREFIXES))
    opener = _NetworkOpener(
        cfg, model, device, name, num_images, folder, precision, calibration, is_measured, fingerprint
    )
    return CompiledEngine(model, opener)


def _checked_name(cfg: Config, device: Device, precision: str) -> str:
    """Return RUN.ENGINE; for bf16 and int8, auto is resolved. Raises: UserError."""
    name, kind = cfg.RUN.ENGINE, device.main.type
    if device.eval_dtype is not None and (name not in ('auto', 'torch') or precision != 'float32'):
        raise UserError(
            f'RUN.PRECISION {cfg.RUN.PRECISION} is for RUN.ENGINE torch; other engines compute in '
            'RUN.ENGINE_PRECISION: --RUN_PRECISION auto'
        )
    if name in BACKENDS and kind != 'cpu':
        raise UserError(f'RUN.ENGINE {name} computes on the CPU, but RUN.DEVICE is {kind}: --RUN_DEVICE cpu')
    if name == 'auto' and precision != 'float32':
        is_usable = kind == 'cpu' and not BACKENDS['openvino'].missing
        name = 'openvino' if is_usable or precision == 'int8' else 'torch'
    if (precision == 'int8' and (name != 'openvino' or kind != 'cpu')) or (precision, name) == ('bf16', 'onnxruntime'):
        raise UserError(
            f'RUN.ENGINE_PRECISION {precision} is computed by OpenVINO on the CPU, but RUN.ENGINE is {cfg.RUN.ENGINE} '
            f'and RUN.DEVICE {kind}: --RUN_ENGINE openvino --RUN_DEVICE cpu'
        )
    if name in BACKENDS:
        require(BACKENDS[name].packages, f'RUN.ENGINE {name}')
    return name


class _Unusable(Exception):
    """An engine cannot compute the backbone: the conversion failed, or its features differ (`differs`)."""

    def __init__(self, reason: str, *, differs: bool = False) -> None:
        super().__init__(reason)
        self.differs = differs


@dataclass(frozen=True)
class _NetworkOpener:
    """Chooses, converts and compiles the network for a size of images, when the first of them arrive."""

    cfg: Config
    model: Recognizer
    device: Device
    name: str
    num_images: int
    folder: Path
    precision: str
    calibration: Calibration | None
    is_measured: bool
    fingerprint: Callable[[], str]

    def __call__(self, images: torch.Tensor) -> Network:
        """Return the network for images of this size.

        Raises:
            UserError: the engine that the user asked for differs from PyTorch, or cannot compute in int8.
        """
        name, precision = self.name, self.precision
        if name == 'auto':
            names = self._candidates(images)
            if self.is_measured and names:
                return self._fastest(names, images)
            name = names[0] if names else 'torch'
        if name == 'torch':
            return self._torch
        try:
            network = self._network(name, images)
        except _Unusable as error:
            if precision == 'int8' or (error.differs and self.name != 'auto'):
                raise UserError(f'RUN.ENGINE {name} {shown(error)}: --RUN_ENGINE torch') from None
            LOGGER.warning('engine: torch, since %s %s', name, shown(error))
            return self._torch
        LOGGER.info('engine: %s at %d px%s', name, images.shape[3], f', {precision}' * (precision != 'float32'))
        return network

    @cached_property
    def _eager(self) -> EagerEngine:
        return EagerEngine(self.model)

    def _torch(self, images: torch.Tensor) -> torch.Tensor:
        if self.precision == 'float32':
            return self._eager.features(images)
        with torch.autocast(images.device.type, torch.bfloat16):
            return self._eager.features(images)

    def _fastest(self, names: list[str], images: torch.Tensor) -> Network:
        """Return the fastest network of PyTorch and of those engines that reproduce it; logs the choice."""
        size = images.shape[3]
        path = Path(self.cfg.LOG_ROOT, 'timings.json')
        versions = (f'{name} {version(name)}' for name in names if name in BACKENDS)
        key = measurement_key(self.device, 'engine', self.cfg.MODEL.BACKBONE, f'{size} px', *versions)
        seconds, origin = _stored_seconds(path, key), f'cached in {path.name}'
        networks: dict[str, Network] = {'torch': self._torch}
        is_general = True  # a failure that depends on the weights may not occur with others
        for name in names if seconds is None else {fastest(seconds, 'torch')} & set(names):
            try:
                networks[name] = self._network(name, images)
            except _Unusable as error:
                LOGGER.warning('engine: %s %s', name, shown(error))
                is_general &= not error.differs
        if seconds is None:
            seconds, origin = _measured(networks, images), 'measured'
            if is_general:
                write_entry(path, key, {'seconds': seconds})
        usable = {name: seconds[name] for name in networks if name in seconds}
        chosen = fastest(usable, 'torch')
        if chosen in usable:
            others = ''.join(f'; {name} {milliseconds(seconds[name])}' for name in usable if name != chosen)
            time_text = f'{milliseconds(usable[chosen])} per image{others}'
            LOGGER.info('engine: %s at %d px (%s), %s', chosen, size, time_text, origin)
        return networks[chosen]

    def _candidates(self, images: torch.Tensor) -> list[str]:
        """Return the engines that are worth their conversion."""
        if self.device.main.type != 'cpu':
            if not self.is_measured:
                return []
            seconds = _measured({'torch': self._torch}, images).get('torch', 0.0)
            return ['compile'] if self.num_images * seconds >= _MIN_GPU_SECONDS else []
        installed = [name for name, backend in BACKENDS.items() if not backend.missing]
        pixels = self.num_images * images.shape[2] * images.shape[3]
        minimum = {**MIN_PIXELS, **({'onnxruntime': _MIN_PIXELS_ALONE} if 'openvino' not in installed else {})}
        return [name for name in installed if pixels >= minimum[name]]

    def _network(self, name: str, images: torch.Tensor) -> Network:
        """Return the network of an engine. Raises: _Unusable."""
        try:
            # Not in inference mode, whose tensors the exporters of torch refuse.
            with torch.inference_mode(False), torch.no_grad():
                return self._compiled(images) if name == 'compile' else self._converted(name, images)
        except (_Unusable, UserError):
            raise
        except Exception as error:  # libraries raise any type of exception
            raise _Unusable(f'cannot compute {self.cfg.MODEL.BACKBONE} ({failure_reason(error)})') from None

    def _compiled(self, images: torch.Tensor) -> Network:
        compiled = Recognizer(Compiled(self.model.extractor, option='RUN.ENGINE compile'), self.model.classifier).eval()
        if self.precision == 'float32':
            self._check(compiled.features, images)
            return compiled.features

        def features(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast(images.device.type, torch.bfloat16):
                return compiled.features(images)

        return features

    def _converted(self, name: str, images: torch.Tensor) -> Network:
        """Return the network of a cached graph, or convert the backbone and cache the graph once it is checked."""
        backend, key = BACKENDS[name], self._key(name, images)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / ENGINES / f'{name}-{images.shape[3]}px-{digest}'
        files = read_graph(path, key)
        if files is not None:
            return backend.compile(backend.load(files), self.precision)
        module = deepcopy(self.model.extractor).cpu().to(memory_format=torch.contiguous_format).eval()
        merge_into_backbone(module)
        fuse_linear_norms(module)
        graph = backend.convert(module, images[[0, -1]].contiguous())
        if self.precision == 'int8':
            assert self.calibration is not None, 'int8 needs images to calibrate with'
            graph = quantize_openvino(graph, self.calibration(images.shape[3]))
            network = backend.compile(graph, 'int8')
        else:
            network = backend.compile(graph, 'float32')
            self._check(network, images)
        write_graph(path, key, lambda folder: backend.save(graph, folder))
        return network if self.precision != 'bf16' else backend.compile(graph, 'bf16')

    def _key(self, name: str, images: torch.Tensor) -> dict[str, Any]:
        """Return all that a graph depends on."""
        packages = [*BACKENDS[name].packages, 'torch', 'timm']
        return {
            'backbone': self.fingerprint(),
            'name': self.cfg.MODEL.BACKBONE,
            'size': list(images.shape[2:]),
            'options': pixel_key(self.cfg, self.device),  # of these, the pooling is part of the graph
            'precision': 'int8' if self.precision == 'int8' else 'float32',
            'versions': {package: version(package) for package in packages},
        }

    def _check(self, network: Network, images: torch.Tensor) -> None:
        """Raise _Unusable if the features differ from PyTorch's."""
        some = images[:_TIMED_IMAGES]
        with torch.inference_mode():
            expected, actual = self._eager.features(some), network(some)
            if not reproduces(self._eager, expected, actual):
                largest = difference(expected, actual)
                raise _Unusable(f'differs from torch by {largest:.1e}, allowed are {TOLERANCE:.0e}', differs=True)


def _stored_seconds(path: Path, key: str) -> dict[str, float] | None:
    """Return the stored seconds per image of each engine; None if there are none."""
    seconds = (read_entry(path, key) or {}).get('seconds')
    if not isinstance(seconds, dict) or 'torch' not in seconds:
        return None
    is_number = all(isinstance(value, float) and value > 0 for value in seconds.values())
    return seconds if is_number else None


def _measured(networks: dict[str, Network], images: torch.Tensor) -> dict[str, float]:
    """Return the least seconds per image of each network, for some of the images."""
    until = time.perf_counter() + _TIMED_SECONDS

    def seconds(name: str, some: torch.Tensor) -> float:
        started = time.perf_counter()
        networks[name](some)
        if some.device.type == 'cuda':
            torch.cuda.synchronize(some.device)
        return (time.perf_counter() - started) / len(some)

    with torch.inference_mode():
        first = max(seconds('torch', images[:2]), 1e-9)
        number = max(2, min(_TIMED_IMAGES, int(_TIMED_SECONDS / (10 * len(networks) * first))))
        return time_steps(list(networks), lambda name: seconds(name, images[:number]), until=until)
