"""A result of each analysis in which no two numbers are equal, nor look it where they are rounded:
one that is taken for another is seen."""

from __future__ import annotations

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
from lewm.analyses.economy import EconomyResult, Flops, Plan, Published, Scaling
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
from lewm.analyses.planning import Attempt, Block, Places, PlanningResult
from lewm.analyses.probing import Alike, Curve, OpenLoop, ProbingResult, Rival, Score, Variable
from lewm.analyses.surprise import Apart, Edited, FalseAlarms, Level, SurpriseResult
from tests.support import results


def _score(r, kind=Score, **more):
    """Every number of a score follows from its r, and differs from all others."""
    return kind(
        r=r,
        r_interval=(r - 0.021, r + 0.007),
        r2=r - 0.05,
        r2_interval=(r - 0.09, r - 0.03),
        mse=7 * r,
        mse_interval=(6 * r, 8 * r),
        rmse=3 * r + 1,
        rmse_interval=(3 * r, 3 * r + 2),
        **more,
    )


def probing():
    def variable(r, unit):
        rivals = {
            "random encoder": _score(r - 0.42, Rival, mlp=_score(r - 0.37)),
            "pixels": _score(r - 0.23, Rival, mlp=_score(r - 0.19)),
        }
        own = {"unit": unit, "strength": r / 1e4, "controls": rivals, "mlp": _score(r + 0.03)}
        return _score(r, Variable, **own)

    g = np.random.default_rng(0)
    states = np.column_stack([np.linspace(20, 200, 9), g.uniform(10, 90, 9)])
    curve = {
        "unit": "px",
        "rmse": (2.1, 4.4),
        "rmse_interval": ((1.8, 2.9), (3.3, 5.2)),
        "encoded_rmse": (0.5, 0.7),
        "copy_rmse": (6.2, 8.3),
    }
    other = {**curve, "rmse": (2.7, 4.9), "encoded_rmse": (0.1, 0.9), "copy_rmse": (6.8, 9.9)}
    of_units = {"px": Alike(variables=("x", "y"), **curve)}
    return ProbingResult(
        variables={"x": variable(0.947, "px"), "y": variable(0.868, "m")},
        angles={"heading": 12.4},
        angles_interval={"heading": (11.1, 13.2)},
        mlp_angles={"heading": 9.3},
        mlp_angles_interval={"heading": (8.5, 10.6)},
        rollout=OpenLoop((5, 10), 61, 37, {"x": Curve(**curve), "y": Curve(**other)}, of_units),
        place=(0, 1),
        plane_variance=0.81,
        fit_episodes=288,
        fit_frames=2048,
        test_episodes=72,
        test_frames=1017,
        latents=g.normal(size=(9, 3)),
        states=states,
        predictions=states + g.uniform(1, 9, states.shape),
        plane=g.normal(size=(9, 2)),
        episodes=np.arange(9) + 40,
        probe=results.probing().probe,
    )


def surprise():
    def edited(kind, k, colour=None):
        return Edited(
            auc=0.91 - k,
            auc_interval=(0.83 - k, 0.96 - k),
            n=113,
            mean=3.1 + k,
            ratio=327.0 + 100 * k,
            mean_difference=1.3 + k,
            interval=(0.4 + k, 1.7 + k),
            t=9.4 + k,
            t_p=0.012 + k / 10,
            wilcoxon_p=0.034 + k / 10,
            effect_size=1.62 + k,
            kind=kind,
            detection_at_5_percent=0.77 - k,
            detection_interval=(0.71 - k, 0.79 - k),
            against_colour=colour,
            picture_change=4.6 + 10 * k,
            size_correlation=0.29 + k,
        )

    edits = {
        "teleport of agent": edited("teleport", 0, Apart(0.74, (0.68, 0.78))),
        "teleport of block": edited("teleport", 0.2, Apart(0.61, (0.55, 0.66))),
        "colour of agent": edited("colour", 0.34),
    }
    C, n, F = 1 + len(edits), 103, 4
    g = np.random.default_rng(1)
    mean = g.uniform(1, 3, (C, F))
    return SurpriseResult(
        episodes=103,
        warning="few of them",
        conditions=("unperturbed", *edits),
        unperturbed=Level(0.1, (0.05, 0.15)),
        edits=edits,
        false_alarms=FalseAlarms(0.05, 0.08, (0.06, 0.11)),
        surprise=g.uniform(1, 3, (C, n, F)),
        mean=mean,
        low=mean - g.uniform(0.1, 0.4, (C, F)),
        high=mean + g.uniform(0.1, 0.4, (C, F)),
        frames=np.arange(F) - 2,
        roc=np.sort(g.uniform(0, 1, (C - 1, 5))),
        roc_colour=np.sort(g.uniform(0, 1, (2, 5))),
        roc_false_alarms=np.linspace(0, 1, 5) ** 2,
        frameskip=5,
    )


