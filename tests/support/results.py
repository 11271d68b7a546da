"""Results and recordings to draw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lewm.analyses.decoding import (
    Course,
    DecodingResult,
    Drawn,
    Films,
    Imagination,
    Milliseconds,
    Pictures,
    Reconstruction,
    Seconds,
    Start,
)
from lewm.analyses.economy import EconomyResult, Flops, Plan, Scaling
from lewm.analyses.geometry import (
    Ahead,
    Band,
    GeometryResult,
    Isotropy,
    Moment,
    Rank,
    Saturation,
    Straightness,
    StraightPaths,
)
from lewm.analyses.planning import Attempt, Block, PlanningResult
from lewm.analyses.probes.attempts import in_places
from lewm.analyses.probes.ridge import Probe
from lewm.analyses.probes.scores import Score
from lewm.analyses.probing import OpenLoop, ProbingResult, Rival, Variable
from lewm.analyses.surprise import Edited, FalseAlarms, Level, SurpriseResult
from lewm.evaluation.recordings import Recording
from lewm.planning.trace import Replan, Scored


def timeless(value):
    """A result's values without what a clock says, which is no function of the seed."""
    if isinstance(value, dict):
        timed = ("second", "ms", "gflops")
        return {
            key: timeless(item)
            for key, item in value.items()
            if not any(word in key for word in timed)
        }
    return [timeless(item) for item in value] if isinstance(value, list) else value


def score(r, kind=Score, rmse=1.54, **more):
    """What was read, by its correlation alone; None for one that is not defined."""
    ends = None if r is None else (max(r - 0.02, -1.0), min(r + 0.02, 1.0))
    numbers = {
        "r": r,
        "r2": r,
        "mse": rmse**2,
        "rmse": rmse,
        "mse_interval": (2, 3),
        "rmse_interval": (1.4, 1.7),
    }
    return kind(**numbers, r_interval=ends, r2_interval=ends, **more)


def rival(r, mlp=None):
    return score(r, Rival, mlp=mlp if mlp is None else score(mlp))


def variable(r, unit="px", mlp=None, controls=None, **more):
    of = {name: rival(other) for name, other in (controls or {}).items()}
    own = mlp if mlp is None else score(mlp)
    return score(r, Variable, unit=unit, strength=1e-6, mlp=own, controls=of, **more)


def probing(variables=None, frames=50, **changes):
    generator = np.random.default_rng(0)
    variables = variables or {"x": variable(0.98765), "y": variable(0.98765)}
    states = generator.uniform(20, 200, (frames, len(variables)))
    result = ProbingResult(
        variables=variables,
        angles={},
        angles_interval={},
        mlp_angles={},
        mlp_angles_interval={},
        rollout=OpenLoop(),
        place=(0, 1),
        plane_variance=0.8,
        fit_episodes=288,
        fit_frames=2048,
        test_episodes=72,
        test_frames=frames,
        latents=generator.normal(size=(frames, 3)),
        states=states,
        predictions=states + 1,
        plane=generator.normal(size=(frames, 2)),
        episodes=np.full(frames, 3),
        probe=Probe(np.zeros((3, 2)), np.zeros(2), np.zeros(2)),
    )
    return replace(result, **changes)


def edited(kind, t_p=1e-9, **changes):
    numbers = {"auc": 0.98, "auc_interval": (0.96, 0.99), "n": 120, "mean": 3.0, "ratio": 327.0}
    numbers |= {
        "mean_difference": 1.0,
        "interval": (0.5, 1.5),
        "t": 9.0,
        "t_p": t_p,
        "wilcoxon_p": t_p,
    }
    numbers |= {
        "effect_size": 1.62,
        "detection_at_5_percent": 0.9,
        "detection_interval": (0.8, 1.0),
    }
    return Edited(kind=kind, **(numbers | changes))


def surprise(edits=None, **changes):
    edits = edits or {"teleport of agent": edited("teleport")}
    curves = np.ones((1 + len(edits), 3))
    rates = np.linspace(0, 1, 5)
    result = SurpriseResult(
        episodes=100,
        warning="",
        conditions=("unperturbed", *edits),
        unperturbed=Level(0.1, (0.05, 0.15)),
        edits=edits,
        false_alarms=FalseAlarms(nominal=0.05, rate=0.06, interval=(0.04, 0.08)),
        surprise=np.ones((1 + len(edits), 100, 3)),
        mean=curves,
        low=curves,
        high=curves,
        frames=np.arange(3) - 1,
        roc=np.tile(rates, (len(edits), 1)),
        roc_colour=np.zeros((0, 5)),
        roc_false_alarms=rates,
    )
    return replace(result, **changes)


def straightness(value=0.13, interval=(0.08, 0.18), curve=((10, -0.3), (400, 0.1)), random=-0.4):
    own = Straightness(value, interval, 90, 0.0)
    beside = None if random is None else replace(own, value=random)
    log = "the training's log"
    return StraightPaths(
        **vars(own), random_encoder=beside, pixels=None, states=None, curve=curve, curve_from=log
    )


