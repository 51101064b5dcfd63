"""Fit weights to a backbone: find them in a file, remove the names of wrappers, resample what depends on the size."""

import inspect
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lib.backbone.bundled import bundled_weights, read_bundled, weights_path
from lib.backbone.weights_file import StoredTensor, WeightsFile, WeightsFileError, read_weights_file
from lib.errors import UserError, shown, unquoted
from lib.runtime.read_file import open_regular, reason_of

# Modules that wrap another one at any depth: DataParallel, torch.compile, FSDP, activation checkpointing.
_INNER_WRAPPERS = {'module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'}
_CLASSIFIERS = ('fc.', 'head.', 'head_dist.', 'heads.', 'classifier.', 'last_linear.', 'logits.', 'output.')
_MEAN_WEIGHTS = {'ema', 'teacher', 'swa', 'averaged'}
# The least part of the weights that a file must contain: fine where a last norm is new, not another backbone.
_MIN_FRACTION = 0.9
_MAX_CANDIDATES = 6
# First bytes of files that are often taken for weights, and what they are.
_OTHER_KINDS = {
    b'version https://git-lfs': 'is a pointer of Git LFS, without the weights (git lfs pull)',
    b'<': 'is a web page, not weights',
    b'\x1f\x8b': 'is compressed by gzip, to be unpacked',
    b'BZh': 'is compressed by bzip2, to be unpacked',
    b'\xfd7zXZ\0': 'is compressed by xz, to be unpacked',
    b'\x28\xb5\x2f\xfd': 'is compressed by zstd, to be unpacked',
    b'\x89HDF': 'is a file of Keras (HDF5), not of PyTorch',
}


@dataclass(frozen=True)
class Fit:
    """Weights adapted to a backbone, and keys by the result.

    Attributes:
        weights: those that fit by name and shape.
        missing: weights of the backbone that are not given.
        mismatched: weights of another shape, with both shapes.
        unexpected: keys unknown to the backbone, in a module that it has: signs of another backbone.
        others: keys of modules that it does not have, such as the decoder of self-supervised training.
        classifier: keys of a classifier, which a backbone does not use.
        resampled: weights that were resampled to the image size.
        prefix: names of containers and wrappers of the weights in the file.
        is_mean: the weights are an average over the steps of training.
        unused_mean: prefix of such an average that does not fit.
        source: package and license of bundled weights.
    """

    weights: dict[str, torch.Tensor]
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    prefix: str = ''
    is_mean: bool = False
    unused_mean: str = ''
    source: str = ''

    @property
    def is_exact(self) -> bool:
        """Return whether these are the weights of the backbone, all of them and no others."""
        return not (self.missing or self.mismatched or self.unexpected or self.others or self.classifier)

    @property
    def fits(self) -> bool:
        """Return whether these are weights of this backbone: each module that the file has is complete."""
        modules = {_module(key) for key in self.weights}
        partial = any(_module(key) in modules for key in self.missing)
        enough = len(self.weights) >= _MIN_FRACTION * (len(self.weights) + len(self.missing))
        return bool(self.weights) and enough and not (partial or self.mismatched or self.unexpected)

    def lines(self) -> list[str]:
        """Return the lines to log: what was loaded, and which keys of the file were not used."""
        mean = ' (EMA)' if self.is_mean else ''
        lines = [
            f'{len(self.weights)} tensors loaded' + (f' from {self.prefix.rstrip(".")}{mean}' if self.prefix else '')
        ]
        if self.source:
            lines.insert(0, self.source)
        if self.unused_mean:
            lines.append(f'EMA not used, it is incomplete: {self.unused_mean.rstrip(".")}')
        if self.resampled:
            lines.append(f'resampled to the image size: {examples(self.resampled)}')
        if self.classifier:
            lines.append(f'classifier not used: {examples(self.classifier)}')
        if self.others:
            lines.append(f'{len(self.others)} other tensors not used: {examples(self.others)}')
        if self.missing:
            lines.append(f'not in the file, so random: {examples(self.missing)}')
        return lines

    def misfit(self, source: str, backbone: str, image_size: int) -> UserError:
        """Return the error for weights that are not those of the backbone."""
        problems = [f'{len(self.weights)} tensors match']
        for word, keys in (
            ('missing', self.missing),
            ('of another shape', self.mismatched),
            ('unknown', (*self.unexpected, *self.others)),
        ):
            if keys:
                problems.append(f'{len(keys)} {word} ({examples(keys)})')
        # The names are those of this backbone, so the size of the images differs, or their channels.
        is_size = not (self.missing or self.unexpected or self.others) and len(self.mismatched) < len(self.weights) / 2
        advice = 'timm does not adapt these: set INPUT.SIZE' if is_size else 'set MODEL.BACKBONE'
        return UserError(
            f'{source} does not fit MODEL.BACKBONE {backbone} of {image_size} px: {", ".join(problems)}; '
            f'{advice} as in its training, or use another file'
        )


