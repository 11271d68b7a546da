"""Methods side by side: numbers that can be counted by hand."""

import json
from itertools import combinations

import numpy as np
import pytest

from lewm.report import rivals
from lewm.report.rivals import Study, Swamp, has_collapsed, study_of
from tests.support.rows import row

ABOUT = {"way": "", "knobs": 1, "source": "s", "objection": "", "answer": "", "control": False}


def study(*rows):
    methods = {name: {**ABOUT, "title": name.upper()} for name in ("lewm", "pldm", "none")}
    methods["none"]["control"] = True
    return Study(methods, (1e-3, 1e-2), tuple(rows))


def ones(count, n=40):
    return [i < count for i in range(n)]


def test_methods_are_ranked_by_the_mean_over_seeds_of_their_best_rate():
    found = study(
        row("lewm", 1e-3, 0, ones(20)),
        row("lewm", 1e-2, 0, ones(30)),
        row("lewm", 1e-2, 1, ones(10)),
        row("lewm", 1e-3, 1, ones(40)),  # of a rate that was not the best: does not count
        row("pldm", 1e-3, 0, ones(24)),
        row("none", 1e-3, 0, ones(2)),
    )
    first, second, last = found.standings("w")
    assert [one.method for one in (first, second, last)] == ["pldm", "lewm", "none"]
    assert first.mean("far") == 0.6
    assert (second.rate, second.tuned) == (1e-2, {1e-3: 0.5, 1e-2: 0.75})
    assert second.rates("far") == [0.75, 0.25]
    low, high = second.interval("far")
    assert low < 0.5 < high


def test_methods_are_compared_on_the_pairs_of_the_seeds_that_both_have():
    found = study(
        row("lewm", 1e-3, 0, ones(10)),
        row("lewm", 1e-3, 1, ones(10)),
        row("pldm", 1e-3, 0, ones(30)),
        row("pldm", 1e-3, 2, ones(40)),
    )
    ours, theirs = (
        next(s for s in found.standings("w") if s.method == m) for m in ("lewm", "pldm")
    )
    compared = theirs.against(ours, "far")
    assert (compared.attempts, compared.only_first, compared.only_second) == (40, 20, 0)
    assert compared.better == 1
    words = "\n".join(rivals.result_in_words(found, "w"))
    assert "Best 75 steps ahead: PLDM" in words
    assert "LeWM is number 2 of 2" in words
    assert "Shown to be better than LeWM: PLDM" in words


def test_other_pairs_are_not_compared():
    found = study(
        row("lewm", 1e-3, 0, ones(10)), row("pldm", 1e-3, 0, ones(30), drawn="other pairs")
    )
    (theirs, ours) = found.standings("w")
    assert theirs.against(ours, "far") is None
    assert rivals.table(found, "w")[0]["against LeWM"] == "other pairs"


def test_episodes_of_pairs_may_be_said_by_another_row():
    first, second = row("lewm", 1e-3, 0, ones(10)), row("pldm", 1e-3, 0, ones(30))
    del second["tasks"]["far"]["episodes"]
    (theirs, ours) = study(first, second).standings("w")
    assert theirs.against(ours, "far").only_first == 20


def test_the_share_of_draws_is_of_the_best_that_any_method_reached():
    drawn = [row("lewm", 1e-3, 0, ones(k), draw=k) for k in (36, 36, 35, 4)]
    found = study(*drawn, row("pldm", 1e-3, 0, ones(40)), {**drawn[0], "draw": 9, "error": "no"})
    (swamp,) = found.swamp("w")
    assert swamp.rates == (0.9, 0.9, 0.875, 0.1, 0.0)
    assert swamp.reference == 1.0
    assert (swamp.hits(), len(swamp.rates)) == (2, 5)
    assert swamp.hits(0.9) == 3, "a method's own best is a second reading"


def test_the_expected_best_of_n_draws_is_the_mean_over_all_ways_to_draw_them():
    rates = (0.1, 0.5, 0.5, 0.9, 0.2)
    swamp = Swamp("lewm", rates, 0.9, ())
    for n in range(1, 6):
        by_hand = np.mean([max(chosen) for chosen in combinations(rates, n)])
        assert swamp.expected_best(n) == pytest.approx(by_hand)
    assert swamp.needed == 4
    assert Swamp("lewm", rates, 1.0, ()).needed == 5
    assert Swamp("lewm", rates, 1.1, ()).needed is None
    assert Swamp("lewm", (0.9,) * 4, 0.9, ()).needed == 1


