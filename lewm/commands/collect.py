"""`lewm collect`: let a policy fill an episode file."""

from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm import collection, console
from lewm.checkpoints import write_json
from lewm.data import Episodes


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm collect")


def run(
    world: Positional[str],
    out: Path,
    episodes: int = 360,
    policy: str = "expert",
    seed: int = 0,
    image_size: int | None = None,
    look: str = "published",
    compression: str | None = None,
    together: int | None = None,
    json: Path | None = None,
) -> None:
    """Let a policy act in a world and record what it sees and does. The same command continues an interrupted collection.

    Args:
        world: name of the world, such as two-room.
        out: episode file (HDF5) to write.
        episodes: how many in all.
        policy: one that the world offers, such as expert or random.
        seed: episode i is drawn from (seed, i) alone.
        image_size: height and width of the pixels; the world's own by default.
        look: appearance of the world, such as "agent_color=0000ff"; numbers of two looks are never mixed.
        compression: of the pixels: blosc or zstd. None, the default, is the published layout and the quickest to read; blosc
            makes files of Two-Room 14 times smaller.
        together: episodes recorded side by side; changes the speed and nothing else.
        json: write a description of the file there.
    """
    options = {} if look == "published" else {"look": look}
    recorded = False

    def report(done: int, total: int) -> None:
        nonlocal recorded
        recorded = True
        bars.update("collect", done, total)

    try:
        with console.Bars() as bars:
            file = collection.collect(world, out, episodes, policy, seed, together, image_size, report, compression, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(out)) from None
    with file:
        summary = file.summary()
    before = "" if recorded else "nothing to do: "
    size = f"{summary['image_size']} px, {summary['bytes'] / 1e6:.1f} MB"
    console.say(f"{before}{out} holds {summary['episodes']} episodes, {summary['steps']} frames of {size}.")
    if json:
        write_json(json, summary)


def _kept(path: Path) -> str:
    if not path.exists():
        return "No episode was complete yet."
    with Episodes.open(path) as episodes:
        return f"{len(episodes)} complete episodes are kept in {path}, and the same command goes on."
