"""A loaded model with other classes: some removed, some with further images, some new; for tools/enroll.py and lib/api.

Rows of new classes are imprinted behind those of the others, and rows of known classes move; nothing is trained.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from lib.builders.model import with_classifier
from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import without_scale
from lib.commands.loaded_model import LoadedModel
from lib.config.key import did_you_mean
from lib.dataset.annotations import ClassNames
from lib.errors import UserError, shown
from lib.posthoc.candidate_scores import ScoredFeatures, score_features
from lib.posthoc.imprint import Imprint, cross_fit_imprint, imprint
from lib.posthoc.row_updates import STRENGTHS, Choice, KnownRows, RowUpdates
from lib.runtime.log import LOGGER
from lib.runtime.text import count_of, nfc_list
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet


class RowGeometry(NamedTuple):
    """The form of a classifier's rows, by which new ones are chosen; see `imprint`.

    Attributes:
        norm: median length of the rows, scales per class multiplied in.
        cosine_scale: scale of a cosine classifier; None: a linear one.
    """

    norm: float
    cosine_scale: float | None


class LabeledImages(NamedTuple):
    """Images by their features.

    Attributes:
        values: (m, d) features of these images and maybe of others.
        labels: (m,) int64.
        rows: (n,) int64 rows of the images that count.
    """

    values: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Images of each label from 0 to the largest."""
        return np.bincount(self.labels[self.rows])


@dataclass(frozen=True)
class EnrolledRows:
    """Rows of new classes, and of known classes with further images.

    Attributes:
        base: the model that they are chosen for.
        known: labels of the known classes, (k,) ascending.
        updates: updates of their rows; None: there are none.
        choice: the strength and shift of these.
        imprinted: rows of the new classes; None: there are none.
    """

    base: LoadedModel
    known: np.ndarray
    updates: RowUpdates | None
    choice: Choice
    imprinted: Imprint | None

    def correct(self, images: LabeledImages, *, are_new: bool = False) -> np.ndarray:
        """Return whether images are classified correctly with all rows, (n,) bool.

        Args:
            are_new: the labels are those of new classes, else of `base`.
        """
        scored = _score(self.base, self.known, images, are_new=are_new)
        if self.updates is not None:
            scored = self.updates.applied(scored, self.choice, are_new=are_new)
        if self.imprinted is None:
            return scored.correct
        wins = self.imprinted.wins(scored, row_geometry(self.base).cosine_scale)
        return wins == scored.labels if are_new else scored.correct & (wins < 0)

    def cross_fitted(
        self, shots: ScoredFeatures | None, old: ScoredFeatures, *, max_loss: float, folds: int
    ) -> np.ndarray:
        """Return whether each old image is correct with rows that were chosen without it, (n,) bool."""
        geometry = row_geometry(self.base)._asdict()
        return cross_fit_imprint(shots, old, **geometry, max_loss=max_loss, folds=folds, updates=self.updates)

    def checkpoint(self, classes: ClassNames, num_new: np.ndarray, num_known: np.ndarray) -> Checkpoint:
        """Return the checkpoint of the model with all rows.

        Args:
            classes: names (and parents) of the new classes.
            num_new, num_known: images that each new class, and each class of `base`, was enrolled from.
        """
        state, base = dict(self.base.checkpoint.state_dict), self.base
        if self.updates is not None:
            _set_rows(state, self.known, *self.updates.rows(self.choice))
        if self.imprinted is not None:
            _append_rows(state, self.imprinted, num_centers=base.cfg.MODEL.CENTERS)
        counts = base.train_counts.copy()
        counts[self.known] += num_known[self.known]
        training_set = _training_set(base, classes, np.concatenate([counts, num_new]))
        return replace(base.for_prediction(), state_dict=state, training_set=training_set)


def choose_rows(
    base: LoadedModel,
    old: LabeledImages | None,
    new: LabeledImages | None,
    known: LabeledImages | None,
    *,
    max_loss: float,
) -> tuple[EnrolledRows, ScoredFeatures | None, ScoredFeatures | None]:
    """Choose the rows of new classes, and of known ones with further images; see `imprint` and `RowUpdates`.

    Args:
        old: images of all classes of `base` that it was not trained on, which limit the loss; None: there are none.
        new: images of new classes, which their labels number; None: there are none.
        known: further images of known classes; None: there are none.

    Returns:
        The rows, the images of new classes (None: there are none) and the old images, scored.
    """
    known_labels, numbers = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if known is not None:
        known_labels, numbers = np.unique(known.labels[known.rows], return_inverse=True)
    geometry = row_geometry(base)
    shots = None if new is None else _score(base, known_labels, new, are_new=True)
    of_old = None if old is None else _score(base, known_labels, old)
    updates, choice, left = None, Choice(0, 0.0), max_loss
    voters, limits = shots, of_old
    if known is not None:
        of_known = replace(_score(base, known_labels, known), labels=numbers)
        scale = geometry.cosine_scale
        updates = RowUpdates(_known_rows(base, known_labels), of_known, of_old, cosine_scale=scale, max_loss=max_loss)
        choice = updates.choose()
        left, limits = updates.left(choice), updates.old_at(choice) if updates.has_old else None
        voters = None if shots is None else updates.applied(shots, choice, are_new=True)
        LOGGER.info(
            '%s: %s, strength %g, shift %.3g', count_of(len(known_labels), 'known class', 'known classes'),
            count_of(len(numbers), 'further image'), STRENGTHS[choice.strength], choice.shift,
        )  # fmt: skip
    imprinted = None if voters is None else imprint(voters, limits, **geometry._asdict(), max_loss=left)
    return EnrolledRows(base, known_labels, updates, choice, imprinted), shots, of_old


