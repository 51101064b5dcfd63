"""tools/enroll.py: add, extend and remove classes of a trained model, without training.

The result is an ordinary checkpoint, a validation split of its classes, and their metrics.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.split import some_of
from lib.catalog.catalog import Catalog, open_catalog
from lib.commands.enroll_images import (
    GivenImages,
    OldImages,
    given_images,
    old_images,
    retired_classes,
    unknown_photos,
    write_valid,
)
from lib.commands.enrolled_model import EnrolledRows, choose_rows, kept_classes, without_classes
from lib.commands.index import add_photos, version_of
from lib.commands.loaded_model import LoadedModel, split_features
from lib.commands.next_steps import Step, script, step_lines
from lib.commands.predict_pages import write_proposals
from lib.config.yaml_text import as_node, as_text, as_values
from lib.dataset.annotations import ClassNames
from lib.errors import UserError
from lib.inference.run import classify_features
from lib.metrics.accuracy import count_per_class, mean_class_accuracy
from lib.posthoc.candidate_scores import score_features
from lib.posthoc.clusters import MAX_IMAGES, cluster_unknown
from lib.posthoc.row_updates import STRENGTHS
from lib.runtime.files import remove, write_json
from lib.runtime.folders import fresh_folder, holds_others
from lib.runtime.text import count_of
from lib.trainer.checkpointing.io import write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint, versions
from lib.trainer.run_folder import RunFolder

FOLDS = 5
MODEL, VALID_JSON, PROPOSALS = 'best_model.pth', 'converted_val.json', 'proposals.html'
# All files of a result; the model is written last.
_FILES = (MODEL, VALID_JSON, 'enroll.json', 'classes.json', 'config.yaml', 'environment.txt')


@dataclass(frozen=True)
class EnrollResult:
    """The content of enroll.json, the written files, the model first, and lines about the catalog."""

    metrics: dict[str, Any]
    files: list[Path]
    lines: list[str]


def enroll(trained: LoadedModel) -> EnrollResult:
    """Remove the classes of ENROLL.RETIRE, add the images of ENROLL.IMAGES, write the model, and measure all classes.

    Ranks share the passes over images; the main rank writes.

    Raises:
        UserError: nothing to do, an unknown class to retire; no valid split; ENROLL.OUT is in use; a catalog of another
            model.
    """
    cfg = trained.cfg
    folder = Path(cfg.ENROLL.OUT or Path(cfg.LOG_ROOT, f'{cfg.NAME}_enrolled'))
    _check_free(trained, folder)
    catalog = None
    if cfg.ENROLL.INDEX and trained.group.is_main:
        catalog = open_catalog(Path(cfg.ENROLL.INDEX), version_of(trained))
    retired = retired_classes(trained)
    base = without_classes(trained, retired)
    given = given_images(trained, base)
    old = old_images(trained, retired, is_needed=given is not None)
    new, known = (given.of_new(given.shots), given.of_known(given.shots)) if given else (None, None)
    rows, shots, of_old = choose_rows(base, old.images if old else None, new, known, max_loss=cfg.ENROLL.MAX_LOSS)
    after = None if of_old is None else rows.cross_fitted(shots, of_old, max_loss=cfg.ENROLL.MAX_LOSS, folds=FOLDS)
    metrics = {
        'num_classes': base.checkpoint.num_classes + (len(given.new.names) if given else 0),
        'retired': [trained.class_names[label] for label in retired],
        'old': {} if old is None or after is None else _metrics_of_old(old, after),
        **_metrics_of_given(trained, rows, given, kept_classes(trained, retired)),
    }
    trained.group.barrier()  # so that no rank finds what the main rank writes
    if not trained.group.is_main:
        return EnrollResult(metrics, [], [])
    none = np.zeros(0, np.int64)
    checkpoint = rows.checkpoint(
        given.new if given else ClassNames([], []), none if new is None else new.counts,
        none if known is None else known.counts,
    )  # fmt: skip
    # The model is the last: after a kill, the same command, which adds the same photos again, is not refused.
    lines = [] if catalog is None else list(_update(catalog, metrics['retired'], given))
    return EnrollResult(metrics, _write(trained, folder, checkpoint, metrics, old, given), lines)


def _update(catalog: Catalog, retired: list[str], given: GivenImages | None) -> Iterator[str]:
    """Remove the retired classes from a catalog, add the enrolled images, and yield log lines."""
    if retired:
        yield f'{catalog.folder}: removed {count_of(catalog.remove(retired), "photo")}'
    if given is not None:
        shots = some_of(given.split, given.shots)
        yield f'{catalog.folder}: {add_photos(catalog, shots, given.features.at(given.shots), given.names)}'


def propose_classes(trained: LoadedModel) -> list[str]:
    """Cluster the photos of ENROLL.PROPOSE, write a page on which the clusters are named, and return log lines.

    Ranks share the passes over images; the main rank writes.

    Raises:
        UserError: there are no photos, or no labeled valid split.
    """
    cfg, path = trained.cfg, trained.folder / PROPOSALS
    photos, is_unknown = unknown_photos(trained)
    with trained.group.main_first():
        valid = trained.valid
    trained.check_classes(valid)
    known = split_features(trained, valid, 'valid')
    features = split_features(trained, photos, 'unknown', same_classes=False)
    rows = np.flatnonzero(features.readable & is_unknown)
    known_rows = np.flatnonzero(known.readable & (known.labels >= 0))
    if not len(known_rows):
        raise UserError(f'{valid.source}: has no labeled image, but clusters are as wide as its classes')
    if not len(rows):
        raise UserError(f'ENROLL.PROPOSE {photos.source}: no photo can be decoded')
    if not trained.group.is_main:
        return []
    num_more, rows = max(0, len(rows) - MAX_IMAGES), rows[:MAX_IMAGES]
    found = cluster_unknown(features.values[rows], known.values[known_rows], known.labels[known_rows])
    predictions = classify_features(trained.engine, features.at(rows))
    command = [*script('tools/enroll.py'), '--RESUME_MODEL', str(trained.path), '--ENROLL_IMAGES', 'decisions.json']
    files = write_proposals(
        path, trained, photos, rows, predictions, found, title=f'{cfg.NAME}: new products',
        next_step=shlex.join(command),
    )  # fmt: skip
    sizes = found.sizes
    lines = [
        f'{count_of(len(rows), "photo")}: {count_of(int(sizes.sum()), "photo")} in {count_of(len(sizes), "cluster")}, '
        f'{count_of(len(rows) - int(sizes.sum()), "photo")} alone',
        *([f'{count_of(num_more, "further photo")} left out: at most {MAX_IMAGES:,} are compared'] if num_more else []),
        *(f'wrote {file}' for file in files),
    ]
    review = Step('name the clusters; the page exports decisions.json', [path])
    return [*lines, *step_lines([review, Step('then add the classes', command)])]


def _check_free(trained: LoadedModel, folder: Path) -> None:
    if not trained.cfg.ENROLL.IMAGES and not trained.cfg.ENROLL.RETIRE:
        raise UserError(
            'ENROLL.IMAGES is empty: --ENROLL_IMAGES FOLDER with a sub-folder per class, or an annotation JSON; '
            '--ENROLL_RETIRE NAMES removes classes, --ENROLL_PROPOSE FOLDER finds new ones in photos'
        )
    if trained.path.resolve().parent == folder.resolve():
        raise UserError(f'ENROLL.OUT {folder} holds RESUME_MODEL {trained.path}: give another folder')
    if (folder.is_file() or holds_others(folder, _FILES, MODEL)) and not trained.cfg.OVERWRITE:
        raise UserError(f'{folder} exists already: --OVERWRITE True renames it, or give another --ENROLL_OUT')


def _metrics_of_old(old: OldImages, after: np.ndarray) -> dict[str, Any]:
    labels = old.images.labels[old.images.rows]
    return {
        'before': mean_class_accuracy(labels, old.before),
        'after': mean_class_accuracy(labels, after),
        'num_measured': len(labels),
        'folds': FOLDS,
    }


def _metrics_of_given(
    trained: LoadedModel, rows: EnrolledRows, given: GivenImages | None, kept: np.ndarray
) -> dict[str, Any]:
    """Return the part of enroll.json about new and known classes; enrolled images do not measure them.

    Args:
        kept: label in `trained` of each class of the model without retired classes.
    """
    metrics: dict[str, Any] = {'new': {}, 'known': {}, 'classes': {}}
    if rows.imprinted is not None:
        chosen = rows.imprinted
        metrics |= {'scale': chosen.scale, 'shift': chosen.shift, 'centring': chosen.centering}
    for kind in ('new', 'known') if given else ():
        assert given is not None
        of_kind = given.of_new if kind == 'new' else given.of_known
        shots, held = of_kind(given.shots), of_kind(given.held_out)
        if shots is None or held is None:
            continue
        labels, names = held.labels[held.rows], given.new.names if kind == 'new' else rows.base.class_names
        correct = rows.correct(held, are_new=kind == 'new')
        metrics[kind] = {'num_shots': len(shots.rows), 'num_measured': len(labels)}
        if len(labels):
            before = np.zeros(len(labels), bool)
            if kind == 'known':
                before = score_features(trained.engine, held.values, kept[held.labels]).correct[held.rows]
            metrics[kind] |= {'before': mean_class_accuracy(labels, before)}
            metrics[kind] |= {'after': mean_class_accuracy(labels, correct)}
        right, measured = (part.tolist() for part in count_per_class(labels, correct, len(names)))
        metrics['classes'] |= {
            names[label]: {'shots': number, 'measured': measured[label], 'right': right[label]}
            for label, number in enumerate(shots.counts.tolist())
            if number
        }
    if rows.updates is not None:
        strength, shift = rows.choice
        metrics['known'] |= {'num_classes': len(rows.known), 'strength': STRENGTHS[strength], 'shift': shift}
    return metrics


def _write(
    trained: LoadedModel,
    folder: Path,
    checkpoint: Checkpoint,
    metrics: dict[str, Any],
    old: OldImages | None,
    given: GivenImages | None,
) -> list[Path]:
    """Write the folder and return its files, the model first; an old folder of that name is renamed.

    Args:
        checkpoint: with the new classes.
        metrics: content of enroll.json.
        old, given: images that are not enrolled; if all are files, they become the valid split of the new model.
    """

    def is_old() -> bool:
        _check_free(trained, folder)  # again: another process may have written a result meanwhile
        return holds_others(folder, _FILES, MODEL)

    training_set = checkpoint.training_set
    assert training_set is not None
    with fresh_folder(folder, 'ENROLL.OUT', is_old):
        files = [folder / MODEL, folder / 'enroll.json', folder / 'classes.json']
        values = as_values(trained.cfg)
        remove(folder / VALID_JSON)  # of a command that was stopped
        if old is not None and write_valid(folder / VALID_JSON, training_set.class_names, old, given):
            values |= {'DATASET.VALID_JSON': str(folder / VALID_JSON)}
            files.append(folder / VALID_JSON)
        config = as_text(
            as_node(
                values
                | {'ENROLL.IMAGES': '', 'ENROLL.RETIRE': (), 'ENROLL.INDEX': '', 'ENROLL.OUT': '', 'OVERWRITE': False}
            )
        )
        run = RunFolder(folder)
        run.write_environment(config, {'device': trained.device.describe(training=False), **versions()})
        run.write_classes(training_set.class_names, training_set.class_parents)
        write_json(folder / 'enroll.json', metrics)
        write_checkpoint(folder / MODEL, replace(checkpoint, config=config))
    return files
