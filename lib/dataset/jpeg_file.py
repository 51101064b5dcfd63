"""JPEG files: the header, the segments that determine the pixels, and whether scan data is missing.

This one reader serves the loader, the decoder and the data audit. It finds segments as libjpeg does (ITU T.81, annex
B): any number of fill bytes before a marker, markers without content, segments in any order, stray bytes between them.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

from lib.dataset.decode_cost import BYTES_PER_BLOCK, jpeg_blocks, jpeg_seconds

START = b'\xff\xd8'
_END = b'\xff\xd9'
# All markers but those without content: RST0 to RST7, TEM; 0 is no marker but a stuffed byte, 0xFF a fill byte.
_MARKER = re.compile(rb'\xff([\x02-\xcf\xd8-\xfe])')
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14, _APP15, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_END_OF_DATA = 0
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG, DAC
_HUFFMAN_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive
_PROGRESSIVE, _ARITHMETIC = frozenset((0xC2, 0xCA)), frozenset((0xC9, 0xCA))

_EXIF, _XMP = b'Exif\0\0', b'http://ns.adobe.com/xap/1.0/\0'

# libjpeg's messages for missing data. A few extraneous bytes are harmless; more are rows beyond the header's height.
_MISSING = ('remature end', 'instead of RST')
_EXTRANEOUS = re.compile(r'(\d+) extraneous bytes')
_MAX_EXTRANEOUS_BYTES = 64
# Inserted at the end of scans: pixels that depend on it lack data. Several patterns, since one may repeat the pixels.
_FILLERS = tuple(bytes((byte,)) * 256 for byte in (0x00, 0x55, 0xAA, 0xCC))
_OMITTED_ZEROS = bytes(16)  # Arithmetic encoders omit zeros at the end of a scan, in practice a few bytes at most.
_COEFFICIENTS = 64  # of a block
_NOT_SENT = 255
_MAX_APPLICATIONS = 64  # APP1 segments: EXIF, XMP and its extensions; the orientation is in the first ones
_MAX_SEGMENTS = 1 << 16  # a photo has ten, a profile of 16 MB and 1,000 scans have 3,000


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The part of a file before its first scan.

    Attributes:
        width, height: as stored, pixels.
        frame: marker of the frame header, which is the coding process.
        precision: bits per sample.
        components: identifiers of the color components.
        sampling: horizontal and vertical sampling factor of each component, in 4 bits each.
        num_scan_components: components of the first scan.
        metadata: 'exif' and 'xmp', if present, as Pillow has them in `Image.info`.
        scan_start: byte of the file at which the data of the first scan begin.
    """

    width: int
    height: int
    frame: int
    precision: int
    components: bytes
    sampling: bytes
    num_scan_components: int
    metadata: dict[str, bytes]
    scan_start: int

    @property
    def is_usual(self) -> bool:
        """True if libjpeg decodes it to RGB and notices missing data: 8 bits, one or three colors, Huffman codes."""
        return self.precision == 8 and len(self.components) in (1, 3) and self.frame in _HUFFMAN_FRAMES

    @property
    def has_several_scans(self) -> bool:
        """True if more than one scan is needed, of which libjpeg does not notice a missing one."""
        return self.frame in _PROGRESSIVE or self.num_scan_components < len(self.components)

    def num_blocks(self) -> dict[int, int]:
        """Return the number of blocks of 8 x 8 coefficients of each component."""
        return dict(zip(self.components, jpeg_blocks(self.width, self.height, self.sampling), strict=True))

    @property
    def coefficient_bytes(self) -> int:
        """The memory for the coefficients, which libjpeg keeps until the last of several scans."""
        return sum(self.num_blocks().values()) * BYTES_PER_BLOCK if self.has_several_scans else 0

    def seconds(self, num_bytes: int, num_scan_blocks: int = 0) -> float:
        """Return an upper bound of the time to decode a file of this header once; see `jpeg_seconds`."""
        return jpeg_seconds(sum(self.num_blocks().values()), num_scan_blocks, num_bytes)


