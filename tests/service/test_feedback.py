"""Feedback becomes training images: stored by digest, complete after a kill at any moment, limited."""

import http.client
import io
import itertools
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from lib.dataset.corrections import read_decisions
from lib.errors import UserError
from lib.formats.decisions import UNLABELED
from lib.runtime import files
from lib.service.feedback import FeedbackStore
from lib.service.interface import ServiceError, photo_id
from tests.scripts.in_process import run_in_process
from tests.service.serving import fake_service


def photo(number: int, form: str = 'JPEG') -> bytes:
    buffer = io.BytesIO()
    image = Image.new('RGB', (40, 30), (9, 99, 9))
    image.putdata([(255, 255, 255) if number >> bit & 1 else (0, 0, 0) for bit in range(20) for _ in range(40)])
    image.save(buffer, form)
    return buffer.getvalue()


def decisions_in(folder) -> dict[str, tuple[str, str]]:
    return {one.fpath: (one.action, one.to) for one in read_decisions(folder / 'decisions.json', UNLABELED)}


def photos_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / 'photos').iterdir()}


def test_photos_are_stored_as_uploaded_under_their_digest(tmp_path):
    store = FeedbackStore(tmp_path)
    first, second = photo(1), photo(2, 'PNG')
    assert store.put(first, 'relabel', 'Tea <b>').before is None
    store.put(second, 'relabel', 'Cafe\u0301')
    assert photos_in(tmp_path) == {f'{photo_id(first)}.jpg': first, f'{photo_id(second)}.png': second}
    assert decisions_in(tmp_path) == {
        f'photos/{photo_id(first)}.jpg': ('relabel', 'Tea <b>'),
        f'photos/{photo_id(second)}.png': ('relabel', 'Caf\u00e9'),
    }


def test_feedback_becomes_a_training_split(tmp_path):
    store = FeedbackStore(tmp_path / 'feedback')
    for number, name in ((1, 'Tea'), (2, 'Coffee'), (3, 'Tea')):
        store.put(photo(number), 'relabel', name)
    store.put(photo(4), 'drop')
    done = run_in_process(tmp_path, 'tools/convert.py', 'decisions', 'feedback/decisions.json', 'more')
    assert done.returncode == 0, done.stderr
    names = json.loads((tmp_path / 'more/classes.json').read_text())['names']
    images = json.loads((tmp_path / 'more/converted_train.json').read_text())['annotations']
    assert [(Path(one['fpath']).stem, names[one['category_id']]) for one in images] == [
        (photo_id(photo(number)), name) for number, name in ((1, 'Tea'), (2, 'Coffee'), (3, 'Tea'))
    ]
    assert all(Path(tmp_path, 'more', one['fpath']).is_file() for one in images)


def test_a_later_decision_replaces_the_earlier_one(tmp_path):
    store = FeedbackStore(tmp_path)
    store.put(photo(1), 'relabel', 'Tea')
    before = store.put(photo(1), 'relabel', 'Coffee').before
    assert (before.action, before.to) == ('relabel', 'Tea')
    assert list(decisions_in(tmp_path).values()) == [('relabel', 'Coffee')]
    assert store.put(photo(1), 'drop').before.to == 'Coffee'
    assert list(decisions_in(tmp_path).values()) == [('drop', '')]
    assert photos_in(tmp_path) == {}, 'a dropped photo is not kept'
    store.put(photo(1), 'relabel', 'Tea')
    assert len(photos_in(tmp_path)) == 1
    store.withdraw(photo_id(photo(1)))
    assert decisions_in(tmp_path) == photos_in(tmp_path) == {}
    with pytest.raises(ServiceError, match='no feedback') as refused:
        store.withdraw(photo_id(photo(1)))
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ('data', 'action', 'name', 'status'),
    [
        (b'MZ not an image', 'relabel', 'Tea', 415),
        (b'', 'drop', '', 415),
        (photo(1), 'keep', '', 400),
        (photo(1), 'relabel', ' ', 400),
        (photo(1), 'relabel', 'T' * 1001, 400),
        (photo(1), 'relabel', '\ud800', 400),
    ],
)
def test_invalid_feedback_is_refused(tmp_path, data, action, name, status):
    with pytest.raises(ServiceError) as refused:
        FeedbackStore(tmp_path).put(data, action, name)
    assert refused.value.status == status
    assert '\n' not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_limits_on_number_and_bytes(tmp_path):
    store = FeedbackStore(tmp_path, max_photos=2, max_bytes=2 * len(photo(1)) + 50)
    store.put(photo(1), 'relabel', 'Tea')
    with pytest.raises(ServiceError, match=r'full with 1 photo .*empty it'):
        store.put(photo(2, 'BMP'), 'relabel', 'Tea')
    store.put(photo(3), 'relabel', 'Tea')
    with pytest.raises(ServiceError, match='2 photos') as refused:
        store.put(photo(4), 'relabel', 'Tea')
    assert refused.value.status == 507
    store.put(photo(1), 'relabel', 'Coffee')  # is stored already
    store.put(photo(3), 'drop')
    FeedbackStore(tmp_path, max_photos=2, max_bytes=2 * len(photo(1)) + 50).put(photo(4), 'relabel', 'Tea')
    assert len(photos_in(tmp_path)) == 2


