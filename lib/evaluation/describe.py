"""Metrics as lines for people."""

from typing import Any

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
