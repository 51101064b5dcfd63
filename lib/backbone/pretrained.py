"""Load pretrained weights from a local file into a backbone, and report which keys matched."""

import os
import pickle
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from lib.errors import UserError

NESTED_UNDER = ('state_dict', 'model', 'model_state_dict', 'model_state')
WRAPPERS = ('module', 'model', 'backbone', 'encoder')
CLASSIFIERS = ('fc.', 'head.', 'classifier.', 'last_linear.')


@dataclass(frozen=True)
class LoadReport:
    """Keys by the result of loading.

    Attributes:
        matched: loaded.
        missing: weights of the backbone that the file does not contain.
        unexpected: keys of the file that are unknown to the backbone.
        mismatched: keys with another shape, not loaded.
        classifier: keys of the classifier in the file, which a backbone does not use.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    classifier: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Return whether all weights of the backbone were loaded and no key of the file was unexpected."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self, examples: int = 3) -> str:
        """Return one line with the counts and the first keys of each group."""
        parts = [f'{len(self.matched)} tensors loaded']
        for kind in ('missing', 'unexpected', 'mismatched'):
            keys = getattr(self, kind)
            if keys:
                more = ', ...' if len(keys) > examples else ''
                parts.append(f'{len(keys)} {kind} ({", ".join(keys[:examples])}{more})')
        if self.classifier:
            parts.append(f'classifier of the file not used ({", ".join(self.classifier)})')
        return '; '.join(parts)


def load_pretrained(backbone: nn.Module, path: str | os.PathLike) -> LoadReport:
    """Load the weights at `path` into `backbone` where name and shape match.

    Reads files of torch (torchvision, timm, checkpoints of this project) and safetensors, under 'state_dict' or
    'model', with prefixes such as 'module.' or 'backbone.'. No code in the file is executed.

    Raises:
        UserError: the file is missing or unreadable, contains no tensors, or none that fits.
    """
    state = _read(Path(path))
    expected = backbone.state_dict()
    prefix = _common_prefix(state, expected)
    renamed = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    fitting = {key: value for key, value in renamed.items() if key in expected and value.shape == expected[key].shape}
    if not any(value.is_floating_point() for value in fitting.values()):
        raise UserError(
            f'MODEL.PRETRAINED {path}: nothing in it fits the backbone; the file has {_examples(state)}, the '
            f'backbone has {_examples(expected)}: check MODEL.BACKBONE'
        )
    backbone.load_state_dict(fitting, strict=False)
    unused = [key for key in state if not key.startswith(prefix) or key.removeprefix(prefix) not in expected]
    return LoadReport(
        matched=tuple(fitting),
        # Files older than torch 0.4.1 have no batch counter, which does not affect the features.
        missing=tuple(key for key in expected if key not in renamed and not key.endswith('num_batches_tracked')),
        unexpected=tuple(key for key in unused if not _is_classifier(key)),
        mismatched=tuple(key for key in renamed if key in expected and key not in fitting),
        classifier=tuple(key for key in unused if _is_classifier(key)),
    )


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"MODEL.PRETRAINED {path}: no such file; set a weights file, 'timm', or ''")
    try:
        content: Any
        if path.suffix == '.safetensors':
            content = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # torch warns about unusual pickles; the errors below are clearer
                content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f'MODEL.PRETRAINED {path}: not a plain weights file (damaged, or with code, which is never '
            'executed); save only its state_dict, or as .safetensors'
        ) from error
    except Exception as error:  # damaged files raise many types: KeyError, struct.error, AssertionError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'MODEL.PRETRAINED {path}: cannot be read ({reason}); download or save it again') from error
    for name in NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise UserError(f'MODEL.PRETRAINED {path}: contains no named tensors; save a state_dict')
    return tensors


def _common_prefix(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """Return the sequence of wrapper names ('module.backbone.') under which most keys are those of the backbone."""
    hits: Counter[str] = Counter()
    for key in state:
        prefix = ''
        while True:
            hits[prefix] += key.removeprefix(prefix) in expected
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
