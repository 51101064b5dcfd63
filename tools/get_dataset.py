"""Set up a public data set in dataset/NAME: unpack or link the downloaded files, then convert them.

The scripts dataset/get_dataset_NAME.sh call this: python tools/get_dataset.py NAME [DIR]
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import convert

from lib.commands.cli import cli_main
from lib.errors import UserError, printable, shown, url_fault, url_scheme
from lib.runtime.files import rename, temporary_folder
from lib.runtime.log import print_lines

REPOSITORY = Path(__file__).resolve().parents[1]
GROCERY_STORE_URL = 'https://github.com/marcusklasson/GroceryStoreDataset'
ALIPRODUCTS_STEPS = """\
AliProducts (50,030 products, about 3 million photos) cannot be downloaded by a
script: its competition site requires a login.

1. Read the terms and sign in at
     https://tianchi.aliyun.com/competition/entrance/231780
   The data is for the competition and for research; the terms of the site
   apply to you.
2. Download its files to
     {folder}
   as archives or unpacked. They contain
     train.json          {{"images": [{{"image_id": ..., "class_id": ...}}, ...]}}
     val.json            the same
     product_tree.json   the hierarchy of the classes (optional)
     train/CLASS_ID/     training images
     val/CLASS_ID/       validation images
     test/               test images (optional)
3. Run this command again, or name the folder that contains the files:
     sh ./dataset/get_dataset_AiProducts.sh DIR

Without data, this runs at once:
     python main.py --config configs/demo.yaml
"""


def get_aliproducts(folder: Path, given: Path | None) -> int | None:
    """Unpack or link the official files into `folder` and convert them; without files, print the steps to get them."""
    from lib.formats.unpack import find_folder_with, link_into, unpack_once

    source = folder if given is None else given
    if given is not None and not given.is_dir():
        raise UserError(f'{given}: no such folder; name the one that contains the files of AliProducts')
    folder.mkdir(parents=True, exist_ok=True)
    unpack_once(source, folder)
    root = find_folder_with(folder, ('train.json',)) or find_folder_with(source, ('train.json',))
    if root is None:
        print_lines(ALIPRODUCTS_STEPS.format(folder=printable(str(source))).splitlines())
        raise UserError(f'no train.json in {source}; the steps are above')
    if not root.resolve().is_relative_to(folder.resolve()):
        names = ['val.json', 'product_tree.json', 'train', 'val', *(path.name for path in root.glob('test*'))]
        link_into(root, [*names, 'train.json'], folder)  # the one that the next call looks for is the last
        root = folder
    convert.convert('aliproducts', root, folder)
    print('\nNow train:\n  python main.py')
    return None


def get_grocery_store(folder: Path, given: Path | None) -> None:
    """Clone, unpack or link the Grocery Store Dataset into `folder` and convert it."""
    from lib.formats.text_lists import GROCERY_STORE_FILES
    from lib.formats.unpack import find_folder_with, is_archive, link_into, unpack_once

    if given is None:
        root = find_folder_with(folder, GROCERY_STORE_FILES) or _clone(folder)
    elif is_archive(given):
        unpack_once(given, folder)
        root = find_folder_with(folder, GROCERY_STORE_FILES)
    elif given.is_dir():
        root = find_folder_with(given, GROCERY_STORE_FILES)
    else:
        raise UserError(f'{given}: neither a folder nor an archive (.tar, .zip) of the Grocery Store Dataset')
    if root is None:
        raise UserError(f'{given}: contains no classes.csv and train.txt of the Grocery Store Dataset')
    if not root.resolve().is_relative_to(folder.resolve()):
        link_into(root, ['classes.csv', *(f'{name}.txt' for name in _SPLITS), *_SPLITS], folder)
        root = folder
    convert.convert('grocery_store', root, folder)
    print('\nNow train:\n  python main.py --config configs/GroceryStore_pretrained.yaml')


_SPLITS = ('train', 'val', 'test')


def _clone(folder: Path) -> Path:
    """Clone the public repository into `folder`, atomically; return the data folder."""
    target = folder / 'GroceryStoreDataset'
    if target.exists():
        raise UserError(f'{target} exists, but contains no classes.csv and train.txt; move it away and try again')
    print_lines([f'cloning {GROCERY_STORE_URL} into {target} ...'])
    with temporary_folder(target) as staging:
        clone = staging / target.name
        try:
            command = ['git', 'clone', '--quiet', '--depth', '1', GROCERY_STORE_URL, str(clone)]
            environment = os.environ | {'GIT_TERMINAL_PROMPT': '0'}
            result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        except FileNotFoundError:
            raise UserError(f'git is not installed; {_BY_HAND}') from None
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ['no reason given'])[-1]
            raise UserError(f'git clone {GROCERY_STORE_URL} failed ({reason}); {_BY_HAND}')
        rename(clone, target)
    return target / 'dataset'


_BY_HAND = 'download it another way and type: sh ./dataset/get_dataset_GroceryStore.sh DIR_OR_ARCHIVE'
_DATASETS = {'AiProducts': get_aliproducts, 'GroceryStore': get_grocery_store}


def main() -> int | None:
    """Run the command line."""
    name, *rest = sys.argv[1:] or ['']
    if name not in _DATASETS or len(rest) > 1 or any(argument.startswith('-') for argument in rest):
        script = f'sh ./dataset/get_dataset_{name if name in _DATASETS else "NAME"}.sh'
        if rest in (['-h'], ['--help']) and name in _DATASETS:
            print_lines([f'usage: {script} [DIR]', '', *str(_DATASETS[name].__doc__).splitlines()])
            return 0
        raise UserError(f'usage: {script} [DIR], where NAME is one of {", ".join(_DATASETS)}')
    if rest and (fault := url_fault(rest[0])):
        raise UserError(f'DIR is {fault}')
    if rest and url_scheme(rest[0]):
        raise UserError(f'DIR is {shown(rest[0])}, but must be a folder of this machine')
    folder = REPOSITORY / 'dataset' / name
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())  # shorter in messages
    return _DATASETS[name](folder, Path(rest[0]) if rest else None)


if __name__ == '__main__':
    cli_main(main, alone='it downloads one data set')
