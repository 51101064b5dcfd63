"""Runs a script whose default configs are in another folder: python with_configs.py CONFIGS main.py [OPTION ...]"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Patch the folder, then become the script."""
    configs, script = sys.argv[1:3]
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from lib.config import load

    load._CONFIGS = Path(configs)
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
