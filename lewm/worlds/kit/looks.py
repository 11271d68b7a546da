"""Looks of a world: what may be varied, what it is called, and how what a user writes is read.

A look is a named one, factors that differ from it, or both: "fast,block_color=00ff00".
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

from lewm.registry import choose

__all__ = ["Look", "choice", "color", "color_digits", "number", "turned_color"]

Own = TypeVar("Own", bound="Look")

NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?"
"""A number as a look has it: no sign, no NaN, no infinity."""


@dataclass(frozen=True)
class Look:
    """What of a world may be varied. Each world has a record of its own that derives from this.

    A field is a factor: a `color`, a `number` or a `choice`. Its default is the published world.

    Attributes:
        world: its name.
        named: the named looks, and the factors that each sets; "published" comes first.
        paints: what can be painted by itself, and the factors that hold its colours.
    """

    world: ClassVar[str]
    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {"published": {}}
    paints: ClassVar[Mapping[str, Sequence[str]]]

    def __post_init__(self) -> None:
        for factor in fields(self):
            read: Callable[[str, Any], Any] = factor.metadata["read"]
            object.__setattr__(self, factor.name, read(factor.name, getattr(self, factor.name)))

    @classmethod
    def parse(cls: type[Own], look: str, **changes: Any) -> Own:
        """Read a look, then apply `changes`, factors by name.

        What stands later overrides what stands before it.

        Raises:
            ValueError: no such look or factor, or a value that the factor cannot have.
        """
        known = [factor.name for factor in fields(cls) if "choices" not in factor.metadata]
        stated: dict[str, Any] = {}
        for word in look.split(","):
            key, equals, value = (part.strip() for part in word.partition("="))
            if equals:
                stated[choose(f"factor of {cls.world}", key, known)] = value
            else:
                stated |= cls.named[choose(f"look of {cls.world}", key, cls.named)]
        for key, value in changes.items():
            stated[choose(f"factor of {cls.world}", key, known)] = value
        return cls(**stated)

    @property
    def look(self) -> str:
        """What `WorldSpec.look` says, and `parse` reads back.

        The nearest of the named looks, and what differs from it: "tiny,bar_color=0000ff".
        "published" is left out where anything differs.
        """
        differing = {
            name: self._changed(type(self)(**factors)) for name, factors in self.named.items()
        }
        name = min(differing, key=lambda name: len(differing[name]))
        words = [f"{key}={value}" for key, value in differing[name].items()]
        return ",".join([name] * (name != "published" or not words) + words)

    def recoloured(self: Own, thing: str, turn: float = 0.5) -> Own:
        """The same but for the colours of one thing, which are turned; see `turned_color`."""
        names = self.paints[choose(f"thing of {self.world}", thing, self.paints)]
        turned: dict[str, Any] = {name: turned_color(getattr(self, name), turn) for name in names}
        return replace(self, **turned)

    def _changed(self: Own, other: Own) -> dict[str, Any]:
        """Factors that are not those of another look."""
        own = vars(self)
        return {name: value for name, value in own.items() if value != getattr(other, name)}


def color(default: str, absent: bool = False) -> str:
    """A factor that is a colour.

    Args:
        default: six hexadecimal digits, rrggbb.
        absent: whether it may be "none", too.
    """
    return _factor(default, read=partial(_read_color, absent))


def number(default: float, expected: str, low: float, high: float) -> float:
    """A factor that is a number from `low` to `high`; `expected` says so in an error."""
    return _factor(default, read=partial(_read_number, expected, low, high))


def choice(default: str, choices: Sequence[str]) -> str:
    """A factor that is one of a few words. Only a named look sets it."""
    return _factor(default, read=partial(_read_choice, choices), choices=choices)


def _factor(default: Any, **metadata: Any) -> Any:
    return field(default=default, metadata=metadata)


def _read_color(absent: bool, name: str, value: Any) -> str:
    return "none" if absent and str(value).lower() == "none" else color_digits(name, value)


def _read_number(expected: str, low: float, high: float, name: str, value: Any) -> float:
    if not re.fullmatch(NUMBER, str(value)) or not low <= float(value) <= high:
        raise ValueError(f"{name} must be {expected}, got '{value}'.")
    return float(value)


def _read_choice(choices: Sequence[str], name: str, value: Any) -> str:
    return choose(name, value, choices)


def color_digits(name: str, value: Any) -> str:
    """Six hexadecimal digits, rrggbb, of a colour that a world is given.

    Raises:
        ValueError: `value` is something else; `name` says of what.
    """
    digits = str(value).lower().removeprefix("#")
    if not re.fullmatch("[0-9a-f]{6}", digits):
        raise ValueError(
            f"{name} must be six hexadecimal digits such as 0000ff for blue, got '{value}'."
        )
    return digits


def turned_color(digits: str, turn: float = 0.5) -> str:
    """Another colour, as bright: `turn` of the way round the colour wheel, half way being the
    opposite.

    It is vivid even where the given one is grey or dark, and so has no place on the wheel.

    Raises:
        ValueError: `turn` is not between 0 and 1, where it would be the same colour.
    """
    if not 0 < turn < 1:
        raise ValueError(f"turn must be a share of the colour wheel between 0 and 1, got {turn}.")
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in bytes.fromhex(digits)))
    turned = colorsys.hsv_to_rgb((hue + turn) % 1.0, max(saturation, 0.75), max(value, 0.5))
    return bytes(round(255 * part) for part in turned).hex()
