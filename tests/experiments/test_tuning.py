"""Lambda by bisection: on signals whose edges are known."""

import dataclasses
import json

import pytest

from lewm.cli.main import main
from lewm.experiments import tuning
from lewm.experiments.tuning import Search, Tried, bisected, search


def world(lower, upper, glitch=None):
    """A short training in a world whose edges are known."""
    asked = []

    def attempt(weight, seed):
        asked.append((weight, seed))
        collapsed = weight < lower or (glitch is not None and weight > glitch and seed == 0)
        error = 0.3 if weight > upper else 0.1
        return Tried(weight, seed, collapsed, error, 1.0 if collapsed else 5.0, 0.5, 0.9)

    return attempt, asked


def test_a_bracket_is_halved_on_a_logarithmic_axis():
    asked = []

    def is_low(x):
        asked.append(x)
        return x < 3.0

    low, high = bisected(1e-2, 1e2, 2.0, is_low)
    assert asked == pytest.approx([1.0, 10.0, 10**0.5, 10**0.25])
    assert low < 3.0 <= high <= 2.0 * low


@pytest.mark.parametrize(("lower", "upper"), [(0.02, 1.0), (0.0003, 0.2), (0.3, 4.0)])
def test_both_edges_are_found_to_the_tolerance(lower, upper):
    attempt, asked = world(lower, upper)
    said = []
    found = search(Search(), attempt, 0, said.append)
    assert found.lower[0] < lower <= found.lower[1] <= 2.1 * found.lower[0]
    assert found.upper[0] <= upper < found.upper[1] <= 2.1 * found.upper[0]
    assert lower < found.weight < upper
    assert found.weight == pytest.approx((found.lower[1] * found.upper[0]) ** 0.5)
    assert found.runs == len(asked) <= 12 < found.grid == 18
    assert sum("edge lies between" in line for line in said) == 2


def test_an_upper_edge_that_is_not_met_is_said():
    found = search(Search(), world(0.02, 1e9)[0], 0, lambda _: None)
    assert found.upper is None
    assert found.weight == pytest.approx(3 * found.lower[1])


def test_a_rank_that_doubles_is_an_upper_edge_as_well():
    def attempt(weight, seed):
        return Tried(weight, seed, weight < 0.02, None, 12.0 if weight > 1 else 5.0, 0.5, 0.9)

    found = search(Search(), attempt, 0, lambda _: None)
    assert found.upper[0] <= 1 < found.upper[1]


def test_where_everything_collapses_there_is_no_answer():
    found = search(Search(), world(100, 1000)[0], 0, lambda _: None)
    assert found.weight is None


def test_a_collapse_above_the_edge_is_asked_again_with_another_seed():
    attempt, asked = world(0.02, 1e9, glitch=1.0)
    found = search(Search(high=5.0), attempt, 0, lambda _: None)
    if not found.repeated:  # the glitch was taken for the lower edge
        assert found.lower[1] > 1.0
    attempt, asked = world(0.02, 1e9, glitch=4.0)
    found = search(Search(), attempt, 0, lambda _: None)
    assert [weight > 4 for weight, _ in found.repeated] == [True] * len(found.repeated)
    assert found.repeated
    assert all(not collapsed for _, collapsed in found.repeated)
    assert {seed for _, seed in asked} == {0, 1}


def test_a_finer_tolerance_costs_a_run_an_edge():
    runs = []
    for tolerance in (4.0, 2.0, 2.0**0.5):
        found = search(Search(tolerance=tolerance), world(0.0213, 0.97)[0], 0, lambda _: None)
        runs.append(found.runs)
    assert runs[1] - runs[0] in (1, 2, 3)
    assert runs[2] - runs[1] in (1, 2, 3)
    assert (Search().grid, Search(tolerance=2.0**0.5).grid) == (18, 35)


def test_impossible_searches_are_refused():
    with pytest.raises(ValueError, match="more than a factor of 2 apart"):
        Search(low=0.1, high=0.15)
    with pytest.raises(ValueError, match="tolerance must be above 1"):
        Search(tolerance=1.0)


def test_the_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    attempt, _ = world(0.02, 1.0)
    monkeypatch.setattr(
        tuning, "collect_episodes", lambda *_: type("E", (), {"close": lambda self: None})()
    )
    trained = []

    def train(experiment, data, folder, report):
        trained.append(experiment.lewm.sigreg_weight)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weight").write_text(str(experiment.lewm.sigreg_weight))

    def opened(folder, data, device):
        class Run:
            weight = float((folder / "weight").read_text())
            episodes = open(folder / "weight")  # noqa: SIM115

        return Run()

    def measures(run, seed, report):
        told = attempt(run.weight, seed)
        return {
            "probe_controls": {"random encoder": 0.95},
            "probe_r": 0.9 if told.collapsed else 0.99,
            "effective_rank": told.rank,
            "latent_std": told.std,
            "error_of_strangers": {"5": told.error},
        }

    monkeypatch.setattr(tuning, "train_model", train)
    monkeypatch.setattr(tuning, "open_run", opened)
    monkeypatch.setattr(tuning, "measures", measures)
    words = ["tune-lambda", "two-room-tiny", "--out", str(tmp_path / "out"), "--no-confirm"]
    assert main([*words, "--json", str(tmp_path / "a.json")]) == 0
    told = json.loads((tmp_path / "a.json").read_text())
    assert 0.02 < told["weight"] < 1.0
    assert len(trained) == len(told["tried"]) == len(set(trained))
    again = len(trained)
    assert main([*words, "--json", str(tmp_path / "b.json")]) == 0
    assert len(trained) == again, "nothing is trained twice"
    assert json.loads((tmp_path / "b.json").read_text()) == told
    assert main([*words, "--updates", "90"]) == 2
    assert "another tuning" in capsys.readouterr().err
    assert dataclasses.asdict(Search())["updates"] == 150
