"""One option of the config tree (Key) and one group of them (Section)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, overload

from lib.errors import UserError, shown, text_fault, url_fault
from lib.runtime.mirror import url_of
from lib.runtime.read_file import MARK

if TYPE_CHECKING:

    class CfgNode(dict[str, Any]):
        """yacs has no types; with an untyped base class, mypy would accept any attribute of a section."""

        def freeze(self) -> None: ...
else:
    from yacs.config import CfgNode

T = TypeVar('T')

AUTO = 'auto'


@dataclass(frozen=True)
class Key(Generic[T]):
    """A documented option, declared as an attribute of a Section: BATCH_SIZE = Key(512, 'Images per step.', low=1).

    The default's type is the option's type. Read from a section of a config, the attribute is the value.

    Attributes:
        default: bool, int, float, str, or a tuple of int, float or str. An int is accepted for a float.
        meaning: one sentence for --help and docs/configuration.md; it ends with what 0 or '' means where that is
            special.
        choices: allowed values, or entries of a tuple; empty if any value of the type is allowed.
        low, high: allowed range of a number (or of each number of a tuple), ends included.
        unit: unit of a number, such as 'pixels'.
        neutral: a value that switches the option off, so that it may be set where the method does not use it.
        used_by: (selector key, its values that use this option); None if it is always used.
        or_by: other selector keys; the same values of these use it, too.
        is_path: the text is a path, or each text of a tuple, besides words such as 'last'; a URL is one of object
            storage, without credentials.
        entry: type of the entries of a tuple whose default is empty.
        auto: value that stands for the word 'auto' in the config, outside the allowed range; None: the word is refused.
    """

    default: T
    meaning: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    unit: str = ''
    neutral: T | None = None
    used_by: tuple[str, tuple[str, ...]] | None = None
    or_by: tuple[str, ...] = ()
    is_path: bool = False
    entry: type = int
    auto: T | None = None
    _name: str = field(default='', init=False, repr=False, compare=False)

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, '_name', name)

    @overload
    def __get__(self, section: None, owner: type) -> Self: ...

    @overload
    def __get__(self, section: 'Section', owner: type) -> T: ...

    def __get__(self, section: 'Section | None', owner: type) -> Self | T:
        if section is None:
            return self
        if self._name not in section:
            raise AttributeError(self._name)
        value: T = section[self._name]
        return value

    def accept(self, name: str, value: Any) -> T:
        """Return `value` in this key's type.

        Args:
            name: name of the option, for messages.
            value: text from the command line; text, or lists or mappings of texts, from YAML; or a value of its type.
                The text 'auto' becomes `auto` where the key has it.

        Raises:
            UserError: wrong type, not a choice, or out of range; names the option, the value and what is allowed.
        """
        if self.auto is not None and self._is_auto(value):
            return self.auto
        try:
            accepted = self._convert(value)
        except OverflowError:
            raise self._refusal(name, value, ' (below 2^63)') from None
        except (TypeError, ValueError):
            raise self._refusal(name, value) from None
        entries = accepted if isinstance(accepted, tuple) else (accepted,)
        unknown = [entry for entry in entries if entry not in self.choices] if self.choices else []
        if unknown:
            raise self._refusal(name, value, did_you_mean(unknown[0], self.choices))
        if self.auto is not None and accepted == self.auto:
            raise self._refusal(name, value)
        if not all(self._in_range(number) for number in entries if isinstance(number, int | float)):
            raise self._refusal(name, value)
        for entry in entries if self.entry_type is str else ():
            if fault := text_fault(entry) or (url_fault(entry) if self.is_path else ''):
                raise UserError(f'{name} is {fault}')
        result: T = accepted
        return result

    def _is_auto(self, value: Any) -> bool:
        if isinstance(value, str):
            return value.strip().lower() == AUTO
        return type(value) is type(self.default) and value == self.auto

    def plain(self, value: Any) -> Any:
        """Return a value as YAML and help show it: the word 'auto' for `auto`, a URL for a path in its mirror."""
        if self.is_path and MARK in str(value):
            return tuple(map(url_of, value)) if isinstance(value, tuple) else url_of(value)
        return AUTO if self.auto is not None and value == self.auto else value

    def _in_range(self, number: float) -> bool:
        return (self.low is None or number >= self.low) and (self.high is None or number <= self.high)

    @property
    def entry_type(self) -> type:
        """Return the type of the entries of a tuple, or of the value."""
        if not isinstance(self.default, tuple):
            return type(self.default)
        return type(self.default[0]) if self.default else self.entry

    def _convert(self, value: Any) -> Any:
        if isinstance(self.default, tuple):
            return _convert_tuple(value, self.entry_type)
        return _convert_scalar(value, self.entry_type)

    def _refusal(self, name: str, value: Any, hint: str = '') -> UserError:
        hint = hint or " (an empty text is '')" * (value is None and isinstance(self.default, str))
        found = 'empty' if value is None else shown(value)
        return UserError(f'{name} is {found}, but must be {self.expected()}{hint}')

    def expected(self) -> str:
        """Return the allowed values in words, for error lines and help."""
        if self.choices and isinstance(self.default, tuple):
            return f'some of {", ".join(self.choices)}, separated by commas'
        if self.choices:
            return 'one of ' + ', '.join(repr(choice) if choice == '' else str(choice) for choice in self.choices)
        return f'{AUTO} or ' * (self.auto is not None) + self._expected_value()

    def _expected_value(self) -> str:
        if isinstance(self.default, tuple):
            words = {int: 'whole numbers', float: 'numbers', str: 'paths' if self.is_path else 'texts'}[self.entry_type]
            words += ' separated by commas'
            words += f', such as {",".join(map(str, self.default))}' if self.default else ''
        else:
            words = {
                bool: 'True or False',
                int: 'a whole number',
                float: 'a number',
                str: 'a path' if self.is_path else 'a text',
            }[self.entry_type]
        return words + self.range()

    def range(self) -> str:
        """Return ' from LOW to HIGH', ', at least LOW', or ''."""
        if self.low is not None and self.high is not None:
            return f' from {self.low:g} to {self.high:g}'
        return '' if self.low is None else f', at least {self.low:g}'


class Section(CfgNode):
    """A group of options: a subclass declares them as attributes, an instance holds their values.

    Attributes:
        title: a few words for headings in --help and docs/configuration.md.
        keys_by_name: the declared options in their order.
    """

    title: ClassVar[str]
    keys_by_name: ClassVar[dict[str, Key[Any]]]

    def __init_subclass__(cls, title: str) -> None:
        super().__init_subclass__()
        cls.title = title
        cls.keys_by_name = {name: key for name, key in vars(cls).items() if isinstance(key, Key)}


def did_you_mean(word: Any, allowed: Any) -> str:
    """Return ' (did you mean X?)' if one of `allowed` resembles `word`, else ''."""
    # difflib is imported late: only errors need it.
    from difflib import get_close_matches

    spelled = {str(name).lower(): str(name) for name in allowed}
    close = get_close_matches(str(word)[:100].lower(), spelled, n=1, cutoff=0.6)
    return f' (did you mean {spelled[close[0]]}?)' if close else ''


def _convert_tuple(value: Any, kind: type) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = value.strip().strip('()[]') if kind is not str else value
        value = [entry.strip() for entry in value.split(',') if entry.strip()]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(_convert_scalar(entry, kind) for entry in value)


_TOO_LARGE = 2**63
_MOST_DIGITS, _LONGEST_NUMBER = 20, 1000  # checked first: a conversion takes time that grows with their square


def _convert_scalar(value: Any, kind: type) -> Any:
    if kind is bool:
        return _convert_bool(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    if kind is str:
        return str(value)
    if isinstance(value, str):
        if len(value) > _LONGEST_NUMBER:
            raise ValueError
        if kind is int and sum(map(str.isdecimal, value)) > _MOST_DIGITS:
            raise OverflowError
    number = float(value)
    if number != number or number in (float('inf'), float('-inf')):
        raise ValueError
    if kind is int:
        whole = int(value) if isinstance(value, str | int) else int(number)
        if whole != number and not isinstance(value, int | str):
            raise ValueError
        if abs(whole) >= _TOO_LARGE:
            raise OverflowError
        return whole
    return number


_BOOLEANS = {
    'true': True, 'yes': True, 'on': True, '1': True,
    'false': False, 'no': False, 'off': False, '0': False,
}  # fmt: skip


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.strip().lower() not in _BOOLEANS:
        raise TypeError
    return _BOOLEANS[value.strip().lower()]
