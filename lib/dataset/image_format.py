"""Formats of image files: by extension, and by the first bytes."""

import importlib.util
from collections.abc import Iterable

HEADER_BYTES = 128  # enough for every signature, and for 28 brands of a HEIC or AVIF file
# Accepted unopened: opening millions of files takes minutes.
EXTENSIONS = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.heic', '.heif', '.avif',
    '.jp2', '.j2k',
)  # fmt: skip

_SIGNATURES = (
    (b'\xff\xd8', 'JPEG'),
    (b'\x89PNG\r\n\x1a\n', 'PNG'),
    (b'GIF87a', 'GIF'),
    (b'GIF89a', 'GIF'),
    *((start, 'TIFF') for start in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+', b'MM*\0', b'II\0*')),
    (b'\0\0\0\x0cjP  \r\n\x87\n', 'JPEG 2000'),
    (b'\xff\x4f\xff\x51', 'JPEG 2000'),
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes, bytes
_HEIC_BRANDS = {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx'}
_AVIF_BRANDS = {b'avif', b'avis'}
_CONTAINER_BRANDS = {b'mif1', b'msf1'}  # of both
HEIC_HINT = 'to read HEIC photos: python -m pip install pillow-heif'


def image_format(header: bytes) -> str | None:
    """Return the format of an image by its first bytes (HEADER_BYTES of them); None if it is none that is read.

    Formats: JPEG, PNG, WebP, BMP, GIF, TIFF, JPEG 2000, AVIF, HEIC.
    """
    for signature, name in _SIGNATURES:
        if header.startswith(signature):
            return name
    if header[:4] == b'RIFF' and header[8:12] == b'WEBP':
        return 'WebP'
    if header[:2] == b'BM' and int.from_bytes(header[14:18], 'little') in _BMP_HEADERS:
        return 'BMP'
    if header[4:8] == b'ftyp':
        return _media_format(header)
    return None


def _media_format(header: bytes) -> str | None:
    """Return AVIF or HEIC by the brands of an ISO media file, or None for others, such as videos."""
    end = min(int.from_bytes(header[:4], 'big'), len(header))
    major, brands = header[8:12], {header[start : start + 4] for start in range(8, max(end, 12), 4)}
    if major in _AVIF_BRANDS or (major in _CONTAINER_BRANDS and brands & _AVIF_BRANDS):
        return 'AVIF'
    return 'HEIC' if major in _HEIC_BRANDS | _CONTAINER_BRANDS else None


def can_read_heic() -> bool:
    """Return whether HEIC can be decoded: pillow-heif is installed."""
    return importlib.util.find_spec('pillow_heif') is not None


def hint_of(reasons: Iterable[str]) -> str:
    """Return how to read HEIC, after '; ', if it is one of the reasons why images cannot be decoded; else ''."""
    return f'; {HEIC_HINT}' if any(HEIC_HINT in reason for reason in reasons) else ''
