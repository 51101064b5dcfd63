"""The files of a prediction: their names, their content, and the lines to log."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel
from lib.commands.predict_inputs import Part, Source, products_of
from lib.commands.predict_pages import write_queue, write_sheet
from lib.commands.predict_unknown import Rejection, write_rejection
from lib.config.yaml_text import parse_config_text
from lib.dataset.image_format import hint_of
from lib.errors import UserError, printable, shown, unquoted
from lib.inference.prediction_files import (
    COLUMNS,
    write_accepted,
    write_embeddings,
    write_known,
    write_predictions,
    write_products,
    write_top,
)
from lib.inference.sinks import stored_predictions
from lib.metrics.accuracy import compute_metrics
from lib.metrics.class_report import detailed_metrics
from lib.metrics.confidence import Threshold
from lib.metrics.predictions import Predictions, predictions_from_classes
from lib.report.describe import describe_confidence
from lib.runtime.column_store import ColumnStore
from lib.runtime.files import read_json, replace_together, wait_for_lock, write_json
from lib.runtime.log import LOGGER
from lib.runtime.text import nfc
from lib.trainer.run_folder import write_bad_images

_PREDICTIONS = 'predictions_'
_MAX_LOGGED = 10  # predictions of at most this many images are logged
_MAX_NAME_BYTES = 80


@dataclass(frozen=True)
class PredictResult:
    """The result of test.py.

    Attributes:
        metrics: empty without labels.
        plain: metrics of the first model's plain view, if more than that is averaged.
        lines: log lines.
        files: the written files.
    """

    metrics: dict[str, float]
    plain: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def check_columns(columns: Sequence[str]) -> None:
    """Raise UserError unless TEST.COLUMNS are some of the columns, each once."""
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or not columns or len(set(columns)) < len(columns):
        raise UserError(
            f'TEST.COLUMNS is {shown(",".join(columns))}, but must be some of {", ".join(COLUMNS)}, each once, '
            'separated by commas'
        )


def claim_stem(trained: LoadedModel, source: Source) -> Path:
    """Return the path of a prediction's files without suffix: predictions_SOURCE in the run folder.

    The name of a checkpoint other than best_model is put before it, and views, sizes and models that differ from those
    of the checkpoint behind it. STEM.json records checkpoint, source and options, so that the same prediction gets the
    same name again, and another one with this name gets a number.
    """
    about = {
        'checkpoint': _path_from(trained.path, trained.folder),
        'source': source.identity,
        'options': _options(trained),
    }
    variant = ''.join(f'.{word}' for word in _variant(trained))
    with wait_for_lock(trained.folder):
        for number in count(1):
            suffix = '' if number == 1 else f'_{number}'
            stem = trained.folder / f'{stem_name(trained.path, source.name)}{suffix}{variant}'
            recorded = read_json(_with(stem, '.json'))
            if recorded == about:
                return stem
            if recorded is None and not _with(stem, '.csv').exists():
                write_json(_with(stem, '.json'), about)
                return stem
            LOGGER.info('%s.csv is of another source or other options', stem)
    raise AssertionError('unreachable')


def stem_name(checkpoint: Path, source: str) -> str:
    """Return the name of the files of a checkpoint's prediction of a source, if no other one has it."""
    name = _safe(checkpoint.stem)
    return f'{"" if name == "best_model" else f"{name}_"}{_PREDICTIONS}{_safe(source)}'


def _with(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _path_from(path: Path, folder: Path) -> str:
    """Return a path relative to a folder if it is in it, so that a moved folder keeps its names."""
    whole, root = path.resolve(), folder.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)


def _safe(name: str) -> str:
    """Return a name for files of any system: letters, digits, `-` and `_`. A dot begins the rest of the file name."""
    text = re.sub(r'[^\w-]+', '_', nfc(name.encode('utf-8', 'replace').decode())).strip('_') or 'images'
    return text.encode()[:_MAX_NAME_BYTES].decode('utf-8', 'ignore')


