"""Batches of a batcher with a network that records them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import torch

from lib.api import ImageError
from lib.service.batcher import Batcher, Job
from lib.service.interface import Served, ServiceError
from tests.service.apart import run_apart


class Network:
    """A network whose images are numbers, and whose batches wait for `may_compute`."""

    classes = ('a', 'b')

    def __init__(self, version: str = 'one') -> None:
        self.version, self.batches, self.decoded = version, [], []
        self.may_compute, self.may_decode = threading.Event(), threading.Event()
        self.may_compute.set()
        self.may_decode.set()
        self.computing = threading.Event()

    def pixels(self, image: bytes) -> torch.Tensor:
        self.may_decode.wait(10)
        self.decoded.append(image)
        if image == b'bad':
            raise ImageError('it is bad')
        if image == b'huge':
            raise ImageError('it is huge', is_too_large=True)
        if image == b'bug':
            raise KeyError('a bug')
        return torch.full((1, 1, 3), int(image), dtype=torch.uint8)

    def features_of_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        self.computing.set()
        self.may_compute.wait(10)
        self.batches.append(pixels[:, 0, 0, 0].tolist())
        if 99 in self.batches[-1]:
            raise RuntimeError('out of memory')
        return pixels[:, 0, 0].float().numpy()

    def predict_features(self, features: np.ndarray, top_k: int) -> list[tuple]:
        return [(float(row[0]), top_k) for row in features]


def run(network: Network, test: Callable[[Batcher], Awaitable[None]], **options: Any) -> None:
    """Run a coroutine with a batcher of this network."""

    async def whole() -> None:
        batcher = Batcher(Served(network), **{'batch_size': 4, 'batch_seconds': 5.0, 'queue': 20, **options})
        try:
            async with asyncio.timeout(20):
                await test(batcher)
        finally:
            network.may_compute.set()
            network.may_decode.set()
            await asyncio.to_thread(batcher.close)
            assert batcher.num_waiting == 0

    run_apart(whole())


def submit(
    batcher: Batcher, *images: int | str, top_k: int = 1, is_connected: Callable[[], bool] = lambda: True
) -> list[Job]:
    return batcher.submit([str(image).encode() for image in images], top_k=top_k, is_connected=is_connected)


async def finished(jobs: list[Job]) -> list[Job]:
    for job in jobs:
        await job.done
    return jobs


def test_a_single_image_does_not_wait_for_others():
    network = Network()

    async def test(batcher: Batcher) -> None:
        started = asyncio.get_running_loop().time()
        (job,) = await finished(submit(batcher, 7))
        assert job.record == (7.0, 1)
        assert len(job.id) == 32
        assert asyncio.get_running_loop().time() - started < batcher.batch_seconds / 2

    run(network, test)
    assert network.batches == [[7]]


def test_images_that_arrive_meanwhile_are_one_batch_in_their_order():
    network = Network()

    async def test(batcher: Batcher) -> None:
        network.may_compute.clear()
        first = submit(batcher, 0)
        await asyncio.to_thread(network.computing.wait, 10)
        others = [job for number in range(1, 7) for job in submit(batcher, number)]
        while len(network.decoded) < 7:
            await asyncio.sleep(0.01)
        network.may_compute.set()
        assert [job.record[0] for job in await finished(first + others)] == list(range(7))

    run(network, test)
    assert network.batches[0] == [0]
    assert sorted(map(len, network.batches)) == [1, 2, 4]


def test_an_idle_network_waits_for_images_that_are_being_decoded():
    network = Network()

    async def test(batcher: Batcher) -> None:
        network.may_decode.clear()
        jobs = submit(batcher, 1, 2, 3)
        await asyncio.sleep(0.05)
        network.may_decode.set()
        await finished(jobs)

    run(network, test)
    assert len(network.batches) == 1
    assert sorted(network.batches[0]) == [1, 2, 3]


def test_top_k_of_each_request_and_features_share_a_batch():
    network = Network()

    async def test(batcher: Batcher) -> None:
        network.may_decode.clear()
        jobs = submit(batcher, 1, top_k=3) + submit(batcher, 2, top_k=0) + submit(batcher, 3, top_k=5)
        network.may_decode.set()
        one, two, three = await finished(jobs)
        assert (one.record, three.record) == ((1.0, 5), (3.0, 5))  # the route takes the first three of the five
        assert two.record is None
        assert two.features.tolist() == [2, 2, 2]

    run(network, test)


def test_errors_of_an_image_are_its_own():
    network = Network()

    async def test(batcher: Batcher) -> None:
        jobs = await finished(submit(batcher, 'bad', 5, 'huge', 'bug'))
        assert [job.error and job.error.status for job in jobs] == [400, None, 413, 500]
        assert 'it is bad' in jobs[0].error.text
        assert 'a bug' not in jobs[3].error.text  # the reason is in the log
        assert jobs[1].record == (5.0, 1)

    run(network, test)


def test_after_a_batch_that_fails_the_next_one_is_computed():
    network = Network()

    async def test(batcher: Batcher) -> None:
        (job,) = await finished(submit(batcher, 99))
        assert job.error.status == 500
        (job,) = await finished(submit(batcher, 1))
        assert job.record == (1.0, 1)
        assert batcher.is_alive

    run(network, test)


def test_images_of_lost_clients_are_neither_decoded_nor_computed():
    network = Network()

    async def test(batcher: Batcher) -> None:
        network.may_compute.clear()
        first = submit(batcher, 0)
        await asyncio.to_thread(network.computing.wait, 10)
        is_connected = True
        decoded = submit(batcher, 1, is_connected=lambda: is_connected)
        while len(network.decoded) < 2:
            await asyncio.sleep(0.01)
        network.may_decode.clear()
        gone = [submit(batcher, number, is_connected=lambda: is_connected)[0] for number in range(2, 8)]
        is_connected = False
        canceled = submit(batcher, 8)
        canceled[0].done.cancel()
        network.may_decode.set()
        network.may_compute.set()
        await finished(first + decoded + gone)

    run(network, test)
    assert network.batches == [[0]]
    assert len(network.decoded) <= 2 + 8  # those that a thread has already begun


def test_a_full_queue_refuses_all_images_of_a_request():
    network = Network()

    async def test(batcher: Batcher) -> None:
        network.may_decode.clear()
        jobs = submit(batcher, *range(18))
        for images, status in ((range(3), 429), (range(21), 413)):
            with pytest.raises(ServiceError) as error:
                submit(batcher, *images)
            assert error.value.status == status
        batcher.seconds_per_image = 0.7
        assert batcher.retry_after == 13  # 18 images
        jobs += submit(batcher, 1, 2)
        network.may_decode.set()
        await finished(jobs)
        assert batcher.num_waiting == 0

    run(network, test)


def test_another_model_computes_what_is_submitted_after_it():
    old, new = Network('one'), Network('two')

    async def test(batcher: Batcher) -> None:
        old.may_compute.clear()
        first = submit(batcher, 0)
        await asyncio.to_thread(old.computing.wait, 10)
        jobs = submit(batcher, 1)
        batcher.served = Served(new)
        jobs += submit(batcher, 2)
        old.may_compute.set()
        assert [job.served.model.version for job in await finished(first + jobs)] == ['one', 'one', 'two']

    run(old, test)
    assert sorted(number for batch in old.batches for number in batch) == [0, 1]
    assert new.batches == [[2]]
