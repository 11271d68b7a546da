"""What is held out is held out. The other side is poisoned, in pixels, actions and states alike:
what was learnt of one side, and what is told of the other, must not move."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lewm import registry
from lewm.analyses import decoding, planning, probing, surprise
from lewm.analyses.probes import ridge
from lewm.analyses.surprise import CONTROL, Edit
from lewm.cli.commands import plan as plan_command
from lewm.cli.main import main
from lewm.data.episodes import Episodes
from lewm.data.split import split, statistics
from lewm.evaluation import evaluate as evaluation
from lewm.evaluation.tasks import Task
from lewm.experiments import pipeline, quickstart, recipes, reproduce, steps
from lewm.files import read_json
from lewm.models.nn.frozen import encode
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.runs import checkpoints
from lewm.runs.run import open_run
from lewm.training import fit as fitting
from lewm.training import train as training
from lewm.training.fit import FittingConfig
from tests.support import knobs, tiny
from tests.support.played import FIT, TEST, played

SPLIT = split(8, tiny.TRAINING.holdout, tiny.TRAINING.seed)

# --------------------------------------------------------------------------------- what was learnt


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An episode file as it is, one whose held-out episodes are poisoned, and one whose others
    are."""
    folder = tmp_path_factory.mktemp("held out")
    sides = {"clean": (), "heldout": SPLIT.heldout, "fit": SPLIT.train}
    return {name: tiny.write(folder / f"{name}.h5", poison=ids) for name, ids in sides.items()}


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """A run of each, with its heads, by the same settings."""
    config = FittingConfig(updates=3, batch_size=8, reach=6)
    made = {}
    for name, data in files.items():
        run = training.train(tiny.MODEL, tiny.TRAINING, data, tmp_path_factory.mktemp(name) / "run")
        opened = open_run(run)
        sides = opened.fit_ids, opened.test_ids
        assert (tuple(sides[0]), tuple(sides[1])) == (SPLIT.train, SPLIT.heldout)
        with opened.episodes:
            found = fitting.fit_heads(run, opened.model, opened.episodes, *sides, None, config)
        made[name] = run, found
    return made


def weights(run):
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*.safetensors")
        if "optim" not in path.name
    }


def test_held_out_episodes_leave_no_trace_in_what_is_learnt(runs):
    """Weights, heads and statistics are bit-equal; those of other training episodes are not."""
    (clean, _), (poisoned, _), (other, _) = (runs[name] for name in ("clean", "heldout", "fit"))
    assert len(weights(clean)) == 1 + len(registry.names("heads"))
    assert weights(poisoned) == weights(clean)
    assert (poisoned / checkpoints.MODEL).read_bytes() == (clean / checkpoints.MODEL).read_bytes()
    assert (other / checkpoints.MODEL).read_bytes() != (clean / checkpoints.MODEL).read_bytes()
    assert all(of != weights(clean)[name] for name, of in weights(other).items())


def test_the_places_of_a_map_are_frames_of_training_episodes(runs):
    """Each is the latent of its row, and a planner that goes by it sees no held-out frame."""
    for run, _ in runs.values():
        opened = open_run(run)
        with opened.episodes as episodes:
            places = opened.heads["map"]
            rows, order = places.rows.sort()
            assert len(rows) > 20
            of = np.searchsorted(episodes.offsets, rows.numpy(), side="right") - 1
            assert set(of.tolist()) <= set(SPLIT.train)
            pixels = torch.from_numpy(episodes.rows("pixels", rows.numpy())).permute(0, 3, 1, 2)
            found = encode(opened.model, pixels[:, None])[:, 0]
            torch.testing.assert_close(places.latents[order], found, atol=1e-5, rtol=1e-5)


def test_statistics_are_those_of_the_training_episodes(files):
    with Episodes.open(files["clean"]) as clean, Episodes.open(files["heldout"]) as poisoned:
        assert statistics(clean, SPLIT.train) == statistics(poisoned, SPLIT.train)
        assert statistics(clean, SPLIT.heldout) != statistics(poisoned, SPLIT.heldout)
        acted = np.concatenate([clean.actions(i)[:-1] for i in SPLIT.train]).astype(np.float64)
        np.testing.assert_allclose(
            statistics(clean, SPLIT.train).action_mean, acted.mean(axis=0), rtol=1e-6
        )


