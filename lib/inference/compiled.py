"""Compiled engines: the backbone computed by OpenVINO, ONNX Runtime or torch.compile, the classifier by PyTorch.

A network is compiled per image size, from a graph that takes a batch of any number of images. On the CPU, parts of a
batch run at the same time, each in one thread: on two cores, that is a fifth faster than all threads on one part.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lib.export.openvino_model import compile_openvino, convert_openvino, import_openvino
from lib.inference.engine import EagerEngine
from lib.runtime.files import write_bytes

# Images (batch, 3, H, W) -> float32 features (batch, num_features); several threads may call it.
Network = Callable[[torch.Tensor], torch.Tensor]
TOLERANCE = 1e-4  # largest difference of float32 features and logits from PyTorch, relative to the largest value
_PART = 16  # images that a thread computes at once; few, so that no thread waits long for the others


@dataclass(frozen=True)
class CompiledEngine(EagerEngine):
    """An engine whose features are computed by a compiled network for the size of the images.

    Attributes:
        open_network: called once per size with the first images of this size; returns the network.
    """

    open_network: Callable[[torch.Tensor], Network]
    _networks: dict[tuple[int, int], Network] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 features (batch, num_features) of images (batch, 3, H, W)."""
        if not len(images):
            return images.new_zeros(0, self.num_features)
        height, width = images.shape[2:]
        network = self._networks.get((height, width))
        if network is None:
            with self._lock:
                if (height, width) not in self._networks:
                    self._networks[height, width] = self.open_network(images)
            network = self._networks[height, width]
        return network(images)


class InParts:
    """A network that computes parts of a batch at the same time, in threads.

    Args:
        workers: functions from images to features; each computes one part at a time.
    """

    def __init__(self, workers: Sequence[Network]) -> None:
        self._num_workers = len(workers)
        self._free: queue.SimpleQueue[Network] = queue.SimpleQueue()
        for worker in workers:
            self._free.put(worker)
        self._pool = ThreadPoolExecutor(len(workers), thread_name_prefix='engine')

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        size = max(1, min(_PART, -(-len(images) // self._num_workers)))
        return torch.cat(list(self._pool.map(self._compute, images.split(size))))

    def _compute(self, images: torch.Tensor) -> torch.Tensor:
        worker = self._free.get()
        try:
            return worker(images)
        finally:
            self._free.put(worker)


@dataclass(frozen=True)
class Backend:
    """A way to compile networks.

    Attributes:
        packages: packages that must be installed.
        convert: module in eval mode on the CPU, images -> graph.
        compile: graph, precision -> network.
        save: writes a graph into a folder.
        load: arrays of bytes by file name, as `save` wrote them -> graph.
    """

    packages: Sequence[str]
    convert: Callable[[nn.Module, torch.Tensor], Any]
    compile: Callable[[Any, str], Network]
    save: Callable[[Any, Path], None]
    load: Callable[[dict[str, np.ndarray]], Any]

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]


def _compile_openvino(graph: Any, precision: str) -> Network:
    streams = torch.get_num_threads()
    compiled = compile_openvino(graph, precision, streams, nhwc=True)

    def worker(request: Any) -> Network:
        def compute(images: torch.Tensor) -> torch.Tensor:
            values = images.permute(0, 2, 3, 1).contiguous().numpy()  # no copy of channels_last images
            request.infer([values], share_inputs=True)
            return torch.from_numpy(request.get_output_tensor(0).data.copy())  # the next part replaces them

        return compute

    return InParts([worker(compiled.create_infer_request()) for _ in range(streams)])


def _save_openvino(graph: Any, folder: Path) -> None:
    import_openvino().serialize(graph, folder / 'graph.xml', folder / 'graph.bin')


def _load_openvino(files: dict[str, np.ndarray]) -> Any:
    openvino = import_openvino()
    return openvino.Core().read_model(files['graph.xml'].tobytes(), openvino.Tensor(files['graph.bin']))


def _convert_onnx(module: nn.Module, images: torch.Tensor) -> bytes:
    program = torch.onnx.export(
        module,
        (images,),
        input_names=['images'],
        output_names=['features'],
        dynamic_shapes=({0: torch.export.Dim('batch', min=1)},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # None only with dynamo=False
    return program.model_proto.SerializeToString()


def _compile_onnx(graph: bytes, precision: str) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.inter_op_num_threads = 3, 1, 1
    session = onnxruntime.InferenceSession(graph, options, providers=['CPUExecutionProvider'])

    def compute(images: torch.Tensor) -> torch.Tensor:
        (features,) = session.run(None, {'images': images.contiguous().numpy()})
        return torch.from_numpy(features)

    return InParts([compute] * torch.get_num_threads())


# RUN.ENGINE -> the backend that converts the backbone to a graph.
BACKENDS = {
    'openvino': Backend(('openvino',), convert_openvino, _compile_openvino, _save_openvino, _load_openvino),
    'onnxruntime': Backend(
        ('onnxruntime', 'onnx', 'onnxscript'),
        _convert_onnx,
        _compile_onnx,
        lambda graph, folder: write_bytes(folder / 'graph.onnx', graph),
        lambda files: files['graph.onnx'].tobytes(),
    ),
}


def difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest expected value; infinite for other or no numbers."""
    if actual.shape != expected.shape or not torch.isfinite(actual).all():
        return float('inf')
    scale = max(float(expected.abs().max()), torch.finfo(expected.dtype).tiny)
    return float((actual - expected).abs().max()) / scale


@torch.no_grad()
def reproduces(engine: EagerEngine, expected: torch.Tensor, actual: torch.Tensor) -> bool:
    """Return whether features are equal to PyTorch's up to TOLERANCE, and predict the same classes except for ties."""
    if not difference(expected, actual) <= TOLERANCE:
        return False
    logits, others = engine.logits(expected), engine.logits(actual)
    scale = float(logits.abs().max())
    predicted = others.argmax(dim=1, keepdim=True)
    behind = logits.amax(dim=1, keepdim=True) - logits.gather(1, predicted)
    return float(behind.max()) <= TOLERANCE * max(scale, 1.0)
