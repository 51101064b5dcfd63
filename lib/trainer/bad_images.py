"""Training images that cannot be decoded: which, and how many are too many."""

from collections.abc import Callable

from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.trainer.run_folder import RunFolder, write_bad_images

_ALWAYS_PASS = 10


class BadImages:
    """Training images that could not be decoded: each is named once; too many end the run.

    Args:
        name_of: row -> what to call it.
        num_images: in the training set.
        max_fraction: share above which the run ends; ten always pass.
    """

    def __init__(self, folder: RunFolder, name_of: Callable[[int], str], num_images: int, max_fraction: float) -> None:
        self._folder, self._name_of = folder, name_of
        self._limit = max(_ALWAYS_PASS, max_fraction * num_images)
        self._max_fraction = max_fraction
        # A run that goes on knows what it found before.
        self._reasons = folder.bad_images().get('train', {})

    def add(self, bad: list[tuple[int, str]]) -> None:
        """Note (row, reason) pairs.

        Raises:
            UserError: too many by now.
        """
        new = {self._name_of(row): reason for row, reason in bad}
        for name in new.keys() - self._reasons.keys():
            LOGGER.warning('%s: %s; another image of its class takes its place', name, new[name])
        if new.keys() <= self._reasons.keys():
            return
        self._reasons.update(new)
        if self._folder.writes:
            write_bad_images(self._folder.path, 'train', self._reasons)
        if len(self._reasons) > self._limit:
            raise UserError(
                f'{len(self._reasons)} training images cannot be decoded, more than DATASET.MAX_BAD_FRACTION '
                f'{self._max_fraction:g} of all; they are listed in {self._folder.path / "bad_images.csv"}'
            )
