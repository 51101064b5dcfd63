"""The results of tools/clean.py: suspects.csv, clean.json, the review pages and decisions.json."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.split import DatasetSplit
from lib.commands.doctor import contradictory_rows
from lib.commands.next_steps import after_cleaning, cleaned_training
from lib.config.defaults import Config
from lib.config.yaml_text import as_values
from lib.dataset.corrections import Decision, read_decisions, write_decisions
from lib.dataset.features import Features
from lib.dataset.images import FileImages
from lib.dataset.index import ClassIndex
from lib.errors import UserError
from lib.posthoc.label_errors import CANNOT_TELL, DUPLICATE, FINE, KINDS, MISLABELED, Findings
from lib.posthoc.out_of_fold import Candidates
from lib.report.galleries import reduced
from lib.report.review_page import PHOTO_SIDE, ReviewData, write_review_pages
from lib.runtime.csv_file import write_csv
from lib.runtime.device import Device
from lib.runtime.files import file_exists, replace_together, write_bytes, write_json
from lib.runtime.log import LOGGER
from lib.runtime.text import count_of
from lib.trainer.samples import Samples, read_samples

SUSPECTS, SUMMARY, PAGE, DECISIONS = 'suspects.csv', 'clean.json', 'clean.html', 'decisions.json'
_NUM_TYPICAL, _CSV_BLOCK = 8, 10_000
_LEAST_WEIGHT = 0.01  # of an image in decisions.json


@dataclass(frozen=True)
class CleanSource:
    """The images to judge, and where the results go.

    Attributes:
        cfg: with the recipe's values.
        train: the training split, with the labels that are judged.
        features: features of all its images.
        rows: (n,) rows of the images to judge, ascending: not in quarantine, labeled and readable.
        class_names: (num_classes,).
        folder: folder of the run, or LOG_ROOT/NAME.
        is_trained: the features are those of a trained model.
    """

    cfg: Config
    device: Device
    train: DatasetSplit
    features: Features
    rows: np.ndarray
    class_names: Sequence[str]
    folder: Path
    is_trained: bool

    @cached_property
    def samples(self) -> Samples | None:
        """Record of the training images by the run of the model (TRAIN.TRACK_SAMPLES)."""
        return read_samples(self.folder, len(self.train), self.train.digest()) if self.is_trained else None


@dataclass(frozen=True)
class CleanResult:
    """Judgments of the images of `source`.

    Attributes:
        candidates, findings: candidates and findings of its rows.
        head: 'linear' or 'cosine'.
        num_rounds: rounds that were needed.
    """

    source: CleanSource
    candidates: Candidates
    findings: Findings
    head: str
    num_rounds: int

    @cached_property
    def kind(self) -> np.ndarray:
        """(n,) uint8, index into KINDS, where reviewed labels are fine and images with another label are duplicates."""
        kinds = self.findings.kind.copy()
        kinds[self._is_duplicate & np.isin(kinds, (FINE, CANNOT_TELL))] = DUPLICATE
        kinds[self.is_reviewed & (kinds != CANNOT_TELL)] = FINE
        return kinds

    @cached_property
    def is_reviewed(self) -> np.ndarray:
        """(n,) bool: a person has kept or given the label in an earlier review, see DATASET.CORRECTIONS."""
        sure = (one for one in self.earlier if one.by == 'review' and one.action in ('keep', 'relabel'))
        label_of = {one.fpath: one.to or one.label for one in sure}
        reviewed = np.zeros(len(self.source.rows), bool)
        for position in range(len(reviewed) if label_of else 0):
            reviewed[position] = label_of.get(self.fpath(position)) == self.label_name(position)
        return reviewed

    @cached_property
    def _is_duplicate(self) -> np.ndarray:
        """(n,) bool: nearly the same image is judged with another label, by doctor.json of this data set."""
        source = self.source
        labels = np.full(len(source.train), -1)
        labels[source.rows] = self.candidates.labels
        found = contradictory_rows(source.cfg, source.train, labels)
        return np.isin(source.rows, found)

    @cached_property
    def suspects(self) -> np.ndarray:
        """Positions of the suspects among the judged images, the most probable errors first."""
        positions = np.flatnonzero(~np.isin(self.kind, (FINE, CANNOT_TELL)))
        return positions[np.argsort(-np.nan_to_num(self.findings.error[positions], nan=0.0), kind='stable')]

    @cached_property
    def earlier(self) -> list[Decision]:
        """Decisions of DATASET.CORRECTIONS, which the labels include."""
        path = self.source.cfg.DATASET.CORRECTIONS
        return read_decisions(path) if path else []

    def fpath(self, position: int) -> str:
        """Return the path of an image as annotated."""
        return str(self.source.train.names[int(self.source.rows[position])].as_py())

    def label_name(self, position: int) -> str:
        """Return the name of an image's label."""
        return self.source.class_names[int(self.candidates.labels[position])]

    def counts(self) -> dict[str, int]:
        """Return the number of images of each kind."""
        numbers = np.bincount(self.kind, minlength=len(KINDS)).tolist()
        return dict(zip(KINDS, numbers, strict=True))


