"""Runs a script in which one rank fails.

python fail_on_rank.py 1 error lib.trainer.step:TrainStep.__call__ 3 main.py [OPTION ...]

The third call of the function on that rank raises a UserError (error) or an AssertionError (bug), or kills the process
(kill).
"""

import importlib
import os
import runpy
import signal
import sys
from functools import reduce
from pathlib import Path


def main() -> None:
    """Patch the function on that rank, then become the script."""
    rank, how, target, count, script = sys.argv[1:6]
    module, _, path = target.partition(':')
    *owners, name = path.split('.')
    sys.path.insert(0, str(Path(script).parent))
    if os.environ['RANK'] == rank:
        from lib.errors import UserError

        owner = reduce(getattr, owners, importlib.import_module(module))
        function, calls = getattr(owner, name), 0

        def failing(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == int(count):
                if how == 'kill':
                    os.kill(os.getpid(), signal.SIGKILL)
                raise UserError('this rank fails') if how == 'error' else AssertionError('this cannot be')
            return function(*args, **kwargs)

        setattr(owner, name, failing)
    sys.argv[:] = sys.argv[5:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
