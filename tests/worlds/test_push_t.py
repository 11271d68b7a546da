"""Push-T: contact dynamics, pictures, success and data policies against known answers and a slow
twin."""

import itertools
import math

import numpy as np
import pytest

from lewm import registry
from lewm.benchmarks import push_t as twin
from lewm.data.collecting import collect
from lewm.worlds.kit import pushing
from lewm.worlds.push_t import PushT

pytest.importorskip("pymunk", reason="Push-T needs lewm[push-t]")

AWAY = (60, 450)  # a place for the agent far from the block
TINY = {"look": "tiny", "image_size": 16}


def anywhere(count, table=512.0, seed=0):
    return pushing.draw_states(np.random.default_rng(seed), table, count, margin=10).astype(
        np.float32
    )


def world_at(*states, **options):
    world = PushT.batched(len(states), **{"image_size": 16} | options)
    world.set_states(np.array(states, np.float64))
    return world


def corners(states):
    outline = np.array(
        [[x, y] for x in (-60, 60) for y in (0, 30)] + [[x, 120] for x in (-15, 15)], np.float64
    )
    return states[:, None, 2:4] + pushing.turned(outline, states[:, 4])


def test_the_registry_offers_it():
    assert registry.load("worlds", "push-t") is PushT


# ------------------------------------------------------------------------------------------- motion


def test_the_block_is_the_published_one():
    # whose moment and centre pymunk works out from its corners
    body = twin.ReferencePushT(np.zeros(7)).block
    assert body.moment == pytest.approx(pushing.INERTIA)
    assert tuple(body.center_of_gravity) == pytest.approx((0, pushing.GRAVITY_CENTRE))


def test_motion_equals_the_slow_twin():
    states, rng = anywhere(24), np.random.default_rng(1)
    towards = pushing.gravity_centre(states) - states[:, :2]
    # 110 from the centre of gravity
    states[:, :2] += towards * (1 - 110 / np.hypot(*towards.T))[:, None]
    world, references = world_at(*states), [twin.ReferencePushT(state) for state in states]
    # from where pushes reach no wall, which are unlike
    far = np.hypot(*(pushing.gravity_centre(states) - 256).T) < 110
    moved = 0
    for _ in range(12):
        towards = pushing.gravity_centre(world.states) - world.states[:, :2]
        actions = np.clip(towards / 250 + rng.normal(0, 0.1, (24, 2)), -1, 1)
        world.step(actions)
        expected = np.stack(
            [reference.step(action) for reference, action in zip(references, actions, strict=True)]
        )
        np.testing.assert_allclose(world.states[far], expected[far], atol=0.02)
    moved = np.hypot(*(world.states - states)[far, 2:4].T)
    assert (moved > 10).sum() >= 5


def test_the_agent_follows_its_target_and_comes_to_rest():
    world = world_at([100, 100, 300, 200, 0, 0, 0])
    world.step(np.array([[1.0, 0.0]]))
    x, y, *_, velocity_x, velocity_y = world.states[0]
    # critically damped; ten steps are not quite continuous
    assert 100 + 100 * (1 - 2 / math.e) == pytest.approx(x, abs=4)
    assert (y, velocity_y) == (100, 0)
    assert velocity_x == pytest.approx(100 * 100 * 0.1 / math.e, rel=0.1)
    for _ in range(10):
        world.step(np.zeros((1, 2)))
    assert np.abs(world.states[0, 5:]).max() < 1


def test_nothing_slides_on_and_walls_push_back():
    states, rng = anywhere(16, table=320, seed=3), np.random.default_rng(2)
    world = world_at(*states, **TINY)
    for _ in range(60):  # as hard as can be, to wherever the agent pushes it
        towards = pushing.gravity_centre(world.states) - world.states[:, :2]
        world.step(np.sign(towards) + rng.normal(0, 0.1, (16, 2)))
        assert ((world.states[:, :2] > 12) & (world.states[:, :2] < 308)).all()
    assert np.hypot(*(world.states - states)[:, 2:4].T).mean() > 30
    pressed = world.states
    assert corners(pressed).max() > 320
    pressed[:, 5:] = 0
    pressed[:, :2] = np.where(pushing.gravity_centre(pressed) < 160, 300, 20)  # the agent elsewhere
    world.set_states(pressed)
    for _ in range(20):
        world.step(np.zeros((16, 2)))
    before = world.states
    assert corners(before).min() > 6
    assert corners(before).max() < 313
    world.step(np.zeros((16, 2)))
    np.testing.assert_allclose(world.states, before, atol=0.05)


