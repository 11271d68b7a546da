"""A function replayed as a graph: when it is captured, and that only a replay that is right is ever
used."""

import itertools

import pytest
import torch

from lewm.models.nn.graphs import SHAPES_CAPTURED, Captured
from lewm.planning.cost import Scorer, Situation
from lewm.planning.objectives.l2 import L2
from tests.support.models import model, question
from tests.support.point_world import PointModel


class Counted:
    """A function, and how often it ran."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return (2 * x, x.sum())


def recorded(function, inputs):
    """As a graph does it: memory of its own, filled at each replay; nothing of the function's
    Python runs again."""
    own = inputs[0].clone()

    def replay(x):
        own.copy_(x)
        return (2 * own, own.sum())

    return replay


def test_a_shape_that_comes_back_is_captured_and_the_function_left_alone():
    function = Counted()
    captured = Captured(function, recorded)
    # eager, eager beside the capture, replayed, replayed
    for n, calls in ((1, 1), (2, 2), (3, 2), (4, 2)):
        doubled, total = captured(torch.full((3,), float(n)))
        assert doubled.tolist() == [2 * n] * 3
        assert total == 3 * n
        assert function.calls == calls
    captured(torch.ones(5))
    assert function.calls == 3, "another shape is another question"
    assert captured.captured == 1


def test_what_needs_gradients_is_never_replayed():
    captured = Captured(Counted(), recorded)
    for _ in range(4):
        x = torch.ones(3, requires_grad=True)
        (slope,) = torch.autograd.grad(captured(x)[1], x)
        assert slope.tolist() == [1, 1, 1]
    assert captured.captured == 0


@pytest.mark.parametrize(
    ("capturing", "why"),
    [
        (lambda f, inputs: lambda x: (2 * x + 1, x.sum()), "something else"),
        (lambda f, inputs: 1 / torch.tensor([]), "stub"),
    ],
)
def test_a_wrong_or_impossible_capture_is_refused(capturing, why):
    def broken(function, inputs):
        if why == "stub":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return capturing(function, inputs)

    captured = Captured(Counted(), broken)
    for n in range(1, 5):
        assert captured(torch.full((3,), float(n)))[0].tolist() == [2 * n] * 3
    assert captured.captured == 0
    (reason,) = captured.refused.values()
    assert reason in (
        "operation not permitted when stream is capturing",
        "the replay answered something else than the eager way",
    )


def test_diverged_answers_may_be_replayed():
    captured = Captured(lambda x: (x / 0,), lambda f, inputs: lambda x: (x / 0,))
    for _ in range(3):
        assert captured(torch.tensor([0.0, 1.0]))[0].isnan().tolist() == [True, False]
    assert captured.captured == 1


def test_only_so_many_shapes_are_kept():
    captured = Captured(Counted(), recorded)
    for size in range(1, SHAPES_CAPTURED + 5):
        for _ in range(3):
            assert captured(torch.ones(size))[1] == size
    assert captured.captured == SHAPES_CAPTURED


def test_a_round_takes_all_that_changes_between_replans_as_its_inputs():
    """Whatever a round read beside its inputs would be frozen into a graph: two situations must
    differ by those alone."""
    world = PointModel()
    scorer = Scorer(world.rollout, L2(), replayed=True)
    replayed = []

    def capturing(function, inputs):
        replayed.append([x.shape for x in inputs])
        return function

    scorer.__dict__["round"] = Captured(scorer._round, capturing)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        now, goal = (
            torch.rand(2, 1, world.latent_dim, generator=generator),
            torch.rand(2, world.latent_dim, generator=generator),
        )
        situation = Situation(now, torch.zeros(2, 0, world.spec.block_dim), goal)
        blocks = torch.rand(2, 6, 3, world.spec.block_dim, generator=generator)
        costs, ends, sequences = scorer.score(situation, blocks)
        plain = Scorer(world.rollout, L2()).score(situation, blocks)
        assert torch.equal(costs, plain[0])
        assert torch.equal(ends, plain[1])
        assert sequences == plain[2] == 12
    assert len(replayed) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_captured_round_answers_as_the_eager_way_does(precision):
    plain = model(3, full=True).to("cuda")
    ranking = None if precision == "float32" else plain.engine(precision)
    eager, replayed = (Scorer(plain.engine(), L2(), ranking, replayed=r) for r in (False, True))
    with torch.no_grad():
        # from the third on they are replayed
        for k, seed in itertools.product((1, 2, 3), (1, 2, 3, 4)):
            context, past, actions = (
                x.to("cuda") for x in question(plain, k, candidates=64, seed=seed)
            )
            situation = Situation(
                context, past, torch.randn(len(context), plain.latent_dim, device="cuda")
            )
            found, expected = replayed.score(situation, actions), eager.score(situation, actions)
            torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
            assert found[2] == expected[2]
    assert replayed.round.captured == 3, replayed.round.refused
