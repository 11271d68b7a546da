"""The lab: a trained run in the browser.

Here is what a page needs to run the user's own model, without a server and without a library:

- `export.py` takes a run apart: folded weights, heads, a linear probe, latents for a map, and what
  PyTorch says of a few frames. The answer is JSON.
- `kernels.ts` is the arithmetic, in AssemblyScript. `kernels.wasm` is made of it by `make kernels`
  and lies beside it. Nothing of npm is needed to use it.
- `model.js` is `Model`: `encode`, `rollout`, `distance`, `plan`, `read`, and `check`, which throws
  unless the model agrees with PyTorch.
- `two_room.js` is `World`: `step`, `render`, `met`, and walls to break it with.
- `planners.js` is `Amortised`, `CEM` and `Waypoints`, and `Agent`, which observes, plans and acts
  as `lewm.Agent` does.
- `page.py` puts all of it into one HTML file. `mind.js` is the model's side of it, in a worker.
  `widgets.js` is what is seen and touched, `numbers.js` what it computes, and `gif.js` writes GIFs.

The JavaScript is plain ES modules without dependencies between model and world: a page imports or
inlines them. Each begins with an example of its use.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["PAGE", "PAGE_NAME", "SOURCES", "kernels", "source"]

FOLDER = Path(__file__).parent
SOURCES = ("model.js", "two_room.js", "planners.js")
"""ES modules, in an order in which they can be inlined."""

PAGE = ("numbers.js", "gif.js", "mind.js", "widgets.js")
"""Those of the page, which come after them."""

PAGE_NAME = "lab.html"
"""Of the page, unless somebody calls it otherwise; a report beside it links to it."""


def source(name: str) -> str:
    """The text of one of `SOURCES` or `PAGE`."""
    assert name in SOURCES + PAGE
    return (FOLDER / name).read_text(encoding="utf-8")


def kernels() -> bytes:
    """The compiled kernels."""
    return (FOLDER / "kernels.wasm").read_bytes()
