"""Weights from a local file into a backbone, and an account of what fitted."""

import os
import pickle
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from lib.errors import UserError

NESTED_UNDER = ('state_dict', 'model', 'model_state_dict', 'model_state')
WRAPPERS = ('module', 'model', 'backbone', 'encoder')
CLASSIFIERS = ('fc.', 'head.', 'classifier.', 'last_linear.')


@dataclass(frozen=True)
class LoadReport:
    """What became of each key. `mismatched` has the right name and the wrong shape, and was not loaded.

    `classifier` are the keys of the file's own classifier, which a backbone has no use for; `unexpected` is
    the rest of the file; `missing` are the backbone's weights that the file does not have.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    classifier: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every weight of the backbone was loaded and nothing unknown was left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self, examples: int = 3) -> str:
        """Return one line with the counts and the first keys of each kind."""
        parts = [f'{len(self.matched)} tensors loaded']
        for kind in ('missing', 'unexpected', 'mismatched'):
            keys = getattr(self, kind)
            if keys:
                more = ', ...' if len(keys) > examples else ''
                parts.append(f'{len(keys)} {kind} ({", ".join(keys[:examples])}{more})')
        if self.classifier:
            parts.append(f"the file's own classifier left out ({', '.join(self.classifier)})")
        return '; '.join(parts)


def load_pretrained(backbone: nn.Module, path: str | os.PathLike) -> LoadReport:
    """Load the weights at `path` into `backbone`, wherever name and shape agree.

    Reads torch's files (torchvision's, timm's, checkpoints of this project) and safetensors, under
    'state_dict' or 'model', with prefixes such as 'module.' or 'backbone.'. Nothing in the file is
    executed.

    Raises UserError if the file is missing, unreadable or holds other things than tensors, and if nothing
    fits.
    """
    found = _read(Path(path))
    own = backbone.state_dict()
    prefix = _common_prefix(found, own)
    renamed = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    fitting = {key: value for key, value in renamed.items() if key in own and value.shape == own[key].shape}
    if not any(value.is_floating_point() for value in fitting.values()):
        raise UserError(
            f'MODEL.PRETRAINED {path}: nothing in it fits the backbone; the file has {_examples(found)}, the '
            f'backbone has {_examples(own)}: check MODEL.BACKBONE'
        )
    backbone.load_state_dict(fitting, strict=False)
    left_over = [key for key in found if not key.startswith(prefix) or key.removeprefix(prefix) not in own]
    return LoadReport(
        matched=tuple(fitting),
        # Files older than torch 0.4.1 have no batch counter, and it does not matter to the features.
        missing=tuple(key for key in own if key not in renamed and not key.endswith('num_batches_tracked')),
        unexpected=tuple(key for key in left_over if not _is_classifier(key)),
        mismatched=tuple(key for key in renamed if key in own and key not in fitting),
        classifier=tuple(key for key in left_over if _is_classifier(key)),
    )


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"MODEL.PRETRAINED {path}: no such file; give a weights file, 'timm', or ''")
    try:
        if path.suffix == '.safetensors':
            content = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # torch remarks on odd pickles; the error below says it all
                content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f'MODEL.PRETRAINED {path}: not a plain weights file (broken, or with code in it, which is '
            'never run); save its state_dict alone, or as .safetensors'
        ) from error
    except Exception as error:  # a damaged file raises nearly anything: KeyError, struct.error, AssertionError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'MODEL.PRETRAINED {path}: cannot be read ({reason}); fetch or save it again') from error
    for name in NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise UserError(f'MODEL.PRETRAINED {path}: holds no named tensors; a state_dict is needed')
    return tensors


def _common_prefix(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str:
    """Return the run of wrapper names ('module.backbone.') under which most keys are the backbone's own."""
    hits = Counter()
    for key in found:
        prefix = ''
        while True:
            hits[prefix] += key.removeprefix(prefix) in own
            first, dot, _ = key.removeprefix(prefix).partition('.')
            if not dot or first not in WRAPPERS:
                break
            prefix += f'{first}.'
    return hits.most_common(1)[0][0]


def _is_classifier(key: str) -> bool:
    while key.partition('.')[0] in WRAPPERS and '.' in key:
        key = key.partition('.')[2]
    return key.startswith(CLASSIFIERS)


def _examples(keys: Mapping[str, torch.Tensor]) -> str:
    return ', '.join(f'{key} {tuple(value.shape)}' for key, value in list(keys.items())[:2])
