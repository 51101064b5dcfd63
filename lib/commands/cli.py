"""What every script does first: read the command line, and say what came of it. Imports nothing heavy.

How every script ends: an exit code, and for a user's mistake one line instead of a traceback.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from lib.config.defaults import Config
from lib.config.load import Loaded, load_config
from lib.distributed.rank_info import read_rank_info, report_failure
from lib.errors import UserError
from lib.runtime.log import LOGGER, start_console

_USAGE, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141
# Windows has no quota.
_FULL = {errno.ENOSPC, getattr(errno, 'EDQUOT', errno.ENOSPC)}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}
# torch's words on a GPU, and on the CPU.
_NO_MEMORY = ('out of memory', "can't allocate memory")
# What gloo and NCCL say when the process at the other end is gone.
_PEER_GONE = ('Connection closed by peer', 'Connection reset by peer', 'Broken pipe', 'remote process exited')
# A file where a folder is needed, or the other way round.
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


def cli_main(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and leave the process with its result as the exit code (None is 0).

    Under torchrun a line names its rank, and torchrun is told it, too.
    2: a UserError, a full disk, no memory left, a file that may not be touched or is in the way, a package that is not
    installed, told in one line `error: ...` on standard error. 130: Ctrl-C. 141: whoever read our output is gone
    (`... | head`), so nothing is said. Anything else is a bug of ours and keeps its traceback.
    """
    try:
        code = main()
        sys.stdout.flush()  # a reader that is gone shows here at the latest
    except UserError as error:
        code = _fail(str(error))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        code = _INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more at exit; give that flush somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition('.')[0] == 'lib':
            raise
        code = _fail(f'the package {error.name} is not installed; type: python -m pip install -r requirements.txt')
    except (MemoryError, RuntimeError) as error:
        line = _memory_line(error) or _rank_line(error)
        if line is None:
            raise
        code = _fail(line)
    except OSError as error:
        line = _system_line(error)
        if line is None:
            raise
        code = _fail(line)
    sys.exit(code)


def one_line(message: str) -> str:
    """Return `message` without line breaks, and with control characters and undecodable bytes escaped."""
    joined = re.sub(r'\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+\s*', ' ', message.strip())
    return ''.join(
        char if char.isprintable() else char.encode('unicode_escape', 'surrogatepass').decode('ascii')
        for char in joined
    )


def _fail(message: str) -> int:
    line = one_line(message)
    rank = f'rank {read_rank_info().rank}: ' if read_rank_info().world_size > 1 else ''
    # In one piece: the lines of several ranks must not tear each other.
    sys.stderr.write(f'error: {rank}{line}\n')
    sys.stderr.flush()
    report_failure(line)
    return _USAGE


def _memory_line(error: MemoryError | RuntimeError) -> str | None:
    """Say what was too large, or None where a traceback tells more."""
    text = str(error)
    if text.startswith('DataLoader worker'):
        return (
            f'a process that reads images was killed, most likely for want of memory ({one_line(text)}); a smaller '
            '--RUN_NUM_WORKERS needs less, and in a container /dev/shm may be too small (docker run --shm-size=8g)'
        )
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        asked = re.search(r'tried to allocate [\d.]+ \w+', text, re.IGNORECASE)
        return (
            f'out of memory{f" ({asked[0]})" if asked else ""}; a smaller TRAIN.BATCH_SIZE, TEST.BATCH_SIZE, '
            'INPUT.SIZE or MODEL.BACKBONE needs less'
        )
    return None


def _rank_line(error: MemoryError | RuntimeError) -> str | None:
    """Say that another rank is gone, or None where a traceback tells more."""
    lost = read_rank_info().world_size > 1 and any(words in str(error) for words in _PEER_GONE)
    return 'another rank has ended, so this one does too; its own line says why' if lost else None


def _system_line(error: OSError) -> str | None:
    """Say what the system refused, or None where a traceback tells more."""
    if error.errno in _FULL:
        where = f' while writing {error.filename}' if error.filename else ''
        return f'no space left on the device{where}; free some and run again, earlier files are as they were'
    if error.errno in _REFUSED | _IN_THE_WAY and error.filename:
        return f'{error.filename}: {error.strerror.lower()}'
    return None


def read_config(argv: Sequence[str], *, program: str, description: str, needs_checkpoint: bool = False) -> Config:
    """Return the frozen config.

    Raises:
        UserError: a mistake in options or files; no RESUME_MODEL although the script needs one.
    """
    loaded = read_options(argv, program=program, description=description)
    if needs_checkpoint and not loaded.cfg.RESUME_MODEL:
        raise UserError(
            f'{program} needs a trained model: --RESUME_MODEL ./log/NAME/best_model.pth, '
            "or --RESUME_MODEL last with the run's --NAME; python main.py trains one"
        )
    start_console(speaks=read_rank_info().rank == 0)
    for note in loaded.notes:
        LOGGER.info('%s', note)
    return loaded.cfg


def read_options(argv: Sequence[str], *, program: str = '', description: str = '') -> Loaded:
    """Return the frozen config of a command line, that of the checkpoint it names worked in, and what to say of it."""
    return load_config(argv, program=program, description=description, find_checkpoint_config=_checkpoint_config)


def _checkpoint_config(resume_model: str, folder: Path) -> str | None:
    from lib.trainer.checkpointing.io import read_checkpoint
    from lib.trainer.checkpointing.latest import latest_checkpoint

    if resume_model == 'last':
        checkpoint, _ = latest_checkpoint(folder)
        return checkpoint and checkpoint.config
    return read_checkpoint(resume_model, with_rows=False, option='RESUME_MODEL').config
