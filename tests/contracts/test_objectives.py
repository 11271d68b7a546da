"""What every objective owes (`contracts.Objective`), and known answers for each."""

import pytest
import torch

from lewm import registry
from lewm.contracts import Asking, Judging
from lewm.planning.objectives.l2 import L2
from lewm.planning.objectives.own import Own
from lewm.planning.objectives.temporal import Temporal

B, N, H, D = 2, 5, 3, 4
every_objective = pytest.mark.parametrize("name", registry.names("objectives"))


class Judge:
    """A model that names two costs: how far it is along any dimension, and along the first."""

    costs = ("near", "first")

    def judge(self, name, rollout, goal):
        apart = (rollout[:, :, -1] - goal[:, None]).abs()
        return apart.sum(-1) if name == "near" else apart[..., 0]


def fresh(name):
    """With heads of random weights, where it needs some, and a model to ask, where it asks one."""
    torch.manual_seed(0)
    kind = registry.load("objectives", name)
    needed = getattr(kind, "heads", {})
    made = kind(
        **{
            field: registry.load("heads", head)().build(D, 10).eval()
            for field, head in needed.items()
        }
    )
    return made.asking(Judge()) if isinstance(made, Asking) else made


def cost(name, rollout, goal):
    return fresh(name).cost(rollout, goal)


@every_objective
def test_gives_one_cost_per_candidate(name):
    assert cost(name, torch.randn(B, N, H, D), torch.randn(B, D)).shape == (B, N)


@every_objective
def test_is_least_at_the_goal_and_grows_on_a_straight_way_from_it(name):
    goal = torch.randn(B, D)
    distance = torch.arange(N, dtype=torch.float32)[None, :, None, None] * torch.randn(B, 1, 1, D)
    costs = cost(name, (goal[:, None, None] + distance).expand(B, N, H, D), goal)
    assert (costs.diff(dim=1) > 0).all()


@every_objective
def test_scores_each_candidate_on_its_own(name):
    rollout, goal = torch.randn(B, N, H, D), torch.randn(B, D)
    torch.testing.assert_close(
        cost(name, rollout[1:, 3:4], goal[1:]), cost(name, rollout, goal)[1:, 3:4]
    )


@every_objective
def test_does_not_hide_a_diverged_rollout(name):
    rollout = torch.randn(B, N, H, D)
    rollout[0, 1, -1, 2] = torch.nan
    assert cost(name, rollout, torch.randn(B, D)).isnan().nonzero().tolist() == [[0, 1]]


@every_objective
def test_leaves_its_arguments_alone(name):
    rollout, goal = torch.randn(B, N, H, D), torch.randn(B, D)
    kept = rollout.clone(), goal.clone()
    cost(name, rollout, goal)
    assert torch.equal(rollout, kept[0])
    assert torch.equal(goal, kept[1])


@every_objective
def test_what_it_weighs_may_be_steered_by_the_actions(name):
    rollout = torch.randn(B, N, H, D, requires_grad=True)
    cost(name, rollout, torch.randn(B, D)).sum().backward()
    assert rollout.grad[:, :, -1].any(dim=-1).all()


@every_objective
def test_heads_are_named_and_a_missing_one_says_how_to_make_it(name):
    kind = registry.load("objectives", name)
    for field, head in getattr(kind, "heads", {}).items():
        assert head in registry.names("heads")
        assert getattr(kind(), field) is None
        with pytest.raises(ValueError, match=f"lewm fit RUN {head}"):
            kind().cost(torch.randn(B, N, H, D), torch.randn(B, D))


@every_objective
def test_it_prints_as_its_settings(name):
    assert "\n" not in repr(fresh(name))


def test_l2_is_the_squared_distance_at_the_last_step():
    rollout = torch.tensor([[[[9.0, 9.0], [9.0, 9.0], [3.0, 4.0]]]])
    assert L2().cost(rollout, torch.zeros(1, 2)).item() == 25
    assert L2().cost(rollout, torch.tensor([[3.0, 3.0]])).item() == 1


def test_l2_adds_the_mean_of_the_earlier_steps():
    rollout = torch.tensor([[[[1.0, 0.0], [0.0, 3.0], [0.0, 2.0]]]])
    assert L2(intermediate=0.5).cost(rollout, torch.zeros(1, 2)).item() == 4 + 0.5 * (1 + 9) / 2


def test_l2_needs_no_earlier_steps():
    rollout, goal = torch.randn(B, N, 1, D), torch.randn(B, D)
    assert torch.equal(L2(intermediate=0.5).cost(rollout, goal), L2().cost(rollout, goal))


def test_l2_refuses_a_negative_weight():
    with pytest.raises(ValueError, match="must not be negative"):
        L2(intermediate=-0.1)


class Ahead:
    """How much further the first number of the goal is: known answers for distances that are not
    symmetric."""

    def distance(self, now, goal):
        return (goal - now).relu()[..., 0]


def test_temporal_is_the_distance_from_the_last_step_to_the_goal():
    rollout = torch.tensor([[[[1.0], [2.0], [3.0]]]])
    assert Temporal(Ahead()).cost(rollout, torch.tensor([[7.0]])).item() == 4
    assert Temporal(Ahead()).cost(rollout, torch.tensor([[2.0]])).item() == 0
    assert (
        Temporal(Ahead(), intermediate=0.5).cost(rollout, torch.tensor([[7.0]])).item()
        == 4 + 0.5 * (6 + 5) / 2
    )
    assert (
        Temporal(Ahead(), intermediate=0.5).cost(rollout[:, :, 2:], torch.tensor([[7.0]])).item()
        == 4
    )


def test_temporal_refuses_a_negative_weight():
    with pytest.raises(ValueError, match="must not be negative"):
        Temporal(intermediate=-0.1)


def test_own_is_the_first_cost_that_the_model_names_or_the_one_that_is_chosen():
    rollout, goal = torch.tensor([[[[9.0, 9.0], [3.0, 4.0]]]]), torch.tensor([[1.0, 1.0]])
    assert isinstance(Judge(), Judging)
    assert Own().asking(Judge()).cost(rollout, goal).item() == 5
    assert Own("near").asking(Judge()).cost(rollout, goal).item() == 5
    assert Own("first").asking(Judge()).cost(rollout, goal).item() == 2


def test_own_names_what_there_is_where_it_cannot_ask():
    with pytest.raises(
        ValueError, match=r"costs of its own, got a obj.*Plan with l1 or l2 or temp"
    ):
        Own().asking(object())
    with pytest.raises(ValueError, match=r"unknown cost 'neer'\. Did you mean 'near'"):
        Own("neer").asking(Judge())
    with pytest.raises(ValueError, match=r"expected a model to ask, got none\. Plan with an agent"):
        Own().cost(torch.zeros(1, 1, 1, 2), torch.zeros(1, 2))
