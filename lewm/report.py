"""One self-contained HTML page that shows a quickstart to a stranger: pictures and text are inside, nothing is fetched.

Every result on the page was measured in the run it reports, but for the published one, which is called that.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lewm.contracts import Result
from lewm.figures.planning import success_panel
from lewm.figures.probing import latent_panels, probe_panels
from lewm.figures.training import loss_panels
from lewm.panels import THEME, Panel

__all__ = ["Clip", "draw_panels", "render"]

SAMPLED_ROWS = 24
"""Of a cloud of points, as many are listed as numbers."""

FLOOR_NAMES = {"straight_line": "straight line*", "random": "random", "do_nothing": "do nothing"}
STAGES = {
    "collect": "collect episodes",
    "train": "train the world model",
    "fit": "fit what the planner asks for",
    "evaluate": "evaluate agent and floors",
    "probe": "probe the latents",
    "report": "draw this report",
    "total": "everything",
}


@dataclass(frozen=True)
class Clip:
    """One planned episode.

    Attributes:
        caption: what is to be seen, in a few words.
        solved: whether it reached its goal.
        animation, still: WebP; the still is for readers who asked their system for less motion.
    """

    caption: str
    solved: bool
    animation: bytes
    still: bytes


def draw_panels(result: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], probing: Result) -> dict[str, list[Panel]]:
    """The figures of the page; arguments as for `render`. Drawn first, because the page shows how long they took."""
    return {
        "success": [success_panel(title, scores) for title, scores in _successes(result).items()],
        "other_room": [success_panel("goals in the other room", scores) for scores in (_other_room(result),) if scores],
        "loss": loss_panels(metrics),
        "latents": latent_panels(probing),
        "probe": probe_panels(probing),
    }


def render(
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    probing: Result,
    panels: Mapping[str, Sequence[Panel]],
    clips: Sequence[Clip],
    folder: str,
) -> str:
    """Write the page.

    Args:
        result: what `quickstart.run` writes to result.json.
        metrics: lines of metrics.jsonl.
        probing: of `analyses.probing`, on held-out episodes.
        panels: of `draw_panels`.
        clips: planned episodes.
        folder: of the quickstart, as the commands on the page name it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": _percent, "duration": _duration, "interval": _interval, "webp": _webp, "number": _number}
    return templates.get_template("report.html.j2").render(
        result=result,
        settings=result["settings"],
        searches="num_candidates" in result["settings"]["planning"]["solver"],
        folder=folder,
        theme=THEME,
        successes=_successes(result),
        other_room=_other_room(result),
        straight_does=_compared(result["floors"]["straight_line"], result["success"]),
        panels=panels,
        loss_table=_loss_table(metrics),
        probing=probing.values,
        sample=_sample(probing),
        clips=clips,
        stages={name: label for name, label in STAGES.items() if name in result["seconds"]},
        next_steps=_next_steps(result, folder),
    )


def _successes(result: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, float]]]:
    """Way of counting -> policy -> score, the agent first."""
    floors = {label: result["floors"][name] for name, label in FLOOR_NAMES.items() if name in result["floors"]}
    return {
        "paper's protocol": {"agent": result["success"], **floors},
        "strict": {"agent": result["strict"], **{label: floor["strict"] for label, floor in floors.items()}},
    }


def _other_room(result: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Policy -> score on the distant goals, the agent first; empty where they were not played."""
    played = result["other_room"]
    if played is None:
        return {}
    return {"agent": played["agent"]} | {
        label: played["floors"][n] for n, label in FLOOR_NAMES.items() if n in played["floors"]
    }


def _compared(rival: Mapping[str, float], agent: Mapping[str, float]) -> str:
    """How a rival does beside the agent: "as well" unless each of them lies outside the interval of the other."""
    if rival["low"] > agent["rate"] and rival["rate"] > agent["high"]:
        return "better"
    if rival["high"] < agent["rate"] and rival["rate"] < agent["low"]:
        return "less well"
    return "as well"


def _next_steps(result: Mapping[str, Any], folder: str) -> list[tuple[str, str]]:
    """What to do with what is now in the folder, and how to go beyond it: purpose and command."""
    settings = result["settings"]
    collect = f"--episodes 2000 --image-size {settings['image_size']} --seed 1"
    return [
        ("watch it look for the way to the other room", f"lewm plan {folder}/run --across --out plan.gif"),
        ("measure it on longer ways too, and on more goals in the other room", f"lewm evaluate {folder}/run --full"),
        ("collect more episodes", f"lewm collect {settings['world']} --out more.h5 {collect}"),
        ("train longer on them", f"lewm train {result['recipe']} --data more.h5 --out longer --training.updates 2000"),
        ("fit what its planner asks for to the longer run", "lewm fit longer"),
        ("compare the speed of our implementations with plain ones", "lewm bench"),
        ("see what this machine can do, and what is missing", "lewm doctor"),
    ]


def _sample(probing: Result) -> list[dict[str, str]]:
    """Rows of numbers behind the clouds of points: evenly spaced test frames."""
    names = list(probing.values["variables"])
    arrays = probing.arrays
    rows = np.unique(np.linspace(0, len(arrays["states"]) - 1, SAMPLED_ROWS).round().astype(int))
    return [
        {
            "episode": str(arrays["episodes"][row]),
            **{f"true {name}": f"{arrays['states'][row, i]:.1f}" for i, name in enumerate(names)},
            **{f"read {name}": f"{arrays['predictions'][row, i]:.1f}" for i, name in enumerate(names)},
            **{f"component {i + 1}": f"{arrays['plane'][row, i]:.2f}" for i in range(2)},
        }
        for row in rows
    ]


def _loss_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    columns = ("update", "prediction", "sigreg", "latent_std", "effective_rank")
    known = [name for name in columns if any(name in row for row in rows)]
    return [{name.replace("_", " "): _number(row[name]) if name in row else "" for name in known} for row in rows]


def _percent(rate: float) -> str:
    """One decimal where it says something: 94.5%, but 100% and 4%."""
    return f"{100 * rate:.1f}".removesuffix(".0") + "%"


def _interval(score: Mapping[str, float]) -> str:
    return f"{_percent(score['low'])} to {_percent(score['high'])}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _webp(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()
