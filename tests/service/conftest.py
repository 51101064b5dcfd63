"""A service that the tests share."""

from collections.abc import Iterator

import pytest

from tests.service.serving import RunningService, fake_service

SECONDS, QUEUE = 2.0, 40


@pytest.fixture(scope='session')
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with small limits, in another process."""
    folder = tmp_path_factory.mktemp('service')
    options = {'seconds': SECONDS, 'max_bytes': 300_000, 'queue': QUEUE, 'batch_size': 8}
    with fake_service(folder, **options, feedback=str(folder / 'feedback')) as running:
        yield running
