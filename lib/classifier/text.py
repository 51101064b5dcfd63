"""Classifier rows from class names, by the text encoder of a CLIP model of open_clip (an optional package)."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lib.classifier.cosine import unit
from lib.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

_NAMES_AT_ONCE = 256


def text_rows(
    names: Sequence[str],
    num_features: int,
    *,
    model: str,
    prompt: str = 'a photo of a {}.',
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return rows (len(names), num_features) float32 of length 1 for a cosine classifier (zero-shot: CLIP, ICML 2021).

    CLIP compares the projected image features P f with the embedding t of a text: t . P f = (P^T t) . f. So with the
    features before the projection, as backbones of timm with num_classes=0 give them, the row is P^T t (as in the code
    of LIFT: Shi et al., ICML 2024); without a projection, or after it, the row is t.

    Args:
        names: of the classes; underscores count as spaces.
        num_features: of the backbone, which must be the image encoder of the same CLIP model.
        model: NAME:WEIGHTS, the model of open_clip, and a tag of its weights, which are downloaded, or a local file.
        prompt: text around the name, which replaces {}.
        device: that computes; None: the CPU.

    Raises:
        UserError: open_clip is not installed, does not know the model or cannot load its weights, or its width is not
            that of the features.
    """
    open_clip = _import_open_clip()
    name, _, weights = model.partition(':')
    if not weights or name not in open_clip.list_models():
        raise UserError(
            f'MODEL.TEXT_MODEL is {model!r}, but must be a model of open_clip and its weights, a tag or a file: '
            '--MODEL_TEXT_MODEL ViT-B-16:openai (python -c "import open_clip; print(open_clip.list_pretrained())" '
            'lists them)'
        )
    try:
        clip: Any = open_clip.create_model(name, pretrained=weights, device=device or 'cpu').eval()
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f'MODEL.TEXT_MODEL {model}: {reason}') from None
    texts = [prompt.replace('{}', label.replace('_', ' ')) for label in names]
    with torch.inference_mode():
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
                f'MODEL.TEXT_MODEL {name} has texts of width {rows.shape[1]}, but the features of MODEL.BACKBONE have '
                f'width {num_features}: give the text encoder of the same CLIP model, or --MODEL_CLASSIFIER_INIT '
                'class_means'
            )
        return unit(rows).clone()


def _import_open_clip() -> 'ModuleType':
    if importlib.util.find_spec('open_clip') is None:
        raise UserError(
            'MODEL.CLASSIFIER_INIT text needs the package open_clip: python -m pip install -r requirements-text.txt'
        )
    import open_clip

    return open_clip
