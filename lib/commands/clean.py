"""tools/clean.py: find training images whose label is probably wrong, on cached features."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lib.builders.data import open_training_data
from lib.builders.device import build_device
from lib.builders.features import locked_store, plain_train_features
from lib.builders.model import new_model
from lib.builders.recipe import resolve_recipe
from lib.builders.training_data import TrainingData
from lib.commands.clean_output import CleanResult, CleanSource, write_results
from lib.commands.command import Command
from lib.commands.loaded_model import load_another, load_model, split_features
from lib.config.defaults import Config
from lib.config.yaml_text import as_values
from lib.dataset.features import Features
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError, printable, shortened
from lib.posthoc.cleaning_rounds import judge_in_rounds
from lib.posthoc.judged_images import JudgedImages, joined_features
from lib.posthoc.label_errors import Findings
from lib.posthoc.out_of_fold import choose_head
from lib.runtime.device import Device
from lib.runtime.log import LOGGER
from lib.runtime.text import count_of

FOLDER = 'clean'
_NUM_WORST = 5


def clean_labels(command: Command, group: ProcessGroup = SINGLE_PROCESS) -> list[str]:
    """Judge the labels of the training images, write the results into RUN_FOLDER/clean, and return log lines.

    Ranks share the work, and the main rank writes. A command that was killed resumes, with the same results.

    Raises:
        UserError: no pretrained weights and no model; fewer than two images to judge; files cannot be read.
    """
    source = _source_of_model(command, group) if command.checkpoint else _source_of_weights(command.cfg, group)
    folder = source.folder / FOLDER
    if group.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    group.barrier()
    with locked_store(folder / 'rounds', group):
        source = _with_models(source, folder / 'rounds' / 'joined', group)
        result = _judge(source, folder / 'rounds', group)
        return [*_describe(result), *write_results(result, folder)] if group.is_main else []


def _source_of_model(command: Command, group: ProcessGroup) -> CleanSource:
    trained = load_model(command, group)
    with group.main_first():
        data = open_training_data(trained.cfg).in_class_order(trained.class_names)
    features = split_features(trained, data.train, 'train')
    return _source(trained.cfg, trained.device, data, features, trained.folder, is_trained=True)


def _source_of_weights(cfg: Config, group: ProcessGroup) -> CleanSource:
    if not cfg.MODEL.PRETRAINED:
        raise UserError(
            'tools/clean.py needs features: those of a trained model (--RESUME_MODEL ./log/NAME/best_model.pth) or of '
            'pretrained weights (--MODEL_BACKBONE tf_efficientnet_lite0 --MODEL_PRETRAINED bundled)'
        )
    device = build_device(cfg, group)
    with group.main_first():
        data = open_training_data(cfg)
    cfg = resolve_recipe(cfg, len(data.index()))
    with group.main_first():
        model = new_model(cfg, data.train.num_classes, device)
    features = plain_train_features(cfg, data.train, model, device, group)
    return _source(cfg, device, data, features, Path(cfg.LOG_ROOT, cfg.NAME), is_trained=False)


def _with_models(source: CleanSource, folder: Path, group: ProcessGroup) -> CleanSource:
    """Return the images with the features of CLEAN.MODELS, too.

    A network that was trained on wrong labels has learned some of them; pretrained weights have not, but distinguish
    similar products less well.
    """
    features = [source.features]
    for path in source.cfg.CLEAN.MODELS:
        keys = as_values(source.cfg)
        options = {name: keys[name] for name in keys if name.startswith('RUN.') or name == 'LOG_ROOT'}
        trained = load_another(path, 'CLEAN.MODELS', options, group)
        features.append(split_features(trained, source.train, 'train', same_classes=False))
    if len(features) == 1:
        return source
    readable = np.logical_and.reduce([part.readable for part in features])
    rows = source.rows[readable[source.rows]]
    with group.main_first():
        values = joined_features([part.values for part in features], rows, folder)
    joined = Features(values, source.features.labels, readable, source.features.bad)
    return replace(source, features=joined, rows=rows)


def _source(
    cfg: Config, device: Device, data: TrainingData, features: Features, folder: Path, *, is_trained: bool
) -> CleanSource:
    rows = data.index().rows
    rows = rows[(features.labels[rows] >= 0) & features.readable[rows]]
    if len(rows) < 2:
        number = count_of(len(rows), 'labeled image')
        raise UserError(f'{data.train.source}: has {number} that can be decoded, but judging labels needs at least 2')
    return CleanSource(cfg, device, data.train, features, rows, data.class_names, folder, is_trained)


def _judge(source: CleanSource, folder: Path, group: ProcessGroup) -> CleanResult:
    """Judge the labels of `source` in rounds."""
    options, labels = source.cfg.CLEAN, source.features.labels[source.rows]
    values, num_classes = source.features.values, source.train.num_classes
    weights = np.ones(len(labels), np.float32)
    images = JudgedImages(values, source.rows, labels, num_classes, weights)
    head = options.HEAD
    if head == 'auto':
        head = choose_head(num_classes, images.num_features, options.FOLDS)
    LOGGER.info(
        'judging %s of %s by a %s head', count_of(len(labels), 'image'), count_of(num_classes, 'class', 'classes'), head
    )
    samples = source.samples
    if samples:
        LOGGER.info('using the areas under the margin recorded in %s', source.folder)
    rounds = judge_in_rounds(
        images,
        folder,
        head=head,
        num_rounds=options.ROUNDS,
        num_candidates=options.CANDIDATES,
        num_folds=options.FOLDS,
        seed=source.cfg.SEED,
        margins=samples.aum[source.rows] if samples else None,
        device=source.device.main,
        group=group,
    )
    for number, (candidates, findings) in enumerate(rounds, 1):
        LOGGER.info('round %d: %s', number, _describe_noise(findings))
        result = CleanResult(source, candidates, findings, head, number)
    return result


def _describe_noise(findings: Findings) -> str:
    """Return the noise rate with its interval."""
    noise = findings.noise
    return f'noise rate {noise.overall:.1%} (95 %: {noise.overall_low:.1%} to {noise.overall_high:.1%})'


def _describe(result: CleanResult) -> Iterator[str]:
    """Yield the numbers of suspects, and the classes with the highest noise rates."""
    counts = result.counts()
    judged = len(result.source.rows) - counts['cannot_tell']
    yield f'{count_of(judged, "image")} judged, {_describe_noise(result.findings)}'
    for name in ('mislabeled', 'ambiguous', 'out_of_catalog', 'duplicate'):
        yield f'  {_KIND_NAMES[name]}: {counts[name]:,}'
    if counts['cannot_tell']:
        yield f'  not judged, too few images of the class: {counts["cannot_tell"]:,}'
    if unreadable := int((~result.source.features.readable).sum()):
        yield f'{count_of(unreadable, "image")} cannot be decoded, left out'
    noise = result.findings.noise
    worst = np.argsort(-np.nan_to_num(noise.low, nan=-1.0), kind='stable')[:_NUM_WORST].tolist()
    if worst := [label for label in worst if noise.low[label] > noise.overall]:
        yield 'classes with the highest noise rates:'
    for label in worst:
        interval = f'{noise.low[label]:.0%} to {noise.high[label]:.0%}'
        yield f'  {noise.rate[label]:4.0%} ({interval}) {shortened(printable(result.source.class_names[label]), 60)}'


_KIND_NAMES = {
    'mislabeled': 'mislabeled',
    'ambiguous': 'ambiguous, two similar classes',
    'out_of_catalog': 'out of catalog, no class fits',
    'duplicate': 'near-duplicates with another label',
}
