"""Read the tensors of a weights file of torch.save (both formats) or safetensors, and nothing else of it.

Nothing that the file names is imported or called: only the functions in `_REBUILD`, which describe tensors, exist for
the unpickler. Objects of all other classes (argparse.Namespace, callbacks, NumPy scalars) become `Skipped`. Sizes are
checked against the bytes that are there before memory is allocated.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch
from safetensors import safe_open

from lib.errors import shown
from lib.runtime.checksums import check_safetensors
from lib.runtime.read_file import RefusedFileError, open_regular, reason_of

_LEGACY_MAGIC, _MAX_DEPTH = 0x1950A86A20F9469CFC6C, 8
_DTYPES = {
    'DoubleStorage': torch.float64, 'FloatStorage': torch.float32, 'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
    'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8, 'BoolStorage': torch.bool,
    'UntypedStorage': torch.uint8,
}  # fmt: skip


class WeightsFileError(ValueError):
    """The file is damaged or no weights file; the message is the reason."""


class Skipped(dict):
    """An object of a class that is not read. Items set on it are kept, its arguments and state are ignored."""

    __hash__ = object.__hash__  # type: ignore[assignment] # in some files an enumeration is a key
    __eq__ = object.__eq__

    def _ignore(self, _item: object) -> None:
        """Ignore items of subclasses of list and set."""

    append = extend = add = _ignore


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, read when `load` is called, which raises WeightsFileError if its values are missing."""

    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a file, by their path in it ('state_dict.module.conv1.weight'), in the order of the file.

    Attributes:
        tensors: without their values.
        skipped: names of classes of the file whose objects were not read.
    """

    tensors: dict[str, StoredTensor]
    skipped: tuple[str, ...] = ()


def read_weights_file(path: Path) -> WeightsFile:
    """Return the tensors of the file at `path`. The format is recognized by the content, not by the name.

    Raises:
        WeightsFileError: damaged, or not a weights file.
    """
    try:
        with open_regular(path) as file:
            start = file.read(9)
        if start[8:9] == b'{':
            return WeightsFile(_read_safetensors(path))
        source = _ZipSource(path) if start.startswith(b'PK') else _LegacySource(path)
        return WeightsFile(dict(_walk(source.content, '', set())), tuple(dict.fromkeys(source.skipped)))
    except WeightsFileError:
        raise
    except RefusedFileError as error:
        raise WeightsFileError(reason_of(error)) from error
    except Exception as error:  # damaged bytes make the readers raise errors of any type
        raise WeightsFileError(f'{type(error).__name__}: {shown(error)}') from error


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    file = safe_open(path, 'pt')
    check_safetensors(file)
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    return {name: StoredTensor(shape, partial(file.get_tensor, name)) for name, shape in shapes.items()}


def _walk(node: object, path: str, visited: set[int], depth: int = 0) -> Iterator[tuple[str, StoredTensor]]:
    if isinstance(node, StoredTensor):
        yield path, node
    elif isinstance(node, dict) and id(node) not in visited and depth < _MAX_DEPTH:
        visited.add(id(node))
        for key, value in node.items():
            if isinstance(key, str | int):
                yield from _walk(value, f'{path}.{key}' if path else str(key), visited, depth + 1)


class _Storage(NamedTuple):
    """Values in a file that tensors view."""

    source: '_Source'
    key: str
    dtype: torch.dtype


def _load(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    source, key, dtype = storage
    if math.prod(shape) * dtype.itemsize > source.num_bytes:
        raise WeightsFileError(f'a tensor of {shown(math.prod(shape))} numbers is larger than the file')
    try:
        data = source.storage(key)
        values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return values.as_strided(shape, strides, offset)
    except Exception as error:
        raise WeightsFileError(f'{type(error).__name__}: {shown(error)}') from error


def _tensor(storage: object, offset: Any, shape: Any, strides: Any, *_: object) -> object:
    if not isinstance(storage, _Storage):
        return Skipped()
    if not all(isinstance(number, int) and number >= 0 for number in (offset, *shape, *strides)):
        raise WeightsFileError('a tensor without a valid shape')
    return StoredTensor(tuple(shape), partial(_load, storage, offset, tuple(shape), tuple(strides)))


def _tensor_of_dtype(storage: object, offset: Any, shape: Any, strides: Any, *rest: Any) -> object:
    if isinstance(storage, _Storage) and isinstance(rest[2], torch.dtype):
        storage = storage._replace(dtype=rest[2])
    return _tensor(storage, offset, shape, strides)


def _tensor_of_subclass(function: object, _class: object, arguments: Any, _state: object) -> object:
    return function(*arguments) if isinstance(function, _Rebuild) else Skipped()


class _Rebuild(partial):
    """A function that the unpickler may call."""


_REBUILD: dict[tuple[str, str], _Rebuild] = {
    ('torch._utils', '_rebuild_tensor'): _Rebuild(_tensor),
    ('torch._utils', '_rebuild_tensor_v2'): _Rebuild(_tensor),
    ('torch._utils', '_rebuild_tensor_v3'): _Rebuild(_tensor_of_dtype),
    ('torch._utils', '_rebuild_parameter'): _Rebuild(lambda tensor, *_: tensor),
    ('torch._utils', '_rebuild_parameter_with_state'): _Rebuild(lambda tensor, *_: tensor),
    ('torch._tensor', '_rebuild_from_type_v2'): _Rebuild(_tensor_of_subclass),
    ('torch', 'Size'): _Rebuild(lambda sizes=(): tuple(sizes)),
    ('collections', 'OrderedDict'): _Rebuild(lambda items=(): dict(items)),
}


class _Class(str):
    """The name of a class or function in a file, neither imported nor called."""


# The implementation in Python: that in C allocates memory for any index that a file claims.
class _Unpickler(pickle._Unpickler):
    """Builds dicts, lists, numbers, text and descriptions of tensors; calls nothing but `_REBUILD`."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {**pickle._Unpickler.dispatch}
    stack: list[Any]
    append: Callable[[object], None]

    def __init__(self, file: BinaryIO, source: '_Source') -> None:
        super().__init__(file, encoding='utf-8', errors='replace')
        self._source = source

    def find_class(self, module: str, name: str) -> object:
        if module in ('torch', 'torch.storage', 'torch.cuda') and name in _DTYPES:
            return _DTYPES[name]
        # Not getattr, which would import submodules that torch loads when they are needed.
        if module == 'torch' and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        return _REBUILD.get((module, name)) or _Class(f'{module}.{name}')

    def persistent_load(self, pid: Any) -> object:
        is_storage = isinstance(pid, tuple) and len(pid) > 4 and pid[0] == 'storage' and isinstance(pid[1], torch.dtype)
        if not is_storage or pid[5:] not in ((), (None,)):  # the last one: views in files older than torch 0.4
            return Skipped()
        self._source.dtypes[str(pid[2])] = pid[1]
        return _Storage(self._source, str(pid[2]), pid[1])

    def _made(self, function: object, arguments: Any) -> object:
        if isinstance(function, _Rebuild):
            return function(*arguments)
        # copyreg._reconstructor gets the class as its first argument.
        self._source.skipped += [one for one in (*arguments[:1], function) if isinstance(one, _Class)][:1]
        return Skipped()

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def _instantiate(self, function: object, arguments: Any) -> None:
        self.append(self._made(function, arguments))

    def load_build(self) -> None:
        self.stack.pop()  # the state is ignored, so no method of any object runs

    def get_extension(self, code: int) -> None:
        raise WeightsFileError('a class given by number')

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build


