"""An exported recogniser as a file of one of three formats, and how each is run again.

What was exported against PyTorch, on images.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lib.errors import UserError
from lib.export.module import OUTPUTS, Exported, Preprocessing

_LARGEST_ONNX = 1_900_000_000  # bytes; protobuf ends at 2 GB, beyond which weights need a second file
Run = Callable[[torch.Tensor], tuple[np.ndarray, np.ndarray]]


def write_onnx(path: Path, model: Exported, preprocessing: Preprocessing, metadata: Mapping[str, str]) -> None:
    """Write ONNX with a dynamic batch; metadata goes into metadata_props.

    Raises:
        UserError: packages are not installed, or the weights are too many for one file.
    """
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise UserError(f'EXPORT.FORMAT onnx needs packages of its own: pip install {" ".join(missing)}')
    import onnx

    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > _LARGEST_ONNX:
        raise UserError(
            f'EXPORT.FORMAT onnx: {size / 1e9:.1f} GB of weights do not fit one file of at most 2 GB; '
            '--EXPORT_FORMAT torch_export or safetensors take them'
        )
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
    proto = program.model_proto
    for name, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def write_torch_export(path: Path, model: Exported, preprocessing: Preprocessing, metadata: Mapping[str, str]) -> None:
    """Write a program that torch.export.load reads without this project; metadata as extra files."""
    dynamic = {'images': {0: torch.export.Dim('batch', min=1)}}
    program = torch.export.export(model, (preprocessing.example(2),), dynamic_shapes=dynamic)
    torch.export.save(program, path, extra_files={f'{name}.json': value for name, value in metadata.items()})


def write_safetensors(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write parameters and buffers under the names of checkpoints; metadata in the header."""
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata=dict(metadata))


def run_onnx(path: Path) -> Run:
    """Return what runs an ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: tuple(session.run(list(OUTPUTS), {'images': images.numpy()}))


def run_torch_export(path: Path) -> Run:
    """Return what runs a program of torch.export on the CPU."""
    program = torch.export.load(path).module()

    def run(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            return tuple(part.numpy() for part in program(images))

    return run


def as_metadata(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as JSON texts, which all formats can hold."""
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


TOLERANCE = 1e-4


@torch.inference_mode()
def largest_difference(model: Exported, run: Run, batches: Iterable[torch.Tensor]) -> float:
    """Return how far logits and features of what was exported are from PyTorch's, over all batches.

    Relative to the largest number of the batch, but to no less than 1, so that small outputs are held to 1e-4 as such.
    Infinite where not all that was exported gives is finite.
    """
    worst = 0.0
    for images in batches:
        for own, found in zip(model(images), run(images), strict=True):
            expected = own.numpy()
            if not np.isfinite(found).all():
                return float('inf')
            if found.shape != expected.shape:
                raise ValueError(f'{found.shape} was returned for {expected.shape}')
            scale = max(1.0, float(np.abs(expected).max()))
            worst = max(
                worst, float(np.abs(found - expected).max()) / scale, key=lambda x: np.inf if np.isnan(x) else x
            )
    return worst
