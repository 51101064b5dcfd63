"""Metrics of a finished run, its test predictions and its re-balanced model in one table."""

import json
from pathlib import Path
from typing import Any

from lib.config.defaults import Config
from lib.errors import UserError
from lib.report.describe import describe_metrics


def summarize(cfg: Config) -> list[str]:
    """Return the metrics table of the run NAME and the paths of its files; missing parts are left out.

    Raises:
        UserError: there is no such run.
    """
    run, rebalanced = Path(cfg.LOG_ROOT, cfg.NAME), Path(cfg.TAU_NORM.LOG_ROOT, cfg.NAME)
    if not (run / 'metrics.jsonl').exists():
        raise UserError(f'{run} holds no run; python main.py --NAME {cfg.NAME} trains one')
    tau = _read(rebalanced / 'tau.json')
    rows = {
        'valid': _best_valid(run / 'metrics.jsonl'),
        'valid, tau': tau.get('after', {}),
        'test': _read(run / 'best_model_metrics.json'),
        'test, tau': _read(rebalanced / 'best_model_metrics.json'),
    }
    files = [
        folder / name
        for name in ('best_model.pth', 'best_model.csv', 'report.html')
        for folder in (run, rebalanced)
        if (folder / name).exists()
    ]
    table = describe_metrics({name: metrics for name, metrics in rows.items() if metrics})
    return [*table, '', *(f'  {path}' for path in files)]


def _best_valid(file: Path) -> dict[str, Any]:
    entries = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]
    valid = [entry for entry in entries if entry['split'] == 'valid']
    return min(valid, key=lambda entry: entry['mean_class_error'], default={})


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