def write_results(result: CleanResult, folder: Path) -> list[str]:
    """Write all files together, and return log lines: their paths, and the next steps."""
    cfg, files = result.source.cfg, [folder / SUSPECTS, folder / SUMMARY]
    decisions = _decisions(result) if cfg.CLEAN.APPLY else None
    with replace_together(folder):
        write_csv(files[0], _HEADER, _csv_rows(result))
        write_json(folder / SUMMARY, _summary(result))
        files += write_review_pages(folder / PAGE, _review_data(result), max_bytes=cfg.CLEAN.PAGE_MB * 1e6)
        if decisions is not None:
            _keep_former(folder / DECISIONS, decisions)
            files.append(folder / DECISIONS)
            write_decisions(files[-1], decisions)
    lines = [f'wrote {path}' for path in files]
    if decisions is not None:
        lines.append(f'{DECISIONS}: {count_of(len(decisions), "decision")} ({cfg.CLEAN.APPLY})')
    if not len(result.suspects if decisions is None else decisions):
        return lines  # nothing to review or to train with
    return [*lines, *after_cleaning(cfg, folder, _training(result, folder / DECISIONS))]


def _keep_former(path: Path, decisions: list[Decision]) -> None:
    """Copy the decisions at `path`, if they are others, to decisions_1.json, or the next free number: they are work."""
    with suppress(UserError):  # damaged, or changed by hand: others
        if not file_exists(path) or read_decisions(path) == decisions:
            return
    numbered = (path.with_name(f'{path.stem}_{number}{path.suffix}') for number in count(1))
    kept = next(name for name in numbered if not file_exists(name))
    write_bytes(kept, path.read_bytes())
    LOGGER.info('kept the former decisions in %s', kept)


_HEADER = (
    'rank', 'fpath', 'kind', 'label', 'proposal', 'proposal_probability', 'error_probability', 'margin', 'similarity',
    'agreement', 'aum', 'forgotten',
)  # fmt: skip


def _csv_rows(result: CleanResult) -> Iterator[tuple]:
    findings, candidates, samples = result.findings, result.candidates, result.source.samples
    for start in range(0, len(result.suspects), _CSV_BLOCK):
        some = result.suspects[start : start + _CSV_BLOCK]
        rest = np.where(candidates.classes[some] == candidates.labels[some, None], -np.inf, candidates.logits[some])
        margins = candidates.own[some] - rest.max(axis=1)
        for number, (position, margin) in enumerate(zip(some.tolist(), margins.tolist(), strict=True), start + 1):
            row, proposal = result.source.rows[position], findings.proposal[position]
            yield (
                number,
                result.fpath(position),
                KINDS[result.kind[position]],
                result.label_name(position),
                result.source.class_names[proposal] if proposal >= 0 else '',
                _number(findings.probability[position]),
                _number(findings.error[position]),
                _number(margin),
                _number(candidates.own_similarity[position]),
                _number(findings.agreement[position]),
                _number(samples.aum[row]) if samples else '',
                int(samples.num_forgotten[row]) if samples else '',
            )


def _number(value: float) -> str:
    return f'{value:.6g}' if np.isfinite(value) else ''