@pytest.mark.parametrize(
    ("r", "floor", "rank", "std", "collapsed"),
    [
        (0.99, 0.9, 2.0, 0.01, False),  # a small std alone
        (0.99, 0.9, 1.04, 0.7, False),  # a line alone
        (0.5, 0.9, 3.0, 0.7, False),  # blind alone
        (0.5, 0.9, 1.04, 0.7, True),
        (0.9, 0.9, 3.0, 0.01, True),
        (None, 0.9, 1.0, 0.0, True),
    ],
)
def test_a_collapse_is_judged_by_probe_and_spread_together(r, floor, rank, std, collapsed):
    assert has_collapsed(r, floor, rank, std) is collapsed


def test_the_page_names_failures_and_its_command():
    failed = {**row("pldm", 1e-3, 0, ones(1)), "error": "training diverged"}
    page = rivals.to_markdown(study(row("lewm", 1e-3, 0, ones(10)), failed), "make it", {})
    assert "`pldm-0.001-0-None`: training diverged" in page
    assert "    make it" in page


def test_figures_show_every_method():
    rows = [row("lewm", 1e-3, 0, ones(10)), row("pldm", 1e-3, 0, ones(20))]
    rows += [row("lewm", 1e-3, 0, ones(k), draw=k) for k in (5, 18)]
    time, swamp = rivals.figures(study(*rows), "w")
    assert "1 PLDM" in time.svg
    assert "2 LEWM" in time.svg
    assert "1 of 2" in swamp.svg


def test_numbers_of_what_is_alike_stand_apart_in_their_order():
    assert rivals._apart([50.0, 80.0], 5) == [50.0, 80.0]
    assert rivals._apart([74.0, 74.5, 20.0], 5) == [69.5, 74.5, 20.0]
    assert rivals._apart([0.0, 1.0, 100.5], 5) == [2.5, 7.5, 100.0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told.pop("rows"),
        lambda told: told.pop("methods"),
        lambda told: told["rows"][0].pop("seed"),
        lambda told: told["rows"][0].update(tasks={}),
        lambda told: told["rows"][0].update(method="unheard of"),
    ],
)
def test_a_damaged_file_names_itself(tmp_path, damage):
    whole = study(row("lewm", 1e-3, 0, ones(10)))
    told = {"rates": [1e-3], "methods": dict(whole.methods), "rows": [dict(whole.rows[0])]}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(told))
    assert study_of(path).rows == whole.rows
    damage(told)
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"rows\.json is damaged"):
        study_of(path)


def test_what_is_said_of_a_world_knows_nothing_of_another():
    """In the other world all is better, failures included: not a word may change."""

    def rows(world, lost):
        made = [row("lewm", 1e-3, s, ones(30 - lost + s), world=world) for s in (0, 1)]
        made += [row("pldm", rate, 0, ones(27 - lost), world=world) for rate in (1e-3, 1e-2)]
        made += [
            row("lewm", 1e-3, 0, ones(k - lost), draw=k, world=world) for k in (27, 26, 20, 12)
        ]
        return [*made, row("pldm", 1e-3, 0, ones(1), draw=4, world=world)]

    here, other = rows("w", 10), rows("other", 0)
    failed = [{**row("pldm", 1e-2, 1, ones(9), world=w), "error": "no"} for w in ("w", "other")]
    alone, both = study(*here, failed[0]), study(*other, *here, *failed)
    assert both.worlds == ["other", "w"]
    for of in ("runs", "failed"):
        names = ("lewm",) if of == "runs" else ()
        assert getattr(both, of)("w", *names) == getattr(alone, of)("w", *names)
    assert both.swamp("w") == alone.swamp("w")
    for say in (rivals.result_in_words, rivals.table, rivals.figures):
        assert say(both, "w") == say(alone, "w")
        assert say(both, "other") != say(both, "w"), "every number differs"
