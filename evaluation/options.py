"""Options of a benchmark: fields of a frozen dataclass, from which parsing, defaults, ranges and `--help` come.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class KnnOptions(Options):
        k: tuple[int, ...] = option((10, 20), at_least=1, distinct=True, help="numbers of neighbours")

A field is a `str`, an `int`, a `float`, a tuple of one of them, or one of these or None.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pipeline.schema import UserError

OptionsT = TypeVar("OptionsT", bound="Options")
_KINDS = {str: "text", int: "a whole number", float: "a number"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rule:
    """What is true of the values of one option."""

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    distinct: bool = False  # of a tuple: no value twice
    none: str | None = None  # the word that stands for None; without one, only leaving the option out gives None

    def allows(self, value: Any) -> bool:
        """Returns whether one value is allowed."""
        if isinstance(value, str):
            return not self.choices or value in self.choices
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def range(self) -> str:
        """Returns the range of a number in words, such as "above 0 and below 1"; "" for none."""
        limits = (("of at least", self.at_least), ("above", self.above), ("of at most", self.at_most))
        return " and ".join(
            f"{word} {limit:g}" for word, limit in (*limits, ("below", self.below)) if limit is not None
        )


def option(
    default: Any,
    *,
    help: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    distinct: bool = False,
    none: str | None = None,
) -> Any:
    """Returns a field of a subclass of `Options`.

    Args:
        default: its value when it is not given.
        help: what it is, in a few words without a capital; `--help` shows it.
        at_least: the smallest number.
        above: the number that it must exceed.
        at_most: the largest number.
        below: the number that it must stay under.
        choices: the only texts that are allowed.
        distinct: of a tuple, whether its values must differ.
        none: the text that stands for None, such as "all".
    """
    rule = _Rule(
        help=help,
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
        choices=choices,
        distinct=distinct,
        none=none,
    )
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Declared:
    """One option, as its field declares it."""

    name: str
    kind: type  # str, int or float
    is_tuple: bool
    can_be_none: bool
    default: Any
    rule: _Rule

    @property
    def default_text(self) -> str:
        """The default as the command line would state it."""
        return self.rule.none or "none" if self.default is None else _text(self.default)

    def parse(self, text: str) -> Any:
        """Returns the value that `text` stands for.

        Raises:
            UserError: it stands for none of this kind; the range is checked by `Options`.
        """
        if self.can_be_none and text == self.rule.none:
            return None
        try:
            if self.is_tuple:
                values = [one.strip() for one in text.split(",")]
                return tuple(self.kind(one) for one in values if one or self.kind is not str)
            return self.kind(text)
        except ValueError as error:
            raise self.error(text) from error

    def check(self, value: Any) -> None:
        """Checks that `value` is allowed.

        Raises:
            UserError: it is not.
        """
        if value is None and self.can_be_none:
            return
        values = value if self.is_tuple else (value,)
        if not values or not all(self.rule.allows(one) for one in values):
            raise self.error(_text(value))
        if self.rule.distinct and len(set(values)) != len(values):
            raise self.error(_text(value))

    def error(self, text: str) -> UserError:
        """Returns the error that names the option, its value and what it may be."""
        what = self.rule
        if what.choices:
            needed = f"one of {', '.join(what.choices)}"
        elif self.is_tuple:
            different = "different " if what.distinct else ""
            numbers = f"{different}{_KINDS[self.kind].removeprefix('a ')}s {what.range()}".rstrip()
            needed = f"one or more {numbers}, with commas between them"
        else:
            needed = f"{_KINDS[self.kind]} {what.range()}".rstrip()
        needed += f", or {what.none}" if what.none else ""
        return UserError(f"{self.name} is {text!r}; it must be {needed}; the default is {self.default_text}")

    def help(self) -> str:
        """Returns one line of `--help`."""
        default = self.default_text
        words = [*self.rule.choices, *([self.rule.none] if self.rule.none and self.rule.none != default else [])]
        allowed = f" ({'or ' if len(words) == 1 else ''}{' or '.join(words)})" if words else ""
        return f"{self.name} ({default}): {self.rule.help}{allowed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a benchmark; this class itself has none.

    Raises:
        UserError: a value is out of range.
    """

    def __post_init__(self) -> None:
        for one in _declared(type(self)):
            one.check(getattr(self, one.name))

    def is_default(self, name: str) -> bool:
        """Returns whether the option has its default value."""
        return bool(getattr(self, name) == type(self).__dataclass_fields__[name].default)

    def settings(self, *names: str) -> dict[str, Any]:
        """Returns options (all of them without `names`) as JSON values."""
        values = {one.name: getattr(self, one.name) for one in _declared(type(self))}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if not names or name in names
        }


def parse_options(benchmark: str, kind: type[OptionsT], given: Mapping[str, str]) -> OptionsT:
    """Returns the options of a benchmark.

    Args:
        benchmark: its name, for messages.
        kind: its class of options.
        given: name to text, as `--option <benchmark>.<name>=<text>` states them.

    Raises:
        UserError: there is no such option, or a value is not allowed.
    """
    declared = {one.name: one for one in _declared(kind)}
    for name in given:
        if name not in declared:
            known = ", ".join(f"{one.name} (default {one.default_text})" for one in declared.values()) or "none"
            raise UserError(f"{benchmark} has no option {name!r}{closest_name(name, declared)}; it has: {known}")
    try:
        return kind(**{name: declared[name].parse(text) for name, text in given.items()})
    except UserError as error:
        # An error of one option starts with its name; one of several together is a sentence of its own.
        of_one = str(error).startswith(tuple(f"{name} is " for name in declared))
        raise UserError(f"{benchmark}{'.' if of_one else ': '}{error}") from error


def options_help(kind: type[Options]) -> list[str]:
    """Returns a line for each option: its name, default and meaning."""
    return [one.help() for one in _declared(kind)]


def closest_name(name: str, names: Iterable[str]) -> str:
    """Returns ", the nearest is 'x'" for the name that is most like `name`; "" where none is like it."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f", the nearest is {close[0]!r}" if close else ""


def _declared(kind: type[Options]) -> list[_Declared]:
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        can_be_none = isinstance(hint, types.UnionType)
        if can_be_none:
            (hint,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
        is_tuple = typing.get_origin(hint) is tuple
        found.append(
            _Declared(
                name=field.name,
                kind=typing.get_args(hint)[0] if is_tuple else hint,
                is_tuple=is_tuple,
                can_be_none=can_be_none,
                default=field.default,
                rule=field.metadata["rule"],
            )
        )
    return found


def _text(value: Any) -> str:
    """Returns a value as the command line would state it."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
