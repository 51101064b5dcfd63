"""Converter of class folders: SOURCE/train/CLASS/photo.jpg, SOURCE/val/CLASS/..., SOURCE/test/..., also nested."""

from pathlib import Path

from lib.dataset.folder import VALID_NAMES, walk_images
from lib.errors import UserError
from lib.formats.converted import ConvertedDataset, SplitBuilder

_FOLDERS = {'train': ('train',), 'val': VALID_NAMES, 'test': ('test',)}


def convert_image_folder(source: Path) -> ConvertedDataset:
    """Convert one folder per split that contains class folders.

    A class is a folder that directly contains images; its name is the path below the split (`Fruit/Apple`), the
    folders above it are its parents. Images directly in `test` have no label.

    Raises:
        UserError: no folder train, no images, training images outside class folders, or a class without training
            images.
    """
    if not source.is_dir():
        raise UserError(f'{source}: no such folder')
    builder = SplitBuilder()
    for split, candidates in _FOLDERS.items():
        folders = [name for name in candidates if (source / name).is_dir()]
        if len(folders) > 1:
            raise UserError(f'{source}: {" and ".join(folders)} could both be the {split} split; move one away')
        for folder in folders:
            _add_images(builder, source / folder, split, f'{folder}/')
    if not (source / 'train').is_dir():
        raise UserError(
            f'{source}: contains no folder train; expected: {source}/train/CLASS/photo.jpg, the same for val and test '
            f'(class folders without splits need no conversion: python main.py --DATASET_ROOT {source})'
        )
    splits, names = builder.finish()
    nested = any('/' in name for name in names)
    return ConvertedDataset(splits, names, [name.split('/')[:-1] for name in names] if nested else None, source)


def _add_images(builder: SplitBuilder, folder: Path, split: str, prefix: str) -> None:
    empty = True
    for path in walk_images(folder):
        empty = False
        label = path.rpartition('/')[0] or None
        if label is None and split != 'test':
            raise UserError(f'{folder / path}: the image is in no class folder; move it to {folder}/CLASS/')
        builder.add(split, prefix + path, label)
    if empty:
        raise UserError(f'{folder}: contains no images')