def test_what_a_training_logs_is_of_its_own_side(runs):
    """Losses are of the training episodes; straightness is of held-out paths."""
    clean, poisoned = (checkpoints.metrics(runs[name][0]) for name in ("clean", "heldout"))
    clocks = ("seconds", "updates_per_second", "straightness")
    for a, b in zip(clean, poisoned, strict=True):
        assert {k: v for k, v in a.items() if k not in clocks} == {
            k: v for k, v in b.items() if k not in clocks
        }
    assert clean[-1]["straightness"] != poisoned[-1]["straightness"]


def test_straightness_is_looked_at_on_held_out_paths(files, monkeypatch, tmp_path):
    looked = {}
    made = training.Trainer.__init__

    def init(self, *given):
        looked[name] = given[-1]
        made(self, *given)

    monkeypatch.setattr(training.Trainer, "__init__", init)
    config = dataclasses.replace(tiny.TRAINING, updates=1)
    for name, data in files.items():
        training.train(tiny.MODEL, config, data, tmp_path / name)
    assert torch.equal(looked["clean"], looked["fit"])
    assert not torch.equal(looked["clean"], looked["heldout"])


def test_a_head_is_scored_on_episodes_that_it_was_not_fitted_to(files, runs, monkeypatch, tmp_path):
    """Of one model: the frames that are measured on are those of the held-out episodes, whatever
    became of the others; and the other way round."""
    model = open_run(runs["clean"][0]).model
    kept = {}
    encode = fitting.encode_episodes

    def encoded(of, episodes, ids, *rest):
        kept[name, tuple(ids)] = found = encode(of, episodes, ids, *rest)
        return found

    fitted = []
    measure = fitting.fit

    def measured(head, latents, heldout, *rest):
        fitted.append((latents is kept[name, SPLIT.train], heldout is kept[name, SPLIT.heldout]))
        return measure(head, latents, heldout, *rest)

    monkeypatch.setattr(fitting, "encode_episodes", encoded)
    monkeypatch.setattr(fitting, "fit", measured)
    monkeypatch.setattr(fitting, "save_head", lambda *_: None)
    config = FittingConfig(updates=2, batch_size=8, reach=6)
    scores = {}
    for name, data in files.items():
        with Episodes.open(data) as episodes:
            sides = SPLIT.train, SPLIT.heldout
            scores[name] = fitting.fit_heads(tmp_path, model, episodes, *sides, None, config)
    assert set(fitted) == {(True, True)}
    assert torch.equal(kept["clean", SPLIT.heldout].latents, kept["fit", SPLIT.heldout].latents)
    for head, numbers in scores["clean"].items():
        moved = scores["heldout"][head]
        assert moved["loss"] == numbers["loss"]
        told = [key for key in numbers if key.startswith("heldout") or "correlation" in key]
        assert told
        assert all(moved[key] != numbers[key] for key in told), "it is of the other side"


# ------------------------------------------------------------------------------- who is evaluated


class Enough(BaseException):
    """Enough was seen."""


@pytest.fixture
def drawn(monkeypatch):
    """The pairs that were drawn, wherever somebody draws them."""
    seen = []
    draw = evaluation.draw_pairs

    def drawing(*given):
        seen.append(draw(*given))
        return seen[-1]

    for module in (evaluation, planning, plan_command):
        monkeypatch.setattr(module, "draw_pairs", drawing)
    return seen


def of_held_out(pairs, heldout):
    episodes = {*pairs.start_episodes.tolist(), *pairs.goal_episodes.tolist()}
    assert episodes <= set(heldout), "pairs are of held-out episodes"
    return bool(episodes)


