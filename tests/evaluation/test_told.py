"""Every cell of a table of results, and every sentence about them, is of its policy, its criterion
and its way of counting: no two rates are equal."""

from dataclasses import replace

import numpy as np

from lewm.evaluation.comparison import COMPARISON_COLUMNS, Suite, compare, spread
from lewm.evaluation.outcome import AGENT, Evaluation
from lewm.evaluation.tables import COLUMNS
from lewm.stats import mcnemar, p_value, wilson
from tests.support.evaluated import evaluation


def told(successes, n=7):
    low, high = wilson(successes, n)
    return f"{successes / n:.1%} [{low:.1%}, {high:.1%}] of {n}"


EXPECTED = {
    # policy and criterion -> successes by the paper's count and strictly, those that begin solved,
    # median steps, pairs that the agent alone and the floor alone solves
    "agent": (5, 4, 3, "10.5", None),
    "random": (4, 2, 3, "7", (4, 2)),
    "do-nothing": (3, 0, 3, "-", (4, 0)),
    "agent, exact": (3, 3, 1, "9", None),
    "random, exact": (2, 1, 1, "8", (3, 1)),
    "do-nothing, exact": (1, 0, 1, "-", (3, 0)),
}


def test_each_row_of_results_is_of_its_policy_and_criterion():
    rows = evaluation().rows()
    assert len(rows) == len(EXPECTED)
    for row, (policy, (paper, strict, solved, median, apart)) in zip(
        rows, EXPECTED.items(), strict=True
    ):
        assert dict(zip(COLUMNS, row, strict=True)) == {
            "task": "offset 75",
            "policy": policy,
            "paper's protocol": told(paper),
            "strict": told(strict),
            "solved at start": f"{solved / 7:.1%}",
            "median steps": median,
            "ms per plan": "250.0" if policy.startswith("agent") else "-",
            "p against agent": "-" if apart is None else p_value(mcnemar(*apart)),
        }


def test_numbers_of_a_file_are_those_of_the_table():
    found = evaluation().to_json()
    for criterion, counts in (("", found), (", exact", found["others"]["exact"])):
        for policy in ("agent", "random", "do-nothing"):
            paper, strict, _, median, apart = EXPECTED[policy + criterion]
            for name, successes in (("paper", paper), ("strict", strict)):
                score, (low, high) = counts[name][policy], wilson(successes, 7)
                assert (score["successes"], score["episodes"]) == (successes, 7)
                assert (score["rate"], score["low"], score["high"]) == (successes / 7, low, high)
            assert counts["strict"][policy]["median_steps"] == (
                None if median == "-" else float(median)
            )
            if apart:
                beside = counts["against"][policy]
                assert (beside["only_first"], beside["only_second"]) == apart
                assert (beside["attempts"], beside["episodes"]) == (7, 6)
        assert counts["solved_at_start"] == EXPECTED["agent" + criterion][2] / 7
    planning = found["planning"]
    assert (planning["seconds_per_plan"], planning["predictor_calls_per_plan"]) == (0.25, 50)
    assert planning["batch"] == 5


def test_seeds_are_pooled_number_by_number():
    first = evaluation()
    other = replace(
        first,
        protocol=replace(first.protocol, seed=4),
        seconds={"agent": 10.0, "total": 20.0},
        success_steps={p: of[::-1].copy() for p, of in first.success_steps.items()},
    )
    pool = Evaluation.pooled([first, other])
    assert pool.seconds == {"agent": 13.0, "total": 24.5}
    assert (pool.effort.plans, pool.effort.seconds) == (16, 4.0)
    np.testing.assert_array_equal(pool.steps(), [*first.steps(), *first.steps()[::-1]])
    np.testing.assert_array_equal(
        pool.steps("random", "exact")[:10], first.steps("random", "exact")
    )
    assert len(pool.pairs) == 20


def second():
    """The agent of another run: it solves four strict pairs that the first does not, and fails in
    one that it solves."""
    found = evaluation()
    steps = {**found.success_steps, AGENT: np.array([0, -1, 0, 3, 9, 0, 8, 12, 20, 7])}
    exact = {**found.others["exact"], AGENT: np.array([-1, -1, -1, 3, -1, 0, -1, 12, -1, -1])}
    return replace(found, success_steps=steps, others={"exact": exact})


def test_a_comparison_keeps_its_sides():
    a, b = (Suite((each,), {}) for each in (evaluation(), second()))
    main, exact = compare("A", "B", (a, b))
    for one, rates, apart in ((main, (4 / 7, 6 / 7), (1, 3)), (exact, (3 / 7, 2 / 7), (2, 1))):
        assert (one.first_rate, one.second_rate) == rates
        cells = dict(zip(COMPARISON_COLUMNS, one.row(), strict=True))
        assert cells["first"] == f"A {rates[0]:.1%}"
        assert cells["second"] == f"B {rates[1]:.1%}"
        assert (cells["only first"], cells["only second"]) == tuple(map(str, apart))
        assert cells["difference"].startswith(f"{100 * (rates[0] - rates[1]):+.1f} [")
        assert cells["p"] == p_value(mcnemar(*apart))
        assert f"A {rates[0]:.1%}, B {rates[1]:.1%}, difference" in str(one)
        assert "over 6 episodes drawn anew" in str(one)
    assert (main.task, exact.task) == ("offset 75", "offset 75, exact")


def test_a_spread_is_of_its_policy_criterion_and_way_of_counting():
    rows = spread([Suite((evaluation(),), {}), Suite((second(),), {})])
    found = {
        (row.policy, row.criterion): ([7 * x for x in row.paper], [7 * x for x in row.strict])
        for row in rows
    }
    expected = {
        ("agent", "success"): ((5.5, 5, 6), (5, 4, 6)),
        ("random", "success"): ((4, 4, 4), (2, 2, 2)),
        ("do-nothing", "success"): ((3, 3, 3), (0, 0, 0)),
        ("agent", "exact"): ((2.5, 2, 3), (2.5, 2, 3)),
        ("random", "exact"): ((2, 2, 2), (1, 1, 1)),
        ("do-nothing", "exact"): ((1, 1, 1), (0, 0, 0)),
    }
    assert found.keys() == expected.keys()
    for key, (paper, strict) in expected.items():
        np.testing.assert_allclose(found[key], (paper, strict), err_msg=str(key))
        assert all(mean >= least for mean, least, _ in found[key])


def test_remarks_count_strict_episodes():
    first = evaluation().remarks()[0]
    # pairs 1, 3, 4, 6, 7, 8 and 9 are of six episodes
    assert first.startswith("offset 75: agent, strict [")
    assert "over 6 episodes drawn anew, too few to tell more." in first
