"""The start and the end of every script: read the command line, turn errors into one line and an exit code.

Imports nothing heavy, so that --help and mistakes on the command line are fast.
"""

# ruff: noqa: E402 - from the first import on, Ctrl-C ends the process with a line, also during the other imports.
from lib.runtime.early_interrupt import end_quietly

end_quietly()

# isort: split
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lib.builders.preprocessing import resolve_preprocessing
from lib.commands.command import Command
from lib.config.defaults import Config
from lib.config.load import load_config
from lib.distributed.lost_rank import describe_lost_rank
from lib.distributed.rank_info import RankInfo, first_rank_reports, read_rank_info, report_failure
from lib.errors import UserError, one_line, shown, unquoted
from lib.runtime.csv_file import quote_formulas
from lib.runtime.folders import check_checkpoint_exists
from lib.runtime.leaving import exit_without_waiting
from lib.runtime.log import LOGGER, start_console
from lib.runtime.memory_kills import reason_of_kill, remember_counters
from lib.runtime.mirror import is_mirrored, is_url, with_urls
from lib.runtime.process import (
    EndingSignal,
    allow_open_files,
    end_line,
    end_with_parent,
    ending_signals,
    keep_freed_memory,
    output_error,
    prepare_streams,
    use_huge_pages,
    write_error_line,
)
from lib.runtime.read_file import reason_of

if TYPE_CHECKING:
    from lib.trainer.checkpointing.state import Checkpoint

_USAGE, _SIGNALED, _BROKEN_PIPE = 2, 128, 141
# Windows has no quota.
_FULL = {errno.ENOSPC, getattr(errno, 'EDQUOT', errno.ENOSPC)}
# A broken disk, or a network disk whose server does not answer.
_FAILING = {getattr(errno, name) for name in ('EIO', 'ESTALE', 'ETIMEDOUT', 'EREMOTEIO') if hasattr(errno, name)}
# torch's messages on a GPU and on the CPU.
_NO_MEMORY = ('out of memory', "can't allocate memory")
# Messages of gloo and NCCL when the process at the other end has ended.
_PEER_GONE = ('Connection closed by peer', 'Connection reset by peer', 'Broken pipe', 'remote process exited')
_NO_PROCESSES = (
    'the system allows no more processes and threads (ulimit -u, or the limit of a container); a smaller '
    '--RUN_NUM_WORKERS needs fewer'
)
# Parts of messages of Python, torch and the loader of shared libraries: limits of the system.
_LIMITS = {
    'Too many open files': 'too many open files: ulimit -n 1024 allows more, a smaller --RUN_NUM_WORKERS needs fewer',
    "can't start new thread": _NO_PROCESSES,
    'Resource temporarily unavailable': _NO_PROCESSES,
    'No usable temporary directory': 'no folder for temporary files can be written: set TMPDIR to one with free space',
    'Function not implemented': 'the system has no shared memory for several processes (is /dev/shm mounted?); '
    '--RUN_NUM_WORKERS 0 needs none',
}
# Packages whose errors are about files, and their names.
_LIBRARIES = {
    'pyarrow': 'Arrow', 'safetensors': 'safetensors', 'safetensors_rust': 'safetensors', 'PIL': 'Pillow',
    'zipfile': 'zipfile', 'tarfile': 'tarfile', 'zlib': 'zlib', 'msgspec': 'msgspec', 'onnx': 'ONNX',
    'onnxruntime': 'ONNX Runtime', 'yaml': 'PyYAML',
}  # fmt: skip


