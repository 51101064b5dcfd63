"""test.py: predict a split, write the files, and report the metrics."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.data import open_valid_split
from lib.builders.split import DatasetSplit
from lib.commands.cache_key import input_key, split_key, weights_fingerprint
from lib.commands.ensemble import build_members, given_weights, load_members, tta_views
from lib.commands.loaded_model import LoadedModel
from lib.commands.predict_inputs import open_test_images, products_of
from lib.errors import UserError
from lib.inference.ensemble import EnsembleForward, EnsembleMember, mixture_weights
from lib.inference.prediction_files import (
    write_accepted,
    write_embeddings,
    write_predictions,
    write_products,
    write_top,
)
from lib.inference.run import run
from lib.inference.sinks import prediction_columns, prediction_store_sink, stored_predictions
from lib.metrics.accuracy import compute_metrics
from lib.metrics.class_report import detailed_metrics
from lib.metrics.confidence import Threshold, choose_threshold, risk_coverage
from lib.metrics.predictions import Predictions, predictions_from_classes
from lib.report.charts import plot_risk_coverage
from lib.runtime.column_store import ColumnStore, open_or_create
from lib.runtime.files import write_json
from lib.runtime.log import LOGGER
from lib.trainer.run_folder import write_bad_images

_MAX_LOGGED = 10  # images whose predictions are logged


@dataclass(frozen=True)
class PredictResult:
    """The result of test.py.

    Attributes:
        metrics: empty without labels.
        plain: those of the first model's plain view, where more than that is averaged.
        lines: to log.
        files: that were written.
    """

    metrics: dict[str, float]
    plain: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Predictor:
    """The models of an ensemble, or one.

    Attributes:
        trained: the first is that of RESUME_MODEL, whose TEST options apply.
        weights: of the models, of sum 1.
    """

    trained: Sequence[LoadedModel]
    weights: Sequence[float]

    def fill(
        self,
        split: DatasetSplit,
        name: str,
        *,
        with_plain: bool = False,
        with_members: bool = False,
        with_outputs: bool = False,
    ) -> ColumnStore:
        """Predict a split into STEM_NAME.partial on all ranks; an interrupted prediction is resumed.

        Args:
            with_plain: store the classes predicted from the plain view too.
            with_members: store each model's probability of the label too.
            with_outputs: store what TEST.TOP_K and TEST.EMBEDDINGS ask for.
        """
        first = self.trained[0]
        test, group = first.cfg.TEST, first.group
        members = build_members(self.trained, split, with_plain=with_plain)
        columns = prediction_columns(
            split.num_classes,
            top_k=test.TOP_K if with_outputs else 0,
            num_features=first.engine.num_features if with_outputs and test.EMBEDDINGS else 0,
            with_plain=with_plain,
            num_members=len(members) if with_members else 0,
        )
        folder = _partial(first, name)
        with group.main_first():
            if group.is_main:
                num_done = int(open_or_create(folder, len(split), columns, self._key(split, members)).done.sum())
                if num_done:
                    LOGGER.info('%s: resuming after %d of %d images', folder, num_done, len(split))
        store = ColumnStore(folder, writer=group.rank)
        forward = EnsembleForward(members, self.weights, test.AVERAGE)
        run(forward, [prediction_store_sink(store)], label=name, store=store)
        group.barrier()
        return store

    def _key(self, split: DatasetSplit, members: Sequence[EnsembleMember]) -> dict[str, Any]:
        """Return the values that predictions depend on."""
        test = self.trained[0].cfg.TEST
        return {
            'models': [weights_fingerprint(one.checkpoint.state_dict) for one in self.trained],
            'inputs': [input_key(one) for one in self.trained],
            'views': [tta_views(one.cfg).key for one in self.trained],
            'batch_size': members[0].loader.batch_size,
            'weights': list(self.weights),
            'average': test.AVERAGE,
            **split_key(split),
        }


def predict(trained: LoadedModel) -> PredictResult:
    """Predict TEST.IMAGES or the test split; the main rank writes STEM.csv and what the options ask for.

    Raises:
        UserError: no test images, a mistake in their list, or options that exclude each other.
    """
    test, group = trained.cfg.TEST, trained.group
    with group.main_first():
        split = open_test_images(trained.cfg, trained.class_names, group)
    predictor = _predictor(trained, split)
    views = tta_views(trained.cfg)
    averages_more = len(predictor.trained) > 1 or len(views) > 1 or bool(views.others)
    with_plain = bool((split.labels >= 0).any()) and averages_more
    threshold = _threshold(predictor) if test.ABSTAIN_ERROR else None
    store = predictor.fill(split, 'test', with_plain=with_plain, with_outputs=True)
    if not group.is_main:
        return PredictResult({})
    result = _write(predictor, split, store, threshold)
    # Everything is written: only now the stores that an interrupted prediction resumes from are removed.
    for name in ('test', 'weights', 'threshold'):
        shutil.rmtree(_partial(trained, name), ignore_errors=True)
    return result


def _partial(trained: LoadedModel, name: str) -> Path:
    """Return the folder of an unfinished prediction."""
    return trained.stem.with_name(f'{trained.stem.name}_{name}.partial')


def _predictor(trained: LoadedModel, split: DatasetSplit) -> Predictor:
    members = load_members(trained)
    test = trained.cfg.TEST
    weights = given_weights(test.ENSEMBLE_WEIGHTS, len(members))
    if weights is None:
        if test.AVERAGE != 'probabilities':
            raise UserError(
                'TEST.ENSEMBLE_WEIGHTS valid weighs probabilities: add --TEST_AVERAGE probabilities, or give the '
                'weights as numbers'
            )
        weights = _fitted_weights(members, split)
    if len(members) > 1:
        shown = ', '.join(f'{weight:.2f}' for weight in weights)
        LOGGER.info('%d models, weights %s, mean of %s', len(members), shown, test.AVERAGE)
    return Predictor(members, weights)


def _fitted_weights(members: Sequence[LoadedModel], split: DatasetSplit) -> list[float]:
    valid = open_valid_split(members[0].cfg)
    if valid.digest() == split.digest():
        LOGGER.warning('ensemble weights are fitted on the predicted images: metrics are optimistic')
    equal = [1 / len(members)] * len(members)
    store = Predictor(members, equal).fill(valid, 'weights', with_members=True)
    return mixture_weights(np.asarray(store.columns['chances'])[valid.labels >= 0]).tolist()


def _threshold(predictor: Predictor) -> Threshold:
    """Choose the confidence below which the model abstains, and write the curve beside the predictions."""
    first = predictor.trained[0]
    max_risk = first.cfg.TEST.ABSTAIN_ERROR
    valid = open_valid_split(first.cfg)
    store = predictor.fill(valid, 'threshold')
    predictions = stored_predictions(store, valid.labels).labeled()
    curve = risk_coverage(predictions.confidence, predictions.correct)
    threshold = choose_threshold(curve, max_risk)
    if first.group.is_main:
        stem = first.stem
        content = {
            'wanted_error': max_risk, 'threshold': threshold.value if threshold.coverage else None,
            'coverage': threshold.coverage, 'error': threshold.risk, 'error_bound_95': threshold.bound,
            'area_under_curve': curve.area,
            'curve': {'coverage': curve.coverage.tolist(), 'error': curve.risk.tolist()},
        }  # fmt: skip
        write_json(stem.with_name(f'{stem.name}_risk_coverage.json'), content)
        plot_risk_coverage(stem.with_name(f'{stem.name}_risk_coverage.png'), content)
    return threshold


def _write(predictor: Predictor, split: DatasetSplit, store: ColumnStore, threshold: Threshold | None) -> PredictResult:
    trained = predictor.trained[0]
    test, stem, columns = trained.cfg.TEST, trained.stem, store.columns
    topk, probabilities = columns['best'], columns['probabilities']
    files: list[Path] = []

    def file(ending: str) -> Path:
        files.append(stem.with_name(f'{stem.name}{ending}'))
        return files[-1]

    write_predictions(file('.csv'), split.names, topk[:, 0])
    if test.TOP_K:
        write_top(file(f'_top{test.TOP_K}.csv'), split.names, topk, probabilities, test.TOP_K, trained.class_names)
    if test.EMBEDDINGS:
        write_embeddings(file(f'_features.{test.EMBEDDINGS_FORMAT}'), split.names, columns['features'])
    if test.PRODUCTS:
        products, names = products_of(trained.cfg, split.names.to_pylist())
        write_products(file('_products.csv'), products, names, topk, probabilities, trained.class_names)
    if threshold:
        write_accepted(file('_answered.csv'), split.names, topk[:, 0], probabilities[:, 0], threshold.value)
        files += [stem.with_name(f'{stem.name}_risk_coverage.{ending}') for ending in ('json', 'png')]
    predictions = stored_predictions(store, split.labels).labeled()
    metrics = trained.supported_metrics(compute_metrics(predictions, trained.train_counts))
    plain: dict[str, float] = {}
    if 'plain' in columns:
        plain_predictions = predictions_from_classes(split.labels, columns['plain'])
        plain = trained.supported_metrics(compute_metrics(plain_predictions, trained.train_counts))
    if metrics:
        content: dict[str, Any] = {'split': split.source, 'num_images': len(split), **metrics}
        if trained.checkpoint.training_set:
            content |= detailed_metrics(predictions, trained.train_counts, parents=trained.class_parents or None)
        write_json(file('_metrics.json'), content | ({'plain': plain} if plain else {}))
    _write_bad(trained, split, store)
    return PredictResult(metrics, plain, _lines(trained, split, store, threshold, predictions), files)


def _write_bad(trained: LoadedModel, split: DatasetSplit, store: ColumnStore) -> None:
    bad = store.errors()
    write_bad_images(trained.folder, 'test', {split.names[row].as_py(): reason for row, reason in bad})
    if bad:
        LOGGER.warning(
            '%d of %d images could not be decoded: predicted -1, see %s',
            len(bad), len(split), trained.folder / 'bad_images.csv',
        )  # fmt: skip


def _lines(
    trained: LoadedModel, split: DatasetSplit, store: ColumnStore, threshold: Threshold | None, predictions: Predictions
) -> list[str]:
    lines = []
    if len(split) <= _MAX_LOGGED:
        labels, probabilities = store.columns['best'][:, 0].tolist(), store.columns['probabilities'][:, 0].tolist()
        for name, label, probability in zip(split.names.to_pylist(), labels, probabilities, strict=True):
            predicted = f'{trained.class_names[label]} ({probability:.1%})' if label >= 0 else 'unreadable'
            lines.append(f'{name}: {predicted}')
    if threshold and not threshold.coverage:
        lines.append('no threshold holds TEST.ABSTAIN_ERROR on the valid split: all images abstain')
    elif threshold:
        lines.append(f'threshold: probability {threshold.value:.3f}')
        lines.append(
            f'valid split: {threshold.coverage:.1%} above it, error {threshold.risk:.1%} '
            f'(at most {threshold.bound:.1%})'
        )
        if len(predictions):
            accepted = predictions.confidence >= threshold.value
            error = f'{1 - predictions.correct[accepted].mean():.1%}' if accepted.any() else '-'
            lines.append(f'test images: {accepted.mean():.1%} above it, error {error}')
    return lines