def test_what_a_push_does_is_known():
    """Turn per motion of the centre of gravity: the lever arm by the inertia, at every face."""
    for place, normal, pushable in zip(
        pushing.PLACES, pushing.NORMALS, pushing.PUSHABLE, strict=True
    ):
        if not pushable:
            continue
        touching = place + (pushing.STAND_OFF - pushing.AGENT_RADIUS - 0.5) * normal
        agent = np.add(touching, (256, 256 + pushing.GRAVITY_CENTRE))
        world = world_at([*agent, 256, 256, 0, 0, 0])
        before = world.states
        for _ in range(2):
            world.step(normal[None] * 0.1)
        moved = (pushing.gravity_centre(world.states) - pushing.gravity_centre(before))[0]
        turn = pushing.wrap(world.states[0, 4] - before[0, 4])
        lever = touching[0] * normal[1] - touching[1] * normal[0]
        assert moved @ normal > 1
        assert turn == pytest.approx(lever / pushing.INERTIA * (moved @ normal), abs=0.004)


# ------------------------------------------------------------------------------------------- states


def test_a_state_comes_back_as_it_was_given():
    states = anywhere(50)
    states[:, 5:] = np.random.default_rng(4).normal(0, 100, (50, 2))
    world = world_at(*states)
    np.testing.assert_array_equal(world.states, states)
    away = states.copy()
    away[:, :2], away[:, 5:] = AWAY, 0
    world = world_at(*away[10:], image_size=64)
    still = pushing.clearance(away[10:], away[10:, None, :2])[:, 0] > 20
    world.step(np.zeros((40, 2)))
    # the angle did not move the origin
    np.testing.assert_allclose(world.states[still], away[10:][still], atol=1e-3)
    np.testing.assert_array_equal(world.render(), world.render(world.states))


def test_angles_are_wrapped_even_when_they_are_rounded():
    angles = [
        -0.5,
        7.0,
        2 * math.pi,
        float(np.nextafter(np.float32(2 * math.pi), np.float32(0))),
        -1e-12,
    ]
    world = world_at(*([*AWAY, 256, 200, angle, 0, 0] for angle in angles))
    found = world.states[:, 4].astype(np.float64)
    assert ((found >= 0) & (found < 2 * math.pi)).all()
    np.testing.assert_allclose(np.cos(found), np.cos(angles), atol=1e-6)


def test_a_state_and_its_actions_determine_what_follows():
    states, rng = anywhere(6, table=320, seed=5), np.random.default_rng(6)
    actions = rng.uniform(-1, 1, (30, 6, 2))

    def follow(world):
        found = []
        for action in actions:
            world.step(action)
            found.append(world.states)
        return np.stack(found)

    world = world_at(*states, **TINY)
    first = follow(world)
    world.set_states(states)  # after contacts that could have been remembered
    np.testing.assert_array_equal(follow(world), first)
    np.testing.assert_array_equal(follow(world_at(*states, **TINY)), first)
    assert np.abs(first[-1] - states)[:, 2:4].max() > 5


def test_nonsense_is_refused():
    world = PushT.batched(2, **TINY)
    for bad in (np.zeros((2, 5)), np.full((2, 7), np.nan), np.zeros(7), np.zeros((1, 7))):
        with pytest.raises(ValueError, match=r"shape \(2, 7\)"):
            world.set_states(bad)
    with pytest.raises(ValueError, match="actions must have shape"):
        world.step(np.zeros(2))
    before = world.states
    world.step(np.full((2, 2), np.nan))
    np.testing.assert_allclose(world.states, before, atol=1e-3)


# ------------------------------------------------------------------------------------------ success


@pytest.mark.parametrize(
    ("change", "success", "pose"),
    [
        ([0, 0, 0, 0, 0, 0, 0], True, True),
        ([19.9, 0, 0, 0, 0, 0, 0], True, True),
        ([20.1, 0, 0, 0, 0, 0, 0], False, True),
        ([0, 0, 0, 20.1, 0, 0, 0], False, False),
        ([15, 0, 0, 15, 0, 0, 0], False, True),  # one distance in four dimensions, not two
        ([0, 0, 0, 0, math.radians(19.9), 0, 0], True, True),
        ([0, 0, 0, 0, math.radians(20.1), 0, 0], False, False),
        ([0, 0, 0, 0, -0.3, 0, 0], True, True),  # over zero, the short way round
        ([0, 0, 0, 0, 0, 300, 300], True, True),
    ],
)
def test_success_is_the_published_one(change, success, pose):
    goal = np.array([100, 100, 256, 256, 0.1, 0, 0])
    world = world_at(goal + change)
    world.set_goals(goal[None])
    assert (world.success()[0], world.success("block pose")[0]) == (success, pose)
    np.testing.assert_array_equal(world.success("success"), world.success())


