"""How a run plans, written down and read again: by registered names and fields, heads left out."""

import json
from dataclasses import fields

import pytest

from lewm import registry
from lewm.experiments import recipes
from lewm.planning.config import PlanningConfig, build_planning, describe_planning, plain_search
from lewm.planning.objectives.l2 import L2
from lewm.planning.objectives.temporal import Temporal
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.cem import CEM
from lewm.planning.solvers.gradient import Gradient

WAYS = {name: recipes.load(name).planning for name in recipes.RECIPES}
WAYS["nested"] = PlanningConfig(
    Temporal(intermediate=0.5), Amortised(search=CEM(64, 8, 3), guarded=True), 7, 2, True
)
WAYS["gradient"] = PlanningConfig(L2(), Gradient(4, 3), initial_std=0.5, precision="bfloat16")


@pytest.mark.parametrize("name", WAYS)
def test_what_is_written_down_is_made_anew(name):
    assert build_planning(json.loads(json.dumps(describe_planning(WAYS[name])))) == WAYS[name]


@pytest.mark.parametrize("kind", ["solvers", "objectives"])
def test_every_setting_but_the_heads_is_written_down(kind):
    for name in registry.names(kind):
        part = registry.load(kind, name)()
        of_both = {"solvers": CEM(), "objectives": L2()} | {kind: part}
        told = describe_planning(PlanningConfig(of_both["objectives"], of_both["solvers"]))
        told = told[kind.removesuffix("s")]
        heads = set(getattr(part, "heads", {}))
        assert told.keys() == {"name"} | {each.name for each in fields(part)} - heads, name


def test_heads_are_left_out():
    with_head = PlanningConfig(Temporal(network=object()), CEM())
    assert "network" not in describe_planning(with_head)["objective"]
    assert build_planning(describe_planning(with_head)) == PlanningConfig(Temporal(), CEM())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"solver": {"name": "cme"}}, "cem"),
        ({"solver": {"name": "cem", "elites": 3}}, "elites"),
        ({"solver": {"name": "cem", "num_candidates": 0}}, "0"),
        ({"objective": {"name": "os.system"}}, "os.system"),
        ({"objective": "l2"}, "l2|indices|string|update"),
        ({"horizon": 0}, "horizon"),
        ({"depth": 3}, "depth"),
    ],
)
def test_what_this_version_does_not_know_is_refused_with_its_source(change, said):
    with pytest.raises(ValueError, match=rf"^here/experiment.json .*({said})"):
        build_planning({**describe_planning(plain_search()), **change}, "here/experiment.json")


def test_a_plug_in_of_another_package_cannot_take_the_place_of_ours(monkeypatch):
    class Point:
        name = "cem"

        def load(self):
            raise AssertionError("theirs was loaded")

    monkeypatch.setattr(registry, "_foreign", lambda kind: {"cem": Point()})
    assert registry.load("solvers", "cem") is CEM
