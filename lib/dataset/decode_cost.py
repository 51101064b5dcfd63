"""Cost of decoding an image: bounds from its header, before any pixel is decoded, of memory and time.

Limits hold per image, including all copies on the way to RGB. Images whose cost is certainly small are decoded in
place; a decoder process (decode_process.py) decodes the others, where the system enforces both limits.
"""

from PIL import Image, ImageFile, TiffImagePlugin

from lib.dataset.image_format import HEADER_BYTES, image_format

MAX_BYTES = 10**9
MAX_SECONDS = 5

# JPEG: upper bounds of the time of libjpeg-turbo, measured on noise with few zeros; an ordinary photo takes a third.
_SECONDS_PER_BLOCK, _SECONDS_PER_SCAN_BLOCK, _SECONDS_PER_BYTE = 100e-9, 50e-9, 10e-9
_LEAST_SECONDS_PER_SCAN_BLOCK = 4e-9  # of a scan without data
IN_PLACE_SECONDS = 0.6  # by these bounds: photos of 100 MP; a file with an oddity is decoded up to ten times
BYTES_PER_BLOCK = 128  # of coefficients
BYTES_PER_PIXEL = 7  # of RGB in Pillow, which pads it to 4 bytes, and in an array

# Other formats: the largest file and image that are decoded in place. A file of 8 MB may take 0.7 s to inflate (empty
# blocks with a code each), and a lossless WebP may take 0.7 GB for 65,536 groups of codes. The decoders of formats
# that are not listed do any amount of work for few bytes: hidden frames, derived images, layers, code in Python.
_MAX_FILE_BYTES = {'PNG': 8 << 20, 'WebP': 8 << 20, 'GIF': 8 << 20, 'BMP': 64 << 20, 'TIFF': 4 << 20}
_MAX_PIXELS = {'PNG': 16 << 20, 'WEBP': 8 << 20, 'GIF': 16 << 20, 'BMP': 16 << 20, 'TIFF': 16 << 20}
_MAX_PARTS = 20_000  # strips or tiles of a TIFF, each of which has a constant cost
_SIMPLE_COMPRESSIONS = ('raw', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits')
_STRIP_BYTES, _TILE_WIDTH = 279, 322  # tags

# Bytes per pixel within decoders, besides the image that they return.
_DECODER_BYTES = {'WEBP': 12, 'AVIF': 9, 'HEIF': 9, 'JPEG2000': 15}
_MODE_BYTES = {'1': 1, 'L': 1, 'P': 1, 'I;16': 2, 'I;16B': 2, 'I;16L': 2}  # other modes: 4


class DecodeError(Exception):
    """The bytes are not a usable image. The message is one line without the image's name, which the caller adds."""


class TooLargeError(DecodeError):
    """The image has more pixels, or would take more memory or time, than an image may."""


def too_slow() -> TooLargeError:
    """Return the error of an image that exceeds the limit of time."""
    return TooLargeError(f'takes more than {MAX_SECONDS} s to decode')


def check_bytes(num_bytes: float) -> None:
    """Raise TooLargeError if an image needs more memory than allowed."""
    if num_bytes > MAX_BYTES:
        raise TooLargeError(f'needs about {num_bytes / 1e9:.1f} GB to decode; the limit is {MAX_BYTES / 1e9:g} GB')


def check_memory(
    image: Image.Image, file_bytes: int, *, coefficient_bytes: int = 0, is_turned: bool = False, to_array: bool = True
) -> None:
    """Check the memory for decoding to upright RGB.

    Args:
        image: opened.
        file_bytes: size of the file, of which there are two copies.
        coefficient_bytes: what a JPEG of several scans needs while it is decoded.
        is_turned: the pixels are copied to another orientation.
        to_array: the pixels are copied to an array.

    Raises:
        DecodeError: it is more than MAX_BYTES.
    """
    stored = _MODE_BYTES.get(image.mode, 4)
    steps = [stored + _DECODER_BYTES.get(image.format or '', 0), 2 * stored * is_turned, BYTES_PER_PIXEL * to_array]
    if image.mode != 'RGB' or image.has_transparency_data:
        steps.append(stored + 4)
    num_pixels = image.width * image.height
    check_bytes(2 * file_bytes + max(num_pixels * max(steps), num_pixels * steps[0] + coefficient_bytes))


def jpeg_blocks(width: int, height: int, sampling: bytes) -> list[int]:
    """Return the number of blocks of 8 x 8 coefficients of each component of a JPEG.

    Args:
        width, height: pixels.
        sampling: horizontal and vertical sampling factor of each component, in 4 bits each.
    """
    columns = -(-width // (8 * max((1, *(factors >> 4 for factors in sampling)))))
    rows = -(-height // (8 * max((1, *(factors & 15 for factors in sampling)))))
    return [columns * (factors >> 4) * rows * (factors & 15) for factors in sampling]


def jpeg_seconds(num_blocks: int, num_scan_blocks: int, num_bytes: int) -> float:
    """Return an upper bound of the time to decode a JPEG once.

    Args:
        num_blocks: blocks of 8 x 8 coefficients, of all colors.
        num_scan_blocks: blocks that the scans pass through, each scan counted.

    Raises:
        DecodeError: it certainly takes more than MAX_SECONDS.
    """
    if num_scan_blocks * _LEAST_SECONDS_PER_SCAN_BLOCK > MAX_SECONDS:
        raise too_slow()
    return num_blocks * _SECONDS_PER_BLOCK + num_scan_blocks * _SECONDS_PER_SCAN_BLOCK + num_bytes * _SECONDS_PER_BYTE


def opens_in_place(data: bytes) -> bool:
    """Return True if reading the header of a file that is no JPEG takes little time, whatever it contains."""
    name = image_format(data[:HEADER_BYTES])
    return name is None or len(data) <= _MAX_FILE_BYTES.get(name, 0)  # Pillow decodes none that has no name here


def decodes_in_place(image: ImageFile.ImageFile, file_bytes: int) -> bool:
    """Return True if decoding an opened image that is no JPEG takes little memory and time, whatever it contains."""
    if image.width * image.height > _MAX_PIXELS.get(image.format or '', 0):
        return False
    if image.format == 'BMP':
        return image.tile[0][0] == 'raw'  # run lengths are decoded in Python
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return True
    compression, strips = image.info.get('compression'), image.tag_v2.get(_STRIP_BYTES, ())
    if compression not in _SIMPLE_COMPRESSIONS or max(len(image.tile), len(strips)) > _MAX_PARTS:
        return False
    # Strips may share their bytes, and tiles may be larger than the image.
    return compression == 'raw' or (_TILE_WIDTH not in image.tag_v2 and 0 < sum(strips) <= 2 * file_bytes)