def read_header(data: bytes) -> JpegHeader:
    """Read a file up to its first scan.

    Raises:
        ValueError: libjpeg could not decode it; the message is the reason.
    """
    frame, content = 0, b''
    applications: list[bytes] = []
    for marker, position, end in _segments(data):
        if marker == _APP1 and len(applications) < _MAX_APPLICATIONS:
            applications.append(data[position + 4 : end])
        elif marker in _FRAMES:
            if frame:
                raise ValueError('a second frame header')
            frame, content = marker, data[position + 4 : end]
            if len(content) < 6 or len(content) < 6 + 3 * content[5]:
                raise ValueError('the frame header is incomplete')
        elif marker == _SOI:
            raise ValueError('a second start of image')
        elif marker == _SOS:
            if not frame:
                raise ValueError('a scan before the frame header')
            height, width = int.from_bytes(content[1:3], 'big'), int.from_bytes(content[3:5], 'big')
            components, sampling = (content[first : 6 + 3 * content[5] : 3] for first in (6, 7))
            in_scan, metadata = data[position + 4], _metadata_in(applications)
            return JpegHeader(width, height, frame, content[0], components, sampling, in_scan, metadata, end)
        elif marker in (_EOI, _END_OF_DATA):
            break
    raise ValueError('the file ends before the pixels')


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, position of its 0xFF, end of its content); the last one is EOI or, without it, _END_OF_DATA."""
    end, num_segments = len(START), 0
    while match := _MARKER.search(data, end):
        num_segments += 1
        if num_segments > _MAX_SEGMENTS:
            raise ValueError(f'more than {_MAX_SEGMENTS:,} segments')
        marker, position = match[1][0], match.start()
        if marker == _EOI:
            yield marker, position, position + 2
            return
        end = position + 2
        if marker != _SOI:
            end += max(2, int.from_bytes(data[position + 2 : position + 4], 'big'))
        if end > len(data) or (marker == _SOS and end == position + 4):
            yield _END_OF_DATA, position, len(data)
            return
        yield marker, position, end
    yield _END_OF_DATA, len(data), len(data)


def _metadata_in(applications: list[bytes]) -> dict[str, bytes]:
    """Return EXIF and XMP of APP1 segments as Pillow does: EXIF of several segments is joined, the last XMP counts."""
    exif = [content for content in applications if content.startswith(_EXIF)]
    xmp = [content for content in applications if content.startswith(_XMP)]
    metadata = {'exif': b''.join((exif[0], *(content[len(_EXIF) :] for content in exif[1:])))} if exif else {}
    return metadata | {'xmp': xmp[-1][len(_XMP) :]} if xmp else metadata


def _has_extraneous_bytes(reason: str) -> bool:
    extraneous = _EXTRANEOUS.search(reason)
    return extraneous is not None and int(extraneous[1]) > _MAX_EXTRANEOUS_BYTES


def _determines_color(marker: int, content: bytes) -> bool:
    """Return True if libjpeg uses a segment, which shorter ones of its kind are too short for."""
    if marker == _APP0:
        return content.startswith(b'JFIF\0') and len(content) >= 14
    return marker == _APP14 and content.startswith(b'Adobe') and len(content) >= 12


def _has_all_restarts(scan: bytes) -> bool:
    """Return True if the restart markers are numbered 0 to 7, 0 to 7, ..."""
    codes = np.frombuffer(scan, np.uint8)
    following = codes[np.flatnonzero(codes[:-1] == 0xFF) + 1]
    numbers = following[following & 0xF8 == 0xD0] & 7
    return bool((numbers == np.arange(len(numbers)) & 7).all())


class JpegFile:
    """A file split into its segments.

    Attributes:
        header: header of the file.
    """

    def __init__(self, data: bytes) -> None:
        """Read all segments. Raises: ValueError, as `read_header`."""
        self.header = read_header(data)
        self._color: list[bytes] = []
        self._body: list[bytes] = []
        self._scans: dict[int, bytes] = {}  # index of the scan's data in the body -> content of its header
        self._num_stray_bytes = 0  # after the first scan, where they may be scans without a header
        scan_start = last_end = 0
        for marker, position, end in _segments(data):
            if scan_start:
                self._body.append(data[scan_start:position])
                scan_start = 0
            elif self._scans:
                self._num_stray_bytes += len(data[last_end:position].strip(b'\xff'))
            last_end = end
            if marker in (_EOI, _END_OF_DATA):
                self._has_end = marker == _EOI
                break
            if _APP0 <= marker <= _APP15 or marker == _COM:
                if _determines_color(marker, data[position + 4 : end]) and not self._scans:
                    self._color.append(data[position:end])
                continue
            self._body.append(data[position:end])
            if marker == _SOS:
                scan_start = end
                self._scans[len(self._body)] = data[position + 4 : end]

    def without_metadata(self) -> bytes:
        """Return a file of the same pixels: what doesn't determine them is left out, and a missing end is added."""
        return b''.join((START, *self._color, *self._body, _END))

    def seconds(self) -> float:
        """Return an upper bound of the time to decode the file once. Raises: DecodeError, if it is beyond the limit."""
        blocks = self.header.num_blocks()
        components = (scan[1 : 1 + 2 * scan[0] : 2] for scan in self._scans.values())
        num_scan_blocks = sum(blocks.get(component, 0) for scan in components for component in scan)
        # Without several scans, libjpeg ignores those after the first.
        return self.header.seconds(sum(map(len, self._body)), num_scan_blocks * self.header.has_several_scans)

    def check_scans(self) -> None:
        """Check that all scans are there.

        The standard does not require that all bits of all coefficients are sent, but a file without its end may have
        lost the rest.

        Raises:
            ValueError: scans are missing.
        """
        progressive = self.header.frame in _PROGRESSIVE
        lowest_bit = {component: np.full(_COEFFICIENTS, _NOT_SENT) for component in self.header.components}
        for index, scan in self._scans.items():
            first, last, bits = scan[-3:] if progressive and len(scan) > 3 else (0, _COEFFICIENTS - 1, 0)
            for component in scan[1 : 1 + 2 * scan[0] : 2]:
                if component in lowest_bit:
                    lowest_bit[component][first : last + 1] = bits & 15
            if not _has_all_restarts(self._body[index]):
                raise ValueError('a part between two restart markers is missing')
        if self._num_stray_bytes > _MAX_EXTRANEOUS_BYTES:
            raise ValueError(f'{self._num_stray_bytes} bytes between scans belong to none')
        if any(bits[0] == _NOT_SENT for bits in lowest_bit.values()):
            raise ValueError('the scan of a color is missing')
        if not self._has_end and any(map(np.any, lowest_bit.values())):
            raise ValueError('the file ends before its last scan')

    def check_data(self) -> None:
        """Check that no scan ends early: libjpeg replaces what is missing by gray, and Pillow ignores its warning.

        Raises:
            ValueError: data is missing, or the header announces fewer rows than there are.
        """
        self.check_scans()
        reason = self._oddity()
        if _has_extraneous_bytes(reason) and self._removed_padding():
            reason = self._oddity()
        if _has_extraneous_bytes(reason) or any(message in reason for message in _MISSING):
            raise ValueError(reason)
        # libjpeg reports the first oddity only, which may hide that data is missing; nothing about arithmetic codes.
        if (reason or self.header.frame in _ARITHMETIC) and self._depends_on_filler():
            raise ValueError(reason or 'the file ends before the last pixels')

    def _oddity(self) -> str:
        """Return the first complaint of libjpeg; '' if there is none."""
        try:
            # At an eighth of the size, which costs little more than reading the data.
            simplejpeg.decode_jpeg(self._bare(), self._color_space, min_height=1, min_width=1)
        except ValueError as error:
            return str(error)
        return ''

    def _removed_padding(self) -> bool:
        """Remove zeros at the end of a file without an end, such as those of a file system; return if there were any.

        One is kept, since the last byte of a scan may be zero.
        """
        last = len(self._body) - 1
        data = self._body[last].rstrip(b'\0') + b'\0'
        if self._has_end or last not in self._scans or len(data) >= len(self._body[last]):
            return False
        self._body[last] = data
        return True

    @property
    def _color_space(self) -> str:
        return 'CMYK' if len(self.header.components) == 4 else 'RGB'

    def _bare(self, filler: bytes = b'') -> bytes:
        """Return a file for checks, with `filler` after the data of each scan; its colors may be others."""
        body = (part + filler if index in self._scans else part for index, part in enumerate(self._body))
        return b''.join((START, *body, _END))

    def _depends_on_filler(self) -> bool:
        """Return True if bytes after the end of a scan change the pixels, so that its own are too few."""
        zeros = _OMITTED_ZEROS if self.header.frame in _ARITHMETIC else b''
        try:
            expected = self._digest(zeros)
            return any(self._digest(zeros + filler) != expected for filler in _FILLERS)
        except ValueError:  # not decodable by simplejpeg; Pillow has decoded it
            return False

    def _digest(self, filler: bytes) -> bytes:
        """Return a digest of the pixels with `filler`, of which two copies would take much memory."""
        pixels = simplejpeg.decode_jpeg(self._bare(filler), self._color_space, strict=False)
        return hashlib.blake2b(pixels).digest()
