"""Bodies of requests: images, raw or as multipart/form-data, within limits of size and time.

A file name in a request is never used, and nothing is written to disk.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from email.message import Message
from typing import Any

from lib.service.interface import ServiceError

FORM, BINARY = 'multipart/form-data', 'application/octet-stream'
MAX_PARTS = 1000
_MAX_PART_HEAD = 8 << 10
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class BodyMemory:
    """Bytes of all bodies in memory, up to a limit: each may be large, and slow senders occupy it for long."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that counts bytes of a request, which are forgotten at the end of the block.

        It raises ServiceError, 503, if all bodies together are too large.
        """
        held = 0

        def hold(num_bytes: int) -> None:
            nonlocal held
            if self.num_bytes + num_bytes > self.max_bytes:
                raise ServiceError(503, 'the requests in progress fill the memory; try again later', 1)
            self.num_bytes += num_bytes
            held += num_bytes

        try:
            yield hold
        finally:
            self.num_bytes -= held


def boundary_of(headers: Mapping[bytes, bytes]) -> str:
    """Return the boundary of a form; '' for a body that is one image, whose format is found by its first bytes.

    Raises:
        ServiceError: 415, neither an image nor a form, or compressed; 400, a form without a valid boundary.
    """
    if headers.get(b'content-encoding', b'identity').strip().lower() not in (b'identity', b''):
        raise ServiceError(415, 'Content-Encoding must be identity: send the file as it is')
    message = Message()
    message['Content-Type'] = headers.get(b'content-type', BINARY.encode()).decode('latin-1')
    kind = message.get_content_type()
    if kind.startswith('image/') or kind == BINARY:
        return ''
    if kind != FORM:
        raise ServiceError(415, f'Content-Type must be {FORM}, {BINARY} or the type of an image, such as image/jpeg')
    boundary = message.get_param('boundary')
    if not isinstance(boundary, str) or not _BOUNDARY.fullmatch(boundary):
        raise ServiceError(400, f'{FORM} needs a boundary of 1 to 70 characters')
    return boundary


async def read_body(
    receive: Receive,
    headers: Mapping[bytes, bytes],
    *,
    max_bytes: int,
    seconds: float,
    hold: Callable[[int], None],
) -> bytes:
    """Return the body of a request.

    Args:
        hold: called with the number of bytes that are received.

    Raises:
        ServiceError: 413, too large; 408, too slow; 400, the client has gone; what `hold` raises.
    """
    length = headers.get(b'content-length', b'')
    if length.isdigit() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    num_bytes, has_more = 0, True
    try:
        async with asyncio.timeout(seconds):
            while has_more:
                message = await receive()
                if message['type'] == 'http.disconnect':
                    raise ServiceError(400, 'the client has gone')
                part, has_more = message.get('body', b''), message.get('more_body', False)
                num_bytes += len(part)
                if num_bytes > max_bytes:
                    raise _too_large(max_bytes)
                hold(len(part))
                parts.append(part)
    except TimeoutError:
        raise ServiceError(408, f'the body took more than {seconds:g} s') from None
    return parts[0] if len(parts) == 1 else b''.join(parts)


def _too_large(max_bytes: int) -> ServiceError:
    return ServiceError(413, f'the body has more than {max_bytes:,} bytes')


def images_in(body: bytes, boundary: str) -> list[bytes]:
    """Return the images of a body: itself, or the files of a form.

    Raises:
        ServiceError: 400, there is none, or the form is damaged.
    """
    images = files_of_form(body, boundary.encode()) if boundary else [body]
    if not images:
        raise ServiceError(400, 'the form contains no file')
    if not all(images):
        raise ServiceError(400, 'the body is empty' if not boundary else 'a file in the form is empty')
    return images


def files_of_form(body: bytes, boundary: bytes) -> list[bytes]:
    """Return the files in multipart/form-data (RFC 7578), in their order; other fields are ignored.

    Raises:
        ServiceError: 400, not a form of this boundary, or an unfinished one; 413, too many parts.
    """
    _, *parts = (b'\r\n' + body).split(b'\r\n--' + boundary, MAX_PARTS + 2)
    if len(parts) > MAX_PARTS + 1:
        raise ServiceError(413, f'the form has more than {MAX_PARTS:,} parts')
    if not parts or not parts[-1].startswith(b'--'):
        raise ServiceError(400, 'the form is incomplete, or its boundary is another one')
    files = []
    for part in parts[:-1]:
        line_end, _, rest = part.partition(b'\r\n')
        head, separator, content = (b'\r\n' + rest).partition(b'\r\n\r\n')
        if line_end.strip(b' \t') or not separator or len(head) > _MAX_PART_HEAD:
            raise ServiceError(400, 'a part of the form is damaged')
        if _is_file(head):
            files.append(content)
    return files


def _is_file(head: bytes) -> bool:
    """Return whether the headers of a part are those of a file: it has a file name or the type of an image."""
    for line in head.split(b'\r\n'):
        name, _, value = line.partition(b':')
        name, value = name.strip().lower(), value.strip().lower()
        if name == b'content-disposition' and re.search(rb';\s*filename\*?\s*=', value):
            return True
        if name == b'content-type' and value.startswith((b'image/', b'application/octet-stream')):
            return True
    return False
