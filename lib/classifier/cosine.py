"""The cosine classifier ('FCNorm'), its rows from class names, and the projections that contrastive losses compare."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lib.classifier.base import Classifier, draw_rows
from lib.errors import UserError

TINY = 1e-24  # squared norm up to which a vector is treated as zero
_NAMES_AT_ONCE = 256


class CosineClassifier(Classifier):
    """Cosine classifier, z_j = scale * cos(w_j, f) (Gidaris & Komodakis, CVPR 2018, eq. 2), without bias.

    Features (batch, num_features) -> logits (batch, num_classes) in [-scale, scale]; `weight` is
    (num_classes, num_features). A zero vector has cosine 0 with every vector, and zero gradient.

    With several centers, cos(w_j, f) is that of the nearest center of class j (sub-center ArcFace: Deng et al., ECCV
    2020, section 3.2). `weight` is the first, `centers` (num_classes, num_centers - 1, num_features) are the others.

    Args:
        num_centers: per class.
        classes: hold only the rows of these classes, initialized like those of the whole classifier; None: all.
    """

    def __init__(
        self, num_features: int, num_classes: int, scale: float, *, num_centers: int = 1, classes: range | None = None
    ) -> None:
        super().__init__(num_features, num_classes, classes=classes)
        self.scale, self.num_centers = scale, num_centers
        if num_centers > 1:
            self.centers = nn.Parameter(torch.empty(len(self.classes), num_centers - 1, num_features))
        std = num_features**-0.5  # rows of about unit length, with uniform direction
        with torch.no_grad():
            for parameter in self.parameters():
                draw_rows(parameter, self.classes, num_classes, lambda block: block.normal_(std=std))

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x (batch, num_features), weight and None, see `Classifier.factors`."""
        weight = self.weight if self.num_centers == 1 else torch.cat([self.weight[:, None], self.centers], dim=1)
        # Features are scaled, because (batch, num_features) is smaller than (batch, num_classes).
        return unit(features) * self.scale, unit(weight), None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x, weight, _ = self.factors(features)
        logits = F.linear(x, weight.flatten(0, -2))
        return logits if self.num_centers == 1 else logits.unflatten(-1, (-1, self.num_centers)).max(dim=-1).values

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, scale={self.scale}, num_centers={self.num_centers}'


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return the rows of `vectors` (n, d) normalized to length 1, in float32 or better; zero rows stay zero.

    F.normalize would divide zero rows by 1e-12, and multiply their gradient by 1e12.
    """
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()  # bfloat16 sums are too inexact
    squares = vectors.square().sum(dim=-1, keepdim=True)  # (n, 1)
    return vectors * squares.masked_fill(squares <= TINY, torch.inf).rsqrt()


def text_rows(
    names: Sequence[str],
    num_features: int,
    *,
    model: str,
    weights: Path,
    prompt: str = 'a photo of a {}.',
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return rows (len(names), num_features) float32 of length 1 from class names (zero-shot CLIP: Radford, ICML 2021).

    CLIP compares the projected image features P f with the embedding t of a text: t . P f = (P^T t) . f. So with the
    features before the projection, as backbones of timm with num_classes=0 compute them, the row is P^T t, as in the
    code of LIFT (Shi et al., ICML 2024); without a projection it is t.

    Args:
        names: names of the classes; underscores count as spaces.
        num_features: number of features of the backbone, which must be the image encoder of the same CLIP model.
        model: name in open_clip.
        weights: file with its weights.
        prompt: text around the name, which replaces {}.
        device: device that computes; None: the CPU.

    Raises:
        UserError: the weights cannot be loaded, or the width of the texts is not that of the features.
    """
    open_clip = import_open_clip()
    try:
        clip: Any = open_clip.create_model(model, pretrained=str(weights), device=device or 'cpu').eval()
        tokenizer = open_clip.get_tokenizer(model)
    except (OSError, RuntimeError, ValueError, ImportError, UnpicklingError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f'MODEL.TEXT_MODEL {model}, {weights}: {reason}') from None
    texts = [prompt.replace('{}', name.replace('_', ' ')) for name in names]
    with torch.no_grad():
        rows = torch.cat(
            [
                clip.encode_text(tokenizer(texts[start : start + _NAMES_AT_ONCE]).to(device), normalize=True)
                for start in range(0, len(texts), _NAMES_AT_ONCE)
            ]
        ).float()
        projection = getattr(clip.visual, 'proj', None)
        if torch.is_tensor(projection) and projection.shape == (num_features, rows.shape[1]):
            rows = rows @ projection.float().T
        elif rows.shape[1] != num_features:
            raise UserError(
                f'MODEL.TEXT_MODEL {model} has texts of width {rows.shape[1]}, but the features of MODEL.BACKBONE have '
                f'width {num_features}: give the CLIP model whose image encoder it is, or --MODEL_CLASSIFIER_INIT '
                'class_means'
            )
        return unit(rows)


def import_open_clip() -> ModuleType:
    """Return the module open_clip.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec('open_clip') is None:
        raise UserError(
            'MODEL.CLASSIFIER_INIT text needs the package open_clip: python -m pip install -r requirements-text.txt'
        )
    return importlib.import_module('open_clip')


class Projector(nn.Module):
    """Two MLPs into one embedding space, for features and for classifier rows (BCL: Zhu et al., CVPR 2022).

    Each is linear, BatchNorm, ReLU, linear, with num_features hidden units, as in its authors' code. Both outputs are
    float32, of length 1. The rows take num_classes * num_features numbers per layer and step.

    Args:
        num_features: width of the features and of the classifier's rows.
        width: width of the embeddings.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.features = _mlp(num_features, width)
        self.rows = _mlp(num_features, width)

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (batch, width) of features (batch, num_features)."""
        return unit(self.features(features))

    def prototypes(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the prototypes (num_classes, width) of a classifier's weight (num_classes, num_features)."""
        return unit(self.rows(weight))


def _mlp(num_features: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_features, num_features),
        nn.BatchNorm1d(num_features),
        nn.ReLU(inplace=True),
        nn.Linear(num_features, width),
    )
