"""One launch for all kernels of a function: CUDA graphs, captured where they pay and used where
they are right.

A search asks the same question again and again, and the kernels of a small model take less time
than handing them over does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Captured", "capture"]

SHAPES_CAPTURED = 8
"""How many shapes of input are captured; others run eagerly. A graph holds the memory of its
activations."""

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""How far a replay may be from the eager answer. The kernels are the same, but a library may choose
another algorithm."""

Function = Callable[..., tuple[Tensor, ...]]
"""Tensors in, tensors out; reads nothing else that changes, and never waits for the device."""


class Captured:
    """A function replayed as one CUDA graph per shape of its inputs.

    The first call with a shape runs the eager way. If the shape comes back, it is captured; only a
    graph that answers as the eager way did is used from then on. What needs gradients always takes
    the eager way.

    Args:
        function: to replay.
        capturing: makes the replay for some inputs; `capture`, but in tests.
    """

    def __init__(
        self,
        function: Function,
        capturing: Callable[[Function, tuple[Tensor, ...]], Function] | None = None,
    ) -> None:
        self._function, self._capturing = function, capturing or capture
        self._replays: dict[tuple[torch.Size, ...], Function | None] = {}
        self.refused: dict[tuple[torch.Size, ...], str] = {}
        """Shapes that stay eager, and why."""

    @property
    def captured(self) -> int:
        """How many shapes have a graph."""
        return sum(replay not in (None, self._function) for replay in self._replays.values())

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(x.shape for x in inputs)
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return self._function(*inputs)
        if shapes not in self._replays:
            if len(self._replays) < SHAPES_CAPTURED:
                self._replays[shapes] = None  # once is no habit
            return self._function(*inputs)
        if (replay := self._replays[shapes]) is None:
            eager = self._function(*inputs)
            self._replays[shapes] = self._checked(inputs, eager)
            return eager
        return replay(*inputs)

    def _checked(self, inputs: tuple[Tensor, ...], eager: tuple[Tensor, ...]) -> Function:
        """A replay that gives what the eager way gave, else the eager way."""
        shapes = tuple(x.shape for x in inputs)
        try:
            replay = self._capturing(self._function, inputs)
            answers = replay(*inputs)
        except RuntimeError as error:  # a kernel that cannot be captured
            self.refused[shapes] = str(error).partition("\n")[0]
            return self._function
        if not all(
            torch.allclose(a, b, equal_nan=True, **TOLERANCE)
            for a, b in zip(answers, eager, strict=True)
        ):
            self.refused[shapes] = "the replay answered something else than the eager way"
            return self._function
        return replay


@torch.no_grad()
def capture(function: Function, inputs: tuple[Tensor, ...]) -> Function:
    """Capture a function for inputs of these shapes on a CUDA device; what is returned takes and
    gives as the function does.

    A graph has its inputs and its outputs in memory of its own, so they are copied in and out.

    Raises:
        RuntimeError: something in the function cannot be captured.
    """
    own = tuple(x.clone() for x in inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(
        stream
    ):  # libraries make their workspaces at the first calls, which a graph must not hold
        for _ in range(2):
            function(*own)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*own)

    def replay(*given: Tensor) -> tuple[Tensor, ...]:
        for mine, theirs in zip(own, given, strict=True):
            mine.copy_(theirs)
        graph.replay()
        return tuple(x.clone() for x in outputs)

    return replay
