"""What the page cannot run is refused, by name and with a remedy."""

import base64
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from lewm import registry
from lewm.analyses.probes.targets import LATENTS, features_of, latent_features
from lewm.contracts import DataSpec
from lewm.lab.export import GOING_BY, MOST_PARAMETERS, TWINS, export
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.mppi import MPPI
from lewm.runs.run import Missing, Unsupported
from lewm.worlds.two_room import TwoRoomWorld
from tests.support.exported import CONFIGS, STATISTICS, heads_of, lewm, run_of, tensor
from tests.support.project import SIZE
from tests.support.small_models import MIXED, SMALL


@pytest.fixture(scope="module")
def run(small_data):
    model = lewm(**CONFIGS["overlap"])
    return run_of(small_data, model, heads_of(model))


def test_what_is_exported_is_json_and_the_same_again(run):
    first = json.dumps(export(run, places=30), allow_nan=False)
    assert json.dumps(export(run, places=30)) == first
    assert json.loads(first)["tensors"]["map"][1:] == [30, run.model.latent_dim]


def test_rivals_are_refused(run):
    rival = registry.load("models", "pldm")(**SMALL["pldm"]).build(DataSpec(SIZE, 5, STATISTICS))
    with pytest.raises(Unsupported, match=r"expected a run of model 'lewm', .*, got 'pldm'\. "):
        export(replace(run, model=rival.eval()))


@pytest.mark.parametrize("mixer", MIXED)
def test_other_mixers_are_refused(run, mixer):
    with pytest.raises(Unsupported, match=f"with attention.* got predictor_mixer='{mixer}'"):
        export(replace(run, model=lewm(**MIXED[mixer])))


def test_large_models_are_refused(run):
    large = lewm(encoder_width=256, encoder_depth=4)
    with pytest.raises(Unsupported, match=f"at most {MOST_PARAMETERS:,} parameters.* got 3,"):
        export(replace(run, model=large))


def test_a_run_without_heads_is_refused(run):
    heads = {name: head for name, head in run.heads.items() if name != "temporal"}
    with pytest.raises(Unsupported, match=r"got none named temporal\. Run: lewm fit None temporal"):
        export(replace(run, heads=heads))


def test_the_twin_is_of_the_worlds_version():
    """Whoever changes the world, and so its version, brings `two_room.js` up to it."""
    assert {"two-room": TwoRoomWorld.version} == TWINS


def test_a_world_without_a_twin_is_refused(run, monkeypatch):
    monkeypatch.setattr("lewm.lab.export.TWINS", {"two-room": "2"})
    with pytest.raises(Unsupported, match=r"expected version 2 of world 'two-room', .* version 1"):
        export(run)
    monkeypatch.setattr("lewm.lab.export.TWINS", {"somewhere": "1"})
    with pytest.raises(Unsupported, match=r"JavaScript too \(somewhere\), got 'two-room'"):
        export(run)


def test_a_run_whose_episodes_are_gone_says_so(run):
    gone = Missing("episodes.h5: expected the episodes, got no such file. Pass theirs.")
    lost = replace(run, episodes=gone, experiment={"world": "two-room"})
    with pytest.raises(ValueError, match="got no such file"):
        export(lost)


def test_weights_too_large_for_16_bits_and_another_precision_are_refused(run):
    with pytest.raises(ValueError, match="expected a precision of float32, float16, got 'int8'"):
        export(run, precision="int8")
    with pytest.raises(ValueError, match="places must be at least 2, got 1"):
        export(run, places=1)
    model = lewm(**CONFIGS["overlap"])
    model.encoder.position.data[0, 3] = 1e5
    with pytest.raises(ValueError, match=r"got 1e\+05 in encoder.position.* precision 'float32'"):
        export(replace(run, model=model))


def test_a_map_covers_what_was_recorded_and_a_runs_own_comes_first(run):
    """No frame is as far from the map as from a map of places drawn at random."""
    exported = export(run, precision="float32", places=40)
    everything = features_of(
        {LATENTS: latent_features(run.model)},
        run.episodes,
        np.arange(0, 1000, 3),
        None,
    )[LATENTS]

    def gap(places):
        apart = np.linalg.norm(everything[:, None] - places[None], axis=2)
        return apart.min(axis=1).max()

    places = tensor(exported, "map")
    drawn = everything[np.random.default_rng(0).permutation(len(everything))[:40]]
    assert gap(places) < 0.8 * gap(drawn)
    own = torch.nn.Module()
    own.latents, own.rows = torch.randn(5, run.model.latent_dim), torch.tensor([9, 3, 70, 5, 4])
    exported = export(replace(run, heads={**run.heads, "map": own}), precision="float32")
    np.testing.assert_array_equal(tensor(exported, "map"), own.latents[[1, 4, 3, 0, 2]])
    states = np.frombuffer(base64.b64decode(exported["map"]["states"]), "<f4").reshape(5, -1)
    np.testing.assert_allclose(states, run.episodes.states(0)[[3, 4, 5, 9, 70]], rtol=1e-6)


@dataclass(frozen=True)
class ByMap(Amortised):
    """A solver from elsewhere, which goes by a map in its own way."""

    limit: float = 11.0
    pace: float = 0.25
    aims: int = 3
    temperature: float = 7.0


def test_a_map_is_gone_by_as_the_runs_solver_does_if_it_goes_by_one(run):
    """The temperature of MPPI is of something else."""
    for solver, expected in (
        (ByMap(), {"limit": 11.0, "pace": 0.25, "aims": 3, "temperature": 7.0}),
        (Amortised(), GOING_BY),
        (MPPI(temperature=0.125), GOING_BY),
    ):
        planning = replace(run.planning, solver=solver)
        exported = export(replace(run, planning=planning), places=20)
        assert exported["map"]["settings"] == expected
