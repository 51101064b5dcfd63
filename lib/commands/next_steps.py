"""The end of the scripts: what to do next, each step with the command to type or the file to open."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lib.builders.data import has_test_split
from lib.builders.recipe import finetuning_command
from lib.config.defaults import Config
from lib.runtime.checkout import path_to_type
from lib.runtime.mirror import with_urls

if TYPE_CHECKING:  # prediction needs no code of training
    from lib.commands.predict_output import PredictResult
    from lib.commands.train import TrainingRun

_WIDTH = 80
_FOLDER = 'FOLDER'  # stands for a folder of new photos


class Step(NamedTuple):
    """A purpose, and the words of a command or the path of a file."""

    purpose: str
    words: Sequence[object]


def after_training(run: 'TrainingRun', report: Path) -> list[str]:
    """Return the next steps after main.py as log lines."""
    cfg, training_set = run.cfg, run.trainer.info.training_set
    model = run.trainer.folder.path / 'best_model.pth'
    steps = [Step('read the report', [report]), _prediction(cfg, model)]
    sizes = training_set.class_counts[training_set.class_counts > 0]
    # The rows of a cosine classifier have one norm already.
    can_rebalance = run.data.valid is not None and cfg.MODEL.CLASSIFIER not in ('FCNorm', 'cosine')
    if can_rebalance and sizes.max() >= 2 * sizes.min():
        command = [*script('tau_norm.py'), '--RESUME_MODEL', str(model)]
        steps.append(Step('re-balance the classifier, if rare products matter as much as common ones', command))
    is_first = not cfg.MODEL.PRETRAINED and not cfg.RESUME_MODEL and run.trainer.group.world_size == 1
    if is_first and cfg.DATASET.ROOT and cfg.DATASET.NAME == 'annotations':
        command = finetuning_command(cfg)
        steps.append(Step('train from pretrained weights, which needs fewer photos', command))
    return step_lines(steps)


def after_rebalancing(cfg: Config, files: Sequence[Path]) -> list[str]:
    """Return the next steps after tau_norm.py as log lines; `files`: those written, the model first."""
    return step_lines([_prediction(cfg, files[0])] if files else [])


def after_prediction(cfg: Config, result: 'PredictResult') -> list[str]:
    """Return the next steps after test.py as log lines."""
    page = next((path for path in result.files if path.suffix == '.html'), None)
    steps = [Step('inspect the photos and their predictions', [page])] if page else []
    if not result.files or cfg.TEST.PART:  # the lines of a part give the command that merges the parts
        return step_lines(steps)
    rejected = next((path for path in result.files if path.name.endswith('.open_set.csv')), None)
    if rejected and cfg.TEST.IMAGES != '-':
        command = [*script('tools/enroll.py'), '--RESUME_MODEL', cfg.RESUME_MODEL, '--ENROLL_PROPOSE', str(rejected)]
        command += ['--TEST_IMAGES', cfg.TEST.IMAGES] if cfg.TEST.IMAGES else []
        steps.append(Step('find new products among the photos that are unknown', command))
    # A list on standard input has been read, so that command cannot be repeated as it is.
    if not cfg.TEST.TOP_K and cfg.TEST.IMAGES != '-':
        steps.append(Step('list the most probable products of each photo', _again('--TEST_TOP_K', '5')))
    if not result.metrics:
        command = [*script('test.py'), '--RESUME_MODEL', cfg.RESUME_MODEL, '--TEST_IMAGES', _FOLDER]
        steps.append(Step('measure the accuracy on photos that are sorted into one folder per product', command))
    return step_lines(steps)


def after_cleaning(cfg: Config, folder: Path, training: Sequence[str]) -> list[str]:
    """Return the next steps after tools/clean.py as log lines; `training`: the command that uses the decisions."""
    if cfg.CLEAN.APPLY:
        return step_lines([Step('train with the decisions', training)])
    review = Step('review the suspects; the page exports decisions.json', [folder / 'clean.html'])
    return step_lines([review, Step('then train with the decisions', training)])


def cleaned_training(cfg: Config, decisions: Path | str, config: Path | None) -> list[str]:
    """Return the command that trains with decisions, into another run folder.

    Its options are those of the command that runs, such as DATASET.QUARANTINE, without those of cleaning.

    Args:
        config: config of the run whose model was used, which the options override; None: no model was used.
    """
    words, is_kept = [] if config is None else ['--config', str(config)], True
    for word in sys.argv[1:]:
        if word.startswith('--'):
            is_kept = not word.startswith(('--CLEAN_', '--NAME', '--DATASET_CORRECTIONS', '--RESUME_MODEL'))
        words += [word] if is_kept else []
    return [*script('main.py'), *words, '--NAME', f'{cfg.NAME}_cleaned', '--DATASET_CORRECTIONS', str(decisions)]


def script(name: str) -> list[str]:
    """Return the start of a command that runs a script of the checkout, such as tools/enroll.py."""
    return ['python', path_to_type(name)]


def step_lines(steps: Sequence[Step]) -> list[str]:
    """Return a heading, and each purpose with its command below, in 80 columns where the words allow it."""
    lines = ['next steps'] if steps else []
    for step in steps:
        lines += [f'- {step.purpose}:', *command_lines(step.words)]
    return lines


def command_lines(words: Sequence[object]) -> list[str]:
    """Return a command in indented lines that a shell reads as one."""
    lines = ['   ']
    for group in _options(words):
        # Other shells than those of POSIX continue lines in other ways, so there the line stays whole.
        if len(lines[-1]) + len(f' {group} \\') > _WIDTH and lines[-1].strip() and os.name == 'posix':
            lines[-1] += ' \\'
            lines.append('       ')
        lines[-1] += f' {group}'
    return lines


def _options(words: Sequence[object]) -> Iterator[str]:
    """Yield the words in quotes where a shell needs them, each option together with its values."""
    group: list[str] = []
    for word in map(with_urls, map(str, words)):  # a path in the mirror is longer
        if word.startswith('--') and group:
            yield ' '.join(group)
            group = []
        group.append(shlex.quote(word))
    yield ' '.join(group)


def _prediction(cfg: Config, model: Path) -> Step:
    words = [*script('test.py'), '--RESUME_MODEL', model]
    if has_test_split(cfg):
        return Step(f'predict the test photos (or others, with --TEST_IMAGES {_FOLDER})', words)
    return Step('predict new photos', [*words, '--TEST_IMAGES', _FOLDER])


def _again(*options: str) -> list[str]:
    """Return the command that runs, with other values of `options`: names and values in turn."""
    words = list(sys.argv)
    for name in options[::2]:
        while name in words:
            position = words.index(name)
            del words[position : position + 2]
    return ['python', *words, *options]
