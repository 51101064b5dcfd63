"""Post-training quantization of exported files to int8, with nncf: OpenVINO and ONNX.

Where the loss of accuracy is too large, layers stay in float32: those that alone change the logits most when they are
quantized. Their number is doubled until the accuracy on given images is close enough.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lib.errors import UserError
from lib.export.formats import (
    MAX_ONNX_BYTES,
    ONNX_PACKAGES,
    Run,
    files_of,
    run_compiled,
    run_onnx,
    save_openvino,
)
from lib.export.openvino_model import (
    depends_on_images,
    import_nncf,
    import_openvino,
    is_transformer,
    quantize_options,
    require,
    silent,
    single_images,
)
from lib.runtime.log import progress_bar

INT8_FORMATS = ('onnx', 'openvino')
_RANKED_BY = 32  # images
_BATCH = 64
_LAYERS = {'Convolution', 'GroupConvolution', 'MatMul', 'Conv', 'Gemm'}


@dataclass(frozen=True)
class AccuracyTarget:
    """The accuracy that accuracy-aware quantization must reach.

    Attributes:
        images: inputs (n, ...) of the model.
        accuracy: predicted classes (n,) of these images -> a fraction.
        max_loss: largest decrease of it.
    """

    images: torch.Tensor
    accuracy: Callable[[np.ndarray], float]
    max_loss: float


class Int8Graph(Protocol):
    """A quantized model."""

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the model to `path`, of the suffix of its format, and its weights beside it if the format does."""

    def layers(self) -> dict[str, bool]:
        """Return the convolutions and matrix products with weights, and whether they compute in int8."""


def quantize_file(source: Path, images: torch.Tensor, target: AccuracyTarget | None = None) -> Int8Graph:
    """Return the model of a float32 file (.onnx or .xml), quantized; equal images give an equal result.

    Args:
        images: inputs (n, ...) of the model, by which ranges are calibrated.
        target: quantize only layers with weights, and leave as many of them in float32 as it takes to reach it, or all
            but one; None: quantize all layers, and the operations between them.

    Raises:
        UserError: packages are not installed, or an ONNX file is above 2 GB.
    """
    nncf = import_nncf()
    graph = _OpenvinoGraph.read(source) if source.suffix == '.xml' else _OnnxGraph.read(source)
    options, inputs = quantize_options(nncf, graph.has_attention()), [*map(graph.as_input, single_images([images]))]

    def quantized(num_images: int, only: Collection[str] | None = None) -> _Graph:
        scope = None
        if only is not None:
            scope = nncf.IgnoredScope(names=[name for name in graph.nodes() if name not in only], validate=False)
        data = inputs[:num_images]
        with silent(nncf):
            model = nncf.quantize(
                graph.model, nncf.Dataset(data), subset_size=len(data), ignored_scope=scope, **options
            )
        return type(graph)(model)

    if target is None:
        return quantized(len(inputs))
    layers, errors = list(graph.layers()), {}
    expected = _logits(graph, images[:_RANKED_BY])
    for layer in progress_bar(layers, total=len(layers), label='sensitivity', unit='layer'):
        alone = quantized(_RANKED_BY, {layer})
        errors[layer] = float(np.square(_logits(alone, images[:_RANKED_BY]) - expected).sum())
    layers.sort(key=lambda layer: errors[layer])
    wanted = target.accuracy(_logits(graph, target.images).argmax(axis=1)) - target.max_loss
    num_float = 0
    while True:
        result = quantized(len(inputs), set(layers[: len(layers) - num_float]))
        accuracy = target.accuracy(_logits(result, target.images).argmax(axis=1))
        if accuracy >= wanted or num_float >= len(layers) - 1:
            return result
        num_float = min(max(1, 2 * num_float), len(layers) - 1)


def _logits(graph: '_Graph', images: torch.Tensor) -> np.ndarray:
    run = graph.runner()
    return np.concatenate([run(part)[0] for part in images.split(_BATCH)])


class _OpenvinoGraph:
    """An OpenVINO model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def read(cls, path: Path) -> '_OpenvinoGraph':
        return cls(import_openvino().Core().read_model(path))

    def as_input(self, image: np.ndarray) -> Any:
        return image

    def runner(self) -> Run:
        return run_compiled(self.model, 'int8')

    def has_attention(self) -> bool:
        return is_transformer(self.model)

    def nodes(self) -> list[str]:
        return [node.get_friendly_name() for node in self.model.get_ops()]

    def layers(self) -> dict[str, bool]:
        dynamic, found = depends_on_images(self.model), {}
        for node in self.model.get_ordered_ops():
            weight = node.input_value(1).get_node() if node.get_type_name() in _LAYERS else None
            if weight is not None and weight.get_name() not in dynamic:
                while weight.get_input_size():
                    weight = weight.input_value(0).get_node()
                found[node.get_friendly_name()] = weight.get_element_type().get_type_name() in ('i8', 'u8')
        return found

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        save_openvino(path, self.model, metadata)


class _OnnxGraph:
    """An ONNX model, as protobuf message."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._dynamic = {value.name for value in model.graph.input}  # computed from the images; the others are weights
        for node in model.graph.node:
            if not self._dynamic.isdisjoint(node.input):
                self._dynamic.update(node.output)

    @classmethod
    def read(cls, path: Path) -> '_OnnxGraph':
        require(ONNX_PACKAGES, 'EXPORT.FORMAT onnx')
        import onnx

        size = sum(file.stat().st_size for file in files_of(path) if file.exists())
        if size > MAX_ONNX_BYTES:
            raise UserError(
                f'EXPORT.PRECISION int8: {size / 1e9:.1f} GB of weights are too many for EXPORT.FORMAT onnx, at most 2 '
                'GB: --EXPORT_FORMAT openvino'
            )
        return cls(onnx.load(path))

    def as_input(self, image: np.ndarray) -> Any:
        return {'images': image}

    def runner(self) -> Run:
        return run_onnx(self.model.SerializeToString())

    def has_attention(self) -> bool:
        return any(
            node.op_type == 'Attention' or (node.op_type == 'MatMul' and self._dynamic.issuperset(node.input))
            for node in self.model.graph.node
        )

    def nodes(self) -> list[str]:
        return [node.name for node in self.model.graph.node]

    def layers(self) -> dict[str, bool]:
        made_by = {output: node for node in self.model.graph.node for output in node.output}
        int8 = {tensor.name for tensor in self.model.graph.initializer if tensor.data_type in (2, 3)}  # uint8, int8
        found = {}
        for node in self.model.graph.node:
            if node.op_type in _LAYERS and node.input[1] not in self._dynamic:
                weight = node.input[1]
                while weight in made_by and made_by[weight].input:
                    weight = made_by[weight].input[0]
                found[node.name] = weight in int8
        return found

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.metadata_props[:]
        for name, value in metadata.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = name, value
        onnx.checker.check_model(model)
        onnx.save_model(model, path)


_Graph = _OpenvinoGraph | _OnnxGraph
