"""What an analysis looks at, and how it refuses what it cannot answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import nn

from lewm.contracts import Result, World, WorldModel
from lewm.data import Episodes
from lewm.planning import PlanningConfig

__all__ = ["Analysis", "Progress", "Subject", "Unsupported"]

Progress = Callable[[int, int, str], None]
"""Called with how much is done, how much there is, and a line of numbers or ""."""


class Unsupported(ValueError):
    """The run or its data do not hold what an analysis needs; the message says what, and what would help."""


@dataclass(frozen=True)
class Subject:
    """A frozen model, episodes that it learnt from and others, and what else is known of the run.

    Attributes:
        model: in evaluation mode; an analysis leaves it as it is, bit by bit.
        episodes: an opened episode file.
        fit_ids: episodes to fit read-outs on; those that the model was trained on.
        test_ids: episodes to measure on, which the model never saw.
        open_world: number of environments -> the world that the episodes are of, in their look; with a second argument, in
            that look. None where the world is not known or cannot be opened here.
        metrics: lines of metrics.jsonl; empty where there are none, as of an imported run.
        planning: how the run plans; None where that is unknown.
        heads: small networks on the model's latents, by name, frozen.
        recipe: by which the run was made, or "".
    """

    model: WorldModel
    episodes: Episodes
    fit_ids: Sequence[int]
    test_ids: Sequence[int]
    open_world: Callable[..., World] | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    planning: PlanningConfig | None = None
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    recipe: str = ""

    def require_episodes(self, fit: int, test: int, why: str) -> None:
        """Refuse data that would give a number without support.

        Args:
            fit, test: the fewest episodes of either side.
            why: what they are for, as in "an interval over episodes".

        Raises:
            Unsupported: there are fewer.
        """
        if len(self.fit_ids) < fit or len(self.test_ids) < test:
            raise Unsupported(
                f"{self.episodes.path}: expected at least {fit} episodes that were trained on and {test} held-out ones, for "
                f"{why}, got {len(self.fit_ids)} and {len(self.test_ids)}. Collect more episodes."
            )

    def require_states(self) -> None:
        """Refuse episodes without the true state.

        Raises:
            Unsupported: they have none.
        """
        if not self.episodes.state_names:
            raise Unsupported(
                f"{self.episodes.path}: expected episodes with state columns, got none. Collect with `lewm collect`, which "
                "records them; analyses of latents alone need none."
            )


class Analysis(Protocol):
    """One file in `analyses/`: a frozen dataclass that is asked about a run. It prints nothing, draws nothing, writes nothing.

    `figures/<name>.py` draws its results, with `draw(result) -> list[Panel]`.

    Attributes:
        name: that of its file, and of its results.
        question: what it answers, in one sentence.
    """

    name: ClassVar[str]
    question: ClassVar[str]

    def run(self, subject: Subject, progress: Progress = ...) -> Result:
        """Answer; same subject and settings, same numbers.

        Raises:
            Unsupported: the run cannot be asked this.
        """
        ...
