"""Convert a data set to the annotation files of this project.

python tools/convert.py FORMAT SOURCE [OUT] [--option value] [--append]
"""

import argparse
import math
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main
from lib.config.options import Parser, local_path
from lib.errors import UserError, printable
from lib.runtime.log import print_lines

_SPLITS = {
    'train': 'training file, if it is not named train',
    'val': 'validation file, if it is not named val',
    'test': 'test file, if it is not named test',
    'image_root': 'folder that paths are relative to (default: SOURCE, or the folder that contains it)',
}
_CSV = {
    'path_column': 'column of image paths (default: path)',
    'label_column': 'column of labels, any text (default: label)',
    'split_column': 'column with train, val or test, if there is one (default: split)',
    'name_column': 'column of readable class names, if there is one (default: name)',
}
_APPEND_SECONDS = 600  # to wait for another process that appends
_SMALL_RECIPE = ' --config configs/own_photos.yaml'
# format: (description of SOURCE, options)
FORMATS = {
    'aliproducts': ('folder with train.json, val.json, product_tree.json and the images of AliProducts', {}),
    'imagefolder': ('folder with train/CLASS/photo.jpg, val/CLASS/..., test/... (classes may be nested)', {}),
    'list': ('train.txt (or folder with train.txt, val.txt, test.txt), lines "path label"', _SPLITS),
    'csv': ('CSV file with a header (or folder with train.csv, val.csv, test.csv)', _CSV | _SPLITS),
    'inat': ('folder with train2018.json, val2018.json, test2018.json of iNaturalist', _SPLITS),
    'decisions': (
        'decisions.json about photos without labels, from a review page of test.py or from tools/serve.py',
        {'image_root': _SPLITS['image_root']},
    ),
    'grocery_store': ('checkout of the Grocery Store Dataset, or its folder with classes.csv', {}),
}


