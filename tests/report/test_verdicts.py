"""A verdict turns with its evidence: whichever of two seeds speaks against a claim, and whichever
number is on the other side of the line. Words name the side that they are of."""

import pytest

from lewm.report.claims import CLAIMS
from lewm.report.record import Outcome, Record
from lewm.report.rivals import Study
from lewm.report.verdicts import FAILS, HOLDS, PARTLY, UNTESTED, Evidence
from tests.support import results
from tests.support.rows import row as studied

BY_NUMBER = {claim.number: claim for claim in CLAIMS}


def found(number, **evidence):
    return BY_NUMBER[number].found(Evidence(**evidence))


def row(variant, seed, rate=0.98, rank=5.0, prediction=0.02):
    score = {"rate": rate, "low": rate - 0.02, "high": rate + 0.01, "pairs": 200}
    return {
        "variant": variant,
        "seed": seed,
        "success": score,
        "latent_std": 0.9,  # it decides nothing
        "prediction": prediction,
        "copying": 1.0,
        "effective_rank": rank,
    }


@pytest.mark.parametrize(("number", "variant"), [(1, "lambda-0"), (6, "no-batch-norm")])
def test_one_seed_that_does_not_collapse_is_enough(number, variant):
    for ranks, verdict in (
        ((0.2, 0.3), HOLDS),
        ((0.2, 4.0), FAILS),
        ((4.0, 0.2), FAILS),
        ((4.0, 3.0), FAILS),
    ):
        rows = [row("base", seed) for seed in (0, 1)]
        rows += [row(variant, seed, rank=rank) for seed, rank in enumerate(ranks)]
        assert found(number, ablations=rows).verdict == verdict, ranks


def test_a_base_that_collapses_too_says_nothing_for_the_term():
    for ranks in ((0.2, 5.0), (5.0, 0.2)):
        rows = [row("base", seed, rank=rank) for seed, rank in enumerate(ranks)]
        rows += [row("lambda-0", seed, rank=0.1) for seed in (0, 1)]
        assert found(1, ablations=rows).verdict == FAILS


@pytest.mark.parametrize(
    ("number", "variant", "ours"),
    [
        (
            1,
            "lambda-0",
            "directions that are predicted 0.09 without, 4.9 with; success 31.0% [29.0, 32.0] "
            "against 95.0% [93.0, 96.0]",
        ),
        (
            6,
            "no-batch-norm",
            "with LayerNorm instead: directions that are predicted 0.09, success 31.0% [29.0, "
            "32.0]; with batch norm 4.9, 95.0% [93.0, 96.0]",
        ),
        (
            7,
            "no-zero-modulation",
            "success 31.0% [29.0, 32.0] without, 95.0% [93.0, 96.0] with; prediction loss 0.7 and "
            "0.02",
        ),
    ],
)
def test_numbers_with_and_without_are_called_so(number, variant, ours):
    rows = [row("base", 0, 0.95), row(variant, 0, 0.31, 0.3, 0.7)]
    assert found(number, ablations=rows).ours == ours


@pytest.mark.parametrize(
    ("rates", "verdict"), [((0.92, 0.95), HOLDS), ((0.95, 0.92), HOLDS), ((0.94, 0.96), FAILS)]
)
def test_modulation_matters_if_success_falls_by_more_than_an_interval(rates, verdict):
    rows = [row("base", seed, 0.99) for seed in (0, 1)]
    rows += [row("no-zero-modulation", seed, rate) for seed, rate in enumerate(rates)]
    assert found(7, ablations=rows).verdict == verdict
    better = [row("base", 0, 0.5), row("no-zero-modulation", 0, 0.99)]
    assert found(7, ablations=better).verdict == FAILS, "the other way round"


@pytest.mark.parametrize(
    ("last", "steep", "verdict"),
    [(26.0, 0.01, PARTLY), (27.0, 0.01, FAILS), (26.0, 0.03, FAILS), (27.0, 0.03, FAILS)],
)
def test_linear_is_at_most_a_fifth_more_a_frame_and_a_bounded_gradient(last, steep, verdict):
    times = [("B=512 x: time per frame", last), ("B=32 x: time per frame", 22.0)]
    norms = [("1", 0.009), ("100", steep), ("10", 0.012)]
    rows = [{"case": case, "ours": ours} for case, ours in times]
    rows += [{"case": f"largest gradient, latents x {x}", "ours": ours} for x, ours in norms]
    told = found(2, benchmarks={"sigreg": {"rows": rows}})
    assert told.verdict == verdict
    assert f"22 us at B = 32, {last:g} us at 512" in told.ours
    assert f"{steep:g} (latents x 100)" in told.ours


