"""test.py: predict a split or a part of it, merge the parts, and write the files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.cache_key import input_key, split_key
from lib.builders.features import locked_store
from lib.builders.loader import eval_batch_size
from lib.builders.split import DatasetSplit, some_of
from lib.commands.ensemble import build_members, given_weights, load_members, tta_views
from lib.commands.loaded_model import LoadedModel
from lib.commands.predict_inputs import Part, open_test_images, parse_part
from lib.commands.predict_output import PredictResult, check_columns, claim_stem, write_all, write_part
from lib.commands.predict_parts import merge_parts, partial_store
from lib.commands.predict_unknown import (
    Rejection,
    build_score,
    calibration_images,
    choose_rejection,
    open_unknown,
)
from lib.dataset.loader import rows_of_batches
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.inference.ensemble import EnsembleForward, mixture_weights
from lib.inference.run import run
from lib.inference.sinks import Columns, prediction_columns, prediction_store_sink, stored_predictions
from lib.metrics.confidence import Threshold, choose_threshold, risk_coverage
from lib.posthoc.open_set import KnownScore
from lib.runtime.column_store import ColumnStore, open_or_create, read_key
from lib.runtime.files import remove, replace_together, write_json
from lib.runtime.log import LOGGER
from lib.trainer.run_folder import write_bad_images


@dataclass(frozen=True)
class Predictor:
    """The models of an ensemble, or one.

    Attributes:
        trained: the first is that of RESUME_MODEL, whose TEST options apply.
        weights: weights of the models, of sum 1.
        score: score of known products, which is stored too; None: none.
    """

    trained: Sequence[LoadedModel]
    weights: Sequence[float]
    score: KnownScore | None = None

    def fill(
        self,
        split: DatasetSplit,
        folder: Path,
        label: str,
        *,
        part: Part | None = None,
        with_plain: bool = False,
        with_members: bool = False,
        with_outputs: bool = False,
    ) -> ColumnStore:
        """Predict a split into a store on all ranks; an interrupted prediction is resumed.

        Args:
            folder: folder of the store.
            label: name of the split on the progress bar.
            part: predict this part of the split only.
            with_plain: store the classes predicted from the plain view too.
            with_members: store each model's probability of the label too.
            with_outputs: store what TEST.TOP_K and TEST.EMBEDDINGS ask for.
        """
        group, num_images = self.trained[0].group, len(split)
        key = group.broadcast_object(self._key(split) if group.is_main else {})
        if part is not None:
            rows = rows_of_batches(ProcessGroup(part.number - 1, part.count), num_images, key['batch_size'])
            split = some_of(split, np.arange(rows.start, rows.stop))
            key |= {'part': [part.number, part.count], 'rows': [rows.start, rows.stop]}
        members = build_members(self.trained, split, with_plain=with_plain, num_images=num_images)
        columns = self.columns(with_plain=with_plain, with_members=with_members, with_outputs=with_outputs)
        done = None
        with group.main_first():
            if group.is_main:
                done = open_or_create(folder, len(split), columns, key).done
                if done.any():
                    LOGGER.info('%s: resuming after %d of %d images', folder, done.sum(), len(split))
        store = ColumnStore(folder, writer=group.rank, done=group.broadcast_object(done))
        forward = EnsembleForward(members, self.weights, self.trained[0].cfg.TEST.AVERAGE)
        run(forward, [prediction_store_sink(store, self.score)], label=label, store=store)
        group.barrier()
        return store

    def columns(self, *, with_plain: bool, with_outputs: bool, with_members: bool = False) -> Columns:
        """Return the columns of the store that `fill` writes."""
        first = self.trained[0]
        test = first.cfg.TEST
        return prediction_columns(
            first.engine.num_classes,
            top_k=test.TOP_K if with_outputs else 0,
            num_features=first.engine.num_features if with_outputs and test.EMBEDDINGS else 0,
            with_plain=with_plain,
            num_members=len(self.trained) if with_members else 0,
            with_scores=self.score is not None,
        )

    def merge(self, split: DatasetSplit, stem: Path, num_parts: int, *, with_plain: bool) -> ColumnStore:
        """Merge the stores of all parts into the one that a single process writes; see merge_parts."""
        columns = self.columns(with_plain=with_plain, with_outputs=True)
        return merge_parts(stem, self._key(split), columns, len(split), num_parts)

    def _key(self, split: DatasetSplit) -> dict[str, Any]:
        """Return the values that predictions depend on."""
        first = self.trained[0]
        return {
            'models': [one.fingerprint for one in self.trained],
            'inputs': [input_key(one.cfg, one.device) for one in self.trained],
            'views': [tta_views(one.cfg).key for one in self.trained],
            'batch_size': eval_batch_size(first.cfg, first.device),
            'weights': list(self.weights),
            'average': first.cfg.TEST.AVERAGE,
            **({} if self.score is None else {'score': self.score.key}),
            **split_key(split),
        }


def predict(trained: LoadedModel) -> PredictResult:
    """Predict TEST.IMAGES or the test split, or TEST.PART of it; the main rank writes the files.

    Raises:
        UserError: no test images, a mistake in their list, options that exclude each other, or a missing part.
    """
    test, group = trained.cfg.TEST, trained.group
    part = parse_part(test.PART)
    check_columns(test.COLUMNS)
    split, source = open_test_images(trained.cfg, trained.class_names, group)
    trained.check_classes(split)
    stem = group.broadcast_object(claim_stem(trained, source) if group.is_main else Path())
    with locked_store(partial_store(stem, str(part) if part is not None and part.number else ''), group):
        return _predict(trained, split, stem, part)  # the same prediction by another process waits


def _predict(trained: LoadedModel, split: DatasetSplit, stem: Path, part: Part | None) -> PredictResult:
    predictor = open_predictor(trained, split, stem)
    if trained.cfg.TEST.REJECT_UNKNOWN:
        predictor = replace(predictor, score=build_score(trained))
    views = tta_views(trained.cfg)
    averages_more = len(predictor.trained) > 1 or len(views) > 1 or bool(views.others)
    with_plain = bool((split.labels >= 0).any()) and averages_more
    if part is not None and part.number:
        return _predict_part(predictor, split, stem, part, with_plain=with_plain)
    store = None
    if part is None:
        store = predictor.fill(split, partial_store(stem), 'test', with_plain=with_plain, with_outputs=True)
    elif trained.group.is_main:
        store = predictor.merge(split, stem, part.count, with_plain=with_plain)
    threshold = _threshold(predictor, stem) if trained.cfg.TEST.ABSTAIN_ERROR else None
    rejection = _rejection(predictor, stem) if trained.cfg.TEST.REJECT_UNKNOWN else None
    if store is None or not trained.group.is_main:
        return PredictResult({})
    result = write_all(trained, split, store, stem, threshold, rejection, model=_version_of(predictor))
    # Everything is written: only now the stores that an interrupted prediction resumes from are removed.
    parts = [Part(number, part.count) for number in range(1, part.count + 1)] if part is not None else []
    for one in parts:
        write_bad_images(trained.folder, _part_stem(stem, one).name, {})
    for name in (
        *map(str, parts),
        'weights',
        'threshold',
        'unknown',
        '',
    ):  # the last one replaces the parts for a merge
        remove(partial_store(stem, name))
    return result


def _predict_part(
    predictor: Predictor, split: DatasetSplit, stem: Path, part: Part, *, with_plain: bool
) -> PredictResult:
    """Predict a part; its store remains for the merge."""
    trained = predictor.trained[0]
    store = predictor.fill(
        split, partial_store(stem, str(part)), str(part), part=part, with_plain=with_plain, with_outputs=True
    )
    if not trained.group.is_main:
        return PredictResult({})
    first, last = (read_key(store.folder) or {})['rows']
    return write_part(trained, some_of(split, np.arange(first, last)), store, _part_stem(stem, part), part)


def _part_stem(stem: Path, part: Part) -> Path:
    return stem.with_name(f'{stem.name}.{part}')


def open_predictor(trained: LoadedModel, split: DatasetSplit, stem: Path) -> Predictor:
    """Return the models of TEST.ENSEMBLE with their weights; fitting these may need stores beside `stem`."""
    members = load_members(trained)
    test = trained.cfg.TEST
    weights = given_weights(test.ENSEMBLE_WEIGHTS, len(members))
    if weights is None:
        if test.AVERAGE != 'probabilities':
            raise UserError(
                'TEST.ENSEMBLE_WEIGHTS valid weighs probabilities: add --TEST_AVERAGE probabilities, or give the '
                'weights as numbers'
            )
        weights = _fitted_weights(members, split, stem)
    if len(members) > 1:
        shown = ', '.join(f'{weight:.2f}' for weight in weights)
        LOGGER.info('%d models, weights %s, mean of %s', len(members), shown, test.AVERAGE)
    return Predictor(members, weights)


def _fitted_weights(members: Sequence[LoadedModel], split: DatasetSplit, stem: Path) -> list[float]:
    valid = members[0].valid
    if valid.digest() == split.digest():
        LOGGER.warning('ensemble weights are fitted on the predicted images: metrics are optimistic')
    equal = [1 / len(members)] * len(members)
    with locked_store(partial_store(stem, 'weights'), members[0].group):  # parts of a prediction share it
        store = Predictor(members, equal).fill(valid, partial_store(stem, 'weights'), 'valid', with_members=True)
    return mixture_weights(np.asarray(store.columns['chances'])[valid.labels >= 0]).tolist()


def _threshold(predictor: Predictor, stem: Path) -> Threshold:
    """Choose the confidence below which the model abstains, and write the curve beside the predictions."""
    first = predictor.trained[0]
    max_risk = first.cfg.TEST.ABSTAIN_ERROR
    valid = first.valid
    store = predictor.fill(valid, partial_store(stem, 'threshold'), 'valid')
    predictions = stored_predictions(store, valid.labels).labeled()
    curve = risk_coverage(predictions.confidence, predictions.correct)
    threshold = choose_threshold(curve, max_risk)
    if first.group.is_main:
        from lib.report.charts import plot_risk_coverage  # imported here: matplotlib takes a second

        content = {
            'model': _version_of(predictor), 'wanted_error': max_risk,
            'threshold': threshold.value if threshold.coverage else None, 'coverage': threshold.coverage,
            'error': threshold.risk, 'error_bound_95': threshold.bound, 'area_under_curve': curve.area,
            'curve': {'coverage': curve.coverage.tolist(), 'error': curve.risk.tolist()},
        }  # fmt: skip
        with replace_together(stem.parent):
            write_json(stem.with_name(f'{stem.name}.risk_coverage.json'), content)
            plot_risk_coverage(stem.with_name(f'{stem.name}.risk_coverage.png'), content)
    return threshold


def _rejection(predictor: Predictor, stem: Path) -> Rejection:
    """Choose the score below which a product is unknown."""
    first = predictor.trained[0]
    valid, test = first.valid, first.cfg.TEST
    known = calibration_images(valid, valid.labels, predictor.fill(valid, partial_store(stem, 'threshold'), 'valid'))
    unknown = None
    if test.UNKNOWN_ROOT:
        with first.group.main_first():
            split, products = open_unknown(first)
        store = predictor.fill(split, partial_store(stem, 'unknown'), 'unknown')
        unknown = calibration_images(split, products, store)
    assert predictor.score is not None
    model = first.cfg.MODEL
    is_pretrained = model.TUNE == 'head' and bool(model.PRETRAINED) and not model.EMBEDDING
    return choose_rejection(predictor.score, test.REJECT_UNKNOWN, known, unknown, knows_classes=not is_pretrained)


def _version_of(predictor: Predictor) -> str | None:
    """Return the version of the model whose plain view is predicted; None for several models or views."""
    first = predictor.trained[0]
    views = tta_views(first.cfg)
    is_plain = len(predictor.trained) == 1 and len(views) == 1 and views.averages_plain
    return first.version if is_plain else None
