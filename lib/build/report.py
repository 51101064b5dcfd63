"""What the report shows of a run."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lib.build.model import class_names, held_classes, model_of
from lib.build.split import Split
from lib.build.trained import Trained
from lib.build.training import Training
from lib.config.yaml_text import as_text
from lib.errors import UserError
from lib.report.html import ReportData, write_report
from lib.report.plots import plot_curves, plot_error_by_count
from lib.runtime.log import LOGGER
from lib.trainer.checkpoint import Checkpoint, read_checkpoint
from lib.trainer.run_folder import RunFolder


def training_report(training: Training) -> Path:
    """Evaluate the best model once more; the main rank draws its pictures and writes the run's report.html."""
    folder, page = training.folder, training.folder.path / 'report.html'
    training.ranks.wait()  # for the main rank to have written the best model
    best = _best(folder, training)
    history = folder.history()
    labels, predicted = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if training.data.valid:
        labels = training.data.valid.labels
        classes = held_classes(training.cfg, best.num_classes, training.ranks)
        predicted = training.evaluate(model_of(best, training.cfg, training.device, classes=classes)).predicted
    if not training.ranks.is_main:
        return page
    counts = training.plan.training_set.class_counts
    plot_curves(folder.path / 'curves.png', history)
    if len(labels):
        plot_error_by_count(folder.path / 'error_by_count.png', counts, labels, predicted)
    data = ReportData(
        title=training.cfg.NAME,
        command=_command(),
        history=history,
        summary=_summary(history, best),
        class_names=class_names(best),
        train_counts=counts,
        labels=labels,
        predicted=predicted,
        open_image=training.data.valid.images.load if training.data.valid else None,
        tau=_tau_of(training),
        config_text=as_text(training.cfg),
        environment_text=(folder.path / 'environment.txt').read_text(encoding='utf-8'),
    )
    return write_report(page, data)


def rebalanced_report(path: Path, trained: Trained, valid: Split, before: np.ndarray, tau: dict[str, Any]) -> Path:
    """Write the report of a re-balanced model: the run's curves, the tau curve, and errors before it.

    `before`: (num_images,) class that the checkpoint predicts for each valid image.
    """
    history = RunFolder(trained.checkpoint.path.parent).history()
    data = ReportData(
        title=f'{trained.cfg.NAME}, re-balanced',
        command=_command(),
        history=history,
        summary=_summary(history, trained.checkpoint),
        class_names=trained.class_names,
        train_counts=trained.train_counts,
        labels=valid.labels,
        predicted=before,
        open_image=valid.images.load,
        tau=tau,
        config_text=as_text(trained.cfg),
        environment_text=(path.parent / 'environment.txt').read_text(encoding='utf-8'),
        notes=['Errors of classes and confused pairs are those of the checkpoint before re-balancing.'],
    )
    return write_report(path, data)


def _best(folder: RunFolder, training: Training) -> Checkpoint:
    """Return best_model.pth; the newest where a fine-tuned run was continued before it had a best."""
    for name in ('best_model.pth', 'last.pth'):
        if (folder.path / name).exists():
            return read_checkpoint(folder.path / name)
    raise UserError(f'{folder.path} holds no checkpoint to report on')


def _summary(history: list[dict[str, Any]], best: Checkpoint) -> dict[str, dict[str, Any]]:
    valid = [entry for entry in history if entry['split'] == 'valid']
    epoch = best.place.epoch if best.place else None
    found = {'last': valid[-1]} if valid else {}
    chosen = [entry for entry in valid if entry['epoch'] == epoch]
    return {**({'best': chosen[-1]} if chosen else {}), **found}


def _tau_of(training: Training) -> dict[str, Any] | None:
    """Return tau.json of this very run, if it was re-balanced after its best model was written."""
    file = Path(training.cfg.TAU_NORM.LOG_ROOT, training.cfg.NAME, 'tau.json')
    best = training.folder.path / 'best_model.pth'
    if not file.exists() or file.stat().st_mtime < best.stat().st_mtime:
        return None
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        LOGGER.warning('%s: cannot be read (%s), so the report has no tau curve', file, error)
        return None


def _command() -> str:
    return shlex.join(['python', *sys.argv])
