"""Forms against the parser of python-multipart, and bodies against their limits."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from lib.service.body import MAX_PARTS, BodyMemory, boundary_of, files_of_form, images_in, read_body
from lib.service.interface import ServiceError
from tests.service.apart import run_apart


def files_by_peer(body: bytes, boundary: bytes) -> list[bytes]:
    """Return the parts with a file name, as python-multipart reads them."""
    multipart = pytest.importorskip('python_multipart.multipart', reason='python-multipart is not installed')
    files: list[bytes] = []
    head, content = bytearray(), bytearray()

    def begin() -> None:
        head.clear()
        content.clear()

    def end() -> None:
        if b'filename=' in head:
            files.append(bytes(content))

    parser = multipart.MultipartParser(
        boundary,
        {
            'on_part_begin': begin,
            'on_header_value': lambda data, start, stop: head.extend(data[start:stop]),
            'on_part_data': lambda data, start, stop: content.extend(data[start:stop]),
            'on_part_end': end,
        },
    )
    parser.write(body)
    parser.finalize()
    return files


def random_content(rng: random.Random, boundary: bytes) -> bytes:
    """Return bytes that resemble parts of a form, without the delimiter itself."""
    pieces = [b'\r\n', b'--', boundary[:-1], b'\r', b'\n', b'-', b'x', b'\0', rng.randbytes(5), b'--' + boundary]
    content = b''.join(rng.choice(pieces) for _ in range(rng.randrange(20)))
    while b'\r\n--' + boundary in b'\r\n' + content:
        content = content.replace(b'--' + boundary, b'')
    return content


def test_files_of_random_forms():
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    rng = random.Random(seed)
    for _ in range(300):
        boundary = bytes(rng.choice(b'abcXYZ019') for _ in range(rng.randrange(1, 12)))
        body, expected = b'', []
        for number in range(rng.randrange(1, 6)):
            is_file = rng.random() < 0.7
            content = random_content(rng, boundary)
            name = f'name="f{number}"' + (f'; filename="{rng.choice(["a.jpg", "x", ""])}"' if is_file else '')
            head = f'Content-Disposition: form-data; {name}\r\n' + 'X-Other: 1\r\n' * rng.randrange(3)
            body += b'--' + boundary + b'\r\n' + head.encode() + b'\r\n' + content + b'\r\n'
            expected += [content] if is_file else []
        body += b'--' + boundary + b'--' + rng.choice([b'', b'\r\n', b'\r\nepilogue'])
        assert files_of_form(body, boundary) == expected
        assert files_by_peer(body, boundary) == expected


def test_damaged_forms_are_refused():
    part = b'--B\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nx'
    whole = part + b'\r\n--B--\r\n'
    assert files_of_form(whole, b'B') == [b'x']
    assert files_of_form(b'preamble\r\n' + whole, b'B') == [b'x']
    for end in range(len(part) + 7):
        with pytest.raises(ServiceError) as error:
            files_of_form(whole[:end], b'B')
        assert error.value.status == 400
    for body in (whole.replace(b'\r\n\r\n', b'\r\n'), b'--BB\r\n\r\n\r\n--B--', whole.replace(b'--B\r\n', b'--B;\r\n')):
        with pytest.raises(ServiceError):
            files_of_form(body, b'B')
    many = b'--B\r\nContent-Type: image/png\r\n\r\nx\r\n' * (MAX_PARTS + 1) + b'--B--'
    with pytest.raises(ServiceError) as error:
        files_of_form(many, b'B')
    assert error.value.status == 413


def test_empty_bodies_and_files_are_refused():
    for body, boundary in ((b'', ''), (b'--B--', 'B'), (b'--B\r\nContent-Type: image/png\r\n\r\n\r\n--B--', 'B')):
        with pytest.raises(ServiceError) as error:
            images_in(body, boundary)
        assert error.value.status == 400
    assert images_in(b'x', '') == [b'x']


@pytest.mark.parametrize(
    ('sent', 'expected'),
    [
        ('image/jpeg', ''),
        ('IMAGE/JPG; q=1', ''),
        ('image/svg+xml', ''),  # refused later, by its first bytes
        ('image/x-of-a-camera', ''),
        ('multipart/form-data; boundary="a b"', 'a b'),
        ('multipart/form-data; charset=utf-8; boundary=x', 'x'),
        ('multipart/form-data', 400),
        ('multipart/form-data; boundary=""', 400),
        ('multipart/form-data; boundary=' + 'x' * 71, 400),
        ('multipart/form-data; boundary="a\r\nb"', 400),
        ('multipart/form-data; boundary*0=a; boundary*1=b', 'ab'),
        ('text/html', 415),
        ('image', 415),
        ('', 415),
        ('é' * 20, 415),
    ],
)
def test_content_types(sent: str, expected: str | int):
    headers = {b'content-type': sent.encode('latin-1')}
    if isinstance(expected, str):
        assert boundary_of(headers) == expected
        return
    with pytest.raises(ServiceError) as error:
        boundary_of(headers)
    assert error.value.status == expected


def test_no_content_type_is_any_image_and_compression_is_refused():
    assert boundary_of({}) == ''
    assert boundary_of({b'content-encoding': b'identity'}) == ''
    with pytest.raises(ServiceError) as error:
        boundary_of({b'content-encoding': b'gzip'})
    assert error.value.status == 415


def receiving(*parts: bytes, seconds: float = 0.0, has_end: bool = True) -> Callable[[], Awaitable[dict]]:
    """Return the function `receive` of a client that sends these parts."""
    messages = [{'type': 'http.request', 'body': part, 'more_body': True} for part in parts]
    if has_end:
        messages[-1]['more_body'] = False
    else:
        messages.append({'type': 'http.disconnect'})
    remaining = iter(messages)

    async def receive() -> dict:
        await asyncio.sleep(seconds)
        return next(remaining)

    return receive


def status_of(receive: Callable[[], Awaitable[dict]], memory: BodyMemory, **headers: bytes) -> int:
    """Return 200 for a body that is read, else the status of the error."""

    async def read() -> None:
        named = {name.replace('_', '-').encode(): value for name, value in headers.items()}
        with memory.request() as hold:
            body = await read_body(receive, named, max_bytes=100, seconds=0.05, hold=hold)
            assert memory.num_bytes == len(body)

    try:
        run_apart(read())
    except ServiceError as error:
        return error.status
    finally:
        assert memory.num_bytes == 0
    return 200


def test_limits_of_a_body():
    memory = BodyMemory(150)
    assert status_of(receiving(b'x' * 100), memory) == 200
    assert status_of(receiving(b'x' * 60, b'x' * 40), memory, content_length=b'100') == 200
    assert status_of(receiving(b'x' * 60, b'x' * 41), memory) == 413
    assert status_of(receiving(b''), memory, content_length=b'9' * 100) == 413
    assert status_of(receiving(b'x', b'x', seconds=0.04), memory) == 408
    assert status_of(receiving(b'x', has_end=False), memory) == 400
    assert status_of(receiving(b'x' * 60), BodyMemory(50)) == 503
