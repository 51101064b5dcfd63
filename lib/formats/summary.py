"""A converted data set in a few lines: images, classes and imbalance of each split."""

from pathlib import Path

import numpy as np

from lib.formats.converted import Converted


def summary_lines(converted: Converted, paths: dict[str, Path]) -> list[str]:
    """Return one line a file written; imbalance is the largest class over the smallest that has an image."""
    lines = []
    for name, path in paths.items():
        split = converted.splits[name]
        line = f'{path}: {len(split):,} images'
        if split.labels is None:
            line += ', without labels'
        else:
            counts = np.bincount(split.labels, minlength=len(converted.names))
            present = counts[counts > 0]
            low, high = int(present.min()), int(present.max())
            line += f', {len(present):,} of {len(counts):,} classes, {low:,} to {high:,} images a class'
            line += f' (imbalance {high / low:,.1f})'
        lines.append(line)
    folder = next(iter(paths.values())).parent
    with_parents = '' if converted.parents is None else ' and parents'
    lines.append(f'{folder / "classes.json"}: names{with_parents} of {len(converted.names):,} classes')
    return lines
