"""Post-training quantization of exported files to int8, with nncf: OpenVINO and ONNX.

Where the loss of accuracy is too large, the layers that contribute most to it stay in float32 (accuracy-aware
quantization): layers are ranked by the error of the logits that is left without their quantization, which is undone in
this order until the accuracy on given images is close enough.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lib.errors import UserError
from lib.export.formats import MAX_ONNX_BYTES, ONNX_PACKAGES, files_of, save_openvino
from lib.export.module import OUTPUTS
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

INT8_FORMATS = ('onnx', 'openvino')
_MAX_STEPS = 40  # of the accuracy-aware quantization
_RANKED_BY = 64  # images
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


@dataclass(frozen=True)
class QuantizedLayers:
    """How many of the convolutions and matrix products with weights compute in int8."""

    int8: int
    total: int


class Int8Graph(Protocol):
    """A quantized model."""

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the model to `path`, of the suffix of its format, and its weights beside it if the format does."""

    def layers(self) -> QuantizedLayers:
        """Return how many layers compute in int8."""


def quantize_file(source: Path, images: torch.Tensor, target: AccuracyTarget | None = None) -> Int8Graph:
    """Return the model of a float32 file (.onnx or .xml), quantized; equal images give an equal result.

    Args:
        images: inputs (n, ...) of the model, by which ranges are calibrated.
        target: leave layers in float32 until it is reached, or all have been tried; None: quantize all.

    Raises:
        UserError: packages are not installed, or an ONNX file is above 2 GB.
    """
    nncf = import_nncf()
    graph = _OpenvinoGraph.read(source) if source.suffix == '.xml' else _OnnxGraph.read(source)
    inputs = [graph.as_input(image) for image in single_images([images])]
    options = quantize_options(nncf, len(inputs), graph.has_attention())
    calibration = nncf.Dataset(inputs)
    with silent(nncf):
        if target is None:
            return type(graph)(nncf.quantize(graph.model, calibration, **options))
        return type(graph)(_quantize_by_accuracy(nncf, graph, calibration, target, options))


def _quantize_by_accuracy(
    nncf: Any, graph: '_Graph', calibration: Any, target: AccuracyTarget, options: dict[str, Any]
) -> Any:
    inputs = [graph.as_input(image) for image in single_images([target.images])]
    reference: list[np.ndarray] = []  # logits of the float32 model, which nncf validates first
    latest: list[Any] = [None, None]  # a model, and how it runs

    def validate(model: Any, numbers: Iterable[int]) -> tuple[float, list[float]]:
        """Return the accuracy on all images; on some, by which layers are ranked, the squared error of the logits."""
        if latest[0] is not model:
            latest[:] = model, graph.runner(model)
        rows = list(numbers)
        logits = np.stack([graph.logits(latest[1], inputs[row]) for row in rows])
        if not reference and len(rows) == len(inputs):
            reference.extend(logits)
        if not reference:
            return 0.0, [0.0] * len(rows)  # a trial by nncf
        scores = [-float(np.square(one - reference[row]).sum()) for one, row in zip(logits, rows, strict=True)]
        is_all = len(rows) == len(inputs)
        return target.accuracy(logits.argmax(axis=1)) if is_all else float(np.mean(scores)), scores

    steps = nncf.AdvancedAccuracyRestorerParameters(
        max_num_iterations=_MAX_STEPS,
        num_ranking_workers=1,
        ranking_subset_size=max(1, min(_RANKED_BY, len(inputs) - 1)),
    )
    return nncf.quantize_with_accuracy_control(
        graph.model,
        calibration,
        nncf.Dataset(range(len(inputs)), inputs.__getitem__),
        validate,
        max_drop=target.max_loss,
        drop_type=nncf.DropType.ABSOLUTE,
        advanced_accuracy_restorer_parameters=steps,
        **options,
    )


class _OpenvinoGraph:
    """An OpenVINO model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def read(cls, path: Path) -> '_OpenvinoGraph':
        return cls(import_openvino().Core().read_model(path))

    def as_input(self, image: np.ndarray) -> Any:
        return image

    def runner(self, model: Any) -> Any:
        return model  # compiled by nncf

    def logits(self, run: Any, item: Any) -> np.ndarray:
        return run(item)[OUTPUTS[0]][0]

    def has_attention(self) -> bool:
        return is_transformer(self.model)

    def layers(self) -> QuantizedLayers:
        dynamic, types = depends_on_images(self.model), []
        for node in self.model.get_ops():
            weight = node.input_value(1).get_node() if node.get_type_name() in _LAYERS else None
            if weight is not None and weight.get_name() not in dynamic:
                while weight.get_input_size():
                    weight = weight.input_value(0).get_node()
                types.append(weight.get_element_type().get_type_name())
        return QuantizedLayers(sum(name in ('i8', 'u8') for name in types), len(types))

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

    def runner(self, model: Any) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])

    def logits(self, run: Any, item: Any) -> np.ndarray:
        return run.run([OUTPUTS[0]], item)[0][0]

    def has_attention(self) -> bool:
        return any(
            node.op_type == 'Attention' or (node.op_type == 'MatMul' and self._dynamic.issuperset(node.input))
            for node in self.model.graph.node
        )

    def layers(self) -> QuantizedLayers:
        made_by = {output: node for node in self.model.graph.node for output in node.output}
        int8 = {tensor.name for tensor in self.model.graph.initializer if tensor.data_type in (2, 3)}  # uint8, int8
        weights = [node.input[1] for node in self.model.graph.node if node.op_type in _LAYERS]
        found = []
        for name in weights:
            if name not in self._dynamic:
                while name in made_by and made_by[name].input:
                    name = made_by[name].input[0]
                found.append(name)
        return QuantizedLayers(sum(name in int8 for name in found), len(found))

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