@pytest.mark.parametrize("what", ["reproduce", "quickstart"])
def test_experiments_evaluate_and_ask_about_held_out_episodes(what, drawn, monkeypatch, tmp_path):
    """And every seed is the experiment's."""
    seen = {"collect": [], "train": [], "fit": [], "evaluate": []}

    def watch(name, take):
        original = getattr(pipeline, name)

        def watched(*given, **named):
            seen[name.partition("_")[0]].append(take(given, named))
            return original(*given, **named)

        monkeypatch.setattr(pipeline, name, watched)

    def asked(run, names, report, **settings):
        seen["analyse"] = run, names, settings
        raise Enough

    watch("collect", lambda given, named: named["seed"])
    watch("train", lambda given, named: given[1].seed)
    watch("fit_heads", lambda given, named: (given[6].seed, tuple(given[3]), tuple(given[4])))
    watch("evaluate", lambda given, named: (given[5].seed, given[2], tuple(given[4])))
    monkeypatch.setattr(pipeline, "analyse", asked)
    full = recipes.load("two-room-tiny")
    model = dataclasses.replace(full.model, encoder_width=16, predictor_width=16, projector_dim=16)
    fast = dataclasses.replace(full.training, recalibration=1, batch_size=4)
    smaller = dataclasses.replace(full, image_size=16, model=model, training=fast)
    monkeypatch.setitem(recipes.RECIPES, "two-room-tiny", lambda: smaller)
    small = {"EPISODES": 20, "UPDATES": 2, "PAIRS": 4, "FIT_UPDATES": 2}
    for module in (reproduce, quickstart):
        for name, value in small.items():
            monkeypatch.setattr(module, f"SHORT_{name}", value, raising=False)
    carry_out = {
        "reproduce": lambda: reproduce.reproduce("two-room-tiny", tmp_path, 3, short=True),
        "quickstart": lambda: quickstart.run(tmp_path, 3, short=True),
    }
    with pytest.raises(Enough):
        carry_out[what]()
    known = read_json(tmp_path / "run" / checkpoints.EXPERIMENT)["split"]
    train, heldout = tuple(known["train"]), tuple(known["heldout"])
    assert not set(train) & set(heldout)
    assert (seen["collect"], seen["train"]) == ([3], [3])
    assert set(seen["fit"]) == {(3, train, heldout)}
    assert {(seed, ids) for seed, _, ids in seen["evaluate"]} == {(3, heldout)}
    assert len(drawn) == len(seen["evaluate"])
    assert all(of_held_out(pairs, heldout) for pairs in drawn)
    run, names, settings = seen["analyse"]
    assert (tuple(run.fit_ids), tuple(run.test_ids)) == (train, heldout)
    assert settings["seed"] == 3
    assert "probing" in names


