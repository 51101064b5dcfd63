"""A loaded model with further classes: rows behind those of its classifier, for tools/enroll.py and lib/api.py."""

import hashlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from lib.builders.model import with_classifier
from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import without_scale
from lib.commands.loaded_model import LoadedModel
from lib.dataset.annotations import ClassNames
from lib.posthoc.imprint import Imprint
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet


class RowGeometry(NamedTuple):
    """The form of a classifier's rows, by which new ones are chosen; see `imprint`.

    Attributes:
        norm: median length of the rows, scales per class multiplied in.
        cosine_scale: scale of a cosine classifier; None: a linear one.
    """

    norm: float
    cosine_scale: float | None


def row_geometry(trained: LoadedModel) -> RowGeometry:
    """Return the form of the rows of a model's classifier."""
    classifier = trained.model.classifier
    state = {key: value.detach().cpu() for key, value in classifier.state_dict().items()}
    norm = float(without_scale(state)['weight'].norm(dim=1).median())
    scale = classifier.scale if isinstance(classifier, CosineClassifier) else None
    return RowGeometry(norm or 1.0, scale)  # 0: all rows are zeros


def enrolled_checkpoint(trained: LoadedModel, chosen: Imprint, classes: ClassNames, counts: np.ndarray) -> Checkpoint:
    """Return the checkpoint of a model with the chosen rows behind the old ones.

    Args:
        classes, counts: names (and parents) of the new classes, and (k,) images that each was enrolled from.
    """
    state = dict(trained.checkpoint.state_dict)
    rows = {'weight': torch.from_numpy(chosen.weight), 'bias': torch.from_numpy(chosen.bias)}
    rows['scale'] = torch.ones(len(chosen.weight))
    rows['centers'] = rows['weight'][:, None].expand(-1, trained.cfg.MODEL.CENTERS - 1, -1)  # all are the same
    for name, value in rows.items():
        key = f'classifier.{name}'
        if key in state:
            state[key] = torch.cat([state[key], value.to(state[key])])
    return replace(trained.for_prediction(), state_dict=state, training_set=_training_set(trained, classes, counts))


def enrolled_model(trained: LoadedModel, checkpoint: Checkpoint) -> LoadedModel:
    """Return the model of such a checkpoint, which shares its backbone with the old one."""
    training_set = checkpoint.training_set
    assert training_set is not None
    return replace(
        trained,
        checkpoint=checkpoint,
        model=with_classifier(trained.model, checkpoint, trained.cfg, trained.device),
        class_names=training_set.class_names,
        train_counts=training_set.class_counts,
    )


def _training_set(trained: LoadedModel, classes: ClassNames, counts: np.ndarray) -> TrainingSet:
    known = trained.checkpoint.training_set
    if known is None:
        LOGGER.warning(
            '%s: no training counts, so many, medium and few are undefined',
            trained.path,
        )
    names = [*trained.class_names, *classes.names]
    parents = list(known.class_parents) if known else []
    if parents or classes.parents:
        num_old = len(trained.class_names)
        parents = (parents or [[] for _ in range(num_old)]) + (classes.parents or [[] for _ in classes.names])
    text = f'{known.digest if known else ""} {classes.names} {counts.tolist()}'
    all_counts = np.concatenate([trained.train_counts, counts]).astype(np.int64)
    return TrainingSet(hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest(), all_counts, names, parents)
