"""Two-Room in JavaScript is the world of Python: moves to the bit, pictures to the byte."""

import numpy as np
import pytest

from lewm.worlds.two_room import (
    DOORS_PX,
    HIGH_PX,
    LOW_PX,
    PASSAGE_PX,
    PUBLISHED,
    REACH_PX,
    WALLS_PX,
    TwoRoomWorld,
    _places,
    slide,
)
from tests.support.node import needs_node, node

pytestmark = needs_node


def random_layouts(generator, number):
    low, high = np.transpose([WALLS_PX, DOORS_PX, (0, 1)])
    return generator.integers(low, high, size=(number, 3), endpoint=True).astype(np.float64)


@pytest.mark.parametrize("varied", [False, True])
def test_moves_are_equal_to_the_bit(tmp_path, varied):
    """Anywhere, a quarter about the door; of any speed, rests and axes among them."""
    generator, number = np.random.default_rng(3), 20_000
    layouts = random_layouts(generator, number) if varied else np.tile(PUBLISHED, (number, 1))
    positions = generator.uniform(0, 224, (number, 2)).astype(np.float32)
    near = number // 4
    across = layouts[:near, 0] + generator.uniform(-1.5, 1.5, near) * REACH_PX
    along = layouts[:near, 1] + generator.uniform(-1.5, 1.5, near) * PASSAGE_PX
    upright = layouts[:near, 2:] > 0
    positions[:near] = np.where(upright, np.stack([across, along], 1), np.stack([along, across], 1))
    speeds = np.exp(generator.uniform(np.log(5), np.log(300), (number, 1)))
    moves = speeds * np.clip(generator.normal(size=(number, 2)), -1, 1)
    moves[::17, 0], moves[::13, 1], moves[::101] = 0.0, -0.0, 0.0
    positions[5::50, 0] = np.float32(LOW_PX)  # along the border
    expected = slide(positions, moves, layouts)
    given = {"positions": positions, "moves": moves, "layouts": layouts}
    found = node(tmp_path, "slide", **given)["ends"].reshape(-1, 2)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert (expected != positions).any(axis=1).mean() > 0.9


