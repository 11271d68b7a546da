"""`lewm collect`: let a policy fill an episode file."""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional, UseAppendAction

from lewm.cli import console
from lewm.contracts import Progress
from lewm.data import collecting
from lewm.data.episodes import Episodes
from lewm.files import write_json


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm collect")


def run(
    world: Positional[str],
    out: Path,
    episodes: int = 360,
    policy: str | None = None,
    seed: int = 0,
    image_size: int | None = None,
    look: str = "published",
    option: UseAppendAction[tuple[str, ...]] = (),
    every: int = 1,
    compression: str | None = None,
    processes: int | None = None,
    together: int | None = None,
    json: Path | None = None,
) -> None:
    """Let a policy act in a world and record what it sees and does. The same command continues an
    interrupted collection.

    Args:
        world: name of the world, such as two-room, or gym: and a registered Gymnasium id, such as
            gym:Pendulum-v1.
        out: episode file (HDF5) to write.
        episodes: how many in all.
        policy: one that the world offers, such as expert or random; by default expert where it has
            that, else its first.
        seed: episode i is drawn from (seed, i) alone.
        image_size: height and width of the pixels; the world's own by default.
        look: appearance of the world, such as "agent_color=0000ff"; numbers of two looks are never
            mixed.
        option: another option of the world, such as speed=10.5; may be given several times. A
            gym: world takes max_steps and crop=center, and what Gymnasium makes it with.
        every: env steps from one recorded frame to the next, each with the actions in between. 5
            suits the frameskip of the paper, takes a fifth of the space, and of the time where
            drawing is slow.
        compression: of the pixels: blosc or zstd. None, the default, is the published layout and
            the quickest to read; blosc makes files of Two-Room 14 times smaller.
        processes: that record at the same time, by default one per core if the world is slow, else
            1; changes the speed and nothing else.
        together: episodes recorded side by side in a process, likewise.
        json: write a description of the file there.
    """
    options = _options(option) | ({} if look == "published" else {"look": look})
    recorded = False

    def report(progress: Progress) -> None:
        nonlocal recorded
        recorded = True
        bars.update(progress)

    try:
        with console.Bars() as bars:
            file = collecting.collect(
                world,
                out,
                episodes,
                policy=policy,
                seed=seed,
                batch_size=together,
                image_size=image_size,
                report=report,
                compression=compression,
                every=every,
                processes=processes,
                **options,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(out)) from None
    with file:
        summary = file.summary()
    before = "" if recorded else "nothing to do: "
    size = f"{summary['image_size']} px, {summary['bytes'] / 1e6:.1f} MB"
    apart = f", one per {every} env steps" if every > 1 else ""
    console.say(
        f"{before}{out} holds {summary['episodes']} episodes, {summary['steps']} frames of "
        f"{size}{apart}."
    )
    if json:
        write_json(json, summary)


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Read "name=value" words; a value that is a number becomes one."""
    found: dict[str, Any] = {}
    flags = {*inspect.signature(run).parameters, *inspect.signature(collecting.collect).parameters}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier() or name in flags or name in found:
            got = (
                "one that has a flag of its own"
                if name in flags
                else "it twice"
                if name in found
                else "something else"
            )
            raise ValueError(
                f"expected --option name=value with an option of the world, got {got}: '{word}'."
            )
        found[name] = _number(value.strip())
    return found


def _number(text: str) -> int | float | str:
    """A number where the text can be nothing else: 000000 and 1e5555 may be colours."""
    if re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        return int(text)
    return (
        float(text)
        if re.fullmatch(r"-?[0-9]+(\.[0-9]+(e[+-]?[0-9]+)?|e[+-][0-9]+)", text)
        else text
    )


def _kept(path: Path) -> str:
    if not path.exists():
        return "No episode was complete yet."
    with Episodes.open(path) as episodes:
        return (
            f"{len(episodes)} complete episodes are kept in {path}, and the same command goes on."
        )
