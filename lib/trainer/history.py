"""The history of a run: the objects of metrics.jsonl, one per epoch and split."""

from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.runtime.json_file import read_json_lines
from lib.runtime.text import whole

METRICS = 'metrics.jsonl'
# Epoch, split, learning rate and metrics.
MetricsEntry = dict[str, int | float | str]


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of metrics.jsonl in a run folder, without a last line that a crash truncated.

    Raises:
        UserError: a line has another form.
    """
    entries = read_json_lines(folder / METRICS, MetricsEntry)
    if fault := history_fault(entries):
        raise UserError(f'{folder / METRICS}: {fault}')
    return entries


def history_fault(entries: list[MetricsEntry]) -> str:
    """Return why these are no objects of metrics.jsonl; '' if they are."""
    for position, entry in enumerate(entries, 1):
        epoch = whole(entry.get('epoch'))
        if epoch is None or epoch < 0 or not isinstance(entry.get('split', ''), str):
            return f'entry {position} has no epoch, or no text as split'
        texts = [name for name, value in entry.items() if isinstance(value, str) and name != 'split']
        if texts:
            return f'entry {position} has a text as {texts[0]}'
    return ''
