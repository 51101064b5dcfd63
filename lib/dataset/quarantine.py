"""quarantine.json: images that take no part in training, though their files and annotations stay as they are."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.errors import UserError

_FORM = '{"images": [{"fpath": "...", "split": "train", "reason": "..."}, ...]}'


class _Image(msgspec.Struct):
    fpath: str
    split: str
    reason: str = ''


class _QuarantineFile(msgspec.Struct):
    images: list[_Image]


@dataclass(frozen=True)
class Quarantined:
    """What a file means for a split.

    Attributes:
        rows: in rising order.
        unknown: how many listed paths are not in the split.
        other_splits: how many entries are of other splits.
    """

    rows: np.ndarray
    unknown: int
    other_splits: int


def quarantined_rows(names: pa.LargeStringArray, file: str | Path, split: str) -> Quarantined:
    """Return the rows of a split that `file` lists.

    Args:
        names: (num_images,) paths as annotated; a path that stands there twice is quarantined twice.
        file: JSON of the form {"images": [{"fpath", "split", "reason"}, ...]}; other fields are ignored.
        split: entries of other splits do not count.

    Raises:
        UserError: no such file, or not of this form.
    """
    try:
        listed = msgspec.json.decode(Path(file).read_bytes(), type=_QuarantineFile).images
    except FileNotFoundError:
        raise UserError(f'DATASET.QUARANTINE {file}: no such file; tools/doctor.py writes one') from None
    except OSError as error:
        raise UserError(f'DATASET.QUARANTINE {file}: cannot be read ({error.strerror})') from None
    except msgspec.ValidationError as error:
        raise UserError(f'DATASET.QUARANTINE {file}: must be {_FORM} ({error})') from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f'DATASET.QUARANTINE {file}: not valid JSON ({error})') from None
    own = pa.array([image.fpath for image in listed if image.split == split], pa.large_string()).unique()
    rows = np.flatnonzero(pc.is_in(names, own).to_numpy(zero_copy_only=False))
    unknown = len(own) - int(pc.sum(pc.is_in(own, names)).as_py() or 0)
    return Quarantined(rows, unknown, sum(image.split != split for image in listed))