@pytest.mark.parametrize("order", [1, -1])
def test_another_planner_must_be_clearly_better(order):
    for best, verdict in ((0.69, HOLDS), (0.71, FAILS)):
        rows = [
            {"planner": planner, "task": task, "rate": rate, "low": rate - 0.05, "high": rate}
            for task, rates in (("other room", (0.6, best, 0.3)), ("offset 25", (0.9, 0.2, 0.99)))
            for planner, rate in zip(("paper's CEM", "amortised", "random"), rates, strict=True)
        ]
        worlds = [
            {"world": "push-t", "rows": []},
            {"world": "two-room", "rows": rows},
        ][::order]
        told = found(12, benchmarks={"plan": {"results": worlds}})
        assert told.verdict == verdict
        assert told.ours == (
            f"other room, one model: 60.0% [55.0, 60.0] by paper's CEM; {best:.1%} "
            f"[{100 * best - 5:.1f}, {100 * best:.1f}] by amortised"
        )


def test_success_is_that_of_strict_pairs_of_its_own_world():
    scores = {
        title: {"agent": {"rate": rate, "low": rate - 0.1, "high": rate + 0.1, "episodes": 9}}
        for title, rate in (("paper's protocol", 0.8), ("strict", 0.5))
    }
    run = Record(
        *("run", {"world": "push-t"}, [], {}, [Outcome("goals", scores)]), label="seed 0"
    )  # fmt: skip
    told = found(10, runs=[run])
    assert told.ours == "seed 0 50.0% [40.0, 60.0]"
    assert told.verdict == UNTESTED
    assert found(11, runs=[run]).ours == "", "another world's"


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((30, 9, 11), HOLDS),
        ((30, 9, 29), PARTLY),
        ((30, 29, 9), PARTLY),
        ((30, 9, 39), FAILS),
        ((30, 39, 9), FAILS),
    ],
)
def test_one_rival_that_is_not_beaten_is_enough(counts, verdict):
    names = ("lewm", "pldm", "dino-wm")
    methods = {name: {"title": f"the {name}", "control": False} for name in names}
    rows = [
        {**studied(name, 1e-3, 0, [i < n for i in range(40)]), "world": "push-t-tiny"}
        for name, n in zip(names, counts, strict=True)
    ]
    told = found(10, study=Study(methods, (1e-3,), tuple(rows)))
    assert told.verdict == verdict
    beside = "; ".join(
        f"the {name} {n / 40:.1%} ({2.5 * (counts[0] - n):+.1f} for LeWM)"
        for name, n in zip(names[1:], counts[1:], strict=True)
    )
    assert told.ours == f"LeWM {counts[0] / 40:.1%}; {beside}"
    assert ("shown to be worse than one of them" in told.why) == (verdict == FAILS)


@pytest.mark.parametrize(
    ("good", "verdict"),
    [((1, 1), HOLDS), ((1, 0), PARTLY), ((0, 1), PARTLY), ((0, 0), FAILS)],
)
def test_bisection_is_judged_by_all_of_its_searches(good, verdict):
    tunings = [
        {
            "weight": 0.2,
            "tried": [{}] * 11,
            "grid": 18,
            "confirmed": {"offset 25": {"rate": 0.9, "low": 0.81 if ok else 0.79, "high": 0.95}},
        }
        for ok in good
    ]
    assert found(4, tunings=tunings).verdict == verdict
    long = [{**one, "tried": [{}] * 18} for one in tunings]
    assert found(4, tunings=long).verdict == FAILS, "no quicker than a grid"


@pytest.mark.parametrize(("many", "verdict"), [(39.0, FAILS), (41.0, HOLDS)])
def test_tokens_matter_if_the_slowest_of_many_is_ten_times_the_quickest_of_one(many, verdict):
    points = [
        {"model": "b", "tokens": 196, "ms": many - 1},
        {"model": "c", "tokens": 256, "ms": many},
        {"model": "a", "tokens": 1, "ms": 4.0},
        {"model": "a2", "tokens": 1, "ms": 6.0},
        {"model": "d", "tokens": 16, "ms": 900.0},
    ]
    run = Record("run", {"world": "two-room"}, [], {"economy": answer("economy")})
    told = found(8, runs=[run], benchmarks={"tokens": {"points": points}})
    assert told.verdict == verdict
    assert told.ours.startswith("two-room: CEM 2.88e+03 ms")


def answer(name, **changes):
    from lewm.report.record import Answer

    return Answer(results.ALL[name](**changes))


@pytest.mark.parametrize(("drawing", "verdict"), [(9, HOLDS), (30, PARTLY), (39, FAILS)])
def test_a_reconstruction_loss_that_helps_speaks_against_doing_without(drawing, verdict):
    names = ("lewm", "lewm-reconstruction")
    methods = {name: {"title": name, "control": False} for name in names}
    rows = [
        {**studied(name, 1e-3, 0, [i < n for i in range(40)]), "world": "two-room-tiny"}
        for name, n in zip(names, (30, drawing), strict=True)
    ]
    run = Record("run", {"world": "two-room"}, [], {"decoding": answer("decoding")})
    told = found(18, runs=[run], study=Study(methods, (1e-3,), tuple(rows)))
    assert told.verdict == verdict
    assert f"{drawing / 40:.1%} with a reconstruction loss, 75.0% without" in told.ours
