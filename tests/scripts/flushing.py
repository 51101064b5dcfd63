"""Runs raise_signal.py where each batch of predictions is put on the disk at once, as after seconds of a long pass."""

import runpy
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(sys.argv[4]).parent))
    from lib.runtime import column_store as row_store

    row_store._SECONDS_BETWEEN_FLUSHES = -1.0
    runpy.run_path(str(Path(__file__).with_name('raise_signal.py')), run_name='__main__')
