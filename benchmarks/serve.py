"""Speed of the HTTP service on this machine, compared with test.py, and with a service without batches.

REAL_PHOTOS=FOLDER python benchmarks/serve.py [--photos N] [--rounds N] [--json FILE]

The network is EfficientNet-Lite0 with the preprocessing of configs/own_photos.yaml, 224 px. 32 clients send a photo
each, and the next one after the answer, over open connections on loopback; they are a process beside the service, on
the same cores. test.py predicts the same photos into a CSV file in this process, its second and later runs. Rounds
alternate.

throughput_ratio: photos per second of the service over those of test.py. p99_batch_times: the 99th percentile of the
latency over the mean time of a batch of the service. unbatched_speedup: photos per second over those of the usual
FastAPI service without batches, in which a request decodes its photo with Pillow and torchvision and runs the same
network in PyTorch; of its two forms (a function in a thread pool, or a coroutine that computes in the event loop) the
faster one counts. failed_requests: of 32 clients, all but 200; at 5 times the measured rate, sent without waiting for
answers, all but 200 and 429. overload_growth_mb: growth of the service's memory in the last third of that time.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.harness import finish, parse_arguments, real_photos
from benchmarks.http_clients import Clients, clients_for, closed_loop, open_loop
from benchmarks.saved_model import prediction_of, save_model
from lib.commands.cli import cli_main

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES, CLIENTS, SIZE = 81, 32, 224
OVERLOAD, OVERLOAD_SECONDS = 5, 6.0


def write_model(folder: Path) -> Path:
    """Write a checkpoint with bundled weights and a random classifier; return its path."""
    options = ['--config', str(ROOT / 'configs' / 'own_photos.yaml'), '--INPUT_SIZE', str(SIZE)]
    checkpoint = save_model(folder, [*options, '--INPUT_TEST_SIZE', '0'], NUM_CLASSES)
    assert checkpoint.path is not None
    return checkpoint.path


def prediction(model: Path, paths: list[Path]) -> Callable[[], float]:
    """Return a function that runs test.py on the photos, and returns its photos per second."""
    predict_photos = prediction_of(model, paths)

    def run() -> float:
        started = time.perf_counter()
        return predict_photos() / (time.perf_counter() - started)

    return run


@contextmanager
def started(command: list[str], log: Path) -> Iterator[tuple[int, subprocess.Popen]]:
    """Start a service, and yield its port and its process."""
    with log.open('w') as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            while not (found := re.search(r'http://127.0.0.1:(\d+)', log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(f'{" ".join(command)} has ended:\n{log.read_text()}')
                time.sleep(0.1)
            yield int(found[1]), process
        finally:
            process.terminate()


def metric(port: int, name: str) -> float:
    """Return the value of a metric of the service."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f'http://127.0.0.1:{port}/metrics'
    ) as answer:
        return float(re.search(rf'^recognizer_{name} (\S+)', answer.read().decode(), re.MULTILINE)[1])


def memory_mb(process: subprocess.Popen) -> float:
    """Return the resident memory of a process."""
    return int(re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{process.pid}/status').read_text())[1]) / 1000


def unbatched(clients: Clients, model: Path, log: Path) -> float:
    """Return the photos per second of the faster form of the service without batches."""
    rates = []
    for form in ('thread', 'coroutine'):
        command = [sys.executable, str(ROOT / 'benchmarks' / 'unbatched_service.py'), str(model), form]
        with started(command, log) as (port, _):
            clients(closed_loop, port, 'form_request', 32, 8)
            load = clients(closed_loop, port, 'form_request', 192, CLIENTS)
            assert set(load.statuses) == {200}, load.statuses
            rates.append(192 / load.seconds)
    return max(rates)


def overload(clients: Clients, port: int, process: subprocess.Popen, rate: float) -> tuple[dict[str, float], int]:
    """Send requests at several times the rate that the service reaches; return the results and the failed requests."""
    loads, memory = [], []
    for _ in range(3):
        loads.append(clients(open_loop, port, 'raw_request', 0, OVERLOAD * rate, OVERLOAD_SECONDS))
        memory.append(memory_mb(process))
    refused = sum(load.statuses[429] for load in loads)
    answered = sum(load.statuses[200] for load in loads)
    failed = sum(load.statuses.total() for load in loads) - answered - refused
    results = {
        'overload_rate_ratio': answered / sum(load.seconds for load in loads) / rate,
        'overload_refused': refused / (answered + refused),
        'overload_growth_mb': memory[2] - memory[1],
        'overload_memory_mb': memory[2],
    }
    return results, failed


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], rounds=(3, 'passes of each side'), photos=(1200, 'photos'))
    root = real_photos()
    lines = (root / 'train.txt').read_text(encoding='utf-8').splitlines()
    paths = [root / line.split(',')[0].strip() for line in lines if line.strip()][: arguments.photos]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, clients_for(paths) as clients:
        folder = Path(name)
        model = write_model(folder)
        command = [sys.executable, str(ROOT / 'tools' / 'serve.py'), '--RESUME_MODEL', str(model)]
        command += ['--SERVE_PORT', '0', '--RUN_DEVICE', 'cpu', '--LOG_ROOT', str(folder)]
        results = compare(clients, model, paths, command, arguments.rounds, folder / 'log.txt')
    finish(results, arguments.json)


def compare(
    clients: Clients, model: Path, paths: list[Path], command: list[str], rounds: int, log: Path
) -> dict[str, float]:
    """Run all sides, and return the results."""
    predicted, test_rates, rates, loads = prediction(model, paths), [], [], []
    predicted()  # warms up, and stores the choice of the engine
    with started(command, log) as (port, process):
        clients(closed_loop, port, 'raw_request', 256, CLIENTS)
        before = metric(port, 'batch_seconds_sum'), metric(port, 'batch_seconds_count'), metric(port, 'images_total')
        for _ in range(rounds):
            test_rates.append(predicted())
            loads.append(clients(closed_loop, port, 'raw_request', 0, CLIENTS))
            rates.append(len(paths) / loads[-1].seconds)
        after = metric(port, 'batch_seconds_sum'), metric(port, 'batch_seconds_count'), metric(port, 'images_total')
        seconds, batches, images = (now - then for now, then in zip(after, before, strict=True))
        rate = statistics.median(rates)
        overloaded, failed = overload(clients, port, process, rate)
    print(log.read_text())
    failed += sum(load.statuses.total() - load.statuses[200] for load in loads)
    p99 = statistics.median(load.percentile(99) for load in loads)
    unbatched_rate = unbatched(clients, model, log)
    return {
        'images_per_second': rate,
        'test_images_per_second': statistics.median(test_rates),
        'unbatched_images_per_second': unbatched_rate,
        'p50_ms': 1000 * statistics.median(load.percentile(50) for load in loads),
        'p99_ms': 1000 * p99,
        'batch_ms': 1000 * seconds / batches,
        'batch_images': images / batches,
        **overloaded,
        'throughput_ratio': statistics.median(one / other for one, other in zip(rates, test_rates, strict=True)),
        'p99_batch_times': p99 / (seconds / batches),
        'unbatched_speedup': rate / unbatched_rate,
        'failed_requests': failed,
    }


if __name__ == '__main__':
    cli_main(main)
