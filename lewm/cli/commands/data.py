"""`lewm data`: what is in recordings, are they sound, and how do they become an episode file?"""

from collections.abc import Sequence
from dataclasses import replace
from json import loads
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.contracts import Progress
from lewm.data import converting
from lewm.data.archives import MAX_EXPANSION
from lewm.data.episodes import Episodes
from lewm.data.sources import Selection
from lewm.files import write_json
from lewm.registry import choose

ACTIONS = ("info", "verify", "convert")


def main(words: Sequence[str]) -> None:
    if words and words[0] == "convert":
        tyro.cli(convert, args=words[1:], prog="lewm data convert")
    else:
        tyro.cli(run, args=words, prog="lewm data")


def run(
    action: Positional[str], files: Positional[tuple[str, ...]], json: Path | None = None
) -> None:
    """Describe recordings (info), or read all that is in them and say whether they are sound
    (verify).

    A third action makes an episode file of recordings in any known format: `lewm data convert
    --help`.

    Args:
        action: info or verify.
        files: episode files (HDF5), or recordings in another format that convert reads.
        json: write the same there.
    """
    if choose("action on data", action, ACTIONS) == "convert":
        raise ValueError("expected the word convert first: lewm data convert SOURCE --out FILE.h5")
    if not files:
        raise ValueError(f"expected episode files, got none: lewm data {action} FILE...")
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            with console.Bars() as bars:
                if action == "info":
                    found[file] = converting.describe(file)
                else:

                    def report(progress: Progress, stage: str = Path(file).name) -> None:
                        bars.update(replace(progress, stage=stage))

                    found[file] = {**converting.verify(file, report=report), "sound": True}
        except ValueError as error:
            found[file] = {"error": str(error)}
        else:
            console.facts(found[file], title=file)
    if json:
        write_json(json, found)
    if errors := [values["error"] for values in found.values() if "error" in values]:
        raise ValueError(" ".join(errors))


def convert(
    source: Positional[str],
    out: Path,
    image_size: int | None = None,
    crop: str | None = None,
    camera: str | None = None,
    action_columns: str = "",
    state_columns: str = "",
    discrete_actions: int | None = None,
    world: str | None = None,
    episodes: str | None = None,
    skip_episodes: str = "",
    compression: str | None = None,
    format: str | None = None,
    max_expansion: float = MAX_EXPANSION,
    json: Path | None = None,
) -> None:
    """Make an episode file of recordings. The same command continues an interrupted conversion.

    Known are HDF5 files in the published layout, Lance tables, LeRobot folders (versions 2 and 3),
    and folders of videos with their actions in CSV; each may be inside a .tar, .tar.zst or .zst, or
    on the hub. docs/your-own-data.md says more.

    Args:
        source: file or folder of recordings, or hf:user/name.
        out: episode file (HDF5) to write.
        image_size: height and width of the pixels; those of the recordings by default.
        crop: of pictures that are not square: center (cut the longer side) or pad (add black).
            Without it they are refused.
        camera: which one, where there are several.
        action_columns: the columns that hold the actions, such as "action" or "dx,dy"; those of the
            format by default.
        state_columns: the columns that hold the ground truth, side by side, such as
            "pos_agent,block_pose".
        discrete_actions: how many choices there are, where an action is a choice numbered from 0;
            each becomes a column. 0: whole numbers are amounts, and stay as they are. Without it
            choices are refused.
        world: that was recorded, if evaluation is to act in it.
        episodes: convert only the first so many, such as 100; or those with certain numbers, which
            count from 0, such as 0-9,12. One alone is 12-12.
        skip_episodes: leave those out, such as 3,20-29.
        compression: of the pixels: blosc or zstd; None, the default, is the published layout.
        format: of the recordings, where it is not recognised: hdf5, lance, lerobot or videos.
        max_expansion: refuse archives that hold more than this many times their own size.
        json: write a description of the file there.
    """
    selection = Selection(
        format,
        camera,
        _listed(action_columns),
        _listed(state_columns),
        image_size,
        crop,
        max_expansion,
        discrete_actions,
    )
    converted = False

    def report(progress: Progress) -> None:
        nonlocal converted
        converted = True
        bars.update(progress)

    try:
        with console.Bars() as bars:
            file = converting.convert(
                source, out, selection, world, episodes, compression, report, skip_episodes
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(out)) from None
    with file:
        summary, told = file.summary(), loads(file.provenance.options or "{}")
    size = f"{summary['image_size']} px, {summary['bytes'] / 1e6:.1f} MB"
    before = "" if converted else "nothing to do: "
    console.say(
        f"{before}{out} holds {summary['episodes']} episodes, {summary['steps']} frames of {size}."
    )
    for role, names in told.get("taken", {}).items():
        console.say(f"taken as {role}: {', '.join(names) or 'nothing'} ({len(names)} numbers)")
    if "frames" in told:
        console.say(f"frames were found {told['frames']}.")
    if json:
        write_json(json, summary)


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _kept(path: Path) -> str:
    if not path.exists():
        return "No episode was complete yet."
    with Episodes.open(path) as episodes:
        return (
            f"{len(episodes)} complete episodes are kept in {path}, and the same command goes on."
        )
