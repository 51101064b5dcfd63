"""What enrolling writes: an ordinary checkpoint, a validation split of old and new classes, the figures."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lib.builders.split import Split
from lib.commands.loaded_model import Trained
from lib.config.yaml_text import as_node, as_text, as_values
from lib.dataset.annotations import ClassNames
from lib.dataset.images import FileImages
from lib.runtime.files import write_json
from lib.runtime.lock import locked
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.state import TrainingSet, versions, write_checkpoint
from lib.trainer.run_folder import RunFolder, set_aside

MODEL, VALID_JSON = 'best_model.pth', 'converted_val.json'


def write_enrolled(
    trained: Trained,
    folder: Path,
    state: dict[str, torch.Tensor],
    classes: ClassNames,
    counts: np.ndarray,
    figures: dict,
    measured: tuple[Split, Split, np.ndarray] | None,
) -> list[Path]:
    """Write the folder and return its files, the model first; an old folder of that name is renamed.

    Args:
        state: of the model, with rows for the new classes.
        classes, counts: names (and parents) of the new classes, and (k,) images that each was enrolled from.
        figures: content of enroll.json.
        measured: the valid split of the old classes, and of the new images which rows measure. Where all are files,
            they become the valid split of the new model.
    """
    if folder.exists() and any(folder.iterdir()):
        LOGGER.info('what was there is kept as %s', set_aside(folder))
    training_set = _training_set(trained, classes, counts)
    with locked(folder, key='ENROLL.OUT'):
        files = [folder / MODEL, folder / 'enroll.json', folder / 'classes.json']
        values = as_values(trained.cfg)
        if measured is not None and _write_valid(folder / VALID_JSON, trained.checkpoint.num_classes, *measured):
            values |= {'DATASET.VALID_JSON': str(folder / VALID_JSON)}
            files.append(folder / VALID_JSON)
        config = as_text(as_node(values | {'ENROLL.IMAGES': '', 'ENROLL.OUT': '', 'OVERWRITE': False}))
        run = RunFolder(folder)
        run.write_about(config, {'device': trained.device.describe(training=False), **versions()})
        names = {'names': training_set.class_names, 'parents': training_set.class_parents}
        write_json(folder / 'classes.json', names)
        write_json(folder / 'enroll.json', figures)
        changes = {'state_dict': state, 'config': config, 'training_set': training_set}
        # There is no going on with training from it.
        changes |= dict.fromkeys(('optimizer', 'training_state', 'scaler', 'history', 'bad_images', 'rng', 'versions'))
        write_checkpoint(folder / MODEL, replace(trained.checkpoint, **changes))
    return files


def _training_set(trained: Trained, classes: ClassNames, counts: np.ndarray) -> TrainingSet:
    known = trained.checkpoint.training_set
    if known is None:
        LOGGER.warning(
            '%s does not know how many images its classes had: many, medium and few mean nothing for the new model',
            trained.checkpoint.path,
        )
    names = [*trained.class_names, *classes.names]
    parents = list(known.class_parents) if known else []
    if parents or classes.parents:
        num_old = len(trained.class_names)
        parents = (parents or [[] for _ in range(num_old)]) + (classes.parents or [[] for _ in classes.names])
    text = f'{known.digest if known else ""} {classes.names} {counts.tolist()}'
    all_counts = np.concatenate([trained.train_counts, counts]).astype(np.int64)
    return TrainingSet(hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest(), all_counts, names, parents)


def _write_valid(path: Path, num_old: int, old: Split, new: Split, new_rows: np.ndarray) -> bool:
    """Write the annotations of old valid images and of new ones; False where some are no files."""
    if not (isinstance(old.images, FileImages) and isinstance(new.images, FileImages)):
        return False
    entries = []
    for split, rows, first in ((old, range(len(old)), 0), (new, new_rows.tolist(), num_old)):
        labels = np.asarray(split.labels).tolist()
        entries += [
            {'category_id': first + labels[row], 'fpath': os.path.abspath(split.images.name(row))} for row in rows
        ]
    write_json(path, {'annotations': entries, 'num_classes': num_old + new.num_classes})
    return True
