"""tau_norm.py: choose tau by one pass over the valid split and write an ordinary checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lib.builders.split import DatasetSplit
from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import without_scale
from lib.commands.loaded_model import LoadedModel, split_features
from lib.commands.report import rebalanced_report
from lib.config.yaml_text import as_text
from lib.errors import UserError
from lib.inference.run import logit_batch_size
from lib.posthoc.crossfit import NUM_FOLDS, cross_fit_tau, stratified_folds
from lib.posthoc.tau_sweep import FLAT_NOTE, ImageIntervals, TauSweep, normalize_classifier, tau_report
from lib.report.charts import plot_tau
from lib.runtime.files import write_json
from lib.runtime.folders import fresh_folder
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import versions
from lib.trainer.run_folder import RunFolder


@dataclass(frozen=True)
class Rebalanced:
    """The content of tau.json, and the files written, the model first."""

    tau: dict
    files: list[Path]


def rebalance(trained: LoadedModel) -> Rebalanced:
    """Choose tau on the valid split; the main rank writes TAU_NORM.LOG_ROOT/NAME.

    Raises:
        UserError: no labeled valid split; the folder holds an earlier result and OVERWRITE is False.
    """
    options = trained.cfg.TAU_NORM
    folder = Path(options.LOG_ROOT, trained.cfg.NAME)
    check_free(folder, trained)
    with trained.group.main_first():
        valid = trained.valid
    classifier = _effective(trained)
    features = split_features(trained, valid, 'valid')
    sweep = TauSweep(classifier['weight'], classifier.get('bias'), max_tau=options.MAX_TAU)
    rows = trained.group.shard(len(features))
    for batch in features.batches(logit_batch_size(valid.num_classes), trained.device.main, rows):
        sweep.update(*batch)
    images = sweep.finish(trained.group)
    chosen, curve = images.choose(options.SELECT_BY)
    correct_after = images.before_correct if chosen.tau is None else images.correct_at(chosen.tau)
    before, after = (
        trained.supported_metrics(images.metrics(correct, trained.train_counts))
        for correct in (images.before_correct, correct_after)
    )
    tau = tau_report(chosen, curve, before, after, note=FLAT_NOTE if images.all_equal else '')
    tau['cross_fitted'] = _cross_fitted(trained, images)
    files = _write(trained, folder, chosen.tau, tau, valid, images) if trained.group.is_main else []
    return Rebalanced(tau, files)


def _cross_fitted(trained: LoadedModel, images: ImageIntervals) -> dict | None:
    """Return the metrics on images that tau was not chosen on, fold by fold; None for fewer images than folds."""
    if len(images.labels) < NUM_FOLDS:
        return None
    folds = stratified_folds(images.labels, seed=trained.cfg.SEED)
    result = cross_fit_tau(images, trained.cfg.TAU_NORM.SELECT_BY, folds)
    metrics = trained.supported_metrics(images.metrics(result.correct, trained.train_counts))
    return {'folds': NUM_FOLDS, 'taus': result.taus, **metrics}


def write_rebalanced(trained: LoadedModel, folder: Path, weight: torch.Tensor, bias: torch.Tensor) -> list[Path]:
    """Write a trained model with another linear classifier as folder/best_model.pth; an earlier result is renamed.

    Raises:
        UserError: its classifier is a cosine one, which has neither norms nor a bias.
    """
    state = dict(trained.checkpoint.state_dict)
    if 'classifier.bias' not in state:
        raise UserError(f'{trained.path}: its classifier is a cosine one, which has neither norms nor a bias')
    state['classifier.weight'], state['classifier.bias'] = weight.cpu(), bias.cpu()
    if 'classifier.scale' in state:
        state['classifier.scale'] = torch.ones_like(state['classifier.scale'])
    with _fresh(folder, trained):
        return [_write_model(trained, folder, state)]


def _write(
    trained: LoadedModel, folder: Path, chosen: float | None, tau: dict, valid: DatasetSplit, images: ImageIntervals
) -> list[Path]:
    with _fresh(folder, trained):
        state = trained.checkpoint.state_dict if chosen is None else _normalized(trained, chosen)
        files = [folder / name for name in ('best_model.pth', 'tau.json', 'tau.png', 'report.html')]
        write_json(files[1], tau)
        plot_tau(files[2], tau)
        predicted = np.full(len(valid), -1)
        predicted[valid.labels >= 0] = images.predicted
        rebalanced_report(files[3], trained, valid, predicted, tau)
        _write_model(trained, folder, state)  # last: with it, the folder holds a result
    return files


@contextmanager
def _fresh(folder: Path, trained: LoadedModel) -> Iterator[None]:
    """Lock a folder, rename an earlier result in it, and write config and environment into it."""

    def is_old() -> bool:
        check_free(folder, trained)  # again: another process may have written a result meanwhile
        return (folder / 'best_model.pth').exists()

    with fresh_folder(folder, 'NAME', is_old):
        environment = {'device': trained.device.describe(training=False), **versions()}
        run = RunFolder(folder)
        run.write_environment(as_text(trained.cfg), environment)
        run.write_classes(trained.class_names, trained.class_parents)
        yield


def _write_model(trained: LoadedModel, folder: Path, state: dict[str, torch.Tensor]) -> Path:
    # With the config that it was loaded with: options that an old checkpoint needed need not be given again.
    checkpoint = replace(trained.for_prediction(), state_dict=state, config=as_text(trained.cfg))
    write_checkpoint(folder / 'best_model.pth', checkpoint)
    return folder / 'best_model.pth'


def check_free(folder: Path, trained: LoadedModel) -> None:
    """Raise UserError if the folder holds an earlier result, or the model that would be re-balanced."""
    if trained.path.resolve().parent == folder.resolve():
        raise UserError(f'RESUME_MODEL {trained.path} is re-balanced already: give the model that it was computed from')
    if (folder / 'best_model.pth').exists() and not trained.cfg.OVERWRITE:
        raise UserError(
            f'{folder} holds an earlier result: --OVERWRITE True renames it, or give another --TAU_NORM_LOG_ROOT'
        )


def linear_classifier(trained: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of the linear classifier that ranks as the trained one does, float32, on its device.

    A cosine classifier's rows have norm 1 (its scale and the norm of the features are the same for all classes of an
    image); scales per class are multiplied in; a missing bias is zero.
    """
    state = _effective(trained)
    weight = state['weight'].float()
    return weight, state.get('bias', torch.zeros(len(weight), device=weight.device)).float()


def _effective(trained: LoadedModel) -> dict[str, torch.Tensor]:
    """Return the classifier as a plain linear one: cosine rows have norm 1, scales per class are multiplied in."""
    classifier = trained.model.classifier
    if isinstance(classifier, CosineClassifier):
        if classifier.num_centers > 1:
            raise UserError(
                f'{trained.path}: its classifier has {classifier.num_centers} centers per class (MODEL.CENTERS), but '
                'only classifiers with one row per class can be adjusted'
            )
        return {'weight': F.normalize(classifier.weight.detach(), dim=1)}
    return without_scale({key: value.detach() for key, value in classifier.state_dict().items()})


def _normalized(trained: LoadedModel, tau: float) -> dict[str, torch.Tensor]:
    state = dict(trained.checkpoint.state_dict)
    if 'classifier.bias' in state:
        weight = _effective(trained)['weight'].cpu()
        state['classifier.weight'], state['classifier.bias'] = normalize_classifier(weight, tau)
        if 'classifier.scale' in state:
            state['classifier.scale'] = torch.ones_like(state['classifier.scale'])
    return state
