"""The reports of a run, of a trained model and of a re-balanced one: collect their data and write the page."""

import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from lib.builders.model import class_names, class_shard, model_of
from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel, split_features
from lib.commands.predict_unknown import latest_rejection
from lib.commands.train import TrainingRun
from lib.config.defaults import Config
from lib.config.yaml_text import as_text
from lib.errors import UserError
from lib.inference.run import classify_features
from lib.metrics.predictions import predictions_from_classes
from lib.report.charts import mistakes_png, plot_curves, plot_error_by_count
from lib.report.run_page import ReportData, write_report
from lib.runtime.json_file import Record, read_json
from lib.runtime.log import LOGGER
from lib.runtime.read_file import read_text
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.checkpointing.latest import shard_folder_of
from lib.trainer.checkpointing.state import Checkpoint
from lib.trainer.run_folder import RunFolder
from lib.trainer.run_log import EventFile


def training_report(run: TrainingRun) -> Path:
    """Evaluate the best model again; the main rank draws the charts and writes the run's report.html."""
    trainer, folder = run.trainer, run.trainer.folder
    page = folder.path / 'report.html'
    trainer.group.barrier()  # until the main rank has written the best model
    best = _best(folder)
    history = folder.history()
    predictions = predictions_from_classes(*np.zeros((2, 0), np.int64))
    if run.data.valid is not None:
        classes = class_shard(run.cfg, best.num_classes, trainer.group)
        evaluation = trainer.evaluate(model_of(best, run.cfg, run.device, classes=classes))
        assert evaluation is not None
        predictions = evaluation.predictions
    if not trainer.group.is_main:
        return page
    training_set = trainer.info.training_set
    plot_curves(folder.path / 'curves.png', history, best.progress.epoch if best.progress else None)
    if len(predictions):
        path, counts = folder.path / 'error_by_count.png', training_set.class_counts
        plot_error_by_count(path, counts, predictions.labels, predictions.predicted)
    data = ReportData(
        title=run.cfg.NAME,
        command=_command(),
        history=history,
        summary=_summary(history, best),
        class_names=class_names(best),
        class_parents=training_set.class_parents,
        train_counts=training_set.class_counts,
        predictions=predictions,
        open_image=run.data.valid.images.load if run.data.valid is not None else None,
        tau=_tau_of(run),
        config_text=as_text(run.cfg),
        environment_text=_environment_of(folder.path),
        corrections=training_set.corrections,
    )
    if trainer.trackers.has_events:
        _write_events(run, data)
    _write(page, data, run.cfg)
    trainer.trackers.finish(_results_of(data), _files_of(folder.path, best))
    return page


# Entries of metrics.jsonl that are no result of a model.
_NO_RESULTS = {'split', 'lr', 'images_per_second', 'seconds'}


def _files_of(folder: Path, best: Checkpoint) -> list[Path]:
    """Return the files, and the folder of a sharded classifier, that describe a run and its best model."""
    names = ('best_model.pth', 'classes.json', 'config.yaml', 'environment.txt', 'metrics.jsonl', 'report.html')
    rows = shard_folder_of(folder / names[0]) if best.is_sharded else None
    files = [folder / name for name in names]
    return files if rows is None else [*files, rows]


def _results_of(data: ReportData) -> dict[str, float]:
    """Return the metrics of the best model."""
    best = data.summary.get('best', {})
    return {name: value for name, value in best.items() if name not in _NO_RESULTS}


def _write_events(run: TrainingRun, data: ReportData) -> None:
    """Add the metrics of the best model, images of its mistakes and the end of the run to TensorBoard."""
    folder, step = run.trainer.folder.path, run.trainer.global_step
    with closing(EventFile(folder, step)) as events:
        events.add(step, 'best', _results_of(data))
        if data.open_image is not None:
            png = mistakes_png(data.predictions, data.class_names, data.open_image)
            if png is not None:
                events.add_image(step, 'valid/mistakes', png)
        events.add_end()


def trained_report(trained: LoadedModel) -> Path:
    """Evaluate a trained model on the valid split; the main rank writes its report beside the checkpoint.

    The report of best_model.pth is report.html, that of another checkpoint STEM_report.html.

    Raises:
        UserError: there is no labeled valid split, or it has other classes than the model.
    """
    with trained.group.main_first():
        valid = trained.valid
    predictions = classify_features(trained.engine, split_features(trained, valid, 'valid'))
    stem, folder = trained.path.stem, trained.path.parent
    page = trained.folder / ('report.html' if stem == 'best_model' else f'{stem}_report.html')
    if not trained.group.is_main:
        return page
    tau = _read_tau(folder / 'tau.json')  # exists if the model is re-balanced
    summary = _summary(RunFolder(folder, writes=False).history(), trained.checkpoint)
    data = _data_of(
        trained,
        valid,
        title=f'{trained.cfg.NAME}, re-balanced' if tau else trained.cfg.NAME,
        summary={name: metrics for name, metrics in summary.items() if name == 'best'},
        predictions=predictions,
        tau=tau,
        open_set=_open_set_of(trained),
        is_rebalanced=bool(tau),
        environment_text=_environment_of(folder),
        notes=['Errors are those of the re-balanced model.'] if tau else [],
    )
    return _write(page, data, trained.cfg)


