"""Runs a script with little memory: python limit_memory.py MODULES MEGABYTES tools/merge.py [OPTION ...].

The limit is MEGABYTES above the memory in use after the import of MODULES (a,b).
"""

import importlib
import resource
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Set the limit, then become the script."""
    modules, megabytes = sys.argv[1], float(sys.argv[2])
    sys.argv[:] = sys.argv[3:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    for module in modules.split(','):
        importlib.import_module(module)
    lines = Path('/proc/self/status').read_text().splitlines()
    used = next(int(line.split()[1]) for line in lines if line.startswith('VmData:'))
    limit = int(used * 1024 + megabytes * 1e6)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
