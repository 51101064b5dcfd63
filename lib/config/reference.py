"""docs/configuration.md: the options as one table per section."""

from typing import Any

from lib.config.defaults import SECTIONS
from lib.config.key import Key
from lib.config.options import default_text, option_of, type_name, used_by_text

_HEAD = """\
# Configuration

Written by `python tools/options.py` from the options in `lib/config/keys`; edit those, not this page.

Every key is an option of `main.py`, `test.py`, `tau_norm.py` and most [tools](tools.md), with underscores for dots:
`TRAIN.BATCH_SIZE` is `--TRAIN_BATCH_SIZE`. In a YAML file, a section contains its keys:

```yaml
SEED: 1
TRAIN:
  BATCH_SIZE: 64
```

Values are merged in this order, and later ones override earlier ones: the defaults below; the config in the checkpoint
that `RESUME_MODEL` names (except `LOG_ROOT`, `RESUME_MODEL`, `RESUME_MODE`, `OVERWRITE`, `RUN` and `STORAGE`); the
files after `--config`, from left to right; the options on the command line. Without `--config` and without a
checkpoint, `configs/AiProducts.yaml` is used, or `configs/own_photos.yaml` if only a folder of photos is given with
`--DATASET_ROOT`. The run folder contains the result as `config.yaml`.

Types: INT, FLOAT and TEXT; PATH is a local path or the URL of [object storage](storage.md); BOOL is True or False;
`X,Y,...` is a list, in YAML also `[X, Y]`. `auto|INT` is a number or the word `auto`, for which the run chooses a value
and writes it to its `config.yaml`. `''` is an empty text. YAML does not convert a TEXT: `NAME: 007` is 007. Setting a
key that the chosen method does not use is an error; "used by" names the choices that use it.
"""


def reference_page() -> str:
    """Return docs/configuration.md."""
    parts = [_HEAD]
    for name, section in SECTIONS.items():
        title = section.title[0].upper() + section.title[1:]
        rows = [_row(f'{name}.{leaf}' if name else leaf, key) for leaf, key in section.keys_by_name.items()]
        table = ['| Option | Values | Default | Meaning |', '|---|---|---|---|', *rows]
        parts.append('\n'.join([f'## {name}: {section.title}' if name else f'## {title}', '', *table, '']))
    return '\n'.join(parts)


def _row(name: str, key: Key[Any]) -> str:
    if key.choices:
        values = ', '.join(f'`{choice}`' for choice in key.choices if choice != '')
    else:
        values = f'`{type_name(key)}`{key.range()}'
    used_by = used_by_text(key)
    meaning = key.meaning + (f' Used by {used_by}.' if used_by else '')
    cells = (f'`{option_of(name)}`', values, f'`{default_text(key)}`', meaning)
    return '| ' + ' | '.join(_escape(cell) for cell in cells) + ' |'


def _escape(cell: str) -> str:
    return cell.replace('|', '\\|').replace('<', '&lt;')
