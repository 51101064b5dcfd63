"""What post-hoc methods gain, as a table for a terminal."""

from typing import Any


def posthoc_lines(found: dict[str, dict[str, Any]]) -> list[str]:
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
