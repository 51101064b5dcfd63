"""Tasks that ranks share: every task is run once, and rank 0 gets its result and its progress."""

from dataclasses import dataclass

import pytest

from lib.distributed import tasks
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.distributed.tasks import run_on_ranks
from lib.errors import UserError
from tests.ranks import run_ranks


@dataclass(frozen=True)
class Square:
    """Squares numbers; a task reports its number of steps, one at a time."""

    fails_at: int = -1

    def __call__(self, number, progress):
        if number == self.fails_at:
            raise UserError(f'{number} cannot be squared')
        for _ in range(number):
            progress(1)
        return number, number * number


def squared(group, numbers, work=Square()):
    counts = []
    results = list(run_on_ranks(work, numbers, num_workers=0, progress=counts.append, group=group))
    return [list(result) for result in results], sum(counts)


def on_rank(rank, count, seconds):
    tasks._SECONDS_BETWEEN_EXCHANGES = seconds
    group = ProcessGroup(rank, count)
    return [squared(group, numbers) for numbers in (range(20), range(2), [], range(3))]


@pytest.mark.process
@pytest.mark.parametrize('seconds', [0.0, 10.0])
def test_the_main_rank_gets_all_results(tmp_path, seconds):
    """With an exchange at every step, and with one at the end; also fewer tasks than ranks."""
    main, *others = run_ranks(on_rank, 3, tmp_path, seconds)
    for numbers, (results, count) in zip((range(20), range(2), [], range(3)), main, strict=True):
        assert sorted(results) == [[number, number**2] for number in numbers]
        assert count == sum(numbers)
    assert others == [[([], 0)] * 4] * 2


def test_one_process_runs_all_tasks_in_order():
    assert squared(SINGLE_PROCESS, [3, 1, 2]) == ([[3, 9], [1, 1], [2, 4]], 6)
    with pytest.raises(UserError, match='1 cannot be squared'):
        squared(SINGLE_PROCESS, [3, 1, 2], Square(1))
