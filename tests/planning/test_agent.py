"""Receding-horizon control of a point whose dynamics are known, and what the model, the solver and
the trace are given."""

import dataclasses

import numpy as np
import pytest
import torch

from lewm.contracts import Box, Plan
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.trace import TRACED_CANDIDATES
from tests.support.control import GOALS, SMALL, SPEC, STARTS, Proposer, Scripted, control
from tests.support.point_world import FRAMESKIP, SIZE, SPEED, STATISTICS, PointModel, draw, read


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hold_actions": True},
        {"receding": 2},
        {"receding": 1, "warm_start": True},
        {"horizon": 3, "receding": 3},
    ],
)
@pytest.mark.parametrize("context", [1, 3])
def test_reaches_its_goals(changes, context):
    config = dataclasses.replace(SMALL, objective=L2(intermediate=0.5), **changes)
    states, actions = control(
        Agent(PointModel(context), config, SPEC, range(5)), STARTS, GOALS, steps=50
    )
    assert np.linalg.norm(states[-1] - GOALS, axis=1).max() < 0.03
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1


@pytest.mark.parametrize("warm_start", [False, True])
def test_a_batch_never_changes_a_plan(warm_start):
    config = dataclasses.replace(SMALL, receding=2, warm_start=warm_start)
    states, _ = control(Agent(PointModel(3), config, SPEC, range(20, 25)), STARTS, GOALS, steps=30)
    for i in range(5):
        alone, _ = control(
            Agent(PointModel(3), config, SPEC, [20 + i]),
            STARTS[i : i + 1],
            GOALS[i : i + 1],
            steps=30,
        )
        np.testing.assert_array_equal(alone[:, 0], states[:, i])


def test_portions_never_change_a_plan(monkeypatch):
    whole, _ = control(Agent(PointModel(), SMALL, SPEC, range(5)), STARTS, GOALS, steps=30)
    model = PointModel()
    monkeypatch.setattr("lewm.planning.cost.SEQUENCES_AT_ONCE", 130)
    monkeypatch.setattr("lewm.models.nn.frozen.FRAMES_AT_ONCE", 2)
    parts, _ = control(Agent(model, SMALL, SPEC, range(5)), STARTS, GOALS, steps=30)
    np.testing.assert_array_equal(parts, whole)
    assert max(actions.shape[0] * actions.shape[1] for _, _, actions in model.rolled) == 2 * 64
    assert max(len(pixels) for pixels in model.encoded) == 2


def test_inactive_environments_cost_nothing_and_change_nothing():
    active = np.array([True, False, True, False, True])
    full, _ = control(Agent(PointModel(), SMALL, SPEC, range(5)), STARTS, GOALS, steps=50)
    agent = Agent(PointModel(), SMALL, SPEC, range(5))
    some, actions = control(agent, STARTS, GOALS, steps=50, active=active)
    np.testing.assert_array_equal(some[:, active], full[:, active])
    assert (actions[:, ~active] == 0).all()
    assert agent.effort.plans == 2 * 3