def test_a_folder_that_is_emptied_or_edited_meanwhile(tmp_path):
    store = FeedbackStore(tmp_path)
    store.put(photo(1), 'relabel', 'Tea')
    (tmp_path / 'decisions.json').rename(tmp_path / 'converted.json')
    store.put(photo(2), 'relabel', 'Tea')
    assert list(decisions_in(tmp_path)) == [f'photos/{photo_id(photo(2))}.jpg']
    (tmp_path / 'decisions.json').write_text('{"split": "unlabeled", "decisions": []}')
    store.put(photo(3), 'relabel', 'Tea')
    assert list(decisions_in(tmp_path)) == [f'photos/{photo_id(photo(3))}.jpg']
    (tmp_path / 'decisions.json').write_text('{')
    with pytest.raises(UserError, match=r'decisions\.json'):
        store.put(photo(4), 'relabel', 'Tea')
    with pytest.raises(UserError):
        FeedbackStore(tmp_path)
    (tmp_path / 'decisions.json').write_text('{"split": "train", "decisions": []}')
    with pytest.raises(UserError, match='train split'):
        FeedbackStore(tmp_path)


def test_concurrent_requests_lose_nothing(tmp_path):
    stores = [FeedbackStore(tmp_path) for _ in range(2)]  # as of two processes
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda k: stores[k % 2].put(photo(k), 'relabel', f'Tea {k}'), range(24)))
    assert sorted(to for _, to in decisions_in(tmp_path).values()) == sorted(f'Tea {k}' for k in range(24))
    assert all((tmp_path / fpath).exists() for fpath in decisions_in(tmp_path))


def test_after_a_kill_every_photo_of_the_file_exists(tmp_path, monkeypatch):
    """The process ends before or after any change of a file; the next one finds whole files and resumes."""
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    rng = random.Random(seed)
    kills = 0
    steps = 0

    class Kill(BaseException):
        pass

    def maybe_kill(kind, path):
        nonlocal steps, kills
        steps += 1
        if threading.current_thread() is threading.main_thread() and rng.random() < 0.04:
            kills += 1
            raise Kill

    for _ in range(60):
        monkeypatch.setattr(files, 'on_operation', None)
        before = decisions_in(tmp_path) if (tmp_path / 'decisions.json').exists() else {}
        store = FeedbackStore(tmp_path)
        data, name = photo(rng.randrange(6)), f'Tea {rng.randrange(9)}'
        fpath = f'photos/{photo_id(data)}.jpg'
        action = rng.choice(['relabel', 'relabel', 'drop', 'withdraw'])
        monkeypatch.setattr(files, 'on_operation', maybe_kill)
        done = True
        try:
            if action == 'withdraw':
                store.withdraw(photo_id(data))
            else:
                store.put(data, action, name)
        except Kill:
            done = False
        except ServiceError:
            assert fpath not in before
        monkeypatch.setattr(files, 'on_operation', None)
        after = dict.fromkeys(before)
        if (tmp_path / 'decisions.json').exists():
            after = decisions_in(tmp_path)
            assert all((tmp_path / path).exists() for path, (verdict, _) in after.items() if verdict == 'relabel')
        others = {path: one for path, one in before.items() if path != fpath}
        assert {path: one for path, one in after.items() if path != fpath} == others
        expected = {'relabel': ('relabel', name), 'drop': ('drop', ''), 'withdraw': None}[action]
        assert after.get(fpath) in ([expected] if done else [expected, before.get(fpath)])
    print(f'{kills} kills in {steps} operations')


@pytest.mark.slow
@pytest.mark.process
def test_a_killed_service_has_all_feedback_that_it_confirmed(tmp_path):
    """Eight clients send feedback until the process is killed; a new one resumes with whole files."""
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    rng = random.Random(seed)
    folder, confirmed, number = tmp_path / 'feedback', {}, itertools.count()
    for _ in range(4):
        with fake_service(tmp_path, feedback=str(folder)) as service:

            def send(_, service=service):
                while True:
                    data = photo(next(number))
                    name = f'Tea {rng.randrange(99)}'
                    try:
                        path = f'/feedback?action=relabel&name={quote(name)}'
                        if service.predict(data, path).status != 200:
                            continue
                    except (OSError, http.client.HTTPException):  # it is killed
                        return
                    confirmed[f'photos/{photo_id(data)}.jpg'] = ('relabel', name)

            with ThreadPoolExecutor(8) as pool:
                clients = pool.map(send, range(8))
                time.sleep(rng.uniform(0.3, 1))
                service.process.kill()
                list(clients)
        stored = decisions_in(folder)
        assert all((folder / path).exists() for path in stored)
        assert {path: stored.get(path) for path in confirmed} == confirmed
    print(f'{len(confirmed)} confirmed')
    assert confirmed
