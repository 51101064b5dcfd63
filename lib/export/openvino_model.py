"""Convert modules to OpenVINO, quantize them to int8, and compile them for the CPU.

openvino and nncf are optional (requirements-engines.txt), so they are imported when they are needed, and only here: the
telemetry of both is off, nothing is sent or stored.
"""

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lib.errors import UserError
from lib.runtime.workers import num_cores

if TYPE_CHECKING:
    import openvino

PRECISIONS = {'float32': 'f32', 'bf16': 'bf16', 'int8': 'f32'}  # of what is not quantized
_TELEMETRY = 'openvino_telemetry'


def require(packages: Sequence[str], option: str) -> None:
    """Raise UserError if a package is not installed; `option` is what needs it, such as 'EXPORT.FORMAT onnx'."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f'{option} needs more packages: pip install {" ".join(missing)}')


def import_openvino() -> Any:
    """Return the module openvino, without its telemetry.

    Both packages send usage data unless the user has opted out, and work without the package that sends it.

    Raises:
        UserError: it is not installed.
    """
    require(('openvino',), 'OpenVINO')
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]  # importing it raises ImportError
    import openvino

    return openvino


def import_nncf() -> Any:
    """Return the module nncf, which quantizes, without its telemetry, log lines and progress bars.

    Raises:
        UserError: it is not installed.
    """
    require(('nncf',), 'int8')
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)  # nncf needs no CUDA compiler
    logger_class = logging.getLoggerClass()
    try:
        import nncf
    finally:
        logging.setLoggerClass(logger_class)
    nncf.set_log_level(logging.ERROR)
    return nncf


class _SignalStack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (('address', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Keep this thread's stack of signal handlers in the block, in which OpenVINO loads its CPU plugin.

    The plugin sets another one and frees it, perhaps in another thread; Ctrl-C is then a segmentation fault.
    """
    if sys.platform != 'linux':
        yield
        return
    libc, stack = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(stack))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(stack), None)


def convert_openvino(module: nn.Module, example: torch.Tensor, outputs: Sequence[str] = ()) -> 'openvino.Model':
    """Return a module in eval mode as an OpenVINO model, with a batch dimension of any size.

    The model shares the memory of the weights: compile or save it before they change.

    Args:
        example: an input (at least 2, ...) on the CPU; all dimensions but the first are constant.
        outputs: names of the outputs, in order.
    """
    openvino = import_openvino()
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter('ignore')  # of torch.jit, by which OpenVINO reads modules
        # Without tracing the module a second time, which takes a third of the conversion: callers compare results.
        traced = TorchScriptPythonDecoder(module, example_input=example, trace_kwargs={'check_trace': False})
        model = openvino.convert_model(traced, example_input=example, input=[-1, *example.shape[1:]])
    for output, name in zip(model.outputs, outputs, strict=bool(outputs)):
        output.get_tensor().set_names({name})
    model.inputs[0].get_tensor().set_names({'images'})
    return model


def compile_openvino(
    model: 'openvino.Model', precision: str = 'float32', streams: int = 0, *, nhwc: bool = False
) -> 'openvino.CompiledModel':
    """Compile a model for the CPU; each stream runs in one thread, so results do not depend on their number.

    Args:
        precision: float32; bf16 (rounded weights and activations); int8: float32 for what is not quantized.
        streams: batches that run at the same time, each in its own infer request; 0: one per core.
        nhwc: the input is (batch, H, W, channels) instead of (batch, channels, H, W): channels_last images, permuted,
            need no copy.
    """
    openvino = import_openvino()
    if nhwc:
        model = model.clone()
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_layout(openvino.Layout('NHWC'))
        steps.input().model().set_layout(openvino.Layout('NCHW'))
        model = steps.build()
    streams = streams or num_cores()
    options = {
        'INFERENCE_PRECISION_HINT': PRECISIONS[precision],
        'NUM_STREAMS': streams,
        'INFERENCE_NUM_THREADS': streams,
        'ENABLE_CPU_PINNING': False,  # the threads that decode images use the same cores
    }
    with own_signal_stack():
        return openvino.Core().compile_model(model, 'CPU', options)


def has_bf16() -> bool:
    """Return whether this CPU computes in bf16; on others OpenVINO uses float32 without a message."""
    with own_signal_stack():
        return 'BF16' in import_openvino().Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


def quantize_openvino(model: 'openvino.Model', batches: Iterable[torch.Tensor]) -> 'openvino.Model':
    """Return a model whose convolutions and matrix products compute in int8 (post-training quantization of nncf).

    Ranges of activations are measured on the images, and biases are corrected for the mean error. Equal images give an
    equal result.

    Args:
        batches: inputs (n, ...) of the model; 300 images are enough.
    """
    nncf = import_nncf()
    images = single_images(batches)
    with silent(nncf), own_signal_stack():
        options = quantize_options(nncf, is_transformer(model))
        return nncf.quantize(model, nncf.Dataset(images), subset_size=len(images), **options)


def single_images(batches: Iterable[torch.Tensor]) -> list[np.ndarray]:
    """Return the images of batches (n, ...) as arrays (1, ...): statistics of nncf are those of one item each."""
    return [image for batch in batches for image in batch.contiguous().numpy()[:, None]]


def quantize_options(nncf: Any, transformer: bool) -> dict[str, Any]:
    """Return the keyword arguments of nncf.quantize, for all formats."""
    return {
        'preset': nncf.QuantizationPreset.MIXED,  # activations are not symmetric: SiLU, GELU, normalized inputs
        'target_device': nncf.TargetDevice.CPU,
        'model_type': nncf.ModelType.TRANSFORMER if transformer else None,
    }


def is_transformer(model: 'openvino.Model') -> bool:
    """Return whether a model has attention, whose products and softmax need other rules of quantization."""
    dynamic = depends_on_images(model)
    for node in model.get_ops():
        if node.get_type_name() == 'ScaledDotProductAttention':
            return True
        inputs = [value.get_node().get_name() for value in node.input_values()]
        if node.get_type_name() == 'MatMul' and all(name in dynamic for name in inputs):
            return True
    return False


def depends_on_images(model: 'openvino.Model') -> set[str]:
    """Return the names of the nodes that are computed from the input; the others are weights."""
    names: set[str] = set()
    for node in model.get_ordered_ops():
        inputs = [value.get_node().get_name() for value in node.input_values()]
        if node.get_type_name() == 'Parameter' or not names.isdisjoint(inputs):
            names.add(node.get_name())
    return names


@contextmanager
def silent(nncf: Any) -> Iterator[None]:
    """Keep nncf from writing progress bars and warnings to the terminal."""
    import rich

    console = rich.get_console()
    was_quiet, console.quiet = console.quiet, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        console.quiet = was_quiet
