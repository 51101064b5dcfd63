"""One leaf of the config tree: its default, its meaning and what it accepts."""

from dataclasses import dataclass
from typing import Any

from lib.errors import UserError


@dataclass(frozen=True)
class Key:
    """A documented option.

    Attributes:
        default: value when nothing else is said; its type is the key's type (an int is accepted for a float).
        meaning: one sentence for ``--help``, with the unit where there is one.
        choices: allowed values; empty when any value of the type will do.
        low, high: allowed range of a number (or of each number of a tuple), ends included.
        neutral: a value that switches the option off, so that it may stand where the method does not use it.
        used_by: (selector key, values of it that use this key); None when always used.
        or_by: other selector keys, whose choice of the same values uses it as well.
    """

    default: Any
    meaning: str
    choices: tuple = ()
    low: float | None = None
    high: float | None = None
    neutral: Any = None
    used_by: tuple[str, tuple[str, ...]] | None = None
    or_by: tuple[str, ...] = ()

    def accept(self, name: str, value: Any) -> Any:
        """Return `value` in this key's type, or raise UserError naming `name`, the value and what is allowed.

        `value` is text from the command line, or what YAML made of a file (where 1e-4 arrives as text as well).
        """
        try:
            accepted = _convert(value, self.default)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f'{name} is {_shown(value)}, but must be {self.expected()}') from None
        numbers = accepted if isinstance(accepted, tuple) else (accepted,)
        if self.choices and accepted not in self.choices:
            raise UserError(
                f'{name} is {_shown(value)}, but must be {self.expected()}{did_you_mean(accepted, self.choices)}'
            )
        if isinstance(numbers[0] if numbers else '', int | float) and any(
            (self.low is not None and number < self.low) or (self.high is not None and number > self.high)
            for number in numbers
        ):
            raise UserError(f'{name} is {_shown(value)}, but must be {self.expected()}')
        return accepted

    def expected(self) -> str:
        """Say what is allowed, for error lines and help."""
        if self.choices:
            return 'one of ' + ', '.join(repr(choice) if choice == '' else str(choice) for choice in self.choices)
        names = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a text'}
        if isinstance(self.default, tuple):
            plural = {int: 'whole numbers', float: 'numbers'}[_kind(self.default)]
            words = f'{plural} separated by commas'
            words += f', such as {",".join(map(str, self.default))}' if self.default else ''
        else:
            words = names[type(self.default)]
        if self.low is not None and self.high is not None:
            return f'{words} from {self.low:g} to {self.high:g}'
        if self.low is not None:
            return f'{words}, at least {self.low:g}'
        return words


def did_you_mean(word: Any, known: Any) -> str:
    """Return ' (did you mean X?)' when one of `known` resembles `word`, else ''."""
    # difflib is imported late: it is needed only on the way to an error.
    from difflib import get_close_matches

    spelled = {str(name).lower(): str(name) for name in known}
    close = get_close_matches(str(word).lower(), spelled, n=1, cutoff=0.6)
    return f' (did you mean {spelled[close[0]]}?)' if close else ''


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _convert(value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        return _convert_tuple(value, _kind(default))
    return _convert_scalar(value, type(default))


def _kind(default: tuple) -> type:
    return type(default[0]) if default else int


def _convert_tuple(value: Any, kind: type) -> tuple:
    if isinstance(value, str):
        value = [part for part in value.strip().strip('()[]').split(',') if part.strip()]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(_convert_scalar(part, kind) for part in value)


def _convert_scalar(value: Any, kind: type) -> Any:
    if kind is bool:
        return _convert_bool(value)
    if kind is str:
        # A name such as 123 or 1.5 in YAML is meant as text; lists and nothing at all are not.
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        return str(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    number = float(value)
    if number != number or number in (float('inf'), float('-inf')):
        raise ValueError
    if kind is int:
        whole = int(value) if isinstance(value, str | int) else int(number)
        if whole != number and not isinstance(value, int | str):
            raise ValueError
        return whole
    return number


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {
        'true': True,
        'yes': True,
        'on': True,
        '1': True,
        'false': False,
        'no': False,
        'off': False,
        '0': False,
    }
    if not isinstance(value, str) or value.strip().lower() not in words:
        raise TypeError
    return words[value.strip().lower()]
