"""Lines `path label`, as ImageNet-LT and Places-LT have them."""

from pathlib import Path

from lib.formats.converted import Converted, SplitBuilder
from lib.formats.sources import Faults, find_split_files, short, text_lines

# train.txt, ImageNet_LT_train.txt, Places_LT_val.txt, ...
_PATTERN = r'(?:.*[_-])?{split}\.(?:txt|lst|list)'
_BETWEEN = ' \t,'


def convert_image_list(
    source: Path,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    image_root: str | None = None,
) -> Converted:
    """Convert text files with an image a line: its path, then blanks, a tab or a comma, then its label.

    Paths may hold blanks: the label is the last field. Category ids are the labels in numeric order, so 0 to
        C - 1 stay what they are. A test file may do without labels.

    Args:
        source: folder with the files, or the training file.
        train, val, test: the files, where names do not tell.
        image_root: folder that the paths start from; `source` (or the folder it lies in) by default.
    """
    files = find_split_files(source, _PATTERN, {'train': train, 'val': val, 'test': test})
    builder, faults = SplitBuilder(), Faults()
    for split, path in files.items():
        builder.begin(split)
        for where, line in text_lines(path, faults):
            image, label = _fields(line)
            if image and label.isdecimal():
                builder.add(split, image, str(int(label)))
            elif split == 'test':
                builder.add(split, line, None)
            elif not image:
                faults.add(where, f'{short(line)} has no label')
            else:
                faults.add(where, f'label {short(label)} is not a whole number from 0 on')
    faults.check()
    splits, names = builder.finish()
    base = source if source.is_dir() else source.parent
    return Converted(splits, names, None, Path(image_root) if image_root else base)


def _fields(line: str) -> tuple[str, str]:
    """Return path and label: the text before and after the last separator."""
    place = max(line.rfind(char) for char in _BETWEEN)
    return line[: max(place, 0)].rstrip(_BETWEEN), line[place + 1 :]
