"""The long-tailed CIFAR of the literature, step by step and without NumPy."""

import random


class Twister:
    """The Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998) as NumPy's np.random.seed(seed) starts it."""

    def __init__(self, seed: int) -> None:
        self.state = [seed]
        for number in range(1, 624):
            last = self.state[-1]
            self.state.append((1812433253 * (last ^ (last >> 30)) + number) & 0xFFFFFFFF)
        self.place = 624

    def bits(self) -> int:
        """The next 32 random bits."""
        if self.place == 624:
            for i in range(624):
                mixed = (self.state[i] & 0x80000000) | (self.state[(i + 1) % 624] & 0x7FFFFFFF)
                self.state[i] = self.state[(i + 397) % 624] ^ (mixed >> 1) ^ (0x9908B0DF if mixed & 1 else 0)
            self.place = 0
        word = self.state[self.place]
        self.place += 1
        word ^= word >> 11
        word ^= (word << 7) & 0x9D2C5680
        word ^= (word << 15) & 0xEFC60000
        return word ^ (word >> 18)

    def up_to(self, limit: int) -> int:
        """A whole number from 0 to limit: as many bits as it has, drawn again while they say more."""
        mask = (1 << limit.bit_length()) - 1
        while True:
            number = self.bits() & mask
            if number <= limit:
                return number

    def shuffle(self, rows: list[int]) -> None:
        """From the last place down to the second, each changes places with one drawn from those up to it."""
        for last in range(len(rows) - 1, 0, -1):
            other = self.up_to(last)
            rows[last], rows[other] = rows[other], rows[last]


def published_rows(labels: list[int], num_classes: int, kind: str, ratio: int) -> list[int]:
    """Rows that stay, class by class and in the order in which the shuffle leaves them (Cao et al., NeurIPS 2019)."""
    twister = Twister(0)
    kept = []
    largest = len(labels) / num_classes
    for c in range(num_classes):
        if kind == 'exp':
            size = int(largest * (1 / ratio) ** (c / (num_classes - 1.0)))
        else:
            size = int(largest) if c < num_classes // 2 else int(largest * (1 / ratio))
        rows = [row for row, label in enumerate(labels) if label == c]
        twister.shuffle(rows)
        kept += rows[:size]
    return kept


def random_labels(num_images: int, num_classes: int, seed: int) -> list[int]:
    """As many labels of each class, in an order of their own."""
    labels = [row % num_classes for row in range(num_images)]
    random.Random(seed).shuffle(labels)
    return labels
