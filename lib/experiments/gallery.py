"""docs/methods.md, the gallery of methods: python tools/gallery.py

Made of method_list.py, published.csv and measured.json, so that no figure stands there that nobody ran.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.experiments.method_list import FAMILIES, METHODS, OTHERS, Method
from lib.experiments.records import Published, read_measured, read_published
from lib.runtime.files import write_text

GALLERY = Path(__file__).resolve().parents[2] / 'docs' / 'methods.md'
_DATASETS = {
    'cifar10_lt': 'CIFAR-10-LT',
    'cifar100_lt': 'CIFAR-100-LT',
    'imagenet_lt': 'ImageNet-LT',
    'inat2018': 'iNaturalist 2018',
}
# The two columns that most papers have.
_MAIN = (('cifar10_lt', 100), ('cifar100_lt', 100))
_INTRODUCTION = """\
# Methods

Made by `python tools/gallery.py`; do not edit. A method is one file laid over a base config:

```sh
python main.py --config configs/demo.yaml configs/method/balanced_softmax.yaml --NAME demo_balanced_softmax
python tools/grid.py --base demo --methods ce,balanced_softmax,crt --seeds 3 --record
```

The second line runs each with three seeds, prints a table, and adds its figures to this page's data.

Symbols: z logits, p = softmax(z), s_j in a loss: sigmoid; y the label, [·] 1 where true and 0 elsewhere, f features,
w_j and θ_j the classifier's row of class j and its angle to f, C classes, n_j training images of class j,
π_j = n_j / Σ n, t of T epochs, P(j) the chance that class j is drawn. Other letters are options; each loss's docstring
explains its own.

*Published*: top-1 error in percent at imbalance 100 (on these balanced test sets the mean class error); where several
papers report one, all. *Measured*: mean class error in percent after the last epoch (on the test split where the data
has one of its own) ± standard deviation over seeds; empty where nobody has measured it.
"""


def gallery(published: Sequence[Published], measured: Sequence[dict[str, Any]]) -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION]
    for family, heading in FAMILIES.items():
        methods = [method for method in METHODS.values() if method.family == family]
        parts.append(f'## {heading}\n\n{_family_table(methods, published, measured)}')
    parts.append(_published_section(published))
    parts.append(_measured_section(measured))
    return '\n'.join(parts)


def _family_table(methods: Sequence[Method], published: Sequence[Published], measured: Sequence[dict[str, Any]]) -> str:
    heads = [f'published, {_DATASETS[dataset]}' for dataset, _ in _MAIN]
    lines = [['family', 'method', 'paper', 'equation', 'config', *heads, 'measured']]
    for method in methods:
        known = [_errors(published, method.name, dataset, imbalance) for dataset, imbalance in _MAIN]
        own = [_measured_text(entry) for entry in measured if entry['method'] == method.name]
        link = f'[{method.name}](../configs/method/{method.name}.yaml)'
        after = f' (after {", ".join(method.needs)})' if method.needs else ''
        equation = f'`{method.equation}`'
        family = FAMILIES[method.family].lower()
        lines.append([family, method.title, method.paper, equation, f'{link}{after}', *known, '; '.join(own)])
    return _table(lines)


def _errors(published: Sequence[Published], method: str, dataset: str, imbalance: int | None) -> str:
    wanted = (method, dataset, imbalance)
    return ', '.join(one.error for one in published if (one.method, one.dataset, one.imbalance) == wanted)


def _published_section(published: Sequence[Published]) -> str:
    """Return all published figures, a row a method and source, a column a data set."""
    columns = list(dict.fromkeys((one.dataset, one.imbalance) for one in published))
    columns.sort(key=lambda column: (list(_DATASETS).index(column[0]), -(column[1] or 0)))
    heads = [f'{_DATASETS[dataset]}{f" {imbalance}" if imbalance else ""}' for dataset, imbalance in columns]
    order = [*METHODS, *OTHERS]
    pairs = dict.fromkeys((one.method, one.source) for one in published)
    lines = [['method', *heads, 'source']]
    for method, source in sorted(pairs, key=lambda pair: order.index(pair[0])):
        of_it = [one for one in published if (one.method, one.source) == (method, source)]
        cells = [_errors(of_it, method, dataset, imbalance) for dataset, imbalance in columns]
        lines.append([METHODS[method].title if method in METHODS else OTHERS[method], *cells, source])
    return (
        '## Published\n\nTop-1 error in percent, with the imbalance where a data set has several. ResNet-32 on CIFAR. '
        f"A paper's table may hold its own runs of other papers' methods.\n\n{_table(lines)}"
    )


def _measured_section(measured: Sequence[dict[str, Any]]) -> str:
    text = '## Measured\n\n'
    if not measured:
        return f'{text}Nothing yet. `python tools/grid.py ... --record` adds what it ran.\n'
    lines = [
        ['base', 'method', 'seeds', 'error, last epoch', 'many', 'medium', 'few', 'test error', 'hardware', 'date']
    ]
    names = ['last_mean_class_error', 'last_many', 'last_medium', 'last_few', 'test_mean_class_error']
    for entry in measured:
        cells = [_percent(entry['figures'].get(name)) for name in names]
        title = METHODS[entry['method']].title
        lines.append([_where(entry), title, str(entry['seeds']), *cells, _hardware(entry), entry.get('date', '')])
    return f'{text}Percent; many, medium and few are accuracies.\n\n{_table(lines)}'


def _measured_text(entry: dict[str, Any]) -> str:
    figures = entry['figures']
    value = _percent(figures.get('test_mean_class_error') or figures.get('last_mean_class_error'))
    count = entry['seeds']
    return f'{_where(entry)}: {value} ({count} {"seed" if count == 1 else "seeds"}, {_hardware(entry)})'


def _where(entry: dict[str, Any]) -> str:
    imbalance = f', imbalance {entry["imbalance"]}' if entry.get('imbalance') else ''
    options = ''.join(f', {name} {value}' for name, value in entry.get('options', {}).items())
    return f'{entry["base"]}{imbalance}{options}'


def _hardware(entry: dict[str, Any]) -> str:
    hardware = entry['hardware']
    return hardware.get('gpu') or f'{hardware["cores"]} cores of {hardware["cpu"]}'


def _percent(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ''
    deviation = '' if spread.get('std') is None else f' ± {100 * spread["std"]:.2f}'
    return f'{100 * spread["mean"]:.2f}{deviation}'


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells are not padded, since equations would make every line as long as the longest."""
    head, *body = [[cell.replace('|', '\\|') for cell in line] for line in lines]
    rows = [head, ['---'] * len(head), *body]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def main() -> None:
    write_text(GALLERY, gallery(read_published(), read_measured()))
    print(f'wrote {GALLERY}')
