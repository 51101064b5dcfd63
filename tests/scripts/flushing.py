"""Runs raise_signal.py; each batch of predictions is flushed to disk at once, as in a long pass after seconds."""

import runpy
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(sys.argv[4]).parent))
    from lib.runtime import column_store

    column_store._SECONDS_BETWEEN_FLUSHES = -1.0
    runpy.run_path(str(Path(__file__).with_name('raise_signal.py')), run_name='__main__')
