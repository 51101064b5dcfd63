"""Write and run exported models in four formats, and compare them with PyTorch.

A file is written into an otherwise empty folder, with a second file beside it where the format needs one.
"""

import errno
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from lib.errors import shown
from lib.export.module import OUTPUTS, ExportedModel, Preprocessing
from lib.export.openvino_model import compile_openvino, convert_openvino, import_openvino, require
from lib.runtime.checksums import write_tensors

TOLERANCE = 1e-4  # largest allowed difference from PyTorch
ONNX_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
MAX_ONNX_BYTES = 1_900_000_000  # protobuf is limited to 2 GB; more weights are in a second file
_SECOND_FILE = {'.onnx': '.onnx.data', '.xml': '.bin'}
# Images (batch, ...) -> logits (batch, num_classes) and features (batch, num_features).
Run = Callable[[torch.Tensor], tuple[np.ndarray, np.ndarray]]


def files_of(path: Path) -> list[Path]:
    """Return the files that an exported model may consist of: `path`, and the one with its weights beside it."""
    second = _SECOND_FILE.get(path.suffix)
    return [path] if second is None else [path, path.with_suffix(second)]


def write_onnx(path: Path, model: ExportedModel, preprocessing: Preprocessing, metadata: Mapping[str, str]) -> None:
    """Write ONNX with a dynamic batch dimension and the metadata as metadata_props.

    Weights above 2 GB are in a second file, which `path` names relative to its own folder.

    Raises:
        UserError: packages are not installed.
    """
    require(ONNX_PACKAGES, 'EXPORT.FORMAT onnx')
    import onnx

    batch = torch.export.Dim('batch', min=1)
    program = torch.onnx.export(
        model,
        (preprocessing.example(2),),
        input_names=['images'],
        output_names=list(OUTPUTS),
        dynamic_shapes={'images': {0: batch}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # None only with dynamo=False
    program.model.metadata_props.update(metadata)
    is_large = sum(tensor.nbytes for tensor in model.state_dict().values()) > MAX_ONNX_BYTES
    program.save(path, external_data=is_large)
    onnx.checker.check_model(str(path))


def write_openvino(path: Path, model: ExportedModel, preprocessing: Preprocessing, metadata: Mapping[str, str]) -> None:
    """Write the OpenVINO IR: `path` with the graph and the metadata as rt_info, and a .bin file with the weights.

    Raises:
        UserError: packages are not installed.
    """
    require(('openvino',), 'EXPORT.FORMAT openvino')
    save_openvino(path, convert_openvino(model, preprocessing.example(2), OUTPUTS), metadata)


def save_openvino(path: Path, model: Any, metadata: Mapping[str, str]) -> None:
    """Write an OpenVINO model to `path` (.xml) and the .bin file beside it; raises OSError if it is incomplete."""
    openvino = import_openvino()
    for name, value in metadata.items():
        model.set_rt_info(value, ['model_info', name])
    xml, weights = files_of(path)
    try:
        openvino.serialize(model, str(xml), str(weights))
        openvino.Core().read_model(xml)
    except RuntimeError as error:  # for example of a full disk
        raise OSError(errno.EIO, f'OpenVINO: {shown(error)}') from error


def write_torch_export(
    path: Path, model: ExportedModel, preprocessing: Preprocessing, metadata: Mapping[str, str]
) -> None:
    """Write a program that torch.export.load reads without this project, with the metadata as extra files."""
    dynamic = {'images': {0: torch.export.Dim('batch', min=1)}}
    program = torch.export.export(model, (preprocessing.example(2),), dynamic_shapes=dynamic)
    extra = {f'{name}.json': value for name, value in metadata.items()}
    # A file object of Python: torch would name a folder in the archive after `path`, which is a temporary one.
    with open(path, 'wb') as file:
        writer = _LateError(file)
        torch.export.save(program, cast(io.BytesIO, writer), extra_files=extra)
        if writer.error is not None:
            raise writer.error


class _LateError(io.RawIOBase):
    """A file whose first error is stored: torch's writer of archives ends the process if a write fails."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self.error = file, cast(OSError | None, None)

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position; torch rewinds a written buffer."""
        return self._file.seek(offset, whence)

    def write(self, data: Any) -> int:
        """Write the data, unless a write has failed."""
        try:
            if self.error is None:
                self._file.write(data)
        except OSError as error:
            self.error = error
        return len(data)


def write_safetensors(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write parameters and buffers under their names in checkpoints, with the metadata in the header."""
    write_tensors(path, {name: value.contiguous() for name, value in state.items()}, metadata)


def run_onnx(model: Path | bytes) -> Run:
    """Return a function that runs an ONNX file, or its content, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])

    def run(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        logits, features = session.run(list(OUTPUTS), {'images': images.numpy()})
        return logits, features

    return run


def run_openvino(path: Path) -> Run:
    """Return a function that runs an OpenVINO model on the CPU, in parts of a batch that share the cores."""
    return run_compiled(import_openvino().Core().read_model(path))


def run_compiled(model: Any, precision: str = 'float32') -> Run:
    """Return a function that runs an OpenVINO model with the outputs of ExportedModel."""
    openvino = import_openvino()
    compiled = compile_openvino(model, precision)
    jobs = openvino.AsyncInferQueue(compiled)

    def run(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        parts = images.contiguous().split(max(1, min(8, -(-len(images) // len(jobs)))))
        results: list[list[np.ndarray]] = [[] for _ in parts]

        def store(request: Any, number: int) -> None:
            results[number] = [request.get_tensor(name).data.copy() for name in OUTPUTS]

        jobs.set_callback(store)
        for number, part in enumerate(parts):
            jobs.start_async([part.numpy()], number)
        jobs.wait_all()
        logits, features = (np.concatenate(column) for column in zip(*results, strict=True))
        return logits, features

    return run


def run_torch_export(path: Path) -> Run:
    """Return a function that runs a torch.export program on the CPU."""
    program = torch.export.load(path).module()

    def run(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits, features = program(images)
            return logits.numpy(), features.numpy()

    return run


def as_metadata(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as JSON text, which all formats can store."""
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


@torch.inference_mode()
def largest_difference(model: ExportedModel, run: Run, batches: Iterable[torch.Tensor]) -> float:
    """Return the largest difference of logits and features between the exported model and PyTorch, over all batches.

    Relative to the largest absolute value of the batch, or to 1 if that is larger, so that the tolerance is absolute
    for small outputs. Infinite if an exported output is not finite.
    """
    worst = 0.0
    for images in batches:
        for output, actual in zip(model(images), run(images), strict=True):
            expected = output.numpy()
            if not np.isfinite(actual).all():
                return float('inf')
            if actual.shape != expected.shape:
                raise ValueError(f'the exported model returns the shape {actual.shape} instead of {expected.shape}')
            scale = max(1.0, float(np.abs(expected).max()))
            worst = max(
                worst, float(np.abs(actual - expected).max()) / scale, key=lambda x: np.inf if np.isnan(x) else x
            )
    return worst