def test_starts_and_goals_are_legal_spread_and_apart():
    world = PushT.batched(300, **TINY)
    world.reset(range(300))
    assert not world.success("block pose").any()
    for states in (world.states, world.goals):
        assert ((corners(states) > 7) & (corners(states) < 312)).all()
        assert (pushing.clearance(states, states[:, None, :2]) > 15).all()
        assert np.histogram(states[:, 4], 4, (0, 2 * math.pi))[0].min() > 40
        assert states[:, :2].std(axis=0).min() > 60
        assert (states[:, 5:] == 0).all()


# ----------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(("look", "size"), [("published", 64), ("published", 224), ("tiny", 64)])
def test_pictures_equal_the_slow_twin(look, size):
    states = anywhere(6, 512.0 if look == "published" else 320.0)
    world = PushT.batched(1, image_size=size, look=look)
    for state, ours in zip(states, world.render(states), strict=True):
        difference = np.abs(ours.astype(int) - twin.reference_render(state, size, look))
        assert difference.max() < 60
        inside = difference[
            size // 24 : -size // 24, size // 24 : -size // 24
        ]  # walls thinner than the twin's points are apart
        assert inside.mean() < 0.4
        assert (inside > 25).mean() < 0.005


def test_the_published_picture():
    pixels = (
        PushT.batched(1, image_size=512)
        .render(np.array([[100, 400, 120, 100, 0, 0, 0]]))[0]
        .astype(int)
    )
    light = [142, 163, 183]  # a fifth lighter than light slate gray
    assert np.abs(pixels[115, 120] - light).max() <= 1  # the bar; row is y, column is x
    assert np.abs(pixels[200, 120] - light).max() <= 1  # the stem points down
    assert pixels[100, 120].tolist() == [0x77, 0x88, 0x99]  # its rim
    assert pixels[200, 150].tolist() == [255] * 3
    assert np.abs(pixels[400, 100] - [78, 126, 255]).max() <= 1
    assert pixels[400, 112].tolist() == [0x41, 0x69, 0xE1]
    assert pixels[256 + 11, 256 - 11].tolist() == [0x90, 0xEE, 0x90]  # the painted zone
    assert pixels[300, 5].tolist() == pixels[5, 300].tolist() == [0xD3] * 3
    turned = PushT.batched(1, image_size=512).render(
        np.array([[100, 400, 400, 100, math.pi / 2, 0, 0]])
    )[0]
    # a quarter turn takes the stem, which pointed down, to the left
    assert turned[100, 400 - 75].max() < 200


@pytest.mark.parametrize("size", [64, 224])
def test_small_motion_is_in_the_picture(size):
    pixel = 320 / size
    world = PushT.batched(1, image_size=size, look="tiny")
    state = np.array([60, 250, 160, 100, 0.4, 0, 0])
    for index, step in (
        (0, 0.1 * pixel),
        (1, 0.1 * pixel),
        (2, 0.1 * pixel),
        (3, 0.1 * pixel),
        (4, 0.1 * pixel / 60),
    ):
        moved = np.stack([state + k * step * np.eye(7)[index] for k in range(11)])
        changes = np.abs(np.diff(world.render(moved).astype(int), axis=0)).sum(axis=(1, 2, 3))
        assert changes.min() > 100
        assert changes.max() < 3 * changes.min()  # as evenly as it moves


def test_the_agent_is_where_its_state_says():
    states = anywhere(30, 320)
    plain = {"bar_color": "ffffff", "stem_color": "ffffff", "wall_color": "ffffff", "halo": 0}
    world = PushT.batched(1, image_size=64, look="tiny", **plain)
    pictures = world.render(states)
    ink = 255.0 - pictures[..., 0]
    middles = (np.arange(64) + 0.5) * 5
    x, y = (ink.sum(axis=axis) @ middles / ink.sum(axis=(1, 2)) for axis in (1, 2))
    apart = pushing.clearance(states, states[:, None, :2])[:, 0] > 25
    assert np.abs(np.stack([x, y], axis=1) - states[:, :2])[apart].max() < 0.2
    area = ink[apart].sum(axis=(1, 2)) / 255 * 25
    np.testing.assert_allclose(area, math.pi * 15**2, rtol=0.03)


# -------------------------------------------------------------------------------------------- looks


