"""Metrics of a finished run, its test predictions and its re-balanced model in one table."""

from pathlib import Path
from typing import Any

from lib.config.defaults import Config
from lib.errors import UserError
from lib.report.describe import describe_metrics
from lib.runtime.files import finish_set
from lib.runtime.json_file import Record, numbers_in, read_json
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.run_folder import RunFolder


def summarize(cfg: Config) -> list[str]:
    """Return the metrics table of the run NAME and the paths of its files; missing parts are left out.

    Raises:
        UserError: there is no such run.
    """
    run, rebalanced = Path(cfg.LOG_ROOT, cfg.NAME), Path(cfg.TAU_NORM.LOG_ROOT, cfg.NAME)
    if not (run / 'metrics.jsonl').exists():
        raise UserError(f'{run} holds no run; python main.py --NAME {cfg.NAME} trains one')
    for folder in (run, rebalanced):
        finish_set(folder)
    # tau_norm.py writes the model last.
    tau = _read(rebalanced / 'tau.json') if (rebalanced / 'best_model.pth').exists() else {}
    rows = {
        'valid': _selected_valid(run),
        'valid, tau': numbers_in(tau.get('after')),
    }
    # STEM.json is beside the STEM.csv of every prediction of best_model.pth.
    jsons = [path for folder in (run, rebalanced) for path in folder.glob('predictions_*.json')]
    stems = sorted({path.stem for path in jsons if path.with_suffix('.csv').exists()})
    for stem in stems:
        source = stem.removeprefix('predictions_')
        rows[source] = numbers_in(_read(run / f'{stem}.metrics.json'))
        rows[f'{source}, tau'] = numbers_in(_read(rebalanced / f'{stem}.metrics.json'))
    files = [
        folder / name
        for name in ('best_model.pth', *(f'{stem}.csv' for stem in stems), 'report.html')
        for folder in (run, rebalanced)
        if (folder / name).exists()
    ]
    table = describe_metrics({name: metrics for name, metrics in rows.items() if metrics})
    return [*table, '', *(f'  {path}' for path in files)]


def _selected_valid(run: Path) -> dict[str, Any]:
    """Return the metrics of the epoch in best_model.pth on the validation split."""
    best = run / 'best_model.pth'
    if not best.exists():
        return {}
    progress = read_checkpoint(best, with_rows=False, mmap=True).progress
    valid = [entry for entry in RunFolder(run).history() if entry.get('split') == 'valid']
    return next((entry for entry in valid if progress and entry['epoch'] == progress.epoch), {})


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, Record) if file.exists() else {}
