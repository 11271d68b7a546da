"""Two-Room: geometry, motion, pictures and expert against known answers and a slow twin."""

import hashlib

import numpy as np
import pytest

from lewm import registry
from lewm.benchmarks import two_room as twin
from lewm.contracts import Blocking
from lewm.data.collecting import collect
from lewm.data.episodes import Episodes
from lewm.evaluation.tasks import Task, draw_pairs
from lewm.worlds.two_room import TwoRoom, slide

WALLS = (99.5, 124.5)  # where the centre touches the wall, left and right
PASSAGE = (33.25, 64.75)  # where the centre fits through the door


def legal(states):
    x, y = np.asarray(states, np.float64).T
    inside = (x >= 21) & (x <= 203) & (y >= 21) & (y <= 203)
    return inside & ((x <= WALLS[0]) | (x >= WALLS[1]) | ((y >= PASSAGE[0]) & (y <= PASSAGE[1])))


def anywhere(count, seed=0):
    """Legal positions, some of them exactly on a face of the wall or in the door."""
    positions = np.random.default_rng(seed).uniform(21, 203, (count, 2)).astype(np.float32)
    positions[: count // 10, 0], positions[count // 10 : count // 5, 0] = WALLS
    return positions[legal(positions)]


def move(start, *moves):
    for step in moves:
        start = slide(np.array([start]), np.array([step]))[0]
    return start.tolist()


def test_the_registry_offers_it():
    assert registry.load("worlds", "two-room") is TwoRoom


# ------------------------------------------------------------------------------------------- motion


def test_free_motion_is_the_action_times_the_speed():
    env = TwoRoom(image_size=32)
    env.reset(seed=0, options={"state": [60, 112]})
    assert env.step([0.5, -1.0])[-1]["state"].tolist() == [62.5, 107.0]
    fast = TwoRoom(image_size=32, speed=10.5)
    fast.reset(seed=0, options={"state": [60, 112]})
    assert fast.step([-1.0, 0.0])[-1]["state"].tolist() == [49.5, 112.0]


def test_walls_stop_and_let_slide():
    assert move((60, 112), (1000, 0)) == [99.5, 112]
    assert move((160, 112), (-1000, 0)) == [124.5, 112]
    assert move((60, 112), (-1000, -1000)) == [21, 21]
    assert move((160, 112), (1000, 1000)) == [203, 203]
    assert move((99.5, 112), (5, 3)) == [99.5, 115]  # along the wall while pushing against it
    assert move((99.5, 112), (-5, 3)) == [94.5, 115]  # and off it again
    assert move((99.5, 60), (0, 80)) == [99.5, 140]  # along the wall past the door, not pushing
    assert move((50, 21), (10, -3)) == [60, 21]


def test_the_door_lets_through():
    assert move((90, 49), (50, 0)) == [140, 49]
    assert move((140, 60), (-50, -10)) == [90, 50]
    assert move((112, 49), (0, 1000)) == [112, 64.75]  # inside, the frame stops and lets slide
    assert move((112, 49), (0, 1000), (30, 0)) == [142, 64.75]
    # Sliding down the wall while pushing right: at the door after a quarter of the step, through
    # after another, then free.
    assert move((99.5, 21), (100, 49)) == [174.5, 70]


def test_a_point_falls_into_the_door_as_it_slides_by():
    # at the door after a quarter of the step, at its far end after 44 / 49 of it
    x, y = move((99.5, 21), (12, 49))
    assert x == pytest.approx(99.5 + 12 * 0.75)
    assert y == 64.75


@pytest.mark.parametrize("speed", [0.1, 5, 50, 1000, 1e9])
def test_no_speed_tunnels(speed):
    start = anywhere(20_000)
    moves = np.random.default_rng(1).uniform(-1, 1, start.shape) * speed
    moves[::7, 0] = 0
    moves[::11, 1] = 0
    end = slide(start, moves)
    assert legal(end).all()
    crossed = (start[:, 0] < 112) != (end[:, 0] < 112)
    assert crossed.any() or speed < 1
    # Only where the straight way meets the wall at the door, or reaches the door by sliding along
    # the wall towards it.
    face = np.where(start[:, 0] < 112, *WALLS)
    outside = (start[:, 0] <= WALLS[0]) | (start[:, 0] >= WALLS[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        height = start[:, 1] + moves[:, 1] * (face - start[:, 0]) / moves[:, 0]
    down_past, up_past = (
        (height > PASSAGE[1] + 1e-3) & (moves[:, 1] >= 0),
        (height < PASSAGE[0] - 1e-3) & (moves[:, 1] <= 0),
    )
    assert not (crossed & outside & (down_past | up_past)).any()


def test_motion_equals_the_slow_twin():
    rng = np.random.default_rng(2)
    start = np.concatenate(
        [anywhere(100), np.stack([rng.uniform(80, 144, 200), rng.uniform(25, 75, 200)], axis=1)]
    )
    start = start[legal(start)]
    actions = rng.uniform(-1, 1, start.shape)
    ours = slide(start, 40 * actions)
    reference = np.stack(
        [
            twin.reference_step(s, a, speed=40, bit_px=0.02)
            for s, a in zip(start, actions, strict=True)
        ]
    )
    crossed = (start[:, 0] < 112) != (ours[:, 0] < 112)
    assert crossed.sum() > 20
    assert np.abs(ours - reference).max() < 0.1


def test_a_dot_put_into_a_wall_is_freed_beside_it():
    assert move((105, 150), (0, 0)) == [99.5, 150]
    assert move((119, 150), (0, 0)) == [124.5, 150]
    assert move((0, 300), (0, 0)) == [21, 203]


def test_states_are_kept_as_given_and_nonsense_is_refused():
    world = TwoRoom.batched(2, image_size=32)
    # the second as published data may begin
    for states in ([[60, 112], [150.25, 30.5]], [[15, 100], [112, 150]]):
        world.set_states(np.array(states))
        np.testing.assert_array_equal(world.states, np.float32(states))
    for bad in ([[1, 2]], [[1, 2], [np.nan, 3]], [1, 2]):
        with pytest.raises(ValueError, match="shape"):
            world.set_states(np.array(bad))
    with pytest.raises(ValueError, match="actions must have shape"):
        world.step(np.zeros(2))
    world.set_states(np.array([[60, 112], [60, 112]]))
    world.step(np.array([[np.nan, 1], [np.inf, -np.inf]]))
    assert world.states.tolist() == [[60, 117], [65, 107]]


def test_success_is_nearer_than_16_px():
    world = TwoRoom.batched(3, image_size=32)
    world.set_goals(np.array([[60, 100]] * 3))
    world.set_states(np.array([[60, 100], [60, 115.9], [60, 116]]))
    assert world.success().tolist() == [True, True, False]


def test_starts_and_goals_are_legal_spread_and_apart():
    world = TwoRoom.batched(2000, image_size=16)
    world.reset(range(2000))
    for places in (world.states, world.goals):
        assert legal(places).all()
        # in a room, not in the door
        assert ((places[:, 0] <= WALLS[0]) | (places[:, 0] >= WALLS[1])).all()
        assert 0.45 < world.regions(places).mean() < 0.55
        np.testing.assert_allclose(np.quantile(places[:, 1], [0, 0.5, 1]), [21, 112, 203], atol=6)
    assert np.linalg.norm(world.states - world.goals, axis=1).min() >= 32
    assert world.regions(np.array([[111.9, 49], [112, 49]])).tolist() == [0, 1]


# ----------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [32, 64, 96, 224])
def test_pictures_equal_the_slow_twin(size):
    world = TwoRoom.batched(1, image_size=size)
    states = np.concatenate([anywhere(30), [[21, 21], [203, 203], [0, 0], [223, 110], [500, 500]]])
    for state, ours in zip(states, world.render(states), strict=True):
        difference = np.abs(ours.astype(int) - twin.reference_render(state, size))
        assert difference.max() <= 1  # a rounding tie
        assert (difference > 0).mean() < 0.002


def test_the_published_picture():
    pixels = TwoRoom.batched(1).render(np.array([[60, 112]]))[0]
    assert pixels[112, 60].tolist() == [255, 0, 0]  # row is y, column is x
    one_std = round(255 * (1 - np.exp(-0.5)))
    assert pixels[112, 67].tolist() == [255, one_std, one_std]
    dark = (pixels == 0).all(axis=2)
    assert np.flatnonzero(dark[150]).tolist() == [
        *range(10, 14),
        *range(107, 118),
        *range(210, 214),
    ]
    assert np.flatnonzero(dark[:, 112]).tolist() == [*range(35), *range(64, 224)]


@pytest.mark.parametrize("size", [64, 224])
def test_the_position_is_in_the_picture_below_a_pixel(size):
    states = np.random.default_rng(3).uniform((45, 60), (75, 170), (50, 2))
    world = TwoRoom.batched(1, image_size=size)
    ink = 255.0 - world.render(states)[..., 1]
    # the room without border and wall
    ink[:, :, : int(20 * size / 224)] = ink[:, :, int(100 * size / 224) :] = 0
    ink[:, : int(20 * size / 224)] = ink[:, int(200 * size / 224) :] = 0
    middles = (np.arange(size) + 0.5) * 224 / size - 0.5
    x, y = (ink.sum(axis=axis) @ middles / ink.sum(axis=(1, 2)) for axis in (1, 2))
    assert np.abs(np.stack([x, y], axis=1) - states).max() < 0.03 * 224 / size


@pytest.mark.parametrize("shrink", [2, 4])
def test_a_smaller_picture_is_the_large_one_resized(shrink):
    states = anywhere(40)
    large = TwoRoom.batched(1).render(states).astype(float)
    resized = large.reshape(len(states), 224 // shrink, shrink, 224 // shrink, shrink, 3).mean(
        axis=(2, 4)
    )
    small = TwoRoom.batched(1, image_size=224 // shrink).render(states)
    # on the floor; over a half-covered pixel, blending and averaging differ a little
    away = resized[:, :, :, 0] == 255
    assert np.abs(small - resized)[away].max() < 3
    assert np.abs(small - resized).mean() < 0.1


# ------------------------------------------------------------------------------------------ factors


def test_a_changed_factor_shows_in_picture_and_provenance():
    blue = TwoRoom(image_size=64, agent_color="#0000FF", speed=10.5)
    assert blue.env_spec.look == "agent_color=0000ff,speed=10.5"
    assert blue.render_state([60, 112])[32, 17].argmax() == 2
    again = TwoRoom(image_size=64, look=blue.env_spec.look)
    assert again.env_spec == blue.env_spec
    assert TwoRoom(image_size=64, speed=5).env_spec.look == "published"
    np.testing.assert_array_equal(again.render_state([60, 112]), blue.render_state([60, 112]))
    expected = twin.reference_render(np.array([60, 112]), 64, color=(0, 0, 255))
    assert np.abs(again.render_state([60, 112]).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"look": "agent_colour=0000ff"}, "Did you mean 'agent_color'"),
        ({"agent_colour": "0000ff"}, "Did you mean 'agent_color'"),
        ({"agent_color": "blue"}, "six hexadecimal digits"),
        ({"speed": -1}, "positive number"),
        ({"look": "speed=fast"}, "positive number"),
        ({"image_size": 8}, "image_size >= 16"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        TwoRoom(**options)


# ----------------------------------------------------------------------------------------- policies


def episodes(policy, count=300, steps=100):
    world = TwoRoom.batched(count, image_size=16)
    world.reset(range(count))
    act, met = world.policy(policy, range(count)), np.zeros(count, bool)
    states, actions = [world.states], []
    for _ in range(steps):
        actions.append(act())
        world.step(actions[-1])
        states.append(world.states)
        met |= world.success()
    return met, np.stack(states), np.stack(actions)


@pytest.fixture(scope="module")
def expert():
    return episodes("expert")


def test_the_expert_meets_its_goal(expert):
    """Slowly, since noise drowns two thirds of its headway, but nearly always, and through the door
    where it has to."""
    assert episodes("expert", 100, steps=400)[0].mean() >= 0.98
    assert expert[0].mean() > 5 * episodes("random")[0].mean()
    # about the share of goals in the same room: a floor, no solution
    assert 0.4 < episodes("straight-line")[0].mean() < 0.8


def test_the_expert_shows_the_world(expert):
    _, states, _ = expert
    rooms = states[..., 0] >= 112
    assert (rooms.any(axis=0) & ~rooms.all(axis=0)).mean() > 0.5  # most episodes see both rooms
    assert 0.4 < rooms.mean() < 0.6
    cells, *_ = np.histogram2d(*states.reshape(-1, 2).T, bins=6, range=[[21, 203]] * 2)
    assert cells.min() > 0.001 * cells.sum()  # an even spread would be 0.028


def test_the_expert_acts_as_published(expert):
    """Unit direction plus noise of std 2, clipped to the box, repeated in one step of twenty."""
    actions = expert[2]
    repeated = (actions[1:] == actions[:-1]).all(axis=2) & (np.abs(actions[1:]) < 1).any(axis=2)
    assert 0.04 < repeated.mean() / (np.abs(actions[1:]) < 1).any(axis=2).mean() < 0.06
    # P(|u + 2n| > 1), u from 0 to 1, is 0.62 to 0.66
    assert 0.6 < (np.abs(actions) == 1).mean() < 0.7


def test_one_seed_serves_world_and_policy_without_tying_them():
    world = TwoRoom.batched(500, image_size=16)
    world.reset(range(500))
    first = world.policy("random", range(500))()
    assert np.abs(np.corrcoef(world.states.T, first.T)[:2, 2:]).max() < 0.2


def test_the_expert_turns_to_a_new_goal():
    world = TwoRoom.batched(50, image_size=16)
    world.reset(range(50))
    act = world.policy("expert", range(50))
    for goal in ([40, 180], [180, 180]):
        world.set_goals(np.tile(np.float32(goal), (50, 1)))
        met = np.zeros(50, bool)
        for _ in range(400):
            world.step(act())
            met |= world.success()
        assert met.mean() > 0.95


# -------------------------------------------------------------------------------------------- walls

LAYOUTS = [(112, 49, 1), (64, 187, 1), (160, 37, 0), (90, 120, 0)]


def walls(count, size=16, **options):
    """A batch in the look "walls", each environment from the seed of its number."""
    world = TwoRoom.batched(count, image_size=size, look="walls", **options)
    world.reset(range(count))
    return world


def at(places, layout):
    return np.hstack([places, np.tile(np.float32(layout), (len(places), 1))])


def fits(states):
    return [twin.reference_can_stand(x, y, layout) for x, y, *layout in states.tolist()]


def test_the_published_world_moves_as_it_ever_did():
    """Bit by bit, as before layouts could vary: sums and comparisons alone, so on any CPU."""
    rng = np.random.default_rng(0)
    places, moves = rng.uniform(10, 214, (20_000, 2)), rng.uniform(-30, 30, (20_000, 2))
    world = TwoRoom.batched(32, image_size=16)
    world.reset(range(32))
    ends = slide(places, moves)
    words = [ends, world.states, world.goals, world.teleport(["agent"], world.states, range(32))]
    told = hashlib.sha256(b"".join(word.tobytes() for word in words)).hexdigest()
    assert told == "5223c648bd264ddc085166e0f614081c52101cb6c956aa24c64a0fbbd4dd74e0"


@pytest.mark.parametrize("vertical", [1, 0])
def test_the_published_layout_is_the_published_world_bit_by_bit(vertical):
    """A wall that lies across is the upright one with x and y swapped."""
    plain, varied = TwoRoom.batched(16, image_size=64), walls(16, size=64)
    along = slice(None) if vertical else slice(None, None, -1)
    turned = (0, 1, 2, 3) if vertical else (0, 2, 1, 3)
    for policy in plain.policies:
        plain.reset(range(16))
        varied.set_states(at(plain.states[:, along], (112, 49, vertical)))
        varied.set_goals(at(plain.goals[:, along], (112, 49, vertical)))
        act, rival = plain.policy(policy, range(16)), varied.policy(policy, range(16))
        for step in range(30):
            actions, others = act(), rival()
            if vertical:  # each draws for x before y
                np.testing.assert_array_equal(others, actions)
            plain.step(actions)
            varied.step(actions[:, along])
            np.testing.assert_array_equal(varied.states[:, :2], plain.states[:, along])
            np.testing.assert_array_equal(varied.success(), plain.success())
            if step % 10 == 0:
                drawn = varied.render().transpose(turned)
                if vertical:
                    np.testing.assert_array_equal(drawn, plain.render())
                else:  # sums of an average in another order may round a tie elsewhere
                    apart = np.abs(drawn.astype(int) - plain.render())
                    assert apart.max() <= 1
        np.testing.assert_array_equal(varied.regions(varied.states), plain.regions(plain.states))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_motion_equals_the_slow_twin_in_any_layout(layout):
    rng = np.random.default_rng(5)
    places = rng.uniform(21, 203, (600, 2))
    gate = np.array(layout[:2] if layout[2] else layout[1::-1])
    places[:300] = np.clip(gate + rng.uniform(-40, 40, (300, 2)), 21, 203)
    starts = at(places, layout)
    starts = starts[fits(starts)]
    actions = rng.uniform(-1, 1, (len(starts), 2))
    world = TwoRoom.batched(len(starts), image_size=16, look="walls", speed=40)
    world.set_states(starts)
    world.step(actions)
    expected = [
        twin.reference_step(place, action, speed=40, bit_px=0.05, layout=layout)
        for place, action in zip(starts[:, :2], actions, strict=True)
    ]
    assert np.abs(world.states[:, :2] - expected).max() < 0.2
    assert (world.regions(starts) != world.regions(world.states)).sum() > 5
    np.testing.assert_array_equal(world.states[:, 2:], starts[:, 2:])


@pytest.mark.parametrize("size", [32, 64, 224])
def test_pictures_of_layouts_equal_the_slow_twin(size):
    """One batch shows several layouts, some of them twice."""
    states = np.concatenate([at(anywhere(12, seed), one) for seed, one in enumerate(LAYOUTS)])
    states = np.random.default_rng(0).permutation(states)
    world = TwoRoom.batched(1, image_size=size, look="walls")
    for asked in (states, states[::-1]):  # what is kept of one batch must not show in the next
        for state, ours in zip(asked, world.render(asked), strict=True):
            layout = tuple(int(number) for number in state[2:])
            theirs = twin.reference_render(state[:2], size, layout=layout)
            difference = np.abs(ours.astype(int) - theirs)
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.002


def test_empty_worlds_that_are_forgotten_are_drawn_again(monkeypatch):
    monkeypatch.setattr("lewm.worlds.two_room.KEPT_BYTES", 0)
    forgetful, states = walls(8), walls(8).states
    np.testing.assert_array_equal(forgetful.render(states), walls(8).render(states))
    assert len(forgetful._empty_worlds.kept) == 1


def test_a_layout_comes_from_the_seed_alone():
    world = walls(1000)
    states, goals = world.states, world.goals
    assert all(fits(states))
    assert all(fits(goals))
    np.testing.assert_array_equal(states[:, 2:], goals[:, 2:])
    assert np.linalg.norm((states - goals)[:, :2], axis=1).min() >= 32
    wall, door, vertical = states[:, 2:].T
    for places, (low, high) in ((wall, (64, 160)), (door, (37, 187))):
        assert (places.min(), places.max()) == (low, high)
        quarters = np.quantile(places, [0.25, 0.5, 0.75])
        np.testing.assert_allclose(quarters, low + (high - low) * np.array([1, 2, 3]) / 4, atol=8)
    assert set(vertical) == {0, 1}
    assert 0.45 < vertical.mean() < 0.55
    assert np.abs(np.corrcoef(states.T) - np.eye(5))[2:, 2:].max() < 0.1
    alone = TwoRoom(image_size=16, look="walls").reset(seed=7)[1]
    np.testing.assert_array_equal(alone["state"], states[7])
    np.testing.assert_array_equal(alone["goal"], goals[7])
    shown = np.array([[50, 100, 90, 49, 1], [100, 50, 90, 49, 1], [100, 50, 90, 49, 0]])
    assert world.regions(shown).tolist() == [0, 1, 0]


def test_policies_know_their_walls():
    met = {}
    for policy, steps in (("expert", 400), ("straight-line", 100), ("random", 100)):
        world = walls(200)
        act, met[policy] = world.policy(policy, range(200)), np.zeros(200, bool)
        blocked = world.blocked(world.states, world.goals)
        for _ in range(steps):
            world.step(act())
            met[policy] |= world.success()
            assert all(fits(world.states[:5]))
    assert met["expert"].mean() > 0.97
    assert met["straight-line"][~blocked].all()
    # who slides along the wall may come by its door
    assert met["straight-line"][blocked].mean() < 0.5
    assert met["random"].mean() < 0.4


def test_whatever_is_done_to_a_dot_its_layout_stays():
    """Of its own environment, and where it is put is legal there."""
    world = walls(60)
    states = world.states
    moved = world.teleport(["agent"], states, range(60))
    np.testing.assert_array_equal(moved[:, 2:], states[:, 2:])
    assert all(fits(moved))
    assert np.linalg.norm((moved - states)[:, :2], axis=1).min() >= 32
    both = np.concatenate([world.regions(states), world.regions(moved)]).reshape(2, -1)
    assert 0.2 < (both[0] != both[1]).mean() < 0.8, "it goes to either room"
    world.set_states(moved)
    for _ in range(5):
        world.step(np.random.default_rng(0).uniform(-1, 1, (60, 2)))
    np.testing.assert_array_equal(world.states[:, 2:], states[:, 2:])
    np.testing.assert_array_equal(world.goals[:, 2:], states[:, 2:])


@pytest.mark.parametrize("look", ["published", "walls"])
def test_the_expert_has_one_errand_after_another(look, monkeypatch):
    """Without its noise: it goes to its goal, and each time that it has arrived somewhere, to
    another place. It never leaves an errand before it is done."""
    monkeypatch.setattr("lewm.worlds.two_room._Expert.noise_std", 0.0)
    world = TwoRoom.batched(12, image_size=16, look=look)
    act = world.policy("expert", range(12))
    errands, done = world.goals[:, :2], np.zeros(12, int)
    for _ in range(400):
        actions, before = act(), world.states[:, :2]
        changed = (act.errands != errands).any(axis=1)
        near = np.linalg.norm(before - errands, axis=1) < 8
        np.testing.assert_array_equal(changed, near)
        errands, done = act.errands.copy(), done + changed
        world.step(actions)
    assert done.min() >= 4


def test_a_way_is_blocked_if_it_meets_the_wall():
    world = walls(1)
    ends = np.array(
        [
            # through the door, beside it, within a room
            [[90, 49, 112, 49, 1], [140, 49, 112, 49, 1]],
            [[90, 100, 112, 49, 1], [140, 100, 112, 49, 1]],
            [[90, 100, 112, 49, 1], [30, 30, 112, 49, 1]],
            [[90, 90, 112, 49, 0], [140, 90, 112, 49, 0]],
            [[100, 60, 112, 49, 0], [100, 190, 112, 49, 0]],
            # through the door, but it touches the frame on its way
            [[90, 25, 112, 49, 1], [140, 45, 112, 49, 1]],
        ]
    )
    assert world.blocked(ends[:, 0], ends[:, 1]).tolist() == [False, True, False, False, True, True]
    plain = TwoRoom.batched(1, image_size=16)
    assert isinstance(plain, Blocking)
    assert plain.blocked(ends[:3, 0, :2], ends[:3, 1, :2]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "layout", [(20, 49, 1), (200, 49, 1), (112, 20, 1), (112, 49.5, 1), (112, 49, 0.5)]
)
def test_a_layout_that_cannot_be_built_is_refused(layout):
    world = walls(1)
    for put in (world.set_states, world.set_goals, world.render):
        with pytest.raises(ValueError, match="expected layouts with wall 34 to 190"):
            put(np.array([[60, 112, *layout]]))


def test_the_look_of_walls_has_a_name():
    world = walls(1, agent_color="0000ff")
    assert world.spec.look == "walls,agent_color=0000ff"
    assert TwoRoom.batched(1, image_size=16, look=world.spec.look).spec == world.spec
    assert (world.spec.state_names, world.spec.layout) == (
        ("x", "y", "wall", "door", "vertical"),
        ("wall", "door", "vertical"),
    )
    with pytest.raises(ValueError, match="unknown factor"):
        TwoRoom(walls="varied")


def test_goals_in_the_other_room_have_the_layout_of_their_start(tmp_path):
    path = tmp_path / "walls.h5"
    collect("two-room", path, 12, image_size=16, look="walls")
    with Episodes.open(path) as episodes:
        assert episodes.provenance.look == "walls"
        assert episodes.state_names == ("x", "y", "wall", "door", "vertical")
        world = TwoRoom.batched(8, image_size=16, look="walls")
        for task in (Task.to_other_room(100), Task.along(75, 100)):
            pairs = draw_pairs(episodes, range(12), world, task)
            np.testing.assert_array_equal(pairs.starts[:, 2:], pairs.goals[:, 2:])
        across = draw_pairs(episodes, range(12), world, Task.to_other_room(100))
        assert (world.regions(across.starts) != world.regions(across.goals)).all()
        assert world.blocked(across.starts, across.goals).mean() > 0.5
        # each episode was recorded in its own layout, and stays there
        layouts = [np.unique(episodes.states(i)[:, 2:], axis=0) for i in range(12)]
        assert {len(one) for one in layouts} == {1}
        assert len(np.unique(np.concatenate(layouts), axis=0)) == 12