@pytest.mark.parametrize(
    ("options", "look"),
    [
        ({}, "published"),
        ({"look": "tiny"}, "tiny"),
        ({"look": "tiny", "agent_color": "#0000FF"}, "tiny,agent_color=0000ff"),
        ({"table": 400}, "table=400.0"),
        ({"look": "tiny,table=400"}, "tiny,table=400.0"),
        ({"goal_color": "none", "outline": 0}, "goal_color=none,outline=0.0"),
        ({"look": "tiny", "table": 320}, "tiny"),
    ],
)
def test_looks_round_trip(options, look):
    env = PushT(image_size=32, **options)
    assert env.env_spec.look == look
    again = PushT(image_size=32, look=look)
    assert again.env_spec == env.env_spec
    assert again.world.factors == env.world.factors
    state = anywhere(1, 320)[0]
    np.testing.assert_array_equal(again.render_state(state), env.render_state(state))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"look": "tyni"}, "Did you mean 'tiny'"),
        ({"agent_colour": "0000ff"}, "Did you mean 'agent_color'"),
        ({"agent_color": "blue"}, "six hexadecimal digits"),
        ({"bar_color": "none"}, "six hexadecimal digits"),
        ({"table": 100}, "from 256 to 4096"),
        ({"look": "tiny,outline=thick"}, "from 0 to 10"),
        ({"image_size": 8}, "image_size >= 16"),
        ({"max_steps": 0}, "max_steps >= 1"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        PushT(**options)


def test_a_recording_knows_look_and_length(tmp_path):
    data = collect("push-t", tmp_path / "a.h5", 2, image_size=32, look="tiny", max_steps=7)
    assert data.provenance.look == "tiny"
    assert data.lengths.tolist() == [8, 8]


# ----------------------------------------------------------------------------------------- policies


def test_places_go_around_the_block_without_touching_it():
    # the centre of gravity at the origin
    states = np.array([[0, 0, 0, -pushing.GRAVITY_CENTRE, 0, 0, 0]], np.float64)
    around = np.concatenate([pushing.PLACES, pushing.PLACES[:1]])
    ways = np.concatenate([np.linspace(a, b, 9) for a, b in itertools.pairwise(around)])
    assert pushing.clearance(states, ways[None]).min() > pushing.TOUCHING
    ahead = pushing.PLACES + (pushing.STAND_OFF - 1) * pushing.NORMALS
    reached = pushing.clearance(states, ahead[None])[0]
    np.testing.assert_allclose(reached[pushing.PUSHABLE], 1)  # a unit short of the face


@pytest.mark.parametrize("table", [512, 300])
def test_the_expert_sets_itself_aims_in_the_middle_turned_by_60_to_180_degrees(table):
    world = PushT.batched(300, image_size=16, table=table)
    world.reset(range(300))
    expert = world.policy("expert", range(300))
    world.set_states(world.goals)  # both are where they should be
    expert()  # the block's aim is met,
    expert()  # and so is the agent's: the next aim is its own
    assert not expert.to_goal.any()
    turned = np.degrees(pushing.wrap(expert.aims[:, 2] - world.states[:, 4]))
    edges = [-180, -150, -120, -90, -60, 60, 90, 120, 150, 180]
    counts, _ = np.histogram(turned, edges)
    assert counts[4] == 0
    assert counts.sum() == 300
    assert (np.delete(counts, 4) > 300 / 8 / 2).all(), "any turn is as likely"
    x, y = expert.aims[:, :2].T
    for places in (x, y):
        assert 100 <= places.min() < 100 + 0.05 * (table - 200)
        assert table - 100 >= places.max() > table - 100 - 0.05 * (table - 200)


def test_the_expert_walks_without_touching_and_meets_its_goals():
    world = PushT.batched(40, image_size=16)
    world.reset(range(40))
    act, met = world.policy("expert", range(40)), np.zeros((2, 40), bool)
    touched, walking = 0, 0
    for _ in range(200):
        world.step(act())
        # those that have left the place they pushed at
        walks = (act.mode == pushing.WALK) & ~act.weak & (act.left < 32)
        touched += (
            pushing.clearance(world.states, world.states[:, None, :2])[walks, 0] < 15.5
        ).sum()
        walking += walks.sum()
        met |= [world.success(), world.success("block pose")]
    assert 0.1 < act.weak.mean() < 0.4
    assert touched / walking < 0.05
    assert (met[:, ~act.weak].mean(axis=1) >= [0.65, 0.9]).all()
    assert not met[0, act.weak].any()


def test_the_policies_cover_what_their_documentation_says():
    expert, random = (
        twin.coverage(policy, "tiny", episodes=24, steps=100) for policy in ("expert", "random")
    )
    assert expert["median turn per 15 steps while pushing, degrees"] >= 20
    assert expert["moved beyond tolerance in 25 steps"] >= 0.6
    assert expert["in contact"] >= 0.3 > 2 * random["in contact"]


def test_the_weak_policy_stays_near_the_block():
    world = PushT.batched(10, image_size=16)
    world.reset(range(10))
    act = world.policy("weak", range(10))
    for _ in range(40):
        world.step(act())
    away = np.abs(world.states[:, :2] - world.states[:, 2:4]).max(axis=1)
    assert (away < 160).all()