def labels_of(trained: LoadedModel, names: Sequence[str], option: str) -> list[int]:
    """Return the labels of the classes with these names, ascending.

    Args:
        option: option that names them, for the error message.

    Raises:
        UserError: the model has no class of that name, or no other class.
    """
    wanted = set(nfc_list(list(names)))
    labels = [label for label, name in enumerate(trained.class_names) if name in wanted]
    unknown = sorted(wanted - {trained.class_names[label] for label in labels})
    if unknown:
        hint = known_name_hint(unknown[0], trained.class_names)
        raise UserError(f'{option}: the model has no class {shown(unknown[0])}{hint}')
    if len(labels) == len(trained.class_names):
        raise UserError(f'{option} names all classes of the model: leave one, or train another model')
    return labels


def known_name_hint(name: str, known: Iterable[str]) -> str:
    """Return a hint at a known name that resembles an unknown one, or that the commas of an option have split."""
    known = [*known]
    whole = next((one for one in known if name in map(str.strip, one.split(','))), '')
    if whole:
        return f' (did you mean {shown(whole)}? Names with commas need a .txt file, with a name per line)'
    return did_you_mean(name, known)


def kept_classes(trained: LoadedModel, retired: Sequence[int]) -> np.ndarray:
    """Return the labels of the classes that stay, ascending, as the model without the others numbers them."""
    return np.setdiff1d(np.arange(trained.checkpoint.num_classes), retired)


def without_classes(trained: LoadedModel, retired: Sequence[int]) -> LoadedModel:
    """Return the model without some of its classes; the others keep their order, and the backbone is shared."""
    if not len(retired):
        return trained
    kept = kept_classes(trained, retired)
    state = {
        name: value[torch.from_numpy(kept)] if name.startswith('classifier.') else value
        for name, value in trained.checkpoint.state_dict.items()
    }
    parents = trained.class_parents
    names = [trained.class_names[label] for label in kept.tolist()]
    known = trained.checkpoint.training_set
    text = f'{known.digest if known else ""} {names}'
    training_set = TrainingSet(
        _digest(text), trained.train_counts[kept], names, [parents[label] for label in kept.tolist()] if parents else []
    )
    return enrolled_model(
        trained,
        replace(trained.for_prediction(), state_dict=state, training_set=training_set if known else None),
        names,
    )


def enrolled_model(trained: LoadedModel, checkpoint: Checkpoint, names: Sequence[str] = ()) -> LoadedModel:
    """Return the model of a checkpoint with other classes, which shares its backbone with the old one.

    Args:
        names: names of the classes; by default, those of the checkpoint.
    """
    training_set = checkpoint.training_set
    num_classes = checkpoint.num_classes
    return replace(
        trained,
        checkpoint=checkpoint,
        model=with_classifier(trained.model, checkpoint, trained.cfg, trained.device),
        class_names=list(names) or (training_set.class_names if training_set else []),
        train_counts=training_set.class_counts if training_set else np.zeros(num_classes, np.int64),
    )


def row_geometry(trained: LoadedModel) -> RowGeometry:
    """Return the form of the rows of a model's classifier."""
    classifier = trained.model.classifier
    norm = float(_effective(trained)['weight'].norm(dim=1).median())
    scale = classifier.scale if isinstance(classifier, CosineClassifier) else None
    return RowGeometry(norm or 1.0, scale)  # 0: all rows are zeros


def _effective(trained: LoadedModel) -> dict[str, torch.Tensor]:
    """Return the state of a classifier on the CPU, with scales per class multiplied in."""
    return without_scale({key: value.detach().cpu() for key, value in trained.model.classifier.state_dict().items()})


def _known_rows(trained: LoadedModel, labels: np.ndarray) -> KnownRows:
    state, rows = _effective(trained), torch.from_numpy(labels)
    weight = state['weight'][rows, None]
    if 'centers' in state:
        weight = torch.cat([weight, state['centers'][rows]], dim=1)
    bias = state['bias'][rows].double().numpy() if 'bias' in state else np.zeros(len(labels))
    return KnownRows(labels, weight.double().numpy(), bias, trained.train_counts[labels])


def _score(base: LoadedModel, known: np.ndarray, images: LabeledImages, *, are_new: bool = False) -> ScoredFeatures:
    """Score images by the rows that do not change: those of all classes but `known`."""
    without = known if len(known) else None
    return score_features(base.engine, images.values, images.labels, are_new=are_new, without=without).at(images.rows)


def _set_rows(state: dict[str, torch.Tensor], labels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
    """Set the rows of some classes: weight (k, c, d), with scales per class multiplied in, and bias (k,)."""
    values = {'weight': weight[:, 0], 'bias': bias, 'scale': np.ones(len(labels)), 'centers': weight[:, 1:]}
    for name, value in values.items():
        key = f'classifier.{name}'
        if key in state:
            state[key] = state[key].clone()
            state[key][torch.from_numpy(labels)] = torch.from_numpy(value).to(state[key])


def _append_rows(state: dict[str, torch.Tensor], imprinted: Imprint, *, num_centers: int) -> None:
    rows = {'weight': torch.from_numpy(imprinted.weight), 'bias': torch.from_numpy(imprinted.bias)}
    rows['scale'] = torch.ones(len(imprinted.weight))
    rows['centers'] = rows['weight'][:, None].expand(-1, num_centers - 1, -1)  # all are the same
    for name, value in rows.items():
        key = f'classifier.{name}'
        if key in state:
            state[key] = torch.cat([state[key], value.to(state[key])])


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
    return TrainingSet(_digest(text), counts.astype(np.int64), names, parents)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()
