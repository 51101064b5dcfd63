"""Runs a script that cannot write large files.

python limit_files.py BYTES main.py [OPTION ...]: a write beyond so many bytes of a file fails.
"""

import resource
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Set the limit, then become the script."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv[:] = sys.argv[2:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