@pytest.mark.parametrize("receding", [1, 2, 5])
@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_model_is_given_exactly_the_last_frames_and_the_blocks_between_them(context, receding):
    """At the replan before block k: frames k-K+1..k (fewer at the start), block i leaving frame i,
    in normalised units."""
    # beyond the action box, so that clipping shows
    solver = Scripted(torch.linspace(-3, 3, 5 * 10).reshape(5, 10))
    model = PointModel(context)
    agent = Agent(model, PlanningConfig(L2(), solver, receding=receding), SPEC, range(2))
    states, actions = control(agent, STARTS[:2], GOALS[:2], steps=11 * FRAMESKIP)
    frames = states[::FRAMESKIP]
    blocks = STATISTICS.normalise_actions(
        torch.from_numpy(actions.reshape(11, FRAMESKIP, 2, 2).swapaxes(1, 2).reshape(11, 2, 10))
    )
    for replan, (latents, past, _) in enumerate(model.rolled):
        now = replan * receding
        oldest = max(0, now - context + 1)
        np.testing.assert_allclose(
            latents.numpy(), frames[oldest : now + 1].swapaxes(0, 1), atol=1e-5
        )
        torch.testing.assert_close(past, blocks[oldest:now].swapaxes(0, 1))
        assert past.shape == (2, now - oldest, 10)
    assert len(model.rolled) == -(-11 // receding)


def test_what_is_executed_is_the_plan_unnormalised_and_clipped():
    plan = torch.linspace(-3, 3, 5 * 10).reshape(5, 10)
    agent = Agent(PointModel(), PlanningConfig(L2(), Scripted(plan), receding=2), SPEC, [0])
    _, actions = control(agent, STARTS[:1], GOALS[:1], steps=20)
    expected = (plan.reshape(25, 2).numpy() * STATISTICS.action_std + STATISTICS.action_mean).clip(
        -1, 1
    )[:10]
    np.testing.assert_allclose(actions[:, 0], np.concatenate([expected, expected]), atol=1e-6)


def test_the_search_box_is_the_action_box_in_normalised_units():
    boxes = []

    class Spy(Scripted):
        def solve(self, cost, start, box, generators):
            boxes.append(box)
            return super().solve(cost, start, box, generators)

    for hold, width in ((False, 10), (True, 2)):
        agent = Agent(
            PointModel(),
            PlanningConfig(L2(), Spy(torch.zeros(5, width)), hold_actions=hold),
            SPEC,
            [0],
        )
        agent.act(draw(STARTS[:1]), draw(GOALS[:1]))
        low, high = (-1 - 0.1) / 0.5, (1 + 0.2) / 0.8
        assert boxes[-1].low.tolist() == pytest.approx([low, (-1 + 0.2) / 0.8] * (width // 2))
        assert boxes[-1].high.tolist() == pytest.approx([(1 - 0.1) / 0.5, high] * (width // 2))


def test_holding_actions_equals_a_free_search_with_tied_noise():
    class Tied(Scripted):
        """Searches one step of each block, and repeats it for the others."""

        def solve(self, cost, start, box, generators):
            def of_block(actions):
                return cost(actions.repeat(1, 1, 1, FRAMESKIP))

            narrow = Plan(start.mean[..., :2], start.std[..., :2])
            plan = SMALL.solver.solve(of_block, narrow, Box(box.low[:2], box.high[:2]), generators)
            return Plan(plan.mean.repeat(1, 1, FRAMESKIP), start.std)

    held = dataclasses.replace(SMALL, hold_actions=True)
    free = dataclasses.replace(SMALL, solver=Tied(torch.empty(0)))
    tied, loose = (
        control(Agent(PointModel(), config, SPEC, range(5)), STARTS, GOALS, steps=50)[0]
        for config in (held, free)
    )
    np.testing.assert_allclose(tied, loose, atol=1e-6)


def test_a_warm_start_is_what_is_left_of_the_last_plan():
    plan = torch.linspace(-1, 1, 5 * 10).reshape(5, 10)
    solver = Scripted(plan)
    agent = Agent(
        PointModel(), PlanningConfig(L2(), solver, receding=2, warm_start=True), SPEC, [0]
    )
    control(agent, STARTS[:1], GOALS[:1], steps=20)
    assert (solver.starts[0].mean == 0).all()
    assert torch.equal(solver.starts[1].mean[0], torch.cat([plan[2:], torch.zeros(2, 10)]))
    assert all((start.std == 1).all() for start in solver.starts)


def test_diverging_rollouts_are_avoided():
    # nothing right of it is known
    model = PointModel(diverges=lambda latents: latents[..., :1].expand_as(latents) > 0.45)
    states, _ = control(Agent(model, SMALL, SPEC, [0]), [[0.2, 0.2]], [[0.6, 0.2]], steps=50)
    assert states[::25, 0, 0].max() <= 0.45 + 1e-3
    assert states[-1, 0, 0] > 0.4


def test_where_every_rollout_diverges_planning_is_refused_in_words():
    """It would else stand still for ever, and look like a model that plans badly."""

    def right_is_unknown(latents):
        return latents[..., :1].expand_as(latents) > 0.7

    agent = Agent(PointModel(diverges=right_is_unknown), SMALL, SPEC, range(2))
    active = np.array([True, False])  # what is not planned for is not asked
    agent.act(draw(STARTS[:2]), draw(GOALS[:2]), active)
    agent.reset()
    with pytest.raises(ValueError, match=r"got NaN or infinity for all .* environment 1 at step 0"):
        agent.act(draw(STARTS[:2]), draw(GOALS[:2]))  # the second begins at .8
    agent.reset()
    with pytest.raises(ValueError, match="environment 1 at step 0"):  # its own number, alone too
        agent.act(draw(STARTS[:2]), draw(GOALS[:2]), ~active)


def test_without_time_nothing_was_tried_and_nothing_is_refused():
    model = PointModel(diverges=lambda latents: torch.ones_like(latents, dtype=torch.bool))
    agent = Agent(model, SMALL, SPEC, range(2))
    actions = agent.act(draw(STARTS[:2]), draw(GOALS[:2]), deadline_s=0.0)
    np.testing.assert_allclose(actions, np.tile(STATISTICS.action_mean, (2, 1)), atol=1e-6)


def test_the_goal_is_encoded_once():
    model = PointModel()
    agent = Agent(model, dataclasses.replace(SMALL, receding=1), SPEC, [0])
    goal = draw(GOALS[:1])
    for step in range(4 * FRAMESKIP):
        agent.act(draw(STARTS[:1]), goal.copy())
        if step == 2 * FRAMESKIP:
            goal = draw(GOALS[1:2])
    assert [pixels.shape[0] for pixels in model.encoded] == [1] * 6  # four observations, two goals
    assert read(model.encoded[-2])[0, 0].tolist() == pytest.approx(GOALS[1].tolist(), abs=1e-4)


def test_same_seeds_same_actions_and_reset_begins_again():
    agent = Agent(
        PointModel(3),
        dataclasses.replace(SMALL, receding=2, warm_start=True),
        SPEC,
        [4],
        trace=True,
    )
    first, _ = control(agent, STARTS[:1], GOALS[:1], steps=30)
    agent.reset()
    assert agent.trace == []
    assert agent.effort.plans == 0
    again, _ = control(agent, STARTS[:1], GOALS[:1], steps=30)
    np.testing.assert_array_equal(first, again)
    agent.reset([5, 6])
    other, _ = control(agent, STARTS[:2], GOALS[:2], steps=30)
    assert (other[:, 0] != first[:, 0]).any()


def test_effort_counts_what_the_solver_declares():
    agent = Agent(PointModel(), SMALL, SPEC, range(5), trace=True)
    control(agent, STARTS, GOALS, steps=26)
    assert agent.effort.plans == 2 * 5
    assert agent.effort.predictor_calls == 10 * SMALL.solver.evaluations * 5
    assert agent.effort.predictor_calls_per_plan == (64 * 6 + 1) * 5
    assert 0 < agent.effort.seconds_per_plan < 1
    # a plan that is carried out in part was searched as a whole
    partly = Agent(PointModel(), dataclasses.replace(SMALL, horizon=4, receding=1), SPEC, range(5))
    control(partly, STARTS, GOALS, steps=2 * FRAMESKIP)
    assert partly.effort.plans == 2 * 5
    assert partly.effort.predictor_calls == 10 * SMALL.solver.evaluations * 4


def test_the_trace_shows_the_search():
    agent = Agent(PointModel(), SMALL, SPEC, range(5), trace=True)
    active = np.array([True, True, False, True, True])
    _, actions = control(agent, STARTS, GOALS, steps=50, active=active)
    assert [replan.step for replan in agent.trace] == [0, 25]
    replan = agent.trace[0]
    assert replan.environments.tolist() == [0, 1, 3, 4]
    assert [scored.costs.shape for scored in replan.rounds] == [(4, 64)] * 6 + [(4, 1)]
    np.testing.assert_allclose(replan.now, STARTS[active], atol=1e-4)
    np.testing.assert_allclose(replan.goal, GOALS[active], atol=1e-4)
    np.testing.assert_array_equal(replan.actions.swapaxes(0, 1), actions[:25, active])
    walked = (
        STARTS[active, None] + SPEED * replan.actions.cumsum(axis=1)[:, FRAMESKIP - 1 :: FRAMESKIP]
    )
    np.testing.assert_allclose(replan.latents, walked, atol=1e-4)
    for scored in replan.rounds[:-1]:
        assert scored.ends.shape == (4, TRACED_CANDIDATES, 2)
        ends = ((scored.ends - replan.goal[:, None]) ** 2).sum(-1)
        np.testing.assert_allclose(
            ends, np.sort(scored.costs, axis=1)[:, :TRACED_CANDIDATES], atol=1e-6
        )
        assert scored.actions.shape == (4, TRACED_CANDIDATES, 5, 10)
    one = replan.of(3)
    assert (one.step, one.cut_short, len(one.rounds)) == (0, False, len(replan.rounds))
    for own, all_ in ((one, replan), *zip(one.rounds, replan.rounds, strict=True)):
        for name, value in vars(all_).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(own, name), value[2:3], err_msg=name)
    assert replan.of(2) is None


def test_tracing_changes_no_plan_and_is_off_by_default():
    runs = []
    for trace in (False, True):
        agent = Agent(PointModel(), SMALL, SPEC, range(5), trace=trace)
        runs.append(
            (
                control(agent, STARTS, GOALS, steps=30)[0],
                agent.effort.predictor_calls,
                len(agent.trace),
            )
        )
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert (runs[0][1], runs[0][2], runs[1][2]) == (runs[1][1], 0, 2)


def test_observations_are_looked_at_only_where_a_block_begins():
    agent = Agent(PointModel(), SMALL, SPEC, [0])
    for step in range(12):
        assert agent.observes == (step % FRAMESKIP == 0)
        agent.act(draw(STARTS[:1]) if agent.observes else None, draw(GOALS[:1]))


def test_observations_are_copied():
    model, pixels = PointModel(3), draw(STARTS[:1])
    agent = Agent(model, dataclasses.replace(SMALL, receding=1), SPEC, [0])
    for _ in range(FRAMESKIP + 1):
        agent.act(pixels, draw(GOALS[:1]))
        pixels[:] = 0
    assert read(model.encoded[-1])[0, 0].tolist() == pytest.approx(STARTS[0].tolist(), abs=1e-4)


# ------------------------------------------------------------------------------------------ engines


class WithEngine(PointModel):
    """Its engine is the exact rollout, rounded in low precision; `rollout` itself must not be
    asked."""

    def __init__(self, context=1):
        super().__init__(context)
        self.built, self.unrolled = [], []

    def rollout(self, context, past_actions, actions):
        raise AssertionError("there is an engine")

    def engine(self, precision="float32"):
        self.built.append(precision)

        def unroll(context, past_actions, actions):
            self.unrolled.append((precision, len(actions) * actions.shape[1]))
            latents = PointModel.rollout(self, context, past_actions, actions)
            return latents if precision == "float32" else (40 * latents).round() / 40

        return unroll


def test_an_engine_is_built_once_and_used_for_everything():
    plain, _ = control(Agent(PointModel(3), SMALL, SPEC, range(5)), STARTS, GOALS, steps=30)
    model = WithEngine(3)
    agent = Agent(model, SMALL, SPEC, range(5), trace=True)
    fast, _ = control(agent, STARTS, GOALS, steps=30)
    np.testing.assert_array_equal(fast, plain)
    assert model.built == ["float32"]
    assert len(model.unrolled) == 2 * (6 + 1 + 1)  # of each plan six rounds, its mean, its trace


def test_low_precision_ranks_and_float32_decides():
    model = WithEngine()
    agent = Agent(model, dataclasses.replace(SMALL, precision="int8"), SPEC, range(5), trace=True)
    states, _ = control(agent, STARTS, GOALS, steps=50)
    assert np.linalg.norm(states[-1] - GOALS, axis=1).max() < 0.03
    assert model.built == ["float32", "int8"]
    assert model.unrolled[:3] == [("int8", 5 * 64), ("float32", 5 * (8 + 1)), ("int8", 5 * 64)]
    assert agent.effort.predictor_calls_per_plan == (6 * (64 + 9) + 1) * 5
    first = agent.trace[0]
    for scored in first.rounds:  # what is told of the cheapest is what the float32 model says
        ends = PointModel().rollout(
            torch.from_numpy(first.now)[:, None],
            torch.zeros(5, 0, 10),
            torch.from_numpy(scored.actions),
        )
        exact = L2().cost(ends, torch.from_numpy(first.goal))[:, :8]
        np.testing.assert_allclose(np.sort(scored.costs, axis=1)[:, :8], exact, atol=1e-6)


def test_low_precision_without_an_engine_is_refused():
    with pytest.raises(ValueError, match="engine for precision 'int8', got a PointModel"):
        Agent(PointModel(), dataclasses.replace(SMALL, precision="int8"), SPEC, [0])


# ---------------------------------------------------------------------------------------- proposals


def test_a_proposal_is_where_the_search_starts():
    solver = Proposer(torch.linspace(-9, 9, 50).reshape(5, 10))
    agent = Agent(
        PointModel(), PlanningConfig(L2(), solver, receding=2, warm_start=True), SPEC, range(3)
    )
    control(agent, STARTS[:3], GOALS[:3], steps=20, active=np.array([True, False, True]))
    (now, goal, _, horizon), start = solver.asked[0], solver.starts[0]
    np.testing.assert_allclose(now, STARTS[[0, 2]], atol=1e-4)
    np.testing.assert_allclose(goal, GOALS[[0, 2]], atol=1e-4)
    assert horizon == 5
    assert torch.equal(start.mean, agent._box.clamp(solver.mean).expand(2, -1, -1))
    assert torch.equal(start.mean, solver.starts[1].mean)  # and not what is left of the first plan
    assert (start.std == 1).all()
    assert agent.effort.predictor_calls == 0


def test_a_proposal_is_averaged_over_the_steps_that_hold_one_action():
    blocks = torch.linspace(-1, 1, 50).reshape(5, 10)
    solver = Proposer(blocks)
    Agent(PointModel(), PlanningConfig(L2(), solver, hold_actions=True), SPEC, [0]).act(
        draw(STARTS[:1]), draw(GOALS[:1])
    )
    torch.testing.assert_close(solver.starts[0].mean[0], blocks.reshape(5, FRAMESKIP, 2).mean(1))


def test_time_counts_from_when_an_environment_was_given_its_goal():
    solver = Proposer(torch.zeros(5, 10))
    agent = Agent(PointModel(), PlanningConfig(L2(), solver, receding=1), SPEC, range(2))
    goals = draw(GOALS[:2])
    for step in range(4 * FRAMESKIP):
        if step == 2 * FRAMESKIP - 1:  # taken up at the next replan
            goals = draw(GOALS[[0, 2]])
        agent.act(draw(STARTS[:2]), goals)
    assert [elapsed for _, _, elapsed, _ in solver.asked] == [[0, 0], [5, 5], [10, 0], [15, 5]]
    agent.reset()
    agent.act(draw(STARTS[:2]), goals)
    assert solver.asked[-1][2] == [0, 0]


# ---------------------------------------------------------------------------------------- bad input


def test_planning_in_training_mode_is_impossible():
    model = PointModel()
    agent = Agent(model, SMALL, SPEC, [0])
    model.dropout.train()  # one part is enough
    with pytest.raises(ValueError, match="training mode"):
        agent.act(draw(STARTS[:1]), draw(GOALS[:1]))
    with pytest.raises(ValueError, match="training mode"):
        Agent(model, SMALL, SPEC, [0])


def test_a_model_of_another_world_is_refused():
    with pytest.raises(ValueError, match="actions of width 3"):
        Agent(
            PointModel(),
            SMALL,
            dataclasses.replace(SPEC, action_low=(0, 0, 0), action_high=(1, 1, 1)),
            [0],
        )
    with pytest.raises(ValueError, match="draws 4 px, as the model was trained, got 8 px"):
        Agent(PointModel(), SMALL, dataclasses.replace(SPEC, image_size=8), [0])


@pytest.mark.parametrize(
    "pixels", [None, np.zeros((1, SIZE, SIZE, 3)), np.zeros((2, SIZE, SIZE, 3), np.uint8)]
)
def test_pictures_that_do_not_fit_are_refused(pixels):
    agent, good = Agent(PointModel(), SMALL, SPEC, [0]), draw(STARTS[:1])
    with pytest.raises(ValueError, match="goal_pixels must be uint8"):
        agent.act(good, pixels)
    agent.reset()
    with pytest.raises(ValueError, match=r"^pixels must be uint8"):
        agent.act(pixels, good)


@pytest.mark.parametrize(
    "changes", [{"receding": 0}, {"receding": 6}, {"horizon": 0}, {"initial_std": 0.0}]
)
def test_a_config_that_cannot_plan_is_refused(changes):
    with pytest.raises(ValueError, match="must"):
        dataclasses.replace(SMALL, **changes)
