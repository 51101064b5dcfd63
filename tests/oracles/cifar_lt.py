"""Long-tailed CIFAR as in the literature, step by step and without NumPy."""

import random


class Twister:
    """The Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998), seeded like np.random.seed(seed)."""

    def __init__(self, seed: int) -> None:
        self.state = [seed]
        for number in range(1, 624):
            last = self.state[-1]
            self.state.append((1812433253 * (last ^ (last >> 30)) + number) & 0xFFFFFFFF)
        self.position = 624

    def bits(self) -> int:
        """Return the next 32 random bits."""
        if self.position == 624:
            for i in range(624):
                mixed = (self.state[i] & 0x80000000) | (self.state[(i + 1) % 624] & 0x7FFFFFFF)
                self.state[i] = self.state[(i + 397) % 624] ^ (mixed >> 1) ^ (0x9908B0DF if mixed & 1 else 0)
            self.position = 0
        word = self.state[self.position]
        self.position += 1
        word ^= word >> 11
        word ^= (word << 7) & 0x9D2C5680
        word ^= (word << 15) & 0xEFC60000
        return word ^ (word >> 18)

    def up_to(self, limit: int) -> int:
        """Return an integer from 0 to limit: as many bits as the limit has, drawn again while they exceed it."""
        mask = (1 << limit.bit_length()) - 1
        while True:
            number = self.bits() & mask
            if number <= limit:
                return number

    def shuffle(self, rows: list[int]) -> None:
        """Shuffle in place (Fisher and Yates): from the last position down, swap with a random one up to it."""
        for last in range(len(rows) - 1, 0, -1):
            other = self.up_to(last)
            rows[last], rows[other] = rows[other], rows[last]


def published_rows(labels: list[int], num_classes: int, kind: str, ratio: int) -> list[int]:
    """Return the selected rows by class, in the order after the shuffle (Cao et al., NeurIPS 2019)."""
    twister = Twister(0)
    selected = []
    largest = len(labels) / num_classes
    for c in range(num_classes):
        if kind == 'exp':
            size = int(largest * (1 / ratio) ** (c / (num_classes - 1.0)))
        else:
            size = int(largest) if c < num_classes // 2 else int(largest * (1 / ratio))
        rows = [row for row, label in enumerate(labels) if label == c]
        twister.shuffle(rows)
        selected += rows[:size]
    return selected


def random_labels(num_images: int, num_classes: int, seed: int) -> list[int]:
    """Return labels with equally many images per class, in random order."""
    labels = [row % num_classes for row in range(num_images)]
    random.Random(seed).shuffle(labels)
    return labels
