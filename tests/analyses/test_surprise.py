"""A jump is found and normal motion is not; p-values of noise are uniform; an exact model is
surprised by nothing but edits."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lewm import stats
from lewm.analyses import surprise as module
from lewm.analyses.surprise import (
    CONTROL,
    Edit,
    Replay,
    Surprise,
    SurpriseResult,
    compare,
    score,
    tell,
)
from lewm.report.sections.surprise import draw
from lewm.runs.answers import load_result, save_result
from lewm.runs.run import Run, Unsupported, open_run
from tests.support.point_world import FRAMESKIP, STATISTICS, PointEpisodes, PointModel, PointWorld

SMALL = Surprise(episodes=30, before=3, after=2, draws=100)
EDITS = [CONTROL, Edit("teleport", ("agent",)), Edit("colour", ("agent",))]


class EditedWorld(PointWorld):
    """The point can be moved, and painted: "loud" shifts what the model reads, "quiet" changes a
    channel that it ignores."""

    def __init__(self, num_envs, look="published", paint="quiet", **options):
        super().__init__(num_envs, **options)
        self.spec = replace(self.spec, look=look, things=("agent",))
        self.paint = paint

    def reset(self, seeds):
        self._states = np.stack(
            [np.random.default_rng(seed).uniform(0.3, 0.7, 2) for seed in seeds]
        ).astype(np.float32)

    def render(self, states=None):
        pixels = super().render(states)
        if self.spec.look == "loud":
            pixels[:, 0, 0, 0] += 25  # some 0.1 to the right
        if self.spec.look == "quiet":
            pixels[..., 2] = 200
        return pixels

    def teleport(self, things, states, seeds):
        if not things:
            return states.copy()
        turns = np.array([np.random.default_rng(seed).uniform(0, 2 * np.pi) for seed in seeds])
        return (states + 0.2 * np.stack([np.cos(turns), np.sin(turns)], axis=1)).astype(np.float32)

    def recoloured(self, thing, turn):
        return self.paint


@dataclass
class WalkedEpisodes(PointEpisodes):
    """Random walks in the middle of the square, recorded with their actions."""

    state_names: tuple = ("x", "y")
    provenance = SimpleNamespace(policy="random", state_units=("side", "side"))

    def __post_init__(self):
        super().__post_init__()
        generator = np.random.default_rng(0)
        steps = (self.length - 1) * self.every
        self._actions = generator.uniform(-0.4, 0.4, (self.count, steps, 2)).astype(np.float32)
        world = PointWorld(self.count)
        world.set_states(generator.uniform(0.4, 0.6, (self.count, 2)))
        walked = [world.states]
        for step in range(steps):
            world.step(self._actions[:, step])
            walked.append(world.states)
        self._states = np.stack(walked, axis=1)[:, :: self.every]

    def states(self, i):
        return super().states(i) if not self.has_states else self._states[i]

    def actions(self, i):
        rows = self._actions[i].reshape(self.length - 1, -1)
        return np.concatenate([rows, np.full((1, rows.shape[1]), np.nan, np.float32)])


class SpringModel(PointModel):
    """Exact with K = 2 and only if it is given the frame before the last and the block between the
    two."""

    def __init__(self):
        super().__init__(context=2)

    def rollout(self, context, past_actions, actions):
        assert context.shape[1:] == (2, 2)
        blocks = torch.cat([past_actions[:, None], actions], dim=2)
        moves = STATISTICS.denormalise_actions(blocks).unflatten(-1, (FRAMESKIP, 2)).sum(-2) * 0.02
        return (context[:, 0] + moves[:, 0].sum(dim=1))[:, None, None]


def run_of(model=None, world=None, test=range(30), **episodes):
    held_out = WalkedEpisodes(**{"count": 40, **episodes})
    return Run(
        model or PointModel(),
        held_out,
        fit_ids=[],
        test_ids=list(test),
        open_world=world or EditedWorld,
    )


@pytest.fixture(scope="module")
def result():
    return SMALL.run(run_of())


# ------------------------------------------------------------------------------------ what is found


def test_an_exact_model_is_surprised_by_the_jump_alone(result):
    normal, teleport, colour = result.surprise
    assert normal.max() < 1e-8
    before, after = slice(None, SMALL.before), slice(SMALL.before + 1, None)
    np.testing.assert_array_equal(teleport[:, before], normal[:, before])
    assert teleport[:, after].max() < 1e-8
    np.testing.assert_allclose(teleport[:, SMALL.before], 0.2**2 / 2, rtol=1e-2)
    np.testing.assert_array_equal(colour, normal)
    edit = result.edits["teleport of agent"]
    assert (edit.auc, edit.auc_interval, edit.detection_at_5_percent) == (1, (1, 1), 1)
    assert edit.against_colour.auc == 1
    assert max(edit.t_p, edit.wilcoxon_p) < 1e-5
    assert edit.ratio > 1e4


def test_a_colour_that_the_model_does_not_see_is_no_surprise(result):
    edit = result.edits["colour of agent"]
    assert (
        edit.t,
        edit.t_p,
        edit.wilcoxon_p,
        edit.effect_size,
        edit.mean_difference,
    ) == (0, 1, 1, 0, 0)
    assert edit.picture_change > 10
    assert "grey levels" in next(iter(result.tables().values()))[1]["picture changes by"]
    assert edit.detection_at_5_percent < 0.3


def test_a_colour_that_it_sees_surprises_once():
    loud = SMALL.run(run_of(world=lambda *given: EditedWorld(*given, paint="loud")))
    colour = loud.surprise[2]
    assert colour[:, SMALL.before].min() > 1e3 * loud.surprise[0].max()
    assert colour[:, SMALL.before + 1 :].max() < 1e-8, "from then on all frames have that colour"
    assert loud.edits["colour of agent"].t_p < 1e-5


def test_the_predictor_sees_the_last_frames_and_their_blocks():
    longer = SMALL.run(run_of(SpringModel()))
    normal, teleport, _ = longer.surprise
    assert normal.max() < 1e-8
    edit = SMALL.before
    assert teleport[:, [edit, edit + 1]].min() > 1e-3, (
        "one of the two frames that it sees is from before the jump"
    )
    assert teleport[:, edit + 2].max() < 1e-8


def test_a_score_is_the_mean_squared_error_of_the_next_latent():
    model = PointModel()
    latents = torch.tensor([[[0.1, 0.2], [0.1, 0.2], [0.4, 0.6]]])
    np.testing.assert_allclose(
        score(model, latents, np.zeros((1, 2, FRAMESKIP, 2))), [[0, 0.125]], atol=1e-6
    )


def test_farther_jumps_surprise_more():
    class Scattered(EditedWorld):
        def teleport(self, things, states, seeds):
            step = np.random.default_rng(list(seeds)).uniform(0.05, 0.3, (len(states), 1))
            return (states + (step if things else 0)).astype(np.float32)

    edit = SMALL.run(run_of(world=Scattered)).edits["teleport of agent"]
    assert edit.size_correlation > 0.95


def test_all_things_are_edited_one_by_one_and_together():
    class Two(EditedWorld):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            self.spec = replace(self.spec, things=("agent", "block"))

        def recoloured(self, thing, turn):
            return {"agent": "loud", "block": "quiet"}[thing]

    found = SMALL.run(run_of(world=Two))
    names = [
        "teleport of agent",
        "teleport of block",
        "teleport of agent and block",
        "colour of agent",
        "colour of block",
    ]
    assert list(found.edits) == names
    assert found.conditions == ("unperturbed", *names)
    assert found.surprise.shape == (6, 30, 6)
    areas = [found.edits[name].against_colour.auc for name in names[:3]]
    assert areas[1] == 1, "against its own colour"
    assert areas[2] == pytest.approx((areas[0] + areas[1]) / 2, abs=1e-6), (
        "against the colours of both"
    )
    assert found.roc_colour.shape == (3, 201)
    assert len(draw(found)) == 4


# --------------------------------------------------------------------------------- of what episodes


def test_what_goes_on_unedited_is_what_was_recorded(result):
    assert result.replay == Replay(exact=1, median=0, p90=0)
    assert (result.recorded, result.played) == (30, 0)


def test_episodes_that_are_missing_are_played():
    found = SMALL.run(run_of(test=range(12)))
    assert (found.episodes, found.recorded, found.played) == (
        30,
        12,
        18,
    )
    surprise = found.surprise
    assert surprise[0].max() < 1e-8
    assert len(np.unique(surprise[1, :, SMALL.before])) == 30, "no episode is there twice"
    again = SMALL.run(run_of(test=range(12)))
    np.testing.assert_array_equal(again.surprise, surprise)
    other = replace(SMALL, seed=1).run(run_of(test=range(12)))
    assert (other.surprise[1, -18:] != surprise[1, -18:]).any()


def test_whatever_is_drawn_for_an_episode_follows_from_the_seed():
    """What is met, how it is acted and where things are put: of another seed nothing is the
    same."""

    def drawn(seed):
        asked = {"reset": [], "policy": [], "teleport": []}

        class Noting(EditedWorld):
            def reset(self, seeds):
                asked["reset"] += list(seeds)
                super().reset(seeds)

            def policy(self, name, seeds):
                asked["policy"] += list(seeds)
                return super().policy(name, seeds)

            def teleport(self, things, states, seeds):
                if things:
                    asked["teleport"] += list(seeds)
                return super().teleport(things, states, seeds)

        replace(SMALL, seed=seed).run(run_of(world=Noting, test=range(12)))
        return asked

    first, second = drawn(0), drawn(1)
    for purpose in first:
        assert first[purpose]
        assert not {*first[purpose]} & {*second[purpose]}, purpose


def test_episodes_with_a_row_per_block_give_the_same_and_none_is_played():
    found = SMALL.run(run_of(length=21, every=FRAMESKIP))
    assert found.surprise[0].max() < 1e-8
    assert found.replay.exact == 1
    few = replace(SMALL, episodes=40).run(run_of(length=21, every=FRAMESKIP))
    assert (few.episodes, few.played) == (30, 0)
    assert few.warning == "only 30 episodes where 100 are asked for"
    assert few.warning in next(iter(few.tables()))


def test_the_edit_is_in_the_middle_and_each_episode_has_one():
    analysis, episodes = replace(SMALL, episodes=7), run_of().episodes
    chosen = analysis._recorded(run_of(), EditedWorld(1).spec)
    assert len(chosen) == 7
    homes = []
    for states, blocks in chosen:
        assert blocks.shape == (6, FRAMESKIP, 2)
        homes.append(
            next(i for i in range(episodes.count) if (episodes.states(i)[30] == states[4]).all())
        )
        np.testing.assert_array_equal(states, episodes.states(homes[-1])[10:45:5])
        np.testing.assert_array_equal(blocks.reshape(-1, 2), episodes.actions(homes[-1])[10:40])
    assert len(set(homes)) == 7
    assert not analysis._recorded(run_of(length=30), EditedWorld(1).spec), "too short for 7 frames"
    assert len(analysis._recorded(run_of(length=31), EditedWorld(1).spec)) == 7


@pytest.mark.parametrize("length", [61, 62, 90])
def test_the_edit_of_a_played_episode_is_where_that_of_a_recorded_one_is(length):
    """Counted in steps of the world: as many before the edit, and none lost between the blocks."""
    walks = []

    class Counted(EditedWorld):
        def reset(self, seeds):
            super().reset(seeds)
            walks.append([self.states])

        def step(self, actions):
            super().step(actions)
            walks[-1].append(self.states)

    run = run_of(world=Counted, length=length)
    analysis = replace(SMALL, episodes=7)
    played = analysis._played(run, 7)
    (walk,) = (np.stack(walk, axis=1) for walk in walks)  # (n, steps, S)
    middle, past = length // 2, run.model.context + SMALL.before
    frames = middle + FRAMESKIP * np.arange(-past, SMALL.after + 1)
    assert walk.shape[1] - 1 == frames[-1]
    for (states, blocks), seen in zip(played, walk, strict=True):
        np.testing.assert_array_equal(states, seen[frames])
        assert blocks.shape == (past + SMALL.after, FRAMESKIP, 2)


def broken(*_):
    raise ImportError("No module named 'there'")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (run_of(has_states=False, state_names=()), "state columns"),
        (replace(run_of(), open_world=None), "whose world is known"),
        (run_of(world=PointWorld), "'point', which names nothing"),
        (run_of(world=broken), "cannot be opened here: No module named 'there'"),
        (
            run_of(test=range(15), length=21, every=FRAMESKIP),
            "at least 20 held-out episodes of 6 blocks.*got 15",
        ),
        (run_of(length=10, every=2), "at the ends of blocks"),
    ],
)
def test_what_cannot_be_answered_is_refused(given, message):
    with pytest.raises(Unsupported, match=message):
        SMALL.run(given)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        SMALL.run(run_of(PointModel().train()))


def test_a_trained_model_stays_as_it_is_and_its_result_is_stored(small_run, tmp_path):
    given = open_run(small_run, device="cpu")
    before = {name: value.clone() for name, value in given.model.state_dict().items()}
    heard = []
    found = Surprise(episodes=24, before=2, after=1, draws=50).run(given, heard.append)
    assert all(torch.equal(value, before[name]) for name, value in given.model.state_dict().items())
    assert not given.model.training
    assert all(parameter.grad is None for parameter in given.model.parameters())
    assert found.recorded + found.played == 24
    assert found.replay.exact == 1
    assert [progress.done for progress in heard] == [0, 1, 2, 3]
    assert {progress.total for progress in heard} == {3}
    save_result(tmp_path, found, {})
    loaded, _ = load_result(tmp_path, SurpriseResult)
    assert loaded.to_json() == found.to_json()
    np.testing.assert_array_equal(loaded.roc, found.roc)
    assert len(draw(loaded)) == 4


# --------------------------------------------------------------------------------------- statistics


def noise(n=60, frames=6, seed=0):
    """Surprise of a model with an error of its own: mean of squares, in three conditions that are
    alike."""
    return np.random.default_rng(seed).chisquare(8, (3, n, frames)) / 8


def test_noise_is_significant_as_often_as_it_should_be():
    p, alarms = [], []
    for seed in range(250):
        found = tell(noise(seed=seed)[:2], EDITS[:2], before=3, draws=2, seed=seed)
        edit = found.edits["teleport of agent"]
        p.append((edit.t_p, edit.wilcoxon_p))
        alarms.append((found.false_alarms.rate, edit.detection_at_5_percent))
    significant = np.mean(np.array(p) < 0.05, axis=0)
    assert (significant > 0.02).all()
    assert (significant < 0.085).all()
    np.testing.assert_allclose(np.mean(p, axis=0), 0.5, atol=0.06)
    np.testing.assert_allclose(np.mean(alarms, axis=0), 0.05, atol=0.012)


def test_intervals_of_the_area_hold_it_as_often_as_they_should():
    held = []
    for seed in range(300):
        frames = np.exp(noise(40, seed=seed)[0])  # skewed
        apart = module._told_apart(frames[:, 0], frames[:, 1:], draws=200, seed=seed)
        low, high = apart.auc_interval
        held.append(low <= 0.5 <= high)
    assert 0.9 < np.mean(held) < 0.98


def test_a_planted_difference_has_its_size():
    generator = np.random.default_rng(0)
    normal, edited = generator.normal(5, 1, (1500, 3)), generator.normal(6, 1, 1500)
    found = compare(normal, edited, at=1, draws=200)
    assert found.n == 1500
    assert found.ratio == pytest.approx(6 / 5, abs=0.01)
    assert found.effect_size == pytest.approx(1 / 2**0.5, abs=0.06)
    assert found.t == pytest.approx(found.effect_size * 1500**0.5)
    # the normal distribution function at 1 / sqrt 2
    assert found.auc == pytest.approx(0.760, abs=0.02)
    low, high = found.interval
    assert low < found.mean_difference < high
    assert high - low == pytest.approx(4 * 2**0.5 / 1500**0.5, rel=0.15)


def test_pairs_are_what_is_tested():
    """A small difference in every episode counts, however different the episodes are."""
    generator = np.random.default_rng(1)
    normal = np.repeat(generator.uniform(1, 100, (50, 1)), 4, axis=1)
    edited = normal[:, 2] + generator.uniform(0.1, 0.2, 50)
    found = compare(normal, edited, at=2)
    assert max(found.t_p, found.wilcoxon_p) < 1e-8
    assert found.auc < 0.6
    shuffled = compare(normal, generator.permutation(edited), at=2)
    assert min(shuffled.t_p, shuffled.wilcoxon_p) > 0.05


def test_the_area_and_its_interval_are_those_of_the_slow_way():
    generator = np.random.default_rng(2)
    # with ties
    edited, others = (
        generator.integers(3, 9, 30).astype(float),
        generator.integers(0, 8, (30, 4)).astype(float),
    )

    def area(values, positive):
        apart = values[positive][:, None] - values[~positive]
        return float(np.mean((apart > 0) + 0.5 * (apart == 0)))

    values, positive = np.column_stack([edited, others]), np.zeros((30, 5), bool)
    positive[:, 0] = True
    fast = module._told_apart(edited, others, draws=2000, seed=0)
    assert fast.auc == pytest.approx(area(values.ravel(), positive.ravel()))
    episode = np.repeat(np.arange(30), 5)
    slow = stats.bootstrap(
        area, values.ravel(), positive.ravel(), groups=episode, draws=2000, seed=1
    )
    np.testing.assert_allclose(fast.auc_interval, slow, atol=0.01)


def test_curves_meet_their_areas():
    conditions = noise(200)
    conditions[1:, :, 3] *= [[2.0], [1.3]]
    found = tell(conditions, EDITS, before=3, draws=20)
    alarms, edits = found.roc_false_alarms, list(found.edits.values())
    for curve, edit in zip(found.roc, edits, strict=True):
        assert np.trapezoid(curve, alarms) == pytest.approx(edit.auc, abs=0.01)
        assert (np.diff(curve) >= 0).all()
    assert np.trapezoid(found.roc_colour[0], alarms) == pytest.approx(
        edits[0].against_colour.auc, abs=0.01
    )
    assert edits[1].against_colour is None


def test_bands_hold_the_mean_and_narrow_with_more_episodes():
    few, many = (tell(noise(n), EDITS, before=3, draws=300) for n in (25, 400))
    for arrays in (few, many):
        assert (arrays.low < arrays.mean).all()
        assert (arrays.mean < arrays.high).all()
    widths = [np.mean(arrays.high - arrays.low) for arrays in (few, many)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.15)
    np.testing.assert_array_equal(few.frames, [-3, -2, -1, 0, 1, 2])


# ------------------------------------------------------------------------------------------ figures


def test_panels_are_svg_that_names_every_condition(result):
    panels = draw(result)
    assert len(panels) == 4
    for panel in panels:
        ElementTree.fromstring(panel.svg)
        assert not re.search(r"<script|javascript:|https?://(?!www\.w3\.org)", panel.svg)
        assert not set(re.findall(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", panel.svg))), (
            "colours are the page's"
        )
    assert all(name in panels[0].svg for name in result.conditions)
    assert "30 episodes" in panels[0].title


def test_names_of_things_stay_text():
    name = 'cat <script> & "$x$"'
    conditions = noise(30)
    conditions[0, 0, 0] = 0  # which a logarithmic axis must bear
    found = tell(
        conditions,
        [CONTROL, Edit("teleport", (name,)), Edit("colour", (name,))],
        before=3,
        draws=20,
    )
    for panel in draw(found):
        tree = ElementTree.fromstring(panel.svg)
        assert "<script>" not in panel.svg
        texts = "".join(tree.itertext())
        assert "$x$" in texts


def test_a_perfect_model_can_be_drawn():
    conditions = np.zeros((3, 25, 6))
    conditions[1, :, 3] = 1 + np.arange(25)
    found = tell(conditions, EDITS, before=3, draws=20)
    assert found.edits["teleport of agent"].ratio is None
    for panel in draw(found):
        ElementTree.fromstring(panel.svg)
