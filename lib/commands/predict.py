"""test.py's work: predict a split, write the files, say the figures."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.data import open_valid_split
from lib.builders.split import Split
from lib.commands.cache_key import input_key, split_key, weights_fingerprint
from lib.commands.ensemble import build_members, given_weights, load_members, tta_views
from lib.commands.loaded_model import LoadedModel
from lib.commands.predict_inputs import open_test_images, products_of
from lib.errors import UserError
from lib.inference.ensemble import mixture_weights
from lib.inference.prediction_files import (
    write_answered,
    write_embeddings,
    write_predictions,
    write_products,
    write_top,
)
from lib.inference.sinks import fill_predictions, prediction_columns, stored_predictions
from lib.metrics.class_report import detailed_metrics
from lib.metrics.confidence import Threshold, choose_threshold, risk_coverage
from lib.metrics.predictions import Predictions, accuracy_metrics, answer_metrics
from lib.report.charts import plot_risk_coverage
from lib.runtime.column_store import ColumnStore, open_or_create
from lib.runtime.files import write_json
from lib.runtime.log import LOGGER
from lib.trainer.run_folder import write_bad_images

_SAID = 10  # of so few images the predictions are said


@dataclass(frozen=True)
class Predicted:
    """Metrics (empty without labels), those of the first model's plain view, what there is to say, and the files."""

    metrics: dict[str, float]
    plain: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Predictor:
    """The models that predict together.

    Attributes:
        trained: the first is that of RESUME_MODEL, whose TEST options count.
        weights: of the models, of sum 1.
    """

    trained: Sequence[LoadedModel]
    weights: Sequence[float]

    def fill(
        self, split: Split, name: str, *, compares: bool = False, keeps_chances: bool = False, keeps_more: bool = False
    ) -> ColumnStore:
        """Predict a split into STEM_NAME.partial, from where an interrupted prediction stopped, on all ranks.

        Args:
            compares, keeps_chances: as in prediction_columns.
            keeps_more: whether TEST.TOP_K and TEST.EMBEDDINGS count.
        """
        first = self.trained[0]
        test, group = first.cfg.TEST, first.group
        members = build_members(self.trained, split, compares=compares)
        columns = prediction_columns(
            split.num_classes,
            top_k=test.TOP_K if keeps_more else 0,
            num_features=first.model.backbone.num_features if keeps_more and test.EMBEDDINGS else 0,
            compares=compares,
            num_members=len(members) if keeps_chances else 0,
        )
        folder = _partial(first, name)
        with group.main_first():
            if group.is_main:
                num_done = int(open_or_create(folder, len(split), columns, self._about(split, members)).done.sum())
                if num_done:
                    LOGGER.info('%s: goes on after %d of %d images', folder, num_done, len(split))
        store = ColumnStore(folder, writer=group.rank)
        fill_predictions(members, store, self.weights, test.AVERAGE, label=name)
        group.barrier()
        return store

    def _about(self, split: Split, members: Sequence) -> dict[str, Any]:
        test = self.trained[0].cfg.TEST
        return {
            'models': [weights_fingerprint(one.checkpoint.state_dict) for one in self.trained],
            'inputs': [input_key(one) for one in self.trained],
            'views': [repr(tta_views(one.cfg)) for one in self.trained],
            'batch_size': members[0].loader.batch_size,
            'weights': list(self.weights),
            'average': test.AVERAGE,
            **split_key(split),
        }


def predict(trained: LoadedModel) -> Predicted:
    """Predict TEST.IMAGES or the test split; the main rank writes STEM.csv and what the options ask for.

    Raises:
        UserError: no test images, faults in their list, or options that do not go together.
    """
    test, group = trained.cfg.TEST, trained.group
    with group.main_first():
        split = open_test_images(trained.cfg, trained.class_names, group)
    predictor = _predictor(trained, split)
    looks = tta_views(trained.cfg)
    compares = bool((split.labels >= 0).any()) and (len(predictor.trained) > 1 or len(looks) > 1 or bool(looks.others))
    threshold = _threshold(predictor) if test.ABSTAIN_ERROR else None
    store = predictor.fill(split, 'test', compares=compares, keeps_more=True)
    if not group.is_main:
        return Predicted({})
    found = _write(predictor, split, store, threshold)
    # All is written: only now what an interrupted prediction would go on from may go.
    for name in ('test', 'weights', 'threshold'):
        shutil.rmtree(_partial(trained, name), ignore_errors=True)
    return found


def _partial(trained: LoadedModel, name: str) -> Path:
    """Return the folder of predictions under way."""
    return trained.stem.with_name(f'{trained.stem.name}_{name}.partial')


def _predictor(trained: LoadedModel, split: Split) -> Predictor:
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
        shares = ', '.join(f'{weight:.2f}' for weight in weights)
        LOGGER.info('%d models, weights %s, mean of %s', len(members), shares, test.AVERAGE)
    return Predictor(members, weights)