def load_pretrained(backbone: nn.Module, path: str | os.PathLike, name: str = '', image_size: int = 0) -> Fit:
    """Load the weights at `path` into `backbone`: a file, the name of one in ./pretrain_models, or 'bundled'.

    Reads files of torch.save (torchvision, timm, Lightning, self-supervised training, checkpoints of this project) and
    safetensors. No code in the file is executed.

    Args:
        name, image_size: MODEL.BACKBONE and INPUT.SIZE, for the error message.

    Raises:
        UserError: the file is missing or unreadable, contains no tensors, or those of another backbone.
    """
    source = f'MODEL.PRETRAINED {path}'
    if str(path) == 'bundled':
        fit = replace(fit_weights(backbone, read_bundled(name)), source=bundled_weights(name).label)
    else:
        fit = _fit_file(backbone, weights_path(str(path)), source)
    if not fit.fits:
        raise fit.misfit(source, name or type(backbone).__name__, image_size)
    backbone.load_state_dict(fit.weights, strict=False)
    return fit


def _fit_file(backbone: nn.Module, path: Path, source: str) -> Fit:
    try:
        file = read_weights_file(path)
        if not any(file.tensors):
            raise UserError(f'{source}: {_without_tensors(file)}')
        return _best_fit(backbone, file)
    except WeightsFileError as error:
        raise UserError(f'{source}: {fault_of(path, error)}; download or save it again') from error


def fault_of(path: Path, error: WeightsFileError) -> str:
    """Return the fault of a file that `read_weights_file` rejects, to be read after its name: 'is empty'."""
    try:
        with open_regular(path) as file:
            start = file.read(1024)
    except OSError as reason:
        return reason_of(reason)
    if not start:
        return 'is empty'
    for first, kind in _OTHER_KINDS.items():
        if start.lstrip().startswith(first):
            return kind
    if start[257:262] == b'ustar':
        return 'is a tar archive, to be unpacked'
    if start.startswith(b'PK') and not zipfile.is_zipfile(path):
        return 'is cut short or damaged'
    if start.startswith((b'PK', b'\x80')) or start[8:9] == b'{':
        return f'cannot be read ({shown(error)})'
    if start.isascii() and start.decode().strip().isprintable():
        return f'is text, no weights: {shown(start.decode().strip()[:40])}'
    return 'is a file of neither torch.save nor safetensors'


def fit_weights(backbone: nn.Module, state: Mapping[str, torch.Tensor]) -> Fit:
    """Return weights adapted to the backbone as timm does it: renamed, and resampled to its image size.

    Weights that fit as they are stay as they are.
    """
    fit = _compare(backbone, state)
    adapt: Callable | None = getattr(backbone, 'adapt_weights', None)
    if adapt is None or not (fit.missing or fit.mismatched or fit.unexpected or fit.others):
        return fit
    try:
        # A few of timm's functions get the weights only.
        takes_model = len(inspect.signature(adapt).parameters) > 1
        adapted = adapt(dict(state), backbone) if takes_model else adapt(dict(state))
    except Exception:  # timm's functions raise errors of any type for weights of another model
        return fit
    adapted = {key: value for key, value in adapted.items() if isinstance(value, torch.Tensor)}
    new = _compare(backbone, adapted)
    if len(new.weights) < len(fit.weights):
        return fit
    values = {value.data_ptr() for value in state.values()}  # a tensor that is renamed only keeps its values
    resampled = [key for key in new.weights if key in state and new.weights[key].data_ptr() not in values]
    return replace(new, resampled=tuple(resampled))


