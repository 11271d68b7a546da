"""Colours and named looks of a world, read from what a user writes."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lewm.registry import choose

__all__ = ["color_digits", "turned_color", "read_look"]


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


def read_look(
    world: str, look: str, names: Sequence[str], colors: Mapping[str, str]
) -> tuple[str, str, dict[str, str]]:
    """Read the look of a world that has a few named ones, in which things can be painted:
    "fast,block_color=00ff00".

    Args:
        world: its name, for the error.
        names: of the looks; the first is meant where none is named.
        colors: thing -> its colour when it is not painted.

    Returns:
        The look as `WorldSpec.look` has it, the named one in it, and the colours of the things
        whose colour it changes.

    Raises:
        ValueError: no such look or thing, or no colour.
    """
    named, painted = names[0], dict(colors)
    for word in look.split(","):
        key, equals, value = (part.strip() for part in word.partition("="))
        if equals:
            thing = choose(
                f"colour of {world}", key, [f"{thing}_color" for thing in colors]
            ).removesuffix("_color")
            painted[thing] = color_digits(key, value)
        else:
            named = choose(f"look of {world}", key, names)
    changed = {thing: color for thing, color in painted.items() if color != colors[thing]}
    words = [f"{thing}_color={color}" for thing, color in changed.items()]
    return ",".join([named] * (named != names[0] or not words) + words), named, changed
