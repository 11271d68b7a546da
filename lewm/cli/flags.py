"""Configs as flags, with a line of help for each field."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Annotated, get_type_hints

import tyro

from lewm.contracts import Settings

__all__ = ["described"]


def described(config: Settings) -> type:
    """A dataclass for tyro with the fields of `config`'s, its values as defaults, and help for each
    of them.

    The help is what the class, or one that it inherits from, says under "Attributes:", also where
    several fields share one entry ("weight_decay, clip: ..."), which tyro by itself does not find.
    """
    told = [inspect.cleandoc(kind.__doc__ or "") for kind in reversed(type(config).__mro__)]
    text, told = told[-1], [each for each in told if "Attributes:" in each]
    summary = " ".join(text.partition("\n\n")[0].split())
    entries = re.findall(r"^ {4}([a-z_, ]+): (.*(?:\n {5,}.*)*)", "\n".join(told), re.MULTILINE)
    words = {
        name.strip(): " ".join(line.split()) for names, line in entries for name in names.split(",")
    }
    hints = get_type_hints(type(config))
    made = [
        (
            field.name,
            Annotated[hints[field.name], tyro.conf.arg(help=words.get(field.name, ""))],
            dataclasses.field(default=getattr(config, field.name)),
        )
        for field in dataclasses.fields(config)
    ]
    return dataclasses.make_dataclass(
        type(config).__name__, made, namespace={"__doc__": summary}, frozen=True
    )
