"""A script on several ranks: one process each, with the environment variables of torchrun."""

import os
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

from tests.scripts.running import ENVIRONMENT, Running, Scripts
from tests.storage_server import free_port


def start_ranks(
    scripts: Scripts,
    count: int,
    folder: Path,
    script: object,
    *options: object,
    stdin: str | Path = os.devnull,
    more: Mapping[str, str] | None = None,
) -> list[Running]:
    """Start `script` on `count` ranks, with `more` variables, and return them."""
    about = {'WORLD_SIZE': str(count), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    return [
        scripts.start(
            folder,
            script,
            *options,
            stdin=stdin,
            environment={**ENVIRONMENT, **(more or {}), **about} | {'RANK': str(rank), 'LOCAL_RANK': str(rank)},
        )
        for rank in range(count)
    ]


def run_ranks_of(
    scripts: Scripts,
    count: int,
    folder: Path,
    script: object,
    *options: object,
    code: int | None = 0,
    stdin: str | Path = os.devnull,
) -> list[CompletedProcess]:
    """Run `script` on `count` ranks to their end, all with `code` if one is given; return the output of each."""
    return [running.wait(code) for running in start_ranks(scripts, count, folder, script, *options, stdin=stdin)]
