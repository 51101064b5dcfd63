"""Cost of hostile images: outcome, peak memory and time of small files that ask for much of both.

python benchmarks/decode_bombs.py [--only WORDS] [--json FILE]

Each image (benchmarks/bombs.py) is decoded in a fresh process as training does (at full size) or as packing does.
Memory: the largest sum of the process and its decoder process, sampled every 2 ms, or the largest that the system has
recorded of one (VmHWM), less what both need for an image of one pixel; the file is included. Time: CPU seconds of both,
the start of the decoder process included, and on the clock, which is longer on a busy machine.
Results: bombs_most_megabytes and bombs_most_seconds (CPU) of an image.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bombs import BOMBS
from benchmarks.harness import finish, new_parser
from lib.commands.cli import cli_main

ROOT = Path(__file__).resolve().parents[1]


# Run in a fresh process with a file on its standard input. The memory of two processes is summed at each moment.
MEASURE = """
import json, resource, sys, threading, time
sys.path.insert(0, sys.argv[1])
import lib.dataset.lazy_image
from lib.dataset import decode_process
from lib.dataset.decode import DecodeError, decode
from lib.dataset.lazy_image import open_lazy_image

def memory(process, field):
    try:
        with open(f'/proc/{process}/status') as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(field)), 0)
    except OSError:
        return 0

class Decoder(decode_process._Decoder):
    def __init__(self):
        super().__init__()
        children.append(self._process.pid)

def watch():
    while not done:
        sums.append(memory('self', 'VmRSS') + sum(memory(child, 'VmRSS') for child in children))
        highest.append(max((memory(child, 'VmHWM') for child in children), default=0))
        time.sleep(0.002)

children, sums, highest, done = [], [0], [0], []
decode_process._Decoder = Decoder
data = sys.stdin.buffer.read()
before = memory('self', 'VmRSS') - len(data)
threading.Thread(target=watch, daemon=True).start()
started, cpu = time.perf_counter(), time.thread_time()
try:
    if sys.argv[2] == 'train':
        image = open_lazy_image(data)
        pixels, reduction = image.pixels(1.0)
        outcome = f'{image.width} x {image.height}'
    else:
        image = decode(data)
        outcome = f'{image.width} x {image.height}'
except DecodeError as error:
    outcome = str(error)
seconds, cpu = time.perf_counter() - started, time.thread_time() - cpu
done.append(True)
decode_process._end_all()
child = resource.getrusage(resource.RUSAGE_CHILDREN)
both = max(sums) - DECODER * bool(children)
most = max(both, memory('self', 'VmHWM'), before + max(highest) - DECODER)
print(json.dumps({
    'outcome': outcome, 'megabytes': (most - before) / 1e6, 'wall_seconds': seconds,
    'cpu_seconds': cpu + child.ru_utime + child.ru_stime,
}))
""".replace('DECODER', '33_000_000')  # bytes of a decoder process after an image of one pixel


def measure(data: bytes, use: str) -> dict:
    """Return outcome, bytes and seconds of decoding for a use: train or pack."""
    command = [sys.executable, '-c', MEASURE, str(ROOT), use]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode().strip().splitlines() or ['']
        return {
            'outcome': f'FAILED {done.returncode}: {lines[-1]}',
            'megabytes': 0.0,
            'wall_seconds': 0.0,
            'cpu_seconds': 0.0,
        }
    return json.loads(done.stdout)


def main() -> None:
    """Measure all bombs, print a table, and write it."""
    parser = new_parser('measure the cost of hostile images')
    parser.add_argument('--only', metavar='WORDS', default='', help='names of images that contain this')
    arguments = parser.parse_args()
    rows = []
    print(f'{"image":45} {"file":>8} {"use":5} {"memory":>8} {"CPU":>6} {"clock":>6}  outcome')
    for name, make in BOMBS.items():
        if arguments.only not in name:
            continue
        data = make()
        for use in ('train', 'pack') if name.startswith('JPEG,') else ('pack',):
            row = {'image': name, 'file_megabytes': len(data) / 1e6, 'use': use, **measure(data, use)}
            rows.append(row)
            print(
                f'{name:45} {len(data) / 1e6:5.1f} MB {use:5} {row["megabytes"]:5.0f} MB {row["cpu_seconds"]:4.1f} s '
                f'{row["wall_seconds"]:4.1f} s  {row["outcome"]}',
                flush=True,
            )
    results = {
        'bombs_most_megabytes': max((row['megabytes'] for row in rows), default=0.0),
        'bombs_most_seconds': max((row['cpu_seconds'] for row in rows), default=0.0),
    }
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