def _options(trained: LoadedModel) -> dict[str, Any]:
    """Return the options that predictions depend on, as JSON gives them back."""
    cfg, test = trained.cfg, trained.cfg.TEST
    ensemble = [str(Path(path).resolve()) for path in test.ENSEMBLE]
    filters = {'INPUT.INTERPOLATION': cfg.INPUT.INTERPOLATION}
    return {
        # Older versions knew only the bilinear filter; their predictions keep their names.
        **(filters if cfg.INPUT.INTERPOLATION != 'bilinear' else {}),
        'INPUT.TEST_SIZE': cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE,
        'INPUT.CROP_RATIO': cfg.INPUT.CROP_RATIO,
        'TEST.FLIP': test.FLIP,
        'TEST.CROPS': test.CROPS,
        'TEST.SCALES': list(test.SCALES),
        'TEST.AVERAGE': test.AVERAGE,
        'TEST.ENSEMBLE': ensemble,
        'TEST.ENSEMBLE_WEIGHTS': test.ENSEMBLE_WEIGHTS if ensemble else 'equal',
    }


def _variant(trained: LoadedModel) -> Iterator[str]:
    """Yield a word for each option that changes predictions and differs from the checkpoint's config."""
    cfg, test = trained.cfg, trained.cfg.TEST
    config = parse_config_text(trained.checkpoint.config, str(trained.path), [])
    size = cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE
    if size != (config.get('INPUT.TEST_SIZE') or config.get('INPUT.SIZE', size)):
        yield f'{size}px'
    if config.get('TEST.CROPS', 'center') != test.CROPS:
        yield test.CROPS
    if config.get('TEST.FLIP', False) != test.FLIP:
        yield 'flip' if test.FLIP else 'no_flip'
    if config.get('TEST.SCALES', (1.0,)) != test.SCALES:
        yield 'scales'
    if config.get('TEST.ENSEMBLE', ()) != test.ENSEMBLE:
        yield 'ensemble' if test.ENSEMBLE else 'no_ensemble'


def write_part(trained: LoadedModel, split: DatasetSplit, store: ColumnStore, stem: Path, part: Part) -> PredictResult:
    """Write the rows of a part; metrics, products and page follow when all parts are merged."""
    _write_bad(trained, split, store, stem)
    with replace_together(trained.folder):
        files = _write_rows(trained, split, store, stem)
    lines = [
        f'part {part.number} of {part.count}: {len(split):,} images; when all are predicted, merge them: '
        f'--TEST_PART merge/{part.count}'
    ]
    return PredictResult({}, {}, lines, files)


def write_all(
    trained: LoadedModel,
    split: DatasetSplit,
    store: ColumnStore,
    stem: Path,
    threshold: Threshold | None,
    rejection: Rejection | None = None,
    *,
    model: str | None = None,
) -> PredictResult:
    """Write the files of a prediction, and return its metrics and the lines to log.

    `model`: version of the model, where it alone predicts the plain view; None: unknown.
    """
    _write_bad(trained, split, store, stem)  # not in the set: another command may change this file meanwhile
    with replace_together(trained.folder):
        result = _write_set(trained, split, store, stem, threshold, rejection)
        if rejection is None:
            return result
        return replace(result, files=[*result.files, *write_rejection(stem, rejection, model)])


