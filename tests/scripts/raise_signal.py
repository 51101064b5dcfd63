"""Runs a script that receives a signal at a reproducible point.

python raise_signal.py SIGINT lib.trainer.step:TrainStep.__call__ 5 main.py [OPTION ...]: after the fifth call of the
function, the process sends itself the signal. It leads a process group.
"""

import importlib
import itertools
import os
import runpy
import signal
import sys
from functools import reduce
from pathlib import Path


def main() -> None:
    """Patch the function, then become the script."""
    os.setpgrp()
    name, target, count, script = sys.argv[1:5]
    module, _, path = target.partition(':')
    *owners, function_name = path.split('.')
    sys.path.insert(0, str(Path(script).parent))
    owner = reduce(getattr, owners, importlib.import_module(module))
    function = getattr(owner, function_name)
    calls = itertools.count(1)

    def counted(*args, **kwargs):
        number = next(calls)
        result = function(*args, **kwargs)
        if number == int(count):
            os.kill(os.getpid(), signal.Signals[name])
        return result

    setattr(owner, function_name, counted)
    sys.argv[:] = sys.argv[4:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