def rebalanced_report(
    path: Path, trained: LoadedModel, valid: DatasetSplit, before: np.ndarray, tau: dict[str, Any]
) -> Path:
    """Write the report of a re-balanced model: training curves, tau curve, and errors before re-balancing.

    `before`: (num_images,) class that the checkpoint predicts for each valid image before re-balancing.
    """
    data = _data_of(
        trained,
        valid,
        title=f'{trained.cfg.NAME}, re-balanced',
        summary=_summary(RunFolder(trained.path.parent).history(), trained.checkpoint),
        predictions=predictions_from_classes(valid.labels, before),
        tau=tau,
        environment_text=_environment_of(path.parent),
        notes=['Per-class errors and confused pairs are those of the checkpoint before re-balancing.'],
    )
    return _write(path, data, trained.cfg)


def _data_of(trained: LoadedModel, valid: DatasetSplit, **parts: Any) -> ReportData:
    """Return the report's data, with the fields that are the same for every trained model."""
    training_set = trained.checkpoint.training_set
    return ReportData(
        command=_command(),
        history=RunFolder(trained.path.parent, writes=False).history(),
        class_names=trained.class_names,
        class_parents=trained.class_parents,
        train_counts=trained.train_counts if training_set else np.zeros(0, np.int64),
        open_image=valid.images.load,
        config_text=as_text(trained.cfg),
        corrections=training_set.corrections if training_set else {},
        **parts,
    )


def _write(path: Path, data: ReportData, cfg: Config) -> Path:
    return write_report(path, data, max_bytes=1e6 * cfg.REPORT.MAX_MB, json_too=cfg.REPORT.JSON)


def _environment_of(folder: Path) -> str:
    file = folder / 'environment.txt'
    try:
        return read_text(file)
    except (OSError, UnicodeDecodeError):
        return ''


def _best(folder: RunFolder) -> Checkpoint:
    """Read best_model.pth, or last.pth if a fine-tuned run was resumed before it had a best model."""
    for name in ('best_model.pth', 'last.pth'):
        if (folder.path / name).exists():
            return read_checkpoint(folder.path / name)
    raise UserError(f'{folder.path} holds no checkpoint to report on; train with python main.py')


def _summary(history: list[dict[str, Any]], best: Checkpoint) -> dict[str, dict[str, Any]]:
    valid = [entry for entry in history if entry.get('split') == 'valid']
    epoch = best.progress.epoch if best.progress else None
    of_best = [entry for entry in valid if entry['epoch'] == epoch]
    return {**({'best': of_best[-1]} if of_best else {}), **({'last': valid[-1]} if valid else {})}


class _Curve(msgspec.Struct):
    tau: list[float]
    value: list[float]


class _TauFile(msgspec.Struct):
    """Entries of tau.json that the report shows."""

    metric: Literal['mean_class_error', 'top1']
    curve: _Curve
    before: dict[str, float | None]
    after: dict[str, float | None]
    chosen: float | None = None
    optimum: float | None = None
    stretch: tuple[float, float] | None = None
    max_tau: float | None = None
    note: str | None = None


def _tau_of(run: TrainingRun) -> dict[str, Any] | None:
    """Return tau.json of this run if it is newer than the run's best model."""
    file = Path(run.cfg.TAU_NORM.LOG_ROOT, run.cfg.NAME, 'tau.json')
    best = run.trainer.folder.path / 'best_model.pth'
    if not file.exists() or file.stat().st_mtime < best.stat().st_mtime:
        return None
    return _read_tau(file)


def _read_tau(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        read_json(file, _TauFile)  # checks the form
        return read_json(file, Record)
    except UserError as error:
        LOGGER.warning('%s; the report has no tau curve', error)
        return None


def _open_set_of(trained: LoadedModel) -> dict[str, Any] | None:
    """Return the latest measurements of test.py on unknown products, for this version of the model."""
    version = trained.version
    try:
        found = latest_rejection(trained.folder, version)
    except UserError as error:
        LOGGER.warning('%s; the report has no part on unknown products', error)
        return None
    return None if found is None else msgspec.structs.asdict(found[1])


def _command() -> str:
    return shlex.join(['python', *sys.argv])