def _compare(backbone: nn.Module, state: Mapping[str, torch.Tensor]) -> Fit:
    expected = backbone.state_dict()
    weights = {key: value for key, value in state.items() if key in expected and value.shape == expected[key].shape}
    unused = [key for key in state if key not in expected]
    classifier = [key for key in unused if _is_classifier(key, backbone)]
    modules = {_module(key) for key in expected}
    # Counters and index tables are no weights: the backbone computes them itself.
    rest = [key for key in unused if key not in set(classifier) and state[key].is_floating_point()]
    return Fit(
        weights,
        missing=tuple(key for key in expected if key not in state and expected[key].is_floating_point()),
        mismatched=tuple(
            f'{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}'
            for key in state
            if key in expected and key not in weights and expected[key].is_floating_point()
        ),
        unexpected=tuple(key for key in rest if _module(key) in modules and state[key].numel() > 1),
        others=tuple(key for key in rest if _module(key) not in modules),
        classifier=tuple(classifier),
    )


def _best_fit(backbone: nn.Module, file: WeightsFile) -> Fit:
    """Return the fit of the best candidate: the prefix under which most tensors of the file fit the backbone."""
    expected = backbone.state_dict()
    tensors = _without_inner_wrappers(file.tensors, expected)
    fits = []
    candidates = _candidates(tensors, expected)[:_MAX_CANDIDATES]
    means = [prefix for prefix in candidates if _is_mean(prefix)]
    for prefix in candidates:
        state = {key.removeprefix(prefix): value.load() for key, value in tensors.items() if key.startswith(prefix)}
        fit = replace(fit_weights(backbone, state), prefix=prefix, is_mean=_is_mean(prefix))
        if fit.fits:
            return fit if fit.is_mean or not means else replace(fit, unused_mean=means[0])
        fits.append(fit)
    return max(fits, key=lambda one: (len(one.weights), -len(one.missing)))


def _without_inner_wrappers(
    tensors: Mapping[str, StoredTensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, StoredTensor]:
    """Return the tensors with the names of wrappers removed, and without the state of optimizers."""
    wrappers = _INNER_WRAPPERS - {part for key in expected for part in key.split('.')}
    renamed = {}
    for key, value in tensors.items():
        parts = key.split('.')
        if not any(part.startswith('optim') for part in parts):
            renamed['.'.join(part for part in parts if part not in wrappers)] = value
    return renamed


def _candidates(tensors: Mapping[str, StoredTensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Return prefixes of keys, most probable first: by weights that fit, then EMA first, then the order in the file."""
    same_shape: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for key, value in tensors.items():
        for prefix in _prefixes(key):
            size[prefix] += 1
            rest = key.removeprefix(prefix)
            same_shape[prefix] += rest in expected and value.shape == tuple(expected[rest].shape)
    # Weights under names that only timm's function knows fit under none of the prefixes.
    order = {prefix: position for position, prefix in enumerate(size)}
    chosen = [prefix for prefix in size if same_shape[prefix] or size[prefix] >= len(tensors) / 4]
    return sorted(chosen, key=lambda one: (-same_shape[one], not _is_mean(one), -size[one], order[one]))


def _prefixes(key: str) -> Iterator[str]:
    yield ''
    for position, char in enumerate(key):
        if char == '.':
            yield key[: position + 1]


def _is_mean(prefix: str) -> bool:
    return not _MEAN_WEIGHTS.isdisjoint(re.split(r'[^a-z]+', prefix.lower()))


def _module(key: str) -> str:
    return key.partition('.')[0]


def _is_classifier(key: str, backbone: nn.Module) -> bool:
    """Return whether a key that the backbone does not have is a weight of its classifier."""
    names = (getattr(backbone, 'pretrained_cfg', None) or {}).get('classifier') or ()
    names = (names,) if isinstance(names, str) else names
    return key.startswith((*_CLASSIFIERS, *(f'{name}.' for name in names)))


def _without_tensors(file: WeightsFile) -> str:
    if not file.skipped:
        return 'contains no named tensors; save a state_dict'
    return (
        f'contains no named tensors, but objects of {examples(file.skipped)}, whose code is never executed; where '
        "it was written, save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
    )


def examples(keys: tuple[str, ...], count: int = 3) -> str:
    """Return the first keys, separated by commas."""
    return ', '.join(map(unquoted, keys[:count])) + (', ...' if len(keys) > count else '')
