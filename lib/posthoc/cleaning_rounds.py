"""Judge labels in rounds: each one after the first trusts images by the probability that their label is right."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.posthoc.judged_images import JudgedImages
from lib.posthoc.label_errors import Findings, find_label_errors
from lib.posthoc.out_of_catalog import find_strangers
from lib.posthoc.out_of_fold import Candidates, out_of_fold_candidates


def judge_in_rounds(
    images: JudgedImages,
    folder: Path,
    *,
    head: str,
    num_rounds: int,
    num_candidates: int = 10,
    num_folds: int = 5,
    seed: int = 0,
    margins: np.ndarray | None = None,
    device: torch.device | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[tuple[Candidates, Findings]]:
    """Yield the candidates and the findings of each round, until no kind changes, at most `num_rounds` times.

    Each round after the first weights the images by the probability that their label is right, and draws other folds.

    Args:
        images: images whose labels are judged, with the weights of the first round.
        folder: holds the scores of each round, so that an interrupted command resumes.
        margins: as in `find_label_errors`.
        head, num_candidates, num_folds, seed, device, group: as in `out_of_fold_candidates`.
    """
    kinds = np.zeros(0)
    for number in range(num_rounds):
        candidates = out_of_fold_candidates(
            images,
            folder / str(number + 1),
            head=head,
            num_candidates=num_candidates,
            num_folds=num_folds,
            seed=seed + number,
            device=device,
            group=group,
        )
        strangers = find_strangers(images, candidates, device)
        findings = find_label_errors(candidates, out_of_catalog=strangers, margins=margins)
        yield candidates, findings
        if group.broadcast_object(np.array_equal(kinds, findings.kind)):
            return
        kinds = findings.kind
        weights = 1 - np.nan_to_num(findings.error, nan=0.0).astype(np.float32)
        images = replace(images, weights=group.broadcast_object(weights))
