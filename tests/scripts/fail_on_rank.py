"""Runs a script of which one rank fails: python fail_on_rank.py 1 lib.trainer.step:_step 3 main.py [OPTION ...].

There, the function raises a user's mistake when it is called for the third time.
"""

import importlib
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Patch the function on that rank, then become the script."""
    rank, target, count, script = sys.argv[1:5]
    module, _, name = target.partition(':')
    sys.path.insert(0, str(Path(script).parent))
    if os.environ['RANK'] == rank:
        from lib.errors import UserError

        owner = importlib.import_module(module)
        function, calls = getattr(owner, name), [0]

        def failing(*args, **kwargs):
            calls[0] += 1
            if calls[0] == int(count):
                raise UserError('this rank fails')
            return function(*args, **kwargs)

        setattr(owner, name, failing)
    sys.argv[:] = sys.argv[4:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