@pytest.mark.parametrize(
    ("size", "look", "number"),
    [
        (64, "published", 500),
        (64, "walls", 60),
        (48, "agent_color=0000ff,floor_color=80c0a1", 60),
        (224, "published", 6),
        (32, "walls,wall_color=123456,agent_color=00ff00", 30),
        (100, "speed=7.5", 20),
    ],
)
def test_pictures_are_equal_to_the_byte(tmp_path, size, look, number):
    world = TwoRoomWorld(number, size, look)
    states = world.states
    states[: number // 2, :2] = np.random.default_rng(4).uniform(0, 224, (number // 2, 2))
    states[0, :2], states[1, :2] = (LOW_PX, LOW_PX), (HIGH_PX, HIGH_PX)
    expected = world.render(states)
    settings = {"world": {"imageSize": size, "look": look}}
    found = node(tmp_path, "render", settings, states=states)["pictures"]
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("look", ["published", "walls,speed=40"])
def test_a_walk_is_equal_to_the_bit(tmp_path, look):
    world, generator = TwoRoomWorld(1, 64, look), np.random.default_rng(5)
    actions = generator.normal(size=(300, 2)) * 1.5
    actions[::40, 0] = np.nan
    start, expected = world.states[0], []
    for action in actions:
        world.step(action[None])
        expected.append(world.states[0])
    found = node(
        tmp_path, "walk", {"world": {"imageSize": 64, "look": look}}, state=start, actions=actions
    )["states"]
    np.testing.assert_array_equal(found.reshape(300, -1), np.stack(expected).astype(np.float64))


def test_success_rooms_and_places_are_those_of_python(tmp_path):
    number, layout = 400, np.array([90.0, 120.0, 0.0])
    world, generator = TwoRoomWorld(number, 64, "walls"), np.random.default_rng(6)
    states, goals = world.states, world.states
    goals[:, :2] += generator.uniform(-16, 16, (number, 2)).astype(np.float32)
    goals[0, :2] = states[0, :2] + np.float32([16, 0])
    world.set_goals(goals)
    uniform = generator.random((number, 2))
    answer = node(
        tmp_path,
        "facts",
        {"world": {"look": "walls", "imageSize": 64}, "layout": layout.tolist()},
        states=states,
        goals=goals,
        uniform=uniform,
    )
    np.testing.assert_array_equal(answer["met"], world.success())
    assert 0.2 < world.success().mean() < 0.95
    np.testing.assert_array_equal(answer["rooms"], world.regions(states))
    places = _places(uniform, layout)
    np.testing.assert_allclose(answer["places"].reshape(-1, 2), places, rtol=0, atol=1e-12)


INVISIBLE = {"x0": 20, "y0": 95, "x1": 100, "y1": 105, "solid": True, "drawn": False}


def test_an_invisible_wall_stops_and_is_not_seen(tmp_path):
    """A dot that pushes down against it slides along; the picture is that of the empty world."""
    state = np.float32([60, 60])
    actions = np.tile([0.3, 1.0], (20, 1))
    settings = {"world": {"imageSize": 64, "walls": [INVISIBLE]}}
    walk = node(tmp_path, "walk", settings, state=state, actions=actions)["states"].reshape(-1, 2)
    assert walk[-1, 1] == pytest.approx(95 - 7.5, abs=0.5)  # half a piece of a motion
    assert walk[-1, 0] == pytest.approx(60 + 20 * 1.5, abs=0.5)
    pictures = node(tmp_path, "render", settings, states=walk.astype(np.float32))["pictures"]
    expected = TwoRoomWorld(1, 64).render(walk.astype(np.float32))
    np.testing.assert_array_equal(pictures.reshape(expected.shape), expected)


def test_nothing_passes_a_wall_of_the_users_and_what_stands_in_it_gets_out(tmp_path):
    actions = np.random.default_rng(7).uniform(-1, 1, (2000, 2))
    world = {"imageSize": 64, "look": "speed=60", "walls": [INVISIBLE]}

    def walk(start):
        given = {"state": np.float32(start), "actions": actions}
        return node(tmp_path, "walk", {"world": world}, **given)["states"].reshape(-1, 2)

    def inside(places):
        x, y = places.T
        return (x > 12.5) & (x < 107.5) & (y > 87.5) & (y < 112.5)

    path = walk([170, 60])
    assert not inside(path).any()
    assert (path[:, 0] < 80).any(), "it was on the wall's side"
    path = walk([60, 100])
    assert inside(np.float32([[60, 100]]))[0]
    freed = int(np.argmin(inside(path)))
    assert freed < 100
    assert not inside(path[freed:]).any()


def test_a_drawn_wall_is_seen_and_stops_only_if_it_is_solid(tmp_path):
    """Fill the door: the picture is the published area average of a wall without one."""
    door = {"x0": 107, "y0": 35, "x1": 117, "y1": 63, "solid": False, "drawn": True}
    line = np.arange(224)
    depth = np.minimum(line, 223 - line)
    border = (depth >= 10) & (depth < 14)
    solid = border[:, None] | border[None, :] | ((line >= 107) & (line <= 117))[None, :]
    expected = np.where(solid[..., None], 0, 255)
    states = np.float32([[40, 180]])
    settings = {"world": {"imageSize": 224, "walls": [door]}}
    picture = node(tmp_path, "render", settings, states=states)["pictures"].reshape(224, 224, 3)
    np.testing.assert_array_equal(picture[:140], expected[:140].repeat(3, axis=2))
    start, actions = np.float32([80, 49]), np.tile([1.0, 0.0], (20, 1))

    def end(wall):
        settings = {"world": {"imageSize": 64, "walls": [wall]}}
        return node(tmp_path, "walk", settings, state=start, actions=actions)["states"][-2]

    assert end(door) == 180
    assert end(door | {"solid": True}) == pytest.approx(107 - 7.5, abs=0.5)


def test_teleports_colours_and_layouts_are_those_that_python_knows(tmp_path):
    """A teleport keeps the layout; another colour changes nothing else; walls are taken away; and
    drawn layouts are what Python accepts, both ends included."""
    state, place, look = [60.0, 60.0, 100.0, 150.0, 0.0], [150.25, 40.5], "walls"
    edges = np.stack(np.meshgrid(*[[0.0, 0.3, np.nextafter(1.0, 0.0)]] * 3), -1).reshape(-1, 3)
    answer = node(
        tmp_path,
        "edits",
        {
            **{"imageSize": 64, "look": look, "other": "agent_color=00ff00"},
            **{"state": state, "place": place, "wall": INVISIBLE | {"drawn": True}},
        },
        uniform=edges,
    )
    moved = np.float32([[*place, *state[2:]]])
    np.testing.assert_array_equal(answer["moved"], moved[0])
    worlds = [TwoRoomWorld(1, 64, f"walls{more}") for more in ("", ",agent_color=00ff00")]
    expected = np.concatenate([world.render(moved) for world in worlds])
    np.testing.assert_array_equal(answer["pictures"].reshape(expected.shape), expected)
    assert answer["untouched"] == 1
    low, high = np.transpose([WALLS_PX, DOORS_PX, (0, 1)])
    layouts = low + np.floor(edges * (high - low + 1))
    np.testing.assert_array_equal(layouts.max(axis=0), high)
    np.testing.assert_array_equal(answer["layouts"].reshape(-1, 3), layouts)


def test_a_look_that_python_refuses_is_refused(tmp_path):
    looks = ["", "fast", "speed=0", "speed=-1", "speed=x", "agent_color=red", "walls=varied", "a=1"]
    for look in looks:
        with pytest.raises(ValueError, match=r"."):
            TwoRoomWorld(1, 64, look)
    refusals = node(tmp_path, "looks", {"looks": [*looks, "walls,agent_color=#00FF00"]})["refusals"]
    assert all(refusals[:-1]), dict(zip(looks, refusals))
    assert refusals[-1] is None
    assert "expected a look of two-room of published, walls, got 'fast'" in refusals[1]
