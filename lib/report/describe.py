"""Metrics as lines for people.

What post-hoc methods gain, as a table for a terminal.
"""

from typing import Any

from lib.inference.retrieval import Retrieval

_COLUMNS = {
    'mean_class_error': 'mean class error',
    'top1': 'top-1',
    'top5': 'top-5',
    'many': 'many',
    'medium': 'medium',
    'few': 'few',
}


def describe_metrics(rows: dict[str, dict[str, float]]) -> list[str]:
    """Return a table, a line a row: accuracies in percent but for the mean class error; what is absent is '-'.

    Nothing is returned when no row has a metric.
    """
    columns = [name for name in _COLUMNS if any(name in metrics for metrics in rows.values())]
    if not columns:
        return []
    width = max(len(name) for name in rows)
    lines = [' ' * width + ''.join(f'  {_COLUMNS[name]:>7}' for name in columns)]
    for row, metrics in rows.items():
        cells = [f'{metrics[name]:.1%}' if name in metrics else '-' for name in columns]
        lines.append(
            f'{row:<{width}}'
            + ''.join(f'  {cell:>{max(7, len(_COLUMNS[name]))}}' for name, cell in zip(columns, cells, strict=True))
        )
    return lines


def describe_prediction(metrics: dict[str, float], plain: dict[str, float]) -> list[str]:
    """Return the metrics of a prediction; of several views or models, beside those of the first one's plain view."""
    if not plain:
        return describe_metrics({'test': metrics})
    lines = describe_metrics({'one model, one view': plain, 'all together': metrics})
    gain = plain['mean_class_error'] - metrics['mean_class_error']
    if gain <= 0:
        lines.append('all together are no better than one model and one view by mean class error')
    else:
        lines.append(f'all together: mean class error {gain:.1%} lower'.replace('%', ' points'))
    return lines


def describe_tau(tau: dict[str, Any]) -> list[str]:
    """Return what tau.json says, in a few lines."""
    name = {'mean_class_error': 'mean class error', 'top1': 'top-1 accuracy'}[tau['metric']]
    optimum = f'optimum at tau {tau["optimum"]:.3f}: {name} {tau["optimum_value"]:.1%}'
    low, high = tau['stretch']
    if tau['chosen'] is None:
        lines = [f'{optimum}, no better than before: the model is saved unchanged']
    else:
        lines = [
            optimum,
            f'chosen tau {tau["chosen"]:.3f}, the middle of {low:.3f} to {high:.3f} (one standard error)',
        ]
    found = tau.get('cross_fitted')
    if found and tau['chosen'] is not None:
        lines.append(
            f'on images that tau was not chosen on ({found["folds"]} folds): {name} {found[tau["metric"]]:.1%}'
        )
    return lines + ([tau['note']] if tau['note'] else [])


def describe_retrieval(found: Retrieval) -> list[str]:
    """Return a table of retrieval metrics, averaged over images and over classes, and what was left out."""
    lines = []
    if found.images:
        names = list(found.images)
        lines.append(' ' * 14 + ''.join(f'  {name:>11}' for name in names))
        for row, metrics in (('over images', found.images), ('over classes', found.classes)):
            lines.append(f'{row:<14}' + ''.join(f'  {metrics[name]:>11.1%}' for name in names))
    if found.left_out:
        lines.append(f'{found.left_out} images are left out of these: there is none of their class to find')
    return lines


def describe_enrolled(figures: dict[str, Any]) -> list[str]:
    """Return what enroll.json says: accuracies before and after, averaged over classes, and what they were taken on."""
    old, new = figures['old'], figures['new']
    lines = [
        f'{len(figures["classes"])} new classes from {new["num_shots"]} images, {figures["num_classes"]} in all',
        f'{"accuracy":<12}  {"before":>7}  {"after":>7}',
    ]
    if old:
        how = f'{old["num_measured"]} validation images, each by rows chosen without it ({old["folds"]} folds)'
        lines.append(f'{"old classes":<12}  {old["before"]:>7.1%}  {old["after"]:>7.1%}  {how}')
    if 'after' in new:
        how = f'{new["num_measured"]} images that took no part'
        lines.append(f'{"new classes":<12}  {new["before"]:>7.1%}  {new["after"]:>7.1%}  {how}')
    else:
        lines.append('no image of the new classes is left to measure by: ENROLL.PER_CLASS leaves some')
    return lines


def describe_posthoc(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line a method, of at most 80 columns; what was fitted goes to a second one where it must.

    `found`: name -> mean_class_error, interval, top1, loss and ece where known, parameters.
    """
    width = max(map(len, found))
    lines = [f'{"":<{width}}  {"mean class error, %":>20}  {"top-1":>6}  {"loss":>6}  {"ECE":>5}  fitted']
    for name, figures in found.items():
        low, high = (100 * end for end in figures['interval'])
        error = f'{100 * figures["mean_class_error"]:.1f} [{low:.1f}, {high:.1f}]'
        loss, ece = (f'{figures[key]:.3f}' if key in figures else '-' for key in ('loss', 'ece'))
        said = '; '.join(f'{key} {_shown(value)}' for key, value in figures['parameters'].items())
        line = f'{name:<{width}}  {error:>20}  {100 * figures["top1"]:>6.1f}  {loss:>6}  {ece:>5}'
        lines.append(f'{line}  {said}' if len(line) + 2 + len(said) <= 80 else line)
        if len(line) + 2 + len(said) > 80:
            lines.append(f'{"":<{width}}    {said}')
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, list):
        numbers = [number for number in value if number is not None]
        if not numbers:
            return 'none'
        low, high = min(numbers), max(numbers)
        return f'{low:.2f}' if f'{low:.2f}' == f'{high:.2f}' else f'{low:.2f}-{high:.2f}'
    return f'{value:,}' if isinstance(value, int) else f'{value:.2f}'
