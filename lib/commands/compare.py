"""tools/compare.py: compare several models on one valid split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.data import open_uncorrected_valid_split
from lib.commands.command import Command
from lib.commands.loaded_model import LoadedModel, load_model, split_features
from lib.config.load import merge_checkpoint_config
from lib.config.options import parse_options
from lib.dataset.corrections import describe_counts
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError, printable
from lib.inference.run import classify_features
from lib.metrics.class_report import detailed_metrics
from lib.metrics.paired import compare
from lib.metrics.predictions import Predictions
from lib.report.comparison import comparison_lines, draw_comparison
from lib.runtime.files import replace_together, write_json
from lib.runtime.log import start_console
from lib.trainer.checkpointing.io import read_checkpoint


def compare_runs(
    runs: Sequence[str], options: Sequence[str], output: Path, group: ProcessGroup = SINGLE_PROCESS
) -> list[str]:
    """Measure models on their valid split, write output.json and output.png, and return the lines to log.

    Ranks share the images of each model; the main rank writes.

    Args:
        runs: run folders or checkpoints.
        options: command-line options of the scripts, for all models.

    Raises:
        UserError: no such run; valid splits or classes differ.
    """
    start_console(enabled=group.is_main)
    config_files, values = parse_options(options, program='tools/compare.py', description='')
    paths = [_checkpoint(run) for run in runs]
    names = _names(paths)
    first: LoadedModel | None = None
    digest, changed = '', np.zeros(0, np.int64)
    predictions: list[Predictions] = []
    records: list[dict[str, Any]] = []
    for path in paths:
        checkpoint = read_checkpoint(path, with_rows=False)
        cfg = merge_checkpoint_config(checkpoint.config, path, values, files=config_files)
        trained = load_model(Command(cfg, checkpoint), group)
        with group.main_first():
            valid, corrected = open_uncorrected_valid_split(trained.cfg, trained.class_names)
        changed = np.union1d(changed, corrected)
        if first is None:
            first, digest = trained, valid.digest()
        if trained.class_names != first.class_names or valid.digest() != digest:
            raise UserError(
                f'{path}: its classes or its valid split differ from those of {paths[0]}; give the same to all models: '
                '--DATASET_VALID_JSON FILE'
            )
        predictions.append(classify_features(trained.engine, split_features(trained, valid, 'valid')))
        records.append(checkpoint.training_set.corrections if checkpoint.training_set else {})
    assert first is not None  # the command line requires runs
    if not group.is_main:
        return []
    num_valid = len(predictions[0])
    predictions = _untouched(predictions, changed, paths)
    parents = first.class_parents or None
    metrics = [detailed_metrics(one, first.train_counts, parents=parents) for one in predictions]
    lines = comparison_lines(names, predictions, first.train_counts, metrics)
    lines += _correction_lines(names, records, len(changed), num_valid)
    content = [
        {'name': name, 'checkpoint': str(path), **one, 'corrections': record, 'left_out': len(changed)}
        for name, path, one, record in zip(names, paths, metrics, records, strict=True)
    ]
    for entry, other in zip(content[1:], predictions[1:], strict=True):
        entry['against_first'] = _as_dict(predictions[0], other, len(first.train_counts))
    json_file, png_file = (output.with_name(f'{output.name}{ending}') for ending in ('.json', '.png'))
    with replace_together(output.parent):
        write_json(json_file, content)
        draw_comparison(png_file, names, metrics)
    return [*lines, '', f'wrote {json_file}', f'wrote {png_file}']


def _untouched(predictions: Sequence[Predictions], changed: np.ndarray, paths: Sequence[Path]) -> list[Predictions]:
    """Return the predictions of labeled images whose labels no run's VALID_CORRECTIONS changed.

    A label that was corrected with the help of one of the models would be to its advantage.
    """
    rows = np.setdiff1d(np.arange(len(predictions[0])), changed, assume_unique=True)
    if len(changed) and not len(rows):
        raise UserError(f'{paths[0]}: DATASET.VALID_CORRECTIONS changes all valid images, so none is left to compare')
    return [one.at(rows).labeled() if len(changed) else one.labeled() for one in predictions]


def _correction_lines(
    names: Sequence[str], records: Sequence[dict[str, Any]], num_changed: int, num_valid: int
) -> list[str]:
    """Return the corrections of the labels that each model was trained on, and the number of images left out."""
    lines = [
        f'{printable(name)}: trained with {printable(record["train"]["file"])}'
        f' ({describe_counts(record["train"]["counts"])})'
        for name, record in zip(names, records, strict=True)
        if 'train' in record
    ]
    if num_changed:
        lines.append(f'left out: {num_changed:,} of {num_valid:,} valid images, which VALID_CORRECTIONS changes')
    return ['', *lines] if lines else []


def _as_dict(first: Predictions, other: Predictions, num_classes: int) -> dict[str, Any]:
    comparison = compare(first, other, num_classes)
    return {
        'mean_class_error_difference': comparison.difference,
        'interval': list(comparison.interval),
        'mcnemar_p': comparison.p_value,
    }


def _checkpoint(run: str) -> Path:
    path = Path(run)
    path = path / 'best_model.pth' if path.is_dir() else path
    if not path.is_file():
        raise UserError(f'{run}: neither a checkpoint nor a run folder with a best_model.pth')
    return path


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest unique ends of the paths: folder, two folders, or folders and file."""
    folders = [path.resolve().parent for path in paths]
    for parts in (1, 2):
        names = ['/'.join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return ['/'.join(path.resolve().parts[-3:]) for path in paths]
