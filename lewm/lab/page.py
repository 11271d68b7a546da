"""The page that runs a trained model: one HTML file, which needs nothing but a browser.

`export` takes the run apart; here it is put beside the modules of JavaScript. They are wrapped in
one function, so that the page and its worker are made of the same text.
"""

from __future__ import annotations

import base64
import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

import lewm
from lewm import lab, registry
from lewm.analyses.probes.targets import sample_frames
from lewm.files import legible
from lewm.lab.export import export
from lewm.models.nn.sigreg import sigreg
from lewm.runs.run import Run

__all__ = ["BUDGET", "render"]

BUDGET = 2_500_000
"""Bytes that the page of a tiny recipe may have; a larger model has a larger page."""

MODULES = (*lab.SOURCES, *lab.PAGE)

CLOUD = 256
"""Frames of the training episodes whose latents are shown as a cloud."""

SHOWN = ("LeWM", "DINO-WM", "V-JEPA 2-AC", "Genie 3", "Sora")
"""Models whose tokens are drawn."""

IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?(?:function|class|const) (\w+))", re.MULTILINE)


def render(run: Run, label: str, command: str, seed: int = 0) -> str:
    """Write the page.

    Args:
        run: opened, with its episodes.
        label: what the run is called on the page.
        command: that makes the page.
        seed: of the frames that are drawn.

    Raises:
        Unsupported: as `export.export`; the message names what the page cannot hold.
        ValueError: likewise.

    Cost: that of `export.export`, a few seconds.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    exported = export(run, seed=seed)
    drawing = np.random.default_rng([seed, 1])
    rows, _ = sample_frames(run.episodes, run.fit_ids, CLOUD, drawing)
    states = run.episodes.rows("state", rows)
    data = {
        "exported": exported,
        "wasm": base64.b64encode(lab.kernels()).decode(),
        "states": [[float(x) for x in state] for state in states],
        "economy": _economy(),
        "rule": _rule(run),
    }
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    from markupsafe import Markup

    page = templates.get_template("page.html.j2").render(
        data=Markup(json.dumps(data, allow_nan=False).replace("<", "\\u003c")),
        library=Markup(library()),
        label=label,
        recipe=exported["recipe"],
        command=command,
        version=lewm.__version__,
        parameters=sum(p.numel() for p in run.model.parameters()),  # type: ignore[attr-defined]
        latent_dim=run.model.latent_dim,
        cloud=len(states),
        never=_never(exported["world"]["look"]),
    )
    return legible(page)


def library() -> str:
    """All modules as one function of JavaScript, which returns what each of them exports.

    A page that is one file cannot import. So each module becomes a function that is called once,
    and an import a look-up. The page hands the same function to its worker.
    """
    parts = []
    for name in MODULES:
        text = lab.source(name)
        assert "</script" not in text and "<!--" not in text  # noqa: PT018
        names = [found[1] for found in EXPORT.findall(text)]
        text = IMPORT.sub(lambda m: f'const {{{m[1]}}} = modules["{m[2]}"];\n', text)
        text = EXPORT.sub(r"\1", text)
        assert not re.search(r"^(import|export)\b", text, re.MULTILINE), name
        exports = ", ".join(names)
        parts.append(f'modules["{name}"] = (() => {{\n{text}\nreturn {{{exports}}};\n}})();\n')
    body = "\n".join(parts)
    return f'function library() {{\n"use strict";\nconst modules = {{}};\n{body}return modules;\n}}'


def _never(look: str) -> str:
    """What the model has not seen, in words."""
    if "walls" in look.split(","):
        return (
            "This model was trained on many layouts of one wall with one door. It never saw the "
            "walls that you add."
        )
    return (
        "This model never saw other walls than the one of its world. A wall that you add is no "
        "obstacle to it but a strange picture: it cannot plan round it. A wall that is not drawn "
        "it cannot even see."
    )


def _economy() -> dict[str, Any]:
    """Numbers of others, as the analysis has them."""
    result: Any = registry.load("analyses", "economy").result
    computed = {one.name.partition(",")[0]: one for one in result.computed}
    models = []
    for name in SHOWN:
        (one,) = (model for model in result.published if model.name == name)
        count = computed.get(name)
        models.append(
            {
                "name": name,
                "kind": one.kind,
                "tokens": one.tokens,
                "seconds": one.seconds,
                "hardware": one.hardware,
                "search": one.search,
                "predict": count.predict if count else None,
                "encode": count.encode if count else None,
            }
        )
    return {"models": models, "search": models[0]["search"]}


def _rule(run: Run) -> dict[str, float]:
    """The knots at which the statistic compares characteristic functions: those of training."""
    last = inspect.signature(sigreg).parameters["max_knot"].default
    return {"knots": run.model.config.sigreg_knots, "last": last}  # type: ignore[attr-defined]
