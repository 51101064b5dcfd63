"""Hostile requests: each gets an error of the client or a closed connection, and good ones are answered meanwhile."""

import random
import re
import socket

import pytest

from tests.service.hostile import request
from tests.service.serving import RunningService, photo, received

pytestmark = [pytest.mark.process, pytest.mark.long]


def outcome(service: RunningService, data: bytes) -> str:
    """Return the statuses of the answers to a request whose sender does not end it; 'closed' without any."""
    with service.connect() as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = received(connection)
        except ConnectionError:
            answer = b''
    return ' '.join(status.decode() for status in re.findall(rb'^HTTP/1.1 (\d+)', answer, re.MULTILINE)) or 'closed'


def attack(service: RunningService, seed: int, number: int) -> dict[str, int]:
    rng = random.Random(seed)
    outcomes: dict[str, int] = {}
    for count in range(number):
        data = request(rng)
        found = outcome(service, data)
        outcomes[found] = outcomes.get(found, 0) + 1
        # A few changed bytes may leave an image that can be decoded.
        assert found in ('closed', '200') or found[0] == '4', f'seed {seed}, request {count}: {found}'
        if count % 25 == 0:
            assert service.predict(photo()).status == 200
    assert service.predict(photo()).status == 200
    assert service.get('/health').status == 200
    return outcomes


def test_a_hundred_and_fifty(service: RunningService):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    outcomes = attack(service, seed, 150)
    print(outcomes)
    assert {'400', '415'} <= set(outcomes)


@pytest.mark.slow
def test_ten_thousand_without_growing_memory(service: RunningService):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    attack(service, seed, 1000)
    before = service.memory()
    outcomes = attack(service, seed + 1, 10_000)
    print(outcomes, f'{before:.0f} MB before, {service.memory():.0f} MB after')
    assert service.memory() < before + 60
    assert sum(outcomes.values()) == 10_000


@pytest.mark.slow
def test_half_requests_of_many_clients_leave_it_working(service: RunningService):
    clients = [service.connect() for _ in range(200)]
    for client in clients:
        client.sendall(b'POST /predict HTTP/1.1\r\nContent-Length: 500\r\nContent-Type: image/jpeg\r\n\r\nhalf')
    assert service.predict(photo()).status == 200
    answers = [received(client) for client in clients]
    assert {answer.split(b'\r\n')[0] for answer in answers} == {b'HTTP/1.1 408 Request Timeout'}
    for client in clients:
        client.close()