def cli_main(main: Callable[[], int | None], *, alone: str = '') -> NoReturn:
    """Call `main` and exit with its result as the exit code (None is 0).

    `alone`: why this command runs in one process, and so not with several ranks; '' if ranks share its work.

    Exit code 2 and one line `error: ...` on standard error: a UserError, a full disk, no memory, a missing permission,
    a file where a folder is needed, a limit of the system, or a package that is not installed. Under torchrun the line
    names the rank, torchrun gets it, too, and one rank per machine prints a line that all of them have. 130, 143, 129:
    Ctrl-C, SIGTERM and SIGHUP, with a line. Any other exception is a bug and keeps its traceback.

    A command works to its end when its output is lost. Then it is 141 without a line if the reader of standard output
    has ended (`... | head`), and 2 with a line if it could not be written otherwise.
    """
    prepare_streams()
    use_huge_pages()
    keep_freed_memory()
    allow_open_files()
    end_with_parent()
    remember_counters()
    with ending_signals() as ending:
        code = _run(main, ending, alone)
    lost = output_error()
    if lost is not None and not code:
        code = _BROKEN_PIPE if lost.errno == errno.EPIPE else _fail(_output_line(lost))
    if isinstance(code, int) and code:  # checkpoints are uploaded by now; what is still fetched is of no use
        exit_without_waiting(code)
    sys.exit(code)


def _run(main: Callable[[], int | None], ending: EndingSignal, alone: str) -> int | str | None:
    """Return the exit code of `main`, after its error line."""
    try:
        if not _has_folder():  # torch ends the process then
            raise UserError('the current folder does not exist any more: change to another one (cd)')
        if alone and (num_ranks := read_rank_info().world_size) > 1:
            program = unquoted(Path(sys.argv[0]).name)
            raise UserError(f'{program} runs in one process, not in {num_ranks}, since {alone}: start it by python')
        return main()
    except BaseException as error:
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else ending.number
        if number is not None:  # whatever the exception has become on its way
            write_error_line(end_line(number))
            return _SIGNALED + number
        if isinstance(error, SystemExit):  # --help
            return error.code
        line = _error_line(error)
        if line is None:
            raise
        return _fail(line)