class _Source:
    """A file of torch.save.

    Attributes:
        num_bytes: its size.
        content: its objects, with tensors without values.
        dtypes: dtype of each storage.
        skipped: names of the classes whose objects were not read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.num_bytes = path, path.stat().st_size
        self.dtypes: dict[str, torch.dtype] = {}
        self.skipped: list[str] = []
        self.content: object = None

    def unpickle(self, file: BinaryIO) -> Any:
        """Return the next object of a file."""
        return _Unpickler(file, self).load()

    def storage(self, key: str) -> bytearray:
        """Return the values of a storage."""
        raise NotImplementedError


class _ZipSource(_Source):
    """A zip archive with data.pkl and one record per storage, not compressed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._zip = zipfile.ZipFile(path)
        if sum(info.file_size for info in self._zip.infolist()) > self.num_bytes:
            raise WeightsFileError('a zip archive that unpacks to more than its size, so not one of torch.save')
        names = self._zip.namelist()
        pickles = [name for name in names if name == 'data.pkl' or name.endswith('/data.pkl')]
        if not pickles:
            raise WeightsFileError('a zip archive, but not one of torch.save')
        self._folder = pickles[0].removesuffix('data.pkl')
        if f'{self._folder}constants.pkl' in names:
            raise WeightsFileError('a TorchScript program; save the state_dict of its model')
        byteorder = f'{self._folder}byteorder'
        _check_byteorder(byteorder not in names or self._zip.read(byteorder) == b'little')
        self.content = self.unpickle(io.BytesIO(self._zip.read(pickles[0])))

    def storage(self, key: str) -> bytearray:
        return bytearray(self._zip.read(f'{self._folder}data/{key}'))


class _LegacySource(_Source):
    """The format before torch 1.6: five pickles, then the storages. A bare pickle has no values of tensors."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._ranges: dict[str, tuple[int, int]] = {}
        with open_regular(path) as file:
            self.content = self.unpickle(file)
            if self.content != _LEGACY_MAGIC:
                return
            _protocol, system, self.content, keys = (self.unpickle(file) for _ in range(4))
            _check_byteorder(system['little_endian'])
            for key in keys:
                num_bytes = struct.unpack('<q', file.read(8))[0] * self.dtypes[key].itemsize
                if num_bytes < 0 or file.tell() + num_bytes > self.num_bytes:
                    raise WeightsFileError('cut short: values of tensors are missing')
                self._ranges[key] = (file.tell(), num_bytes)
                file.seek(num_bytes, io.SEEK_CUR)

    def storage(self, key: str) -> bytearray:
        start, num_bytes = self._ranges[key]
        with open_regular(self.path) as file:
            file.seek(start)
            return bytearray(file.read(num_bytes))


def _check_byteorder(is_little: bool) -> None:
    if not is_little:
        raise WeightsFileError('written on a big-endian machine; save it again on this one')