def geometry():
    def straight(k, **more):
        return {"value": 0.13 + k, "interval": (0.08 + k, 0.19 + k), "n": 90 + int(100 * k)} | {
            "still": 0.01 + k / 10,
            **more,
        }

    def band(k):
        mean = np.array([1.1, 2.3, 2.9]) + k
        return Band(mean, mean - 0.4, mean + 0.3)

    def ahead(k):
        ends = {"interval": (0.05 * k, 0.09 * k), "copy_interval": (0.33 * k, 0.46 * k)}
        return Ahead(
            error=0.07 * k, copy=0.41 * k, gain=(0.21 * k, 0.28 * k), n=40 + k, random=3.7, **ends
        )

    def ranks(rho):
        return {
            "10": Rank(rho, (rho - 0.06, rho + 0.02), 100, 40),
            "25": Rank(rho - 0.3, (rho - 0.37, rho - 0.24), 101, 41),
        }

    paths = StraightPaths(
        **straight(0),
        random_encoder=Straightness(**straight(-0.61)),
        pixels=Straightness(**straight(0.22)),
        states=Straightness(**straight(0.54)),
        curve=((10, -0.31), (200, 0.02), (400, 0.11)),
        curve_from="the training's log",
    )
    return GeometryResult(
        episodes=39,
        frames=917,
        gap=5,
        straightness=paths,
        isotropy=Isotropy(
            n=38,
            statistic=4.4,
            null_low=0.94,
            null_high=1.19,
            null_mean=1.03,
            inside=False,
            worst=9.2,
            worst_null_high=2.6,
            worst_inside=False,
            std=Moment(0.913, (0.82, 1.11)),
            skewness=Moment(-0.27, (-0.14, 0.16)),
            kurtosis=Moment(0.58, (-0.33, 0.72)),
        ),
        latent_std=0.88,
        effective_rank=4.9,
        latent_dim=192,
        dims_99=7,
        ranks={"l2": ranks(0.83), "temporal": ranks(0.97)},
        ranks_states={"l2": ranks(0.65), "temporal": ranks(0.76)},
        ranks_across={"l2": ranks(0.45), "temporal": ranks(0.57)},
        saturation={
            "l2": Saturation(10, (5, 15), 22, 2.0, 4.1),
            "temporal": Saturation(25, (10, 26), 23, 3.0, 5.2),
        },
        open_loop={str(k): ahead(k) for k in (1, 2, 3)},
        open_loop_not_better_from=3,
        spectrum=np.array([2.1, 0.9, 0.4]),
        std=np.array([1.1, 0.8, 0.7]),
        null=np.linspace(0.87, 1.23, 20),
        offsets=np.array([5, 10, 25]),
        costs={"l2": band(0), "temporal": band(1.7)},
    )


