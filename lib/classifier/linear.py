"""The linear classifier ('FC')."""

from torch import nn


class Linear(nn.Linear):
    """Linear classifier, z = W f + b: features (batch, num_features) -> logits (batch, num_classes).

    `weight` is (num_classes, num_features), `bias` is (num_classes,).
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)
