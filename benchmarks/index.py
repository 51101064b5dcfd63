"""Time and memory of opening 2.5 million annotations compared with json.load, and memory of four workers.

python benchmarks/index.py [--images N] [--classes N] [--rounds N] [--json FILE]

Synthetic annotations as written by tools/convert.py, in random order. Every measurement is a new process with the same
imports (json, lib.dataset.annotations); the sides alternate, medians of the rounds. Open, ours: parse, check and cache
(without a cache yet). Open, theirs: json.load alone, without checks or columns. Reopen: with the cache. Memory: growth
of the peak resident memory by the call (VmHWM, which unlike ru_maxrss does not include the parent process).
Workers: four processes of a DataLoader, as in training, get the paths (as FileImages), the labels and the class index,
read all of it, and stay alive; then the proportional set sizes (smaps_rollup, Linux) of all four are summed. The growth
is the difference from workers with an empty data set.
Results: open_time_ratio, open_memory_ratio (ours / json), reopen_ms, workers_pss_growth_mb.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import finish, parse_arguments
from lib.commands.cli import cli_main
from lib.dataset.annotations import read_annotations
from lib.dataset.images import FileImages
from lib.dataset.index import ClassIndex
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NUM_WORKERS = 4
ROWS = 100_000  # per write
MEASURE = """
import json, sys, time
sys.path.insert(0, {root!r})
from lib.dataset.annotations import read_annotations
def peak(): return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
before, started = peak(), time.perf_counter()
{call}
print(json.dumps([time.perf_counter() - started, (peak() - before) / 1024]))
"""
CALLS = {'ours': 'found = read_annotations(sys.argv[1])', 'json': 'found = json.load(open(sys.argv[1], "rb"))'}


def write_annotations(path: Path, num_images: int, num_classes: int) -> None:
    """Write long-tailed annotations, one per line."""
    random = np.random.default_rng(0)
    labels = np.minimum(num_classes * random.random(num_images) ** 2, num_classes - 1).astype(int)
    with open(path, 'w', encoding='ascii') as file:
        file.write('{"annotations": [\n')
        for start in range(0, num_images, ROWS):
            rows = enumerate(labels[start : start + ROWS].tolist(), start)
            entries = [f'{{"category_id":{label},"fpath":"train/{label:05d}/{row:07d}.jpg"}}' for row, label in rows]
            file.write((',\n' if start else '') + ',\n'.join(entries))
        file.write(f'\n],\n"num_classes": {num_classes}}}\n')


def measure(side: str, path: Path) -> tuple[float, float]:
    """Return seconds and megabytes of one call in a new process."""
    program = MEASURE.format(root=str(ROOT), call=CALLS[side])
    done = subprocess.run([sys.executable, '-c', program, str(path)], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


class Nothing(Dataset):
    """An empty data set, whose items are the process ids of the workers."""

    def __len__(self) -> int:
        return NUM_WORKERS

    def __getitem__(self, row: int) -> int:
        self.read()
        return int(Path('/proc/self').resolve().name)

    def read(self) -> None:
        """Read all data."""


class Everything(Nothing):
    """The parts of the annotations that BatchReader holds."""

    def __init__(self, images: FileImages, labels: np.ndarray, index: ClassIndex) -> None:
        self.images, self.labels, self.index = images, labels, index

    def read(self) -> None:
        """Read all paths, labels, and rows of every class."""
        letters = sum(len(self.images.name(row)) for row in range(len(self.images)))
        rows = sum(int(self.index.rows_of(label).sum()) for label in range(self.index.num_classes))
        num_images = len(self.labels)
        if letters < num_images or int(self.labels.sum()) < 0 or rows != num_images * (num_images - 1) // 2:
            raise AssertionError('not all data was read')


def workers_pss(dataset: Dataset) -> float:
    """Return the summed proportional set size of workers that have read `dataset`, in megabytes."""
    warnings.filterwarnings('ignore', 'This DataLoader will create')  # four workers on two cores are intended
    loader = DataLoader(
        dataset, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True, multiprocessing_context='forkserver'
    )
    processes = {int(process) for process in loader}
    if len(processes) != NUM_WORKERS:
        raise AssertionError('a worker got no item')
    total = 0
    for process in processes:
        lines = Path(f'/proc/{process}/smaps_rollup').read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith('Pss:'))
    return total / 1024


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        images=(2_500_000, 'annotations'),
        classes=(50_030, 'classes'),
        rounds=(5, 'measurements of each side'),
    )
    if not Path('/proc/self/smaps_rollup').exists():
        raise UserError('/proc/self/smaps_rollup does not exist: this benchmark needs Linux')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'converted_train.json')
        write_annotations(path, arguments.images, arguments.classes)
        rounds = {'ours': [], 'json': [], 'again': []}
        for _ in range(arguments.rounds):
            Path(folder, f'.{path.name}.arrow').unlink(missing_ok=True)
            rounds['ours'].append(measure('ours', path))
            rounds['again'].append(measure('ours', path))
            rounds['json'].append(measure('json', path))
        seconds, megabytes = (
            {side: statistics.median(value[column] for value in values) for side, values in rounds.items()}
            for column in (0, 1)
        )
        annotations = read_annotations(path)
        index = ClassIndex(annotations.labels, annotations.num_classes, by_class=annotations.by_class)
        images = FileImages(annotations.paths, folder)
        growth = workers_pss(Everything(images, annotations.labels, index)) - workers_pss(Nothing())
    finish(
        {
            'open_seconds': seconds['ours'],
            'json_open_seconds': seconds['json'],
            'open_memory_mb': megabytes['ours'],
            'json_open_memory_mb': megabytes['json'],
            'open_time_ratio': seconds['ours'] / seconds['json'],
            'open_memory_ratio': megabytes['ours'] / megabytes['json'],
            'reopen_ms': 1000 * seconds['again'],
            'workers_pss_growth_mb': growth,
        },
        arguments.json,
    )


if __name__ == '__main__':
    cli_main(main)