def _fitted_weights(members: Sequence[LoadedModel], split: Split) -> list[float]:
    valid = open_valid_split(members[0].cfg)
    if valid.digest() == split.digest():
        LOGGER.warning(
            'the weights of the models are fitted on the very images that are predicted: expect less on others'
        )
    equal = [1 / len(members)] * len(members)
    store = Predictor(members, equal).fill(valid, 'weights', keeps_chances=True)
    return mixture_weights(np.asarray(store.columns['chances'])[valid.labels >= 0]).tolist()


def _threshold(predictor: Predictor) -> Threshold:
    """Choose the confidence below which predictions are given up, and write the curve beside them."""
    first = predictor.trained[0]
    wanted = first.cfg.TEST.ABSTAIN_ERROR
    valid = open_valid_split(first.cfg)
    store = predictor.fill(valid, 'threshold')
    answers = stored_predictions(store, valid.labels).labelled()
    curve = risk_coverage(answers.confidence, answers.right)
    threshold = choose_threshold(curve, wanted)
    if first.group.is_main:
        stem = first.stem
        content = {
            'wanted_error': wanted, 'threshold': threshold.value if threshold.coverage else None,
            'coverage': threshold.coverage, 'error': threshold.risk, 'error_bound_95': threshold.bound,
            'area_under_curve': curve.area,
            'curve': {'coverage': curve.coverage.tolist(), 'error': curve.risk.tolist()},
        }  # fmt: skip
        write_json(stem.with_name(f'{stem.name}_risk_coverage.json'), content)
        plot_risk_coverage(stem.with_name(f'{stem.name}_risk_coverage.png'), content)
    return threshold


def _write(predictor: Predictor, split: Split, store: ColumnStore, threshold: Threshold | None) -> Predicted:
    trained = predictor.trained[0]
    test, stem, columns = trained.cfg.TEST, trained.stem, store.columns
    best, probabilities = columns['best'], columns['probabilities']
    files: list[Path] = []

    def file(ending: str) -> Path:
        files.append(stem.with_name(f'{stem.name}{ending}'))
        return files[-1]

    write_predictions(file('.csv'), split.names, best[:, 0])
    if test.TOP_K:
        write_top(file(f'_top{test.TOP_K}.csv'), split.names, best, probabilities, test.TOP_K, trained.class_names)
    if test.EMBEDDINGS:
        write_embeddings(file(f'_features.{test.EMBEDDINGS_FORMAT}'), split.names, columns['features'])
    if test.PRODUCTS:
        products, names = products_of(trained.cfg, split.names.to_pylist())
        write_products(file('_products.csv'), products, names, best, probabilities, trained.class_names)
    if threshold:
        write_answered(file('_answered.csv'), split.names, best[:, 0], probabilities[:, 0], threshold.value)
        files += [stem.with_name(f'{stem.name}_risk_coverage.{ending}') for ending in ('json', 'png')]
    answers = stored_predictions(store, split.labels).labelled()
    metrics = trained.known(answer_metrics(answers, trained.train_counts))
    plain: dict[str, float] = {}
    if 'plain' in columns:
        predicted = np.asarray(columns['plain'])
        plain = trained.known(accuracy_metrics(predicted, split.labels, trained.train_counts))
    if metrics:
        content: dict[str, Any] = {'split': split.source, 'num_images': len(split), **metrics}
        if trained.checkpoint.training_set:
            content |= detailed_metrics(answers, trained.train_counts, parents=trained.class_parents or None)
        write_json(file('_metrics.json'), content | ({'plain': plain} if plain else {}))
    _write_bad(trained, split, store)
    return Predicted(metrics, plain, _lines(trained, split, store, threshold, answers), files)


def _write_bad(trained: LoadedModel, split: Split, store: ColumnStore) -> None:
    bad = store.notes()
    write_bad_images(trained.folder, 'test', {split.names[row].as_py(): reason for row, reason in bad})
    if bad:
        LOGGER.warning(
            '%d of %d images could not be decoded: predicted -1, listed in %s',
            len(bad), len(split), trained.folder / 'bad_images.csv',
        )  # fmt: skip


def _lines(
    trained: LoadedModel, split: Split, store: ColumnStore, threshold: Threshold | None, answers: Predictions
) -> list[str]:
    lines = []
    if len(split) <= _SAID:
        best, chances = store.columns['best'][:, 0].tolist(), store.columns['probabilities'][:, 0].tolist()
        for name, label, chance in zip(split.names.to_pylist(), best, chances, strict=True):
            lines.append(f'{name}: ' + (f'{trained.class_names[label]} ({chance:.1%})' if label >= 0 else 'unreadable'))
    if threshold and not threshold.coverage:
        lines.append('no threshold keeps the wanted error on the valid split: every prediction is given up')
    elif threshold:
        lines.append(
            f'answered from probability {threshold.value:.3f} on: {threshold.coverage:.1%} of the valid images, error '
            f'{threshold.risk:.1%} (at most {threshold.bound:.1%})'
        )
        if len(answers):
            sure = answers.confidence >= threshold.value
            error = f'{1 - answers.right[sure].mean():.1%}' if sure.any() else '-'
            lines.append(f'of these images: {sure.mean():.1%} answered, error {error}')
    return lines
