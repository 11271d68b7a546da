"""Speed benchmarks, each pairing two implementations in one run. Installed as `lewm.benchmarks`;
run with `lewm bench NAME`."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Comparison(Protocol):
    """A module of this folder that compares speeds in minutes and needs nothing but itself."""

    def run(self, quick: bool = False) -> dict[str, Any]:
        """Return `name` and `rows`; `quick` is shorter, and less sure of its numbers."""
        ...