def geometry(**changes):
    moment, curve = Moment(0.9, (0.8, 1.1)), np.array([1.0, 2.0])

    def ahead(error):
        return Ahead(error, (error, error), 1.0, (0.9, 1.1), (1 - error, 1 - error), 40, 2.0)

    result = GeometryResult(
        episodes=40,
        frames=900,
        gap=5,
        straightness=straightness(),
        isotropy=Isotropy(40, 4.4, 0.94, 1.19, 1.0, False, 9.0, 2.0, False, moment, moment, moment),
        latent_std=0.9,
        effective_rank=4.9,
        latent_dim=192,
        dims_99=7,
        ranks={"l2": {"10": Rank(0.8, (0.7, 0.9), 100, 40)}},
        ranks_states=None,
        ranks_across=None,
        saturation={"l2": Saturation(10, (5, 10), 10, 2.0, 4.0)},
        open_loop={"1": ahead(0.1), "2": ahead(0.5)},
        open_loop_not_better_from=2,
        spectrum=np.array([2.0, 1.0]),
        std=np.ones(2),
        null=np.linspace(0.9, 1.2, 20),
        offsets=np.array([5, 10]),
        costs={"l2": Band(curve, curve, curve)},
    )
    return replace(result, **changes)


def decoding(**changes):
    def drawn(share):
        return Drawn(0.01, (0.009, 0.011), share, (share - 0.002, share + 0.002), 20.0)

    def course(share):
        return Course((0.0, share), (0.0, share), (0.0, share))

    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    films = np.zeros((1, 13, 8, 8, 3), np.uint8)
    result = DecodingResult(
        reconstruction=Reconstruction(drawn(0.02), drawn(0.1), drawn(1.7), drawn(1.0)),
        learnt_share=0.01,
        imagination=Imagination(course(0.4), course(0.02), course(0.5), course(1.6)),
        closer_than_copy=(1,),
        horizon=12,
        frameskip=5,
        clips=(Start(3, 10),),
        fit_frames=2000,
        fit_episodes=288,
        test_frames=512,
        test_episodes=72,
        windows=64,
        updates=3000,
        milliseconds=Milliseconds(0.8, 0.2),
        seconds=Seconds(60.0, 70.0),
        pictures=Pictures(pictures, pictures, pictures),
        films=Films(films, films, films, films),
        weights={},
    )
    return replace(result, **changes)


def economy(**changes):
    plan = Plan(25, 45_000, 10**10, 0.99, 2.88, (2.8, 3.0), 2.9, 2, 3.5)
    result = EconomyResult(
        tokens_per_frame=1,
        latent_numbers=192,
        bytes_per_frame={"latent": 768},
        flops=Flops(15.1e6, 0.5e6, 0.5e6),
        scaling=Scaling(2.0, 2.0),
        parameters={"total": 555_950},
        weights_bytes=2_223_800,
        hardware="a CPU",
        plans={"CEM": plan},
        planner="CEM",
    )
    return replace(result, **changes)


def planning(ends=("reached", "missed"), **changes):
    """Of attempts that end so: each with two plans, searched for in two rounds."""
    blocks = tuple(
        Block(5 * h, 1.0, 4.0, 0.25, (0.2, 0.31), place_error=3.5, place_error_interval=(3.1, 4.2))
        for h in (1, 2)
    )
    result = PlanningResult(
        pairs=24,
        episodes=20,
        offset=25,
        budget=50,
        solver="cem",
        objective="l2",
        rounds=2,
        picture_extent=100.0,
        tolerance=6.0,
        unit="px",
        horizon=blocks,
        attempts=tuple(Attempt(end == "reached", 10, 2, not k) for k, end in enumerate(ends)),
        map=None,
        recordings=tuple(
            in_places(recording(success=end == "reached"), lambda latents: 10 * np.asarray(latents))
            for end in ends
        ),
        costs=np.array([[[0.8, 1.0, 1.3], [0.4, 0.5, 0.6]]]),
        imagined=np.full((1, 3, 2), 30.0, np.float32),
        real=np.full((1, 11, 2), 31.0, np.float32),
    )
    return replace(result, **changes)


ALL = {
    "probing": probing,
    "surprise": surprise,
    "geometry": geometry,
    "decoding": decoding,
    "economy": economy,
    "planning": planning,
}
"""Analysis -> what makes a small result of it."""

ROWS = [
    {
        "update": u,
        "prediction": 1 / u,
        "sigreg": 5.0,
        "latent_std": 0.9,
        "effective_rank": 3.0,
        "gradient_norm": 1.0,
    }
    for u in (10, 20, 30)
]


def recording(steps=10, success=True, replan_every=5):
    """A dot on white that walks along y = 20; plans are imagined along y = 80, in latents that are
    a tenth of the state."""
    replans = tuple(
        Replan(
            step=step,
            environments=np.array([0]),
            rounds=tuple(
                Scored(np.zeros((1, n)), np.zeros((1, n, 2, 2)), np.full((1, n, 2), (7.0, 8.0)))
                for n in (6, 6, 1)
            ),
            plan=np.zeros((1, 2, 2)),
            actions=np.zeros((1, 10, 2)),
            now=np.zeros((1, 2)),
            goal=np.zeros((1, 2)),
            latents=np.array([[[4.0, 8.0], [6.0, 8.0]]]),
        )
        for step in range(0, steps, replan_every)
    )
    states = np.stack([np.linspace(10, 50, steps + 1), np.full(steps + 1, 20)], axis=1).astype(
        np.float32
    )
    white = np.full((steps + 1, 32, 32, 3), 255, np.uint8)
    return Recording(
        white,
        white[0],
        states,
        np.array([60.0, 50.0]),
        np.zeros((steps, 2)),
        steps if success else None,
        replans,
    )
