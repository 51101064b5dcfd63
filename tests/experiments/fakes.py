"""A fake of main.py, test.py and tau_norm.py.

In its folder: done.pth, a checkpoint, and behaviors.json, {run: "fails", "writes nothing" or "hangs"}.
"""

import itertools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
METRICS = {'mean_class_error': 0.25, 'top1': 0.5, 'many': 0.75}


def main() -> int:
    options = dict(itertools.pairwise(sys.argv))
    script, name, model = Path(__file__).name, options['--NAME'], options['--RESUME_MODEL']
    more = [options.get(f'--{key}', '') for key in ('RESUME_MODE', 'LOSS_TEACHER')]
    called = (script, name, Path(model).parent.name or model, *(Path(text).parent.name or text for text in more))
    with open(HERE / 'calls.jsonl', 'a') as file:
        file.write(json.dumps([*called, os.environ.get('CUDA_VISIBLE_DEVICES', '')]) + '\n')
    behaviors = HERE / 'behaviors.json'
    behavior = json.loads(behaviors.read_text()).get(name) if behaviors.exists() else None
    if behavior == 'fails':
        print(
            'epoch 1\nerror: the annotations hold no image of class 7, so it cannot be learned by this run',
            file=sys.stderr,
        )
        print('warning: after the error', file=sys.stderr)
        return 2
    if behavior == 'writes nothing':
        return 0
    if behavior == 'hangs':
        return wait_for_interrupt(Path(options['--LOG_ROOT'], name))
    write(script, options, model)
    return 0


def write(script: str, options: dict[str, str], model: str) -> None:
    """Write the files of the script."""
    if script == 'main.py':
        folder = Path(options['--LOG_ROOT'], options['--NAME'])
        folder.mkdir(parents=True, exist_ok=True)
        line = {'epoch': 1, 'split': 'valid', **METRICS}
        (folder / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
        shutil.copy(HERE / 'done.pth', folder / 'last.pth')
    elif script == 'test.py':
        path = Path(model)
        stem = ('' if path.stem == 'best_model' else f'{path.stem}_') + 'predictions_test'
        path.with_name(f'{stem}.csv').write_text('id,predicted\n')
        path.with_name(f'{stem}.metrics.json').write_text(json.dumps({**METRICS, 'mean_class_error': 0.375}))
    else:
        folder = Path(options['--TAU_NORM_LOG_ROOT'], options['--NAME'])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / 'done.pth', folder / 'best_model.pth')
        (folder / 'tau.json').write_text(json.dumps({'after': METRICS}))


def wait_for_interrupt(folder: Path) -> int:
    """Wait like a long run, and count the interrupts."""
    folder.mkdir(parents=True, exist_ok=True)
    interrupts = []
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
    (folder / 'ready').touch()
    end = time.monotonic() + 30
    while not interrupts and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)
    (folder / 'interrupts').write_text(str(len(interrupts)))
    return 130


if __name__ == '__main__':
    sys.exit(main())
