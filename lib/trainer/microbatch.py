"""How a batch is computed: by so many ranks, and by each of them in so many parts one after the other."""

from dataclasses import dataclass
from itertools import pairwise

from lib.distributed.process_group import ALONE, Ranks


@dataclass(frozen=True)
class Parts:
    """A batch in parts.

    Attributes:
        slices: of this rank's images, one after the other.
        sizes: by part, how many images each rank has in it.
    """

    slices: tuple[slice, ...]
    sizes: tuple[tuple[int, ...], ...]

    @property
    def num_images(self) -> int:
        """Images of the batch, over all ranks."""
        return sum(map(sum, self.sizes))


def whole_batch(num_images: int) -> Parts:
    """Return a batch that one process computes in one go."""
    return Parts((slice(0, num_images),), ((num_images,),))


def parts_of(batch_size: int, ranks: Ranks = ALONE, at_once: int = 0) -> Parts:
    """Return a batch of `batch_size` images in parts of at most `at_once` (0: any number) on each rank.

    Parts are as equal as can be, and every rank has as many of them. Pairs (image XOR 1) stay together in a batch of
    whole pairs. No part is a single image, which BatchNorm cannot train on: where a rank with two images more would
    need a part more than the others can make, its parts are larger than `at_once`.
    """
    each = [_share_of(rank, ranks, batch_size) for rank in range(ranks.count)]
    pairs = 1 if batch_size % 2 else 2
    most = max(each) // pairs  # pairs, or images
    number = -(-most // max(1, at_once // pairs)) if at_once else 1
    number = max(1, min(number, min(each) // 2))
    edges = [[pairs * (part * (size // pairs) // number) for part in range(number + 1)] for size in each]
    own = edges[ranks.rank]
    slices = tuple(slice(start, stop) for start, stop in pairwise(own))
    sizes = tuple(tuple(edge[part + 1] - edge[part] for edge in edges) for part in range(number))
    return Parts(slices, sizes)


def _share_of(rank: int, ranks: Ranks, batch_size: int) -> int:
    rows = Ranks(rank, ranks.count).share_pairs(batch_size)
    return rows.stop - rows.start