def converters() -> dict:
    """Return format -> function from a source path (and options) to ConvertedDataset."""
    # Imported here, so that --help does not load numpy and pyarrow.
    from lib.formats.aliproducts import convert_aliproducts
    from lib.formats.decisions import convert_decisions
    from lib.formats.imagefolder import convert_image_folder
    from lib.formats.inat import convert_inat
    from lib.formats.text_lists import convert_csv, convert_grocery_store, convert_image_list

    return {
        'aliproducts': convert_aliproducts,
        'imagefolder': convert_image_folder,
        'list': convert_image_list,
        'csv': convert_csv,
        'inat': convert_inat,
        'decisions': convert_decisions,
        'grocery_store': convert_grocery_store,
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line. Raises UserError."""
    parser = Parser(
        prog='tools/convert.py',
        description='Write converted_train.json, converted_val.json, converted_test.json (as many as SOURCE '
        'has splits) and classes.json to OUT.',
        epilog='FORMAT --help lists the options of a format. '
        'A folder of class folders needs no conversion: python main.py --DATASET_ROOT my_photos',
        allow_abbrev=False,
    )
    formats = parser.add_subparsers(dest='format', metavar='FORMAT', required=True)
    for name, (source, options) in FORMATS.items():
        command = formats.add_parser(name, help=source, description=f'SOURCE: {source}.', allow_abbrev=False)
        command.add_argument('source', metavar='SOURCE', type=local_path)
        command.add_argument(
            'out', metavar='OUT', type=local_path, nargs='?', help='folder to write to (default: that of SOURCE)'
        )
        for option, meaning in options.items():
            metavar, kind = option.rpartition('_')[2].upper(), local_path if option in _SPLITS else str
            command.add_argument(f'--{option}', metavar=metavar, type=kind, help=meaning)
        command.add_argument(
            '--valid_fraction', metavar='FRACTION', type=float, help='use this fraction of each class for '
            'validation, if SOURCE has no validation split',
        )  # fmt: skip
        command.add_argument(
            '--append',
            action='store_true',
            help='add new images to the converted set in OUT',
        )
        command.add_argument(
            '--imbalance', metavar='RATIO', type=float, help='keep a long-tailed subset of the training images: '
            'class sizes decrease from the largest to 1/RATIO of it; val and test are unchanged',
        )  # fmt: skip
        command.add_argument('--seed', metavar='N', type=int, default=0, help='seed for choosing images (default: 0)')
    options = parser.parse_args(arguments)
    if options.valid_fraction is not None and not 0 < options.valid_fraction <= 0.9:
        raise UserError(f'--valid_fraction is {options.valid_fraction}, but must be above 0 and at most 0.9')
    if options.imbalance is not None and not 1 < options.imbalance < math.inf:
        raise UserError(f'--imbalance is {options.imbalance}, but must be above 1: the largest class over the smallest')
    if options.imbalance is not None and options.append:
        raise UserError('--imbalance with --append: images that were left out would return; convert without --append')
    if not 0 <= options.seed < 2**63:
        raise UserError(f'--seed is {options.seed}, but must be at least 0 and below 2^63')
    return options


def convert(
    format_name: str,
    source: Path,
    out: Path,
    *,
    valid_fraction: float | None = None,
    imbalance: float | None = None,
    seed: int = 0,
    append: bool = False,
    **options: str,
) -> None:
    """Convert `source` into `out`, or append it to the set there, and print a summary."""
    from lib.formats.converted import summary_lines, with_imbalance, with_validation, without_repeats
    from lib.formats.write import append_converted, write_converted
    from lib.runtime.files import wait_for_lock
    from lib.runtime.outline import outline
    from lib.runtime.text import name_warnings

    if source.is_dir():
        outline(source)
    converted = without_repeats(converters()[format_name](source, **options))
    if valid_fraction is not None:
        converted = with_validation(converted, fraction=valid_fraction, seed=seed)
    elif 'val' not in converted.splits and not append:
        converted.warnings.append(
            'SOURCE has no validation split: --valid_fraction 0.1 splits off a tenth of each class'
        )
    converted.warnings.extend(name_warnings(converted.names))
    complete = converted
    if imbalance is not None:
        converted = with_imbalance(converted, ratio=imbalance, seed=seed)
    if append:
        # What is read must not change until it is written.
        with wait_for_lock(out, _APPEND_SECONDS) if out.is_dir() else nullcontext():
            lines = append_converted(converted, out)
    else:
        paths = write_converted(converted, out)
        lines = summary_lines(converted, paths)
    if imbalance is not None:
        num_selected, total = (len(data.splits['train']) for data in (converted, complete))
        lines.append(
            f'--imbalance {imbalance:g}: {num_selected:,} of {total:,} training images selected (--seed {seed})'
        )
    for warning in converted.warnings:
        print(f'warning: {printable(warning)}', file=sys.stderr)
    print_lines(lines)


def next_command(format_name: str, out: Path, *, long_tailed: bool = False) -> str:
    """Return the command that trains on the result."""
    # The default config is the recipe for AliProducts: 50,030 classes on several GPUs.
    grocery_store = 'GroceryStore_LT' if long_tailed else 'GroceryStore_pretrained'
    recipe = {'aliproducts': '', 'grocery_store': f' --config configs/{grocery_store}.yaml'}
    return f'python main.py{recipe.get(format_name, _SMALL_RECIPE)} --DATASET_ROOT {shlex.quote(str(out))}'


def main() -> None:
    """Run the command line."""
    options = vars(parse(sys.argv[1:]))
    name, source, out = (options.pop(key) for key in ('format', 'source', 'out'))
    out = out or (source if source.is_dir() else source.parent)
    given = {key: value for key, value in options.items() if value is not None}
    convert(name, source, out, **given)
    print_lines(['', 'Now train:', f'  {next_command(name, out, long_tailed="imbalance" in given)}'])


if __name__ == '__main__':
    cli_main(main, alone='it writes one set of annotations')
