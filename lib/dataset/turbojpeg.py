"""Decoding a region of a JPEG with TurboJPEG 3, where that library is installed.

libjpeg decodes row by row. A region saves the inverse transform, upsampling and color conversion of all pixels outside,
and reading the data below it. The pixels are those of a whole decode: the library is used only if that holds for test
images of each sampling and scale.
"""

import ctypes
import sys
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

_NAMES = {'darwin': 'libturbojpeg.dylib', 'win32': 'turbojpeg.dll'}
_FOLDERS = {
    'linux': ('/opt/libjpeg-turbo/lib64', '/opt/libjpeg-turbo/lib32', '/usr/local/lib'),
    'darwin': ('/opt/libjpeg-turbo/lib', '/opt/homebrew/lib', '/usr/local/lib'),
    'win32': (r'C:\libjpeg-turbo64\bin',),
}
_DECOMPRESS, _RGB = 1, 0
_STOP_ON_WARNING, _SAMPLING, _WIDTH, _HEIGHT = 0, 4, 5, 6  # parameters
_MCU_WIDTHS = (8, 16, 16, 8, 8, 32, 8)  # pixels, of 4:4:4, 4:2:2, 4:2:0, gray, 4:4:0, 4:1:1 and 4:4:1


class _ScalingFactor(ctypes.Structure):
    _fields_ = (('num', ctypes.c_int), ('denom', ctypes.c_int))


class _Region(ctypes.Structure):
    _fields_ = (('x', ctypes.c_int), ('y', ctypes.c_int), ('w', ctypes.c_int), ('h', ctypes.c_int))


_END = b'\xff\xd9'
_HOLE = bytes(512)  # a sector that was never written

_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_FUNCTIONS = {
    'tj3Init': (_POINTER, (_INT,)),
    'tj3Destroy': (None, (_POINTER,)),
    'tj3Set': (_INT, (_POINTER, _INT, _INT)),
    'tj3Get': (_INT, (_POINTER, _INT)),
    'tj3GetErrorStr': (ctypes.c_char_p, (_POINTER,)),
    'tj3DecompressHeader': (_INT, (_POINTER, ctypes.c_char_p, _SIZE)),
    'tj3SetScalingFactor': (_INT, (_POINTER, _ScalingFactor)),
    'tj3SetCroppingRegion': (_INT, (_POINTER, _Region)),
    'tj3Decompress8': (_INT, (_POINTER, ctypes.c_char_p, _SIZE, _POINTER, _INT, _INT)),
}


def decode_region(data: bytes, reduction: int, box: Rectangle) -> np.ndarray:
    """Return the pixels in a box of the reduced image, uint8 RGB (height, width, 3), as stored.

    Data below the box are not read; see `seems_intact`.

    Args:
        data: a JPEG of 8 bits and one scan, gray or of three colors.
        reduction: 1, 2, 4 or 8.

    Raises:
        ValueError: for anything that libjpeg warns about, an unusual subsampling, and without the library.
    """
    library = _library()
    # One per image, as it has the tables of the last file, which would replace missing ones of this file.
    handle = library and library.tj3Init(_DECOMPRESS)
    if library is None or not handle:
        raise ValueError('TurboJPEG 3 is not installed')
    try:
        return _decoded(library, handle, data, reduction, box)
    finally:
        library.tj3Destroy(handle)


def _decoded(library: ctypes.CDLL, handle: int, data: bytes, reduction: int, box: Rectangle) -> np.ndarray:
    def check(status: int) -> None:
        if status:
            raise ValueError(library.tj3GetErrorStr(handle).decode(errors='replace'))

    check(library.tj3Set(handle, _STOP_ON_WARNING, 1))
    check(library.tj3DecompressHeader(handle, data, len(data)))
    # All sizes below are those that the library has read itself.
    width, height = (-(-library.tj3Get(handle, side) // reduction) for side in (_WIDTH, _HEIGHT))
    sampling = library.tj3Get(handle, _SAMPLING)
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f'the box {box} is outside of {width} x {height} pixels')
    if not 0 <= sampling < len(_MCU_WIDTHS):
        raise ValueError('unusual subsampling')
    first, end = columns_to_decode(left, right, width, -(-_MCU_WIDTHS[sampling] // reduction))
    check(library.tj3SetScalingFactor(handle, _ScalingFactor(1, reduction)))
    check(library.tj3SetCroppingRegion(handle, _Region(first, top, end - first, bottom - top)))
    pixels = np.empty((bottom - top, end - first, 3), np.uint8)
    check(library.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, pixels.strides[0], _RGB))
    return pixels[:, left - first : right - first]


def seems_intact(data: bytes, scan_start: int) -> bool:
    """Return False if data below a region, which libjpeg doesn't read, may be damaged or missing.

    A file that is truncated has no end; one that is overwritten in part contains a hole or markers that don't belong to
    a scan; restart markers are numbered. Single bits that changed are not noticed.

    Args:
        scan_start: byte at which the data of the only scan begin.
    """
    if not data.endswith(_END) or data.find(_HOLE, scan_start) >= 0:
        return False
    codes = np.frombuffer(data, np.uint8, offset=scan_start)
    following = codes[np.flatnonzero(codes[:-1] == 0xFF) + 1]
    restarts = following[following != 0][:-1]  # the last one is the end
    return bool((restarts == 0xD0 + np.arange(len(restarts)) % 8).all())


def columns_to_decode(left: int, right: int, width: int, mcu_width: int) -> tuple[int, int]:
    """Return first and end of the columns to decode for those of a box in an image of `width`.

    The first is a multiple of the MCU's width, all in reduced pixels. One MCU more on each side is decoded, since
    colors are upsampled with those of their neighbors.
    """
    return max(0, left // mcu_width - 1) * mcu_width, min(width, right + mcu_width)


@cache
def is_available() -> bool:
    """Return True if the library is installed and its pixels are those of simplejpeg."""
    return _library() is not None and _equals_simplejpeg()


@cache
def _library() -> ctypes.CDLL | None:
    name = _NAMES.get(sys.platform, 'libturbojpeg.so.0')
    folders = (f'{sys.prefix}/lib', f'{sys.prefix}/Library/bin', *_FOLDERS.get(sys.platform, ()))  # conda's come first
    for path in (name, *(str(Path(folder, name)) for folder in folders)):
        try:
            library = ctypes.CDLL(path)
            for function, (result, arguments) in _FUNCTIONS.items():
                getattr(library, function).restype, getattr(library, function).argtypes = result, arguments
        except (OSError, AttributeError):  # absent, or version 2
            continue
        return library
    return None


def _equals_simplejpeg() -> bool:
    height, width = 75, 99
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for sampling in ('444', '422', '420', '440', '411', 'Gray'):
        data = simplejpeg.encode_jpeg(image, 90, colorsubsampling=sampling)
        for reduction in (1, 2, 4, 8):
            reduced = -(-width // reduction), -(-height // reduction)
            whole = simplejpeg.decode_jpeg(data, 'RGB', min_width=reduced[0], min_height=reduced[1])
            left, top, right, bottom = box = (reduced[0] // 2, reduced[1] // 3, reduced[0] - 2, reduced[1] - 3)
            try:
                if not np.array_equal(decode_region(data, reduction, box), whole[top:bottom, left:right]):
                    return False
            except ValueError:
                return False
    return True
