"""Ranks of a run for tests: a function in several processes of one gloo group."""

import time
import traceback
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import lib.backbone.split_attention  # with timm
import lib.builders.trainer  # noqa: F401 the server imports them once, and not every rank
from lib.runtime.workers import process_context


def run_ranks(function: Callable, count: int, tmp_path: Path, *args: Any, seconds: float = 120) -> list[Any]:
    """Run function(rank, count, *args) on `count` ranks, each a new process, and return the results by rank.

    The processes are forked from a server that has imported torch and the trainer; all tests of this process share it.

    Args:
        function: importable, so at the top level of a module; it returns tensors, numbers and strings, or lists and
            dicts of them.
        args: pickled.

    Raises:
        AssertionError: a rank raised (the message holds its traceback), died or exceeded `seconds`. All processes
            have ended.
    """
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    context = process_context(__name__)
    processes = [
        context.Process(target=_on_rank, args=(function, rank, count, folder, seconds, args), daemon=True)
        for rank in range(count)
    ]
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            process.start()
        _wait(processes, folder, deadline)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(count)]


def _wait(processes: list, folder: Path, deadline: float) -> None:
    """Return when all have ended with exit code 0."""
    while True:
        # Before the files are read, since a process that has ended has written its file.
        codes = [process.exitcode for process in processes]
        errors = sorted(folder.glob('*.txt'))
        assert not errors, '\n'.join(f'rank {path.stem}: {path.read_text(encoding="utf-8")}' for path in errors)
        assert not any(codes), f'exit codes of the ranks: {codes}'
        if all(code == 0 for code in codes):
            return
        assert time.monotonic() < deadline, f'out of time; exit codes of the ranks: {codes}'
        time.sleep(0.02)


def _on_rank(function: Callable, rank: int, count: int, folder: Path, seconds: float, args: tuple) -> None:
    try:
        torch.set_num_threads(1)
        rendezvous = (folder / 'rendezvous').as_uri()
        timeout = timedelta(seconds=seconds)
        dist.init_process_group('gloo', init_method=rendezvous, rank=rank, world_size=count, timeout=timeout)
        torch.save(function(rank, count, *args), folder / f'{rank}.pt')
        # No rank leaves while another one is still in a collective.
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        # Renamed once it is complete, since the parent polls.
        unfinished = folder / f'{rank}.part'
        unfinished.write_text(traceback.format_exc(), encoding='utf-8')
        unfinished.rename(folder / f'{rank}.txt')
        raise


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Return (number of ranks, *shape): the same tensor of every rank."""
    tensors = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(tensors, tensor.contiguous())
    return torch.stack(tensors)