def test_commands_evaluate_held_out_episodes(drawn, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search = [
        "--solver",
        "cem",
        "--objective",
        "l2",
        "--candidates",
        "8",
        "--elites",
        "2",
        "--iterations",
        "1",
    ]
    assert main(["evaluate", str(small_run), "--episodes", "3", "--full", *search]) == 0
    assert main(["plan", str(small_run), "--realtime", "500", *search]) == 0
    heldout = read_json(small_run / checkpoints.EXPERIMENT)["split"]["heldout"]
    assert len(drawn) >= 3
    assert all(of_held_out(pairs, heldout) for pairs in drawn)
    run = open_run(small_run)
    with run.episodes:
        config = {"solver": "cem", "objective": "l2", "candidates": 8, "elites": 2}
        steps.evaluate(run, Task(episodes=3), iterations=1, **config)
    assert of_held_out(drawn[-1], heldout)


@pytest.mark.parametrize("floor", ["random", "straight-line", "do-nothing", "agent"])
def test_every_policy_plays_the_same_held_out_pairs(floor):
    """Poisoned training episodes move no outcome."""
    told = []
    for poisoned in ((), FIT):
        run = played(poisoned=poisoned)
        planner = PlanningConfig(L2(), CEM(8, 3, 1), horizon=2, receding=2)
        found = evaluation.evaluate(
            run.model, planner, run.world(8), run.episodes, run.heldout, Task(15, 20, 8)
        )
        assert of_held_out(found.pairs, TEST)
        told.append((found.pairs.start_rows.tolist(), found.success_steps[floor].tolist()))
    assert told[0] == told[1]


# --------------------------------------------------------------------------------- what is analysed


def ask(name, poisoned=(), **changes):
    kind = registry.load("analyses", name)
    return kind(**knobs.ANALYSED[name] | changes).run(played(poisoned=poisoned))


@pytest.mark.parametrize("name", ["geometry", "surprise"])
def test_what_is_measured_on_held_out_episodes_alone_knows_no_others(name):
    clean, poisoned, moved = (ask(name, ids) for ids in ((), FIT, TEST))
    assert json.dumps(clean.to_json()) == json.dumps(poisoned.to_json())
    assert json.dumps(clean.to_json()) != json.dumps(moved.to_json())
    for key, array in clean.arrays().items():
        np.testing.assert_array_equal(array, poisoned.arrays()[key], err_msg=key)


def test_plans_are_made_and_judged_in_held_out_episodes(drawn):
    clean, poisoned = (ask("planning", ids) for ids in ((), FIT))
    assert all(of_held_out(pairs, TEST) for pairs in drawn)
    np.testing.assert_array_equal(clean.costs, poisoned.costs)
    for a, b in zip(clean.horizon, poisoned.horizon, strict=True):
        assert (a.error, a.copy, a.ratio_interval) == (b.error, b.copy, b.ratio_interval)
        assert a.place_error != b.place_error, "its read-out is fitted to the others"


def test_the_economy_looks_at_held_out_episodes():
    run, rows = played(), []
    read = run.episodes.rows
    run.episodes.rows = lambda column, chosen: rows.extend(chosen) or read(column, chosen)
    registry.load("analyses", "economy")(plans=9, paper_plans=0, limit_s=0.01).run(run)
    assert {int(row) // 60 for row in rows} <= set(TEST)
    assert len(rows) >= 2 * 10


def learnt_from(monkeypatch, name, poisoned):
    """Whatever read-outs, networks and decoders of an analysis are fitted to, in its order."""
    seen = []

    def watch(owner, function):
        original = getattr(owner, function)

        def fitted(*given, **named):
            seen.extend(
                part
                for value in (*given, *named.values())
                for part in (value if isinstance(value, tuple) else (value,))
                if isinstance(part, np.ndarray)
            )
            return original(*given, **named)

        monkeypatch.setattr(owner, function, fitted)

    with monkeypatch.context() as monkeypatch:
        watch(probing, "fit_probe")
        watch(ridge, "fit_probe")
        watch(probing.Probing, "_fit_mlp")
        watch(decoding, "fit_decoder")
        monkeypatch.setattr(probing, "MLP", FittingConfig(updates=2))
        changes = {"probing": {"mlp": True, "controls": True}}.get(name, {})
        ask(name, poisoned, **changes)
    return seen


@pytest.mark.parametrize("name", ["probing", "planning", "decoding"])
def test_what_reads_latents_is_fitted_to_training_episodes_alone(name, monkeypatch):
    clean, poisoned, moved = (learnt_from(monkeypatch, name, ids) for ids in ((), TEST, FIT))
    assert len(clean) >= 2
    assert all(np.array_equal(a, b) for a, b in zip(clean, poisoned, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(clean, moved, strict=True))


def predictions(monkeypatch, poisoned):
    """What every probe and every control of it reads of each test frame, and the episodes."""
    read = []
    original = probing.Probing._scores

    def scored(self, predicted, test):
        read.append(predicted)
        return original(self, predicted, test)

    with monkeypatch.context() as patch:
        patch.setattr(probing.Probing, "_scores", scored)
        patch.setattr(probing, "MLP", FittingConfig(updates=2))
        result = ask("probing", poisoned, mlp=True, controls=True, rollouts=0)
    return [*read, result.predictions], result.episodes


def test_what_is_read_of_a_frame_does_not_depend_on_other_test_frames(monkeypatch):
    """By ridge and MLP, of latents, of random weights, of pixels, and of the other variables."""
    kept = TEST[3:7]
    clean, of = predictions(monkeypatch, ())
    poisoned, same = predictions(monkeypatch, [i for i in TEST if i not in kept])
    np.testing.assert_array_equal(of, same)
    mine = np.isin(of, kept)
    assert 0 < mine.sum() < len(of)
    assert len(clean) == 2 * 3 + 1 + 1
    for a, b in zip(clean, poisoned, strict=True):
        np.testing.assert_allclose(a[mine], b[mine], rtol=1e-6, atol=1e-9)
        assert not np.allclose(a[~mine], b[~mine])


def test_a_threshold_is_judged_on_episodes_that_did_not_set_it():
    """Normal frames of one half are ten times as surprising as those of the other. By the other
    half's threshold every normal frame of the first is an alarm, and none of the second; by their
    own, one in twenty would be."""
    n, frames, seed = 40, 5, 2
    half = np.random.default_rng(seed).permutation(n) % 2
    generator = np.random.default_rng(0)
    level = np.where(half == 0, 10.0, 1.0)[None, :, None]
    normal = level * generator.uniform(0.9, 1.1, (1, n, frames))
    edited = np.full((1, n, frames), 5.0)
    found = surprise.tell(
        np.concatenate([normal, edited]), [CONTROL, Edit("teleport", ("agent",))], 2, 10, seed
    )
    assert found.false_alarms.rate == 0.5
    (edit,) = found.edits.values()
    assert edit.detection_at_5_percent == 0.5