def decoding():
    def drawn(k):
        ends = {"mse_interval": (0.011 * k, 0.013 * k), "share_interval": (0.022 * k, 0.031 * k)}
        return Drawn(mse=0.012 * k, share=0.027 * k, psnr=31.0 - k, **ends)

    def course(k):
        share = tuple(k + x for x in (0.02, 0.06, 0.11))
        return Course(share, tuple(x - 0.01 for x in share), tuple(x + 0.015 for x in share))

    def plain(*levels):
        """(..., 8, 8, 3) pictures of one grey each."""
        return np.broadcast_to(
            np.array(levels, np.uint8)[..., None, None, None], (*np.shape(levels), 8, 8, 3)
        )

    films = [plain(*[[80 * k + 30 * clip + 10 * t for t in range(3)] for clip in (0, 1)])
             for k in range(3)]  # fmt: skip
    return DecodingResult(
        reconstruction=Reconstruction(*map(drawn, (1, 4, 9, 13))),
        learnt_share=0.014,
        imagination=Imagination(course(0.41), course(0.13), course(0.66), course(1.24)),
        closer_than_copy=(1, 2),
        horizon=2,
        frameskip=5,
        clips=(Start(3, 10), Start(8, 25)),
        fit_frames=2011,
        fit_episodes=287,
        test_frames=511,
        test_episodes=73,
        windows=64,
        updates=3001,
        milliseconds=Milliseconds(0.83, 0.24),
        seconds=Seconds(61.0, 70.0),
        pictures=Pictures(plain(10, 20), plain(90, 100), plain(170, 180)),
        films=Films(*films, plain(*[[240 + clip + 2 * t for t in range(3)] for clip in (0, 1)])),
        weights={},
    )


def economy():
    def plan(k):
        return Plan(
            steps=25 - 5 * k,
            predictor_calls=45_000 + k,
            flops=(11 + k) * 10**9,
            predicted_share=0.97 - 0.1 * k,
            seconds=2.88 + k,
            seconds_range=(2.71 + k, 3.06 + k),
            processor_seconds=2.95 + k,
            plans=21 - k,
            gflops_per_s=3.5 + k,
        )

    others = (
        Published("One", "published", "a", "2025", 6, 60, "1 M", 47.0, "L40S", (300, 5, 30)),
        Published("Two", "estimated", "b", "2024", 450, 4500, "2 M"),
    )
    return EconomyResult(
        published=others,
        tokens_per_frame=3,
        latent_numbers=192,
        bytes_per_frame={"latent": 768, "picture": 12_288},
        flops=Flops(15.1e6, 0.52e6, 0.61e6),
        scaling=Scaling(2.01, 2.34),
        parameters={"encoder": 301_000, "total": 555_950},
        weights_bytes=2_223_800,
        hardware="a CPU",
        plans={"CEM": plan(0), "amortised": plan(1)},
        planner="CEM",
    )


def planning():
    def block(h):
        return Block(
            steps=5 * h,
            error=1.13 * h,
            copy=4.21 * h,
            ratio=0.27 * h,
            ratio_interval=(0.22 * h, 0.31 * h),
            place_error=3.5 * h,
            place_error_interval=(3.1 * h, 4.3 * h),
        )

    return PlanningResult(
        pairs=23,
        episodes=19,
        offset=25,
        budget=50,
        solver="cem",
        objective="l2",
        rounds=2,
        picture_extent=100.0,
        tolerance=6.0,
        unit="px",
        horizon=(block(1), block(2)),
        attempts=(Attempt(True, 10, 2, True), Attempt(False, 15, 3, False)),
        recordings=(results.planning().recordings[0], results.planning().recordings[1]),
        map=Places(
            np.array([[12.0, 20], [34, 41], [57, 22]], np.float32),
            np.array([[0, 1], [1, 2]]),
            np.array([[11.0, 19], [34, 41], [58, 23]], np.float32),
        ),
        costs=np.array([[[0.8, 1.0, 1.3], [0.4, 0.5, 0.6]]]),
        imagined=np.array([[[10.0, 20], [30, 40], [50, 45]]], np.float32),
        real=np.array([[[10.0, 20], [31, 42], [56, 49]]], np.float32),
    )


ALL = {
    "probing": probing,
    "surprise": surprise,
    "geometry": geometry,
    "decoding": decoding,
    "economy": economy,
    "planning": planning,
}
"""Analysis -> what makes such a result of it."""