def _decisions(result: CleanResult) -> list[Decision]:
    """Return the decisions of CLEAN.APPLY, by row; those of DATASET.CORRECTIONS about other images are kept."""
    findings = result.findings
    action: Any = result.source.cfg.CLEAN.APPLY
    chosen = result.kind == MISLABELED
    if action == 'relabel':
        chosen &= findings.proposal >= 0
    weights = np.clip(1 - findings.error, _LEAST_WEIGHT, 1)
    if action == 'weight':
        chosen = ~result.is_reviewed & (weights < 1 - _LEAST_WEIGHT)  # False for nan
    known = {one.fpath: one for one in result.earlier}
    for position in np.flatnonzero(chosen).tolist():
        fpath = result.fpath(position)
        # As annotated: both files correct the same annotations.
        label = known[fpath].label if fpath in known else result.label_name(position)
        to = result.source.class_names[findings.proposal[position]] if action == 'relabel' else ''
        weight = round(float(weights[position]), 4) if action == 'weight' else None
        known[fpath] = Decision(fpath, action, label, to, weight, 'clean')
    return list(known.values())


def _summary(result: CleanResult) -> dict[str, Any]:
    """Return the content of clean.json."""
    source, noise = result.source, result.findings.noise
    images = np.bincount(result.candidates.labels, minlength=len(source.class_names))
    suspects = np.bincount(result.candidates.labels[result.suspects], minlength=len(source.class_names))
    used = ('CLEAN', 'DATASET.CORRECTIONS', 'DATASET.QUARANTINE', 'SEED')
    return {
        'source': source.train.source,
        'digest': source.train.digest(),
        'head': result.head,
        'rounds': result.num_rounds,
        'images': len(source.rows),
        'unreadable': int((~source.features.readable).sum()),
        'kinds': result.counts(),
        'noise': {'rate': noise.overall, 'low': noise.overall_low, 'high': noise.overall_high},
        'temperature': noise.temperature,
        'classes': [
            {'class': name, 'images': number, 'suspects': num_suspects, 'rate': rate, 'low': low, 'high': high}
            for name, number, num_suspects, rate, low, high in zip(
                source.class_names, images.tolist(), suspects.tolist(),
                *map(_rounded, (noise.rate, noise.low, noise.high)), strict=True,
            )
        ],
        'options': {name: value for name, value in as_values(source.cfg).items() if name.startswith(used)},
    }  # fmt: skip


def _rounded(values: np.ndarray) -> list[float | None]:
    return [round(value, 6) if np.isfinite(value) else None for value in values.tolist()]


def _review_data(result: CleanResult) -> ReviewData:
    source, suspects, findings = result.source, result.suspects, result.findings
    images = source.train.images
    return ReviewData(
        title=f'{source.cfg.NAME}: suspected labels',
        source=source.train.source,
        split='train',
        rows=source.rows[suspects],
        fpaths=source.train.names.take(source.rows[suspects]).to_pylist(),
        kinds=[KINDS[kind] for kind in result.kind[suspects].tolist()],
        labels=result.candidates.labels[suspects],
        errors=findings.error[suspects],
        proposals=findings.proposal[suspects, None],
        probabilities=findings.probability[suspects, None],
        class_names=source.class_names,
        typical=_typical(result),
        open_image=lambda row: reduced(images.open(row), PHOTO_SIDE),
        path_of=images.path if isinstance(images, FileImages) else None,
        next_step=shlex.join(_training(result, DECISIONS)),
        earlier=result.earlier,
    )


def _typical(result: CleanResult) -> Callable[[int], list[int]]:
    """Return a function: class -> rows of its most typical images, by similarity to the others of the class."""
    candidates = result.candidates
    is_typical = (result.kind == FINE) | (result.kind == CANNOT_TELL)
    index = ClassIndex(candidates.labels, candidates.num_classes)

    def typical(label: int) -> list[int]:
        positions = np.asarray(index.rows_of(label)).astype(np.int64)
        positions = positions[is_typical[positions]]
        similarity = np.nan_to_num(candidates.own_similarity[positions], nan=-1.0)
        return result.source.rows[positions[np.argsort(-similarity, kind='stable')[:_NUM_TYPICAL]]].tolist()

    return typical


def _training(result: CleanResult, decisions: Path | str) -> list[str]:
    source = result.source
    config = source.folder / 'config.yaml'
    return cleaned_training(source.cfg, decisions, config if source.is_trained and config.exists() else None)