def _write_set(
    trained: LoadedModel,
    split: DatasetSplit,
    store: ColumnStore,
    stem: Path,
    threshold: Threshold | None,
    rejection: Rejection | None,
) -> PredictResult:
    test, columns = trained.cfg.TEST, store.columns
    topk, probabilities = columns['best'], columns['probabilities']
    files = _write_rows(trained, split, store, stem)

    def file(ending: str) -> Path:
        files.append(_with(stem, ending))
        return files[-1]

    if test.PRODUCTS:
        products, names = products_of(trained.cfg, split.names.to_pylist())
        write_products(file('.products.csv'), products, names, topk, probabilities, trained.class_names)
    if threshold:
        write_accepted(file('.answered.csv'), split.names, topk[:, 0], probabilities[:, 0], threshold.value)
        files += [_with(stem, f'.risk_coverage.{suffix}') for suffix in ('json', 'png')]
    is_unknown = None
    if rejection:
        scores = np.asarray(columns['scores'])[:, 0]
        is_unknown = rejection.is_unknown(scores)
        write_known(file('.open_set.csv'), split.names, topk, scores, rejection.threshold.value, trained.class_names)
    predictions = stored_predictions(store, split.labels)
    labeled = predictions.labeled()
    metrics = trained.supported_metrics(compute_metrics(labeled, trained.train_counts))
    plain: dict[str, float] = {}
    if 'plain' in columns:
        plain_predictions = predictions_from_classes(split.labels, columns['plain'])
        plain = trained.supported_metrics(compute_metrics(plain_predictions, trained.train_counts))
    if metrics:
        content: dict[str, Any] = {'split': split.source, 'num_images': len(labeled), **metrics}
        if trained.checkpoint.training_set:
            content |= detailed_metrics(labeled, trained.train_counts, parents=trained.class_parents or None)
        write_json(file('.metrics.json'), content | ({'plain': plain} if plain else {}))
    if test.CONTACT_SHEET:
        title = f'{trained.cfg.NAME}: {stem.name.partition(_PREDICTIONS)[2]}'
        errors = dict(store.errors())
        write_sheet(
            file('.html'), trained, split, predictions,
            title=title, errors=errors, threshold=threshold, is_unknown=is_unknown,
        )  # fmt: skip
        if threshold:
            queue = _with(stem, '.review.html')
            files += write_queue(queue, trained, split, predictions, threshold.value, title=title)
    lines = [*_image_lines(trained, split, store, is_unknown), *_threshold_lines(threshold, labeled)]
    lines += rejection.lines(is_unknown) if rejection and is_unknown is not None else []
    lines += describe_confidence(predictions, threshold.value if threshold else None)
    return PredictResult(metrics, plain, lines, files)


def _write_rows(trained: LoadedModel, split: DatasetSplit, store: ColumnStore, stem: Path) -> list[Path]:
    """Write the files with rows for each image."""
    test, columns = trained.cfg.TEST, store.columns
    topk, probabilities = columns['best'], columns['probabilities']
    files = [_with(stem, '.csv')]
    names = trained.class_names
    write_predictions(files[0], split.names, topk[:, 0], probabilities[:, 0], names, test.COLUMNS)
    if test.TOP_K:
        files.append(_with(stem, f'.top{test.TOP_K}.csv'))
        write_top(files[-1], split.names, topk, probabilities, test.TOP_K, names)
    if test.EMBEDDINGS:
        files.append(_with(stem, f'.features.{test.EMBEDDINGS_FORMAT}'))
        write_embeddings(files[-1], split.names, columns['features'])
    return files


def _write_bad(trained: LoadedModel, split: DatasetSplit, store: ColumnStore, stem: Path) -> None:
    bad = store.errors()
    write_bad_images(trained.folder, stem.name, {split.names[row].as_py(): reason for row, reason in bad})
    if bad:
        LOGGER.warning(
            '%d of %d images could not be decoded: predicted -1, see %s%s',
            len(bad), len(split), trained.folder / 'bad_images.csv', hint_of(reason for _, reason in bad),
        )  # fmt: skip


def _image_lines(
    trained: LoadedModel, split: DatasetSplit, store: ColumnStore, is_unknown: np.ndarray | None
) -> list[str]:
    if len(split) > _MAX_LOGGED:
        return []
    labels, names = store.columns['best'][:, 0].tolist(), trained.class_names
    probabilities = store.columns['probabilities'][:, 0].tolist()
    nearest = [''] * len(split) if is_unknown is None else np.where(is_unknown, 'unknown, nearest ', '').tolist()
    return [
        f'{printable(name)}: ' + (f'{word}{unquoted(names[label])} ({value:.1%})' if label >= 0 else 'unreadable')
        for name, word, label, value in zip(split.names.to_pylist(), nearest, labels, probabilities, strict=True)
    ]


def _threshold_lines(threshold: Threshold | None, labeled: Predictions) -> list[str]:
    if threshold is None:
        return []
    if not threshold.coverage:
        return ['no threshold holds TEST.ABSTAIN_ERROR on the valid split: all images abstain']
    lines = [
        f'threshold: probability {threshold.value:.3f}',
        f'valid split: {threshold.coverage:.1%} above it, error {threshold.risk:.1%} (at most {threshold.bound:.1%})',
    ]
    if len(labeled):
        accepted = labeled.confidence >= threshold.value
        error = f'{1 - labeled.correct[accepted].mean():.1%}' if accepted.any() else '-'
        lines.append(f'test images: {accepted.mean():.1%} above it, error {error}')
    return lines
