"""The HTTP interface of a service in another process: every route, and every kind of error."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.service.conftest import QUEUE, SECONDS
from tests.service.serving import COLORS, RunningService, photo, received

pytestmark = [pytest.mark.process, pytest.mark.long]
FORM = 'multipart/form-data; boundary=XX'


def form(*files: bytes, kind: str = 'image/png', name: str = 'x.png') -> bytes:
    head = f'Content-Disposition: form-data; name="images"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'
    parts = [b'--XX\r\n' + head.encode() + file + b'\r\n' for file in files]
    return b''.join(parts) + b'--XX--\r\n'


@pytest.mark.parametrize('color', COLORS)
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WebP'])
def test_predict_a_raw_image(service: RunningService, color: str, kind: str):
    done = service.predict(photo(color, kind), '/predict?top_k=2', f'image/{kind.lower()}')
    assert done.status == 200
    assert done.json['model'] == 'one'
    (result,) = done.json['results']
    assert result['classes'][0]['name'] == color
    assert len(result['classes']) == 2
    assert result['error'] is None
    assert result['accepted'] is True
    assert re.fullmatch('[0-9a-f]{32}', result['id'])
    assert result['classes'][0]['probability'] == pytest.approx(2.718 / (2.718 + 2), abs=0.02)


def test_predict_a_form_in_order_with_a_broken_file(service: RunningService):
    done = service.predict(form(photo('blue', 'PNG'), b'broken', photo('green', 'PNG')), kind=FORM)
    assert done.status == 200
    results = done.json['results']
    assert [one['classes'][0]['name'] if one['classes'] else None for one in results] == ['blue', None, 'green']
    assert 'no readable image' in results[1]['error']
    assert results[1]['accepted'] is None
    assert results[0]['error'] is None


def test_features_and_classes(service: RunningService):
    done = service.predict(photo('green', 'PNG'), '/features', 'application/octet-stream')
    assert done.json['results'][0]['features'] == pytest.approx([0, 1, 0], abs=0.01)
    assert service.get('/classes').json == {'model': 'one', 'classes': ['red', 'green', 'blue']}


def test_health_ready_and_metrics(service: RunningService):
    assert service.get('/health').json == {'status': 'ok'}
    assert service.get('/ready').json == {'status': 'ready', 'model': 'one'}
    for path in ('/health', '/ready'):
        answer = service.request('HEAD', path)
        assert (answer.status, answer.body) == (200, b'')
    before = images_counted(service)
    assert service.predict(form(photo(), photo('blue')), kind=FORM).status == 200
    assert images_counted(service) == before + 2
    text = service.get('/metrics').body.decode()
    assert 'recognizer_requests_total{route="/predict",status="200"}' in text
    assert 'recognizer_model_info{version="one"} 1.0' in text
    assert 'recognizer_waiting_images 0.0' in text
    assert re.search('recognizer_connections [1-9]', text)


def images_counted(service: RunningService) -> float:
    return float(re.search(r'\nrecognizer_images_total (\S+)', service.get('/metrics').body.decode())[1])


def test_a_path_is_no_label_of_the_metrics(service: RunningService):
    assert service.get('/strange/path').status == 404
    assert 'strange' not in service.get('/metrics').body.decode()


def test_openapi_describes_bodies_answers_and_errors(service: RunningService):
    paths = service.get('/openapi.json').json['paths']
    assert {'/predict', '/features', '/classes', '/health', '/ready', '/metrics', '/feedback'} <= set(paths)
    predict = paths['/predict']['post']
    assert {'image/jpeg', 'image/heic', 'application/octet-stream', 'multipart/form-data'} <= set(
        predict['requestBody']['content']
    )
    assert {'200', '400', '401', '408', '413', '415', '422', '429', '503'} <= set(predict['responses'])


@pytest.mark.parametrize(
    ('status', 'method', 'path', 'kind', 'body', 'words'),
    [
        (400, 'POST', '/predict', 'image/jpeg', b'', 'empty'),
        (400, 'POST', '/predict', 'image/jpeg', b'no image', 'no readable image'),
        (400, 'POST', '/predict', 'image/jpeg', photo()[:300], 'not a usable image'),
        (400, 'POST', '/predict', FORM, b'', 'incomplete'),
        (400, 'POST', '/predict', FORM, b'--XX--\r\n', 'no file'),
        (400, 'POST', '/predict', FORM, form(photo())[:-9], 'incomplete'),
        (400, 'POST', '/predict', 'multipart/form-data', b'x', 'boundary'),
        (404, 'GET', '/nothing', '', b'', 'openapi'),
        (404, 'GET', '/../../etc/passwd', '', b'', 'openapi'),
        (404, 'GET', '/photos/1.jpg', '', b'', 'no such photo'),
        (405, 'GET', '/predict', '', b'', 'methods'),
        (405, 'DELETE', '/predict', '', b'', 'methods'),
        (413, 'POST', '/predict', 'image/jpeg', b'x' * 300_001, '300,000 bytes'),
        (413, 'POST', '/predict', FORM, form(*[photo()] * 41), '41 images'),
        (415, 'POST', '/predict', 'text/plain', b'http://127.0.0.1/x.jpg', 'Content-Type'),
        (415, 'POST', '/predict', 'application/x-www-form-urlencoded', b'path=/etc/passwd', 'Content-Type'),
        (415, 'POST', '/predict', 'application/json', b'{"url": "file:///etc/passwd"}', 'Content-Type'),
        (422, 'POST', '/predict?top_k=0', 'image/jpeg', photo(), 'top_k'),
        (422, 'POST', '/predict?top_k=many', 'image/jpeg', photo(), 'top_k'),
        (422, 'POST', '/predict?top_k=99999999999999999999', 'image/jpeg', photo(), 'top_k'),
    ],
)
def test_errors_are_one_line_of_json(
    service: RunningService, status: int, method: str, path: str, kind: str, body: bytes, words: str
):
    done = service.request(method, path, body, Content_Type=kind)
    assert done.status == status
    assert done.headers['content-type'] == 'application/json'
    assert set(done.json) == {'error'}
    assert words in done.json['error']
    assert '\n' not in done.json['error']
    assert service.predict(photo()).status == 200


def test_too_many_pixels_are_413(service: RunningService):
    from tests.service.hostile import png_bomb

    done = service.predict(png_bomb(60_000, 60_000))
    assert done.status == 413
    assert 'allowed' in done.json['error']


def test_what_the_client_sends_is_not_in_the_answer(service: RunningService):
    secret = 'SECRET-NAME'
    done = service.predict(form(b'broken', name=secret + '.png'), f'/predict?{secret}=1', FORM)
    assert done.status == 400
    assert secret not in done.body.decode()
    assert secret not in '\n'.join(service.lines)


def test_a_compressed_body_is_refused(service: RunningService):
    assert service.predict(photo(), Content_Encoding='gzip').status == 415


def test_a_body_in_chunks_is_counted_while_it_is_read(service: RunningService):
    def parts(number: int) -> Iterator[bytes]:
        for _ in range(number):
            yield b'x' * 50_000

    assert service.predict(parts(7)).status == 413  # without Content-Length
    assert service.predict(iter([photo()[:100], photo()[100:]])).status == 200


def test_a_page_of_another_site_is_refused(service: RunningService):
    assert service.predict(photo(), Origin='http://evil.example').status == 403
    assert service.predict(photo(), Origin='null').status == 403
    assert service.predict(photo(), Origin='http://[').status == 403
    assert service.predict(photo(), Origin=f'http://127.0.0.1:{service.port}').status == 200


def test_slow_senders_are_answered_and_closed(service: RunningService):
    """Nothing, half a head, half a body, and a refused body whose rest does not come."""
    head = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n'
    refused = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\nhalf'
    answers: dict[str, bytes] = {}

    def send(name: str, data: bytes) -> None:
        answers[name] = service.exchange(data)

    started = time.monotonic()
    cases = {'nothing': b'', 'head': head, 'body': head + b'\r\nhalf', 'refused': refused}
    threads = [threading.Thread(target=send, args=case) for case in cases.items()]
    for thread in threads:
        thread.start()
    assert service.predict(photo()).status == 200  # meanwhile
    for thread in threads:
        thread.join(20)
    assert time.monotonic() - started < SECONDS + 8
    assert answers['nothing'] == b''
    assert b'408' in answers['head'].split(b'\r\n')[0]
    assert b'408' in answers['body'].split(b'\r\n')[0]
    assert b'415' in answers['refused'].split(b'\r\n')[0]


def test_a_head_without_end_is_refused(service: RunningService):
    assert b' 431 ' in service.exchange(b'GET / HTTP/1.1\r\n' + b'X: ' + b'y' * 40_000)
    assert b' 431 ' in service.exchange(b'GET /' + b'y' * 40_000)


@pytest.mark.parametrize(
    'data',
    [
        b'\0' * 100,
        b'GET\r\n\r\n',
        b'HTTP/1.1 200 OK\r\n\r\n',
        b'\x16\x03\x01\x02\0\x01\0\x01\xfc',
        b'GET / FTP/1\r\n\r\n',
    ],
)
def test_what_is_no_http_gets_400(service: RunningService, data: bytes):
    answer = service.exchange(data)
    assert b' 400 ' in answer.split(b'\r\n')[0]
    assert json.loads(answer.split(b'\r\n\r\n')[1]) == {'error': 'not a valid HTTP request'}


def test_several_requests_on_one_connection(service: RunningService):
    """One after the other, pipelined, and after a refused body of which the rest is still to come."""
    body = photo()
    good = (
        b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n' % len(body)
        + body
    )
    bad = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n'
    last = good.replace(b'Host: x', b'Host: x\r\nConnection: close')
    with service.connect() as connection:
        connection.sendall(good + good + bad + b'x' * 50_000)
        time.sleep(0.3)
        connection.sendall(b'x' * 50_000 + last)
        answers = received(connection)
    assert re.findall(rb'HTTP/1.1 (\d+)', answers) == [b'200', b'200', b'415', b'200']


def test_a_client_that_asks_before_it_sends_gets_an_answer(service: RunningService):
    body = photo()
    head = b'POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n' % len(body)
    with service.connect() as connection:
        connection.sendall(head + b'Content-Type: image/jpeg\r\nConnection: close\r\n\r\n')
        assert connection.recv(100).startswith(b'HTTP/1.1 100 ')
        connection.sendall(body)
        assert received(connection).startswith(b'HTTP/1.1 200 ')
    answer = service.exchange(head + b'Content-Type: text/plain\r\n\r\n')
    assert answer.startswith(b'HTTP/1.1 415 ')


def test_feedback_is_stored_and_withdrawn(service: RunningService):
    first = service.predict(photo('red'), '/feedback?action=relabel&name=green')
    assert first.status == 200
    assert first.json['before'] is None
    second = service.predict(photo('red'), '/feedback?action=relabel&name=blue')
    assert second.json == {'id': first.json['id'], 'before': {'action': 'relabel', 'name': 'green'}}
    assert first.json['id'] == service.predict(photo('red')).json['results'][0]['id']
    assert service.request('DELETE', f'/feedback/{first.json["id"]}').json == {}
    assert service.request('DELETE', f'/feedback/{first.json["id"]}').status == 404
    assert service.request('DELETE', '/feedback/..%2f..%2fx').status == 404
    assert service.predict(b'broken', '/feedback?action=relabel&name=blue').status == 400
    assert service.predict(photo(), '/feedback?action=delete_all').status == 400
    assert service.predict(photo(), '/feedback').status == 422


def slow_photo(seconds: float) -> bytes:
    """Return an image that takes this time to compute."""
    return photo(kind='PNG', size=(round(50 * seconds), 1))


def test_a_full_queue_is_429_with_the_time_to_wait(service: RunningService):
    replies = []
    image = slow_photo(0.3)
    threads = [threading.Thread(target=lambda: replies.append(service.predict(image))) for _ in range(QUEUE + 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [one for one in replies if one.status == 429]
    assert {one.status for one in replies} == {200, 429}
    assert len(replies) - len(refused) >= QUEUE
    assert all(1 <= int(one.headers['retry-after']) <= 10 for one in refused)
    assert service.predict(photo()).status == 200


def test_a_request_that_takes_too_long_is_503(service: RunningService):
    started = time.monotonic()
    done = service.predict(slow_photo(SECONDS + 0.6))
    assert done.status == 503
    assert time.monotonic() - started < SECONDS + 0.5
    assert f'more than {SECONDS:g} s' in done.json['error']


def test_images_of_a_client_that_has_gone_are_not_computed(service: RunningService):
    body = slow_photo(0.4)
    head = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n' % len(body)
    before = images_counted(service)
    clients = [service.connect() for _ in range(12)]
    for client in clients:
        client.sendall(head + body)
        time.sleep(0.01)  # the first ones are in progress
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        client.close()
    assert service.predict(photo()).status == 200
    assert images_counted(service) - before < 12
