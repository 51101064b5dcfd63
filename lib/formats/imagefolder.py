"""Converter of class folders: SOURCE/train/CLASS/photo.jpg, SOURCE/val/CLASS/..., SOURCE/test/..., also nested."""

from pathlib import Path

from lib.dataset.folder import VALID_NAMES, class_name_of
from lib.dataset.image_walk import ImageWalk, left_out_lines
from lib.errors import UserError
from lib.formats.converted import ConvertedDataset, SplitBuilder
from lib.runtime.text import rounded_code_warnings

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
    builder, walk = SplitBuilder(), ImageWalk(source)
    for split, candidates in _FOLDERS.items():
        folders = [name for name in candidates if (source / name).is_dir()]
        if len(folders) > 1:
            raise UserError(f'{source}: {" and ".join(folders)} could both be the {split} split; move one away')
        for folder in folders:
            _add_images(builder, walk, folder, split)
    if not (source / 'train').is_dir():
        raise UserError(
            f'{source}: contains no folder train; expected: {source}/train/CLASS/photo.jpg, the same for val and test '
            f'(class folders without splits need no conversion: python main.py --DATASET_ROOT {source})'
        )
    splits, names = builder.finish()
    nested = any('/' in name for name in names)
    parents = [name.split('/')[:-1] for name in names] if nested else None
    return ConvertedDataset(
        splits, names, parents, source, [*rounded_code_warnings(names), *left_out_lines(walk, None)]
    )


def _add_images(builder: SplitBuilder, walk: ImageWalk, folder: str, split: str) -> None:
    empty = True
    for path in walk.images(folder):
        empty = False
        label = path.removeprefix(f'{folder}/').rpartition('/')[0]
        if not label and split != 'test':
            image = Path(walk.root, path)
            raise UserError(f'{image}: the image is in no class folder; move it to {walk.root}/{folder}/CLASS/')
        builder.add(split, path, class_name_of(label) if label else None)
    if empty:
        raise UserError(f'{Path(walk.root, folder)}: contains no images')
