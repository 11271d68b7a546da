"""Results of analyses on disk: numbers and tables as JSON, arrays as safetensors; written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as packed

from lewm.contracts import Result
from lewm.files import write_atomically

__all__ = ["load", "save"]

RESULT, ARRAYS = "result.json", "arrays.safetensors"


def save(folder: Path, result: Result, about: Mapping[str, Any]) -> None:
    """Write a result into its folder. The JSON comes last, so that its presence means that all is there.

    Args:
        about: JSON-ready: what was asked of what, so that a reader knows whether it still holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in result.arrays.items()}
    (folder / RESULT).unlink(missing_ok=True)  # of an earlier result, whose arrays these are not
    write_atomically(folder / ARRAYS, packed(arrays))
    told = {"name": result.name, "about": dict(about), "values": result.values, "tables": result.tables}
    write_atomically(folder / RESULT, json.dumps(_plain(told), indent=1, allow_nan=False).encode())


def load(folder: Path) -> tuple[Result, dict[str, Any]] | None:
    """Read what `save` wrote: the result and what it is about; None where there is none.

    Raises:
        ValueError: it is damaged; the file is named.
    """
    if not (folder / RESULT).exists():
        return None
    try:
        told = json.loads((folder / RESULT).read_text())
        result = Result(told["name"], told["values"], load_file(folder / ARRAYS), told["tables"])
        return result, told["about"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} is damaged: expected {RESULT} and {ARRAYS} of an analysis, got {error!r}. Delete the folder and run the "
            "analysis again."
        ) from None


def _plain(value: Any) -> Any:
    """JSON-ready: numpy's numbers as Python's, and null for what is not a number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
