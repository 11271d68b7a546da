"""The map that plans go by, as an analysis keeps it and a page draws it."""

from types import SimpleNamespace

import numpy as np
import torch

from lewm.analyses.planning import Places, PlanningResult, _places
from lewm.contracts import Route
from lewm.planning.solvers.cem import CEM
from lewm.planning.solvers.waypoints import Waypoints
from lewm.report.sections import planning as section
from tests.support.results import planning


class Steps:
    def embed(self, latents):
        return latents

    def between(self, now, goal):
        return (now - goal).norm(dim=-1)

    distance = between


def attempt(*rows):
    replan = SimpleNamespace(routes=(Route(np.array(rows, np.int64), True),))
    states = np.array([[1.0, 2.0, 9.0]])
    return SimpleNamespace(replans=(replan,), states=states, goal_state=np.array([3.0, 4.0, 9.0]))


def test_places_links_and_the_longest_way():
    landmarks = SimpleNamespace(
        latents=torch.tensor([[0.0], [4.0], [9.0]]), rows=torch.tensor([50, 20, 70])
    )
    solver = Waypoints(distance=Steps(), network=object(), map=landmarks, limit=5.0)

    def read(latents):
        return 10 * np.repeat(latents, 2, axis=1)

    found = _places(solver, [attempt(), attempt(20, 70), attempt(50)], read)
    assert found is not None
    np.testing.assert_array_equal(found.places[:, 0], [0, 40, 90])
    assert sorted(map(tuple, found.links.tolist())) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    np.testing.assert_array_equal(found.way, [[1, 2], [40, 40], [90, 90], [3, 4]])
    assert _places(CEM(), [], read) is None


def test_the_page_draws_it_and_without_one_nothing():
    way = np.array([[10, 10], [20, 20], [30, 10]], np.float32)
    drawn = Places(way, np.array([[0, 1], [1, 0], [1, 2]]), way)
    result = planning(map=drawn)
    (panel,) = [panel for panel in section.draw(result) if "map" in panel.title]
    assert "3 stored latents" in panel.title
    assert "goal" in panel.svg
    again = PlanningResult.from_json(result.to_json(), result.arrays())
    assert again.map is not None
    np.testing.assert_array_equal(again.map.links, drawn.links)
    assert not [panel for panel in section.draw(planning()) if "map" in panel.title]