def _error_line(error: BaseException) -> str | None:
    """Return the line that describes an error; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        if error.name is None or error.name.partition('.')[0] == 'lib':
            return None
        return f'the package {error.name} is not installed; type: python -m pip install -r requirements.txt'
    for part, line in _LIMITS.items():
        if part in str(error):
            return line
    if isinstance(error, MemoryError | RuntimeError):
        return _memory_line(error) or _rank_line(error)
    return _system_line(error) if isinstance(error, OSError) else _library_line(error)


def _output_line(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    return f'standard output cannot be written: {reason}; the command worked to its end, but lines are missing'


def _fail(message: str) -> int:
    line = with_urls(one_line(message))
    info = _rank_info()
    rank = f'rank {info.rank}: ' if info.world_size > 1 else ''
    report_failure(line)
    if not first_rank_reports(line):
        write_error_line(f'error: {rank}{line}')
    return _USAGE


def _memory_line(error: MemoryError | RuntimeError) -> str | None:
    """Return the error line for too little memory, or None for another error."""
    text = str(error)
    if text.startswith('DataLoader worker'):
        return (
            f'a worker process was killed, {reason_of_kill()} ({one_line(text)}); a smaller '
            '--RUN_NUM_WORKERS needs less, and in a container /dev/shm may be too small (docker run --shm-size=8g)'
        )
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        requested = re.search(r'tried to allocate [\d.]+ \w+', text, re.IGNORECASE)
        return (
            f'out of memory{f" ({requested[0]})" if requested else ""}; a smaller TRAIN.BATCH_SIZE, TEST.BATCH_SIZE, '
            'INPUT.SIZE or MODEL.BACKBONE needs less'
        )
    return None


def _rank_line(error: MemoryError | RuntimeError) -> str | None:
    """Return the error line for a lost connection to another rank, or None for another error."""
    lost = _rank_info().world_size > 1 and any(words in str(error) for words in _PEER_GONE)
    return describe_lost_rank() if lost else None


def _rank_info() -> RankInfo:
    try:
        return read_rank_info()
    except UserError:  # it is the error, or was there before it
        return RankInfo()


def _library_line(error: BaseException) -> str | None:
    """Return the error line for a file that a library refuses, and that no reader has named; None for another error."""
    library = _LIBRARIES.get(type(error).__module__.partition('.')[0])
    return None if library is None else f'a file cannot be read or written by {library}: {shown(error)}'


def _system_line(error: OSError) -> str | None:
    """Return the error line for a full disk or a path that cannot be used, or None for another error."""
    if is_url(str(error.filename or '')):
        return f'{error.filename}: {error.strerror}'
    if error.errno in _FULL:
        where = f' while writing {error.filename}' if error.filename else ''
        if is_mirrored(error.filename or ''):
            where = f' of STORAGE.CACHE{where}'
        return f'no space left on the device{where}; free some space and run again, earlier files are unchanged'
    if error.errno in _FAILING:
        where = f' at {error.filename}' if error.filename else ''
        return f'the disk failed{where} ({(error.strerror or "").lower()}); earlier files are unchanged, so run again'
    if error.errno is not None and error.filename:
        name = unquoted(str(error.filename)) if error.errno == errno.ENAMETOOLONG else error.filename
        return f'{name}: {reason_of(error)}'
    return None if error.errno in (None, errno.EBADF) else f'the system reports: {reason_of(error)}'


def _has_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def read_command(
    argv: Sequence[str], *, program: str = '', description: str = '', needs_model: bool = False, trains: bool = False
) -> Command:
    """Return the resolved command line and log how its config was chosen.

    Args:
        needs_model: the command uses a trained model.
        trains: the command opens the training set and then chooses what depends on its size (`uses_recipe`).

    Raises:
        UserError: a mistake in options or files; no checkpoint although the command needs a trained model.
    """
    opened: tuple[Checkpoint | None, list[str]] = (None, [])

    def find_checkpoint_config(resume_model: str, folder: Path) -> str | None:
        nonlocal opened
        opened = _open_checkpoint(resume_model, folder)
        return None if opened[0] is None else opened[0].config

    loaded = load_config(
        argv,
        program=program,
        description=description,
        find_checkpoint_config=find_checkpoint_config,
        needs_model=needs_model,
    )
    command = Command(loaded.cfg, *opened)
    if needs_model and command.checkpoint is None:
        raise UserError(_no_model(command, program))
    start_console(enabled=read_rank_info().rank == 0)
    quote_formulas(command.cfg.RUN.QUOTE_FORMULAS)
    for note in loaded.notes:
        LOGGER.info('%s', note)
    cfg = resolve_preprocessing(command.cfg, trains=trains, is_resumed=command.checkpoint is not None)
    return command._replace(cfg=cfg)


def read_config(argv: Sequence[str], *, program: str, description: str, trains: bool = False) -> Config:
    """Return the frozen config of a command that uses no trained model; arguments and errors as of read_command."""
    return read_command(argv, program=program, description=description, trains=trains).cfg


def _no_model(command: Command, program: str) -> str:
    if not command.cfg.RESUME_MODEL:
        return (
            f'{program} needs a trained model: --RESUME_MODEL ./log/NAME/best_model.pth, '
            "or --RESUME_MODEL last with the run's --NAME; python main.py trains one"
        )
    folder = Path(command.cfg.LOG_ROOT, command.cfg.NAME)
    return f'RESUME_MODEL last: {command.errors[0] if command.errors else f"{folder} contains no checkpoint"}'


def _open_checkpoint(resume_model: str, folder: Path) -> 'tuple[Checkpoint | None, list[str]]':
    # torch is imported only if there is a checkpoint to read.
    if resume_model != 'last':
        check_checkpoint_exists(Path(resume_model), f'RESUME_MODEL {Path(resume_model)}')
    from lib.trainer.checkpointing.io import read_checkpoint
    from lib.trainer.checkpointing.latest import latest_checkpoint

    if resume_model == 'last':
        return latest_checkpoint(folder)
    return read_checkpoint(resume_model, with_rows=False, option='RESUME_MODEL'), []
