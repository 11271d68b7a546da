"""Verdicts follow from numbers: numbers that speak for a claim, numbers that speak against it, and
none at all."""

import json
from pathlib import Path

import pytest

from lewm.cli.commands import claims as command
from lewm.report.claims import CLAIMS, Evidence, to_markdown
from lewm.report.record import Answer, Outcome, Record
from lewm.report.rivals import Study
from lewm.report.verdicts import FAILS, HOLDS, PARTLY, UNTESTED
from lewm.training.watch import alarm_of, directions
from tests.support import results
from tests.support.results import edited, variable
from tests.support.rows import row as studied_row

BY_NUMBER = {claim.number: claim for claim in CLAIMS}


POINT = {"prediction": 0.95, "effective_rank": 5.0, "latent_std": 0.004}
LINE = {"prediction": 0.2, "effective_rank": 1.0, "latent_std": 0.94}
SMALL = {"prediction": 0.18, "effective_rank": 4.09, "latent_std": 0.05}
"""Two that collapsed, and one that did not: beside an error of copying of 1."""


def row(variant, seed=0, rate=0.98, prediction=0.18, **numbers):
    score = {"rate": rate, "low": rate - 0.02, "high": min(1, rate + 0.02), "pairs": 200}
    return {
        "variant": variant,
        "seed": seed,
        "success": score,
        "far": score,
        "latent_std": 0.9,
        "effective_rank": 4.0,
        "copying": 1.0,
        "prediction": prediction,
        **numbers,
    }


def run(world="two-room", *results):
    answers = {result.name: Answer(result) for result in results}
    score = {"rate": 0.5, "low": 0.4, "high": 0.6, "episodes": 200}
    outcome = Outcome("goals 25 steps ahead, 50 allowed", {"strict": {"agent": score}})
    experiment = {"world": world, "recipe": f"{world}-tiny"}
    return Record(Path("run"), experiment, [], answers, [outcome], label="seed 0")


def verdict(number, **evidence):
    return BY_NUMBER[number].found(Evidence(**evidence)).verdict


def test_every_claim_has_a_row_and_without_evidence_nothing_is_said_to_hold_but_what_needs_none():
    assert sorted(BY_NUMBER) == list(range(1, 21))
    held = {
        number for number, claim in BY_NUMBER.items() if claim.found(Evidence()).verdict != UNTESTED
    }
    assert held == {5, 20}, "parameters are counted, and scope is no test"


def test_the_published_size_is_counted():
    ours = BY_NUMBER[5].found(Evidence()).ours
    assert "all 18.03 M" in ours
    assert "encoder 5.50 M" in ours


@pytest.mark.parametrize(
    ("without", "said"), [(POINT, HOLDS), (LINE, HOLDS), (SMALL, FAILS), ({}, FAILS)]
)
@pytest.mark.parametrize(("number", "variant"), [(1, "lambda-0"), (6, "no-batch-norm")])
def test_a_collapse_without_it_speaks_for_an_ingredient_whatever_the_scale(
    number, variant, without, said
):
    assert verdict(number, ablations=[row("base"), row(variant, **without)]) == said
    one_of_two = [row("base"), row("base", 1), row(variant, **without), row(variant, 1)]
    assert verdict(number, ablations=one_of_two) == FAILS
    assert verdict(number, ablations=[row("base", **POINT), row(variant, **without)]) == FAILS


def test_verdicts_and_the_alarm_judge_alike():
    for numbers in (POINT, LINE, SMALL, {"prediction": float("nan")}, {"copying": 0.0}):
        measured = row("lambda-0", **numbers)
        held = verdict(1, ablations=[row("base"), measured]) == HOLDS
        assert held == bool(alarm_of(measured, 200, 200)), numbers
    assert directions(row("base", prediction=0.25)) == 3.0  # rank 4, three quarters better
    assert directions(row("base", copying=0.0)) == directions(row("", prediction=float("nan")))


def test_ablations_that_cannot_be_judged_are_said_to_be():
    old = row("lambda-0", **POINT)
    del old["copying"]
    finding = BY_NUMBER[1].found(Evidence(ablations=[row("base"), old]))
    assert finding.verdict == UNTESTED
    assert "before `copying` was measured" in finding.why
    assert "predicted not known without, 3.28 with" in finding.ours


def test_a_row_stands_beside_the_twin_of_its_seed():
    """Not beside the next one: of seed 5 there is no variant, and its base is not shown."""
    rows = [row("base", 5, effective_rank=9.0), row("base", 2), row("lambda-0", 2, **POINT)]
    finding = BY_NUMBER[1].found(Evidence(ablations=rows))
    assert finding.verdict == HOLDS
    assert "predicted 0.25 without, 3.28 with" in finding.ours


def test_variants_count_only_beside_their_twin():
    rows = [row("base", seed=1), row("lambda-0", seed=2, **POINT)]
    assert verdict(1, ablations=rows) == UNTESTED


@pytest.mark.parametrize(
    ("slices", "weak", "said"), [(0.97, 0.9, HOLDS), (0.6, 0.9, FAILS), (0.97, 0.5, PARTLY)]
)
def test_knobs_must_be_flat_and_lambda_wide(slices, weak, said):
    rates = {
        "slices-64": slices,
        "slices-256": 0.98,
        "knots-5": 0.98,
        "knots-33": 0.98,
        "lambda-0.001": 0.3,
    }
    rates |= {
        "lambda-0.01": weak,
        "lambda-0.2": 0.95,
        "lambda-0.5": 0.7,
        "lambda-2": 0.4,
        "base": 0.98,
    }
    assert verdict(3, ablations=[row(name, rate=rate) for name, rate in rates.items()]) == said


@pytest.mark.parametrize(("number", "variant"), [(6, "no-batch-norm"), (7, "no-zero-modulation")])
def test_an_ingredient_that_can_be_left_out_is_not_necessary(number, variant):
    assert verdict(number, ablations=[row("base"), row(variant)]) == FAILS
    assert verdict(number, ablations=[row("base"), row(variant, rate=0.2, **POINT)]) == HOLDS


@pytest.mark.parametrize(
    ("slow", "steep", "said"), [(20, 0.01, PARTLY), (90, 0.01, FAILS), (20, 5.0, FAILS)]
)
def test_sigreg_must_be_linear_and_its_gradient_bounded(slow, steep, said):
    rows = [
        {"case": f"B={b} T=4 D=192 M=1024: time per frame", "ours": us}
        for b, us in ((32, 22.0), (512, slow))
    ]
    norms = (("1", 0.01), ("10", 0.012), ("100", steep))
    rows += [
        {"case": f"B=128 ...: largest gradient of a latent, latents x {x}", "ours": value}
        for x, value in norms
    ]
    assert verdict(2, benchmarks={"sigreg": {"rows": rows}}) == said


@pytest.mark.parametrize(("best", "said"), [(0.91, FAILS), (0.62, HOLDS)])
def test_if_another_planner_reaches_what_the_search_missed_the_latents_were_not_to_blame(
    best, said
):
    rows = [
        {
            "planner": planner,
            "task": "other room",
            "rate": rate,
            "low": rate - 0.05,
            "high": rate + 0.05,
        }
        for planner, rate in (("paper's CEM 300 x 30, L2", 0.6), ("amortised", best))
    ]
    assert (
        verdict(12, benchmarks={"plan": {"results": [{"world": "two-room", "rows": rows}]}}) == said
    )


@pytest.mark.parametrize(
    ("teleport", "colour", "said"), [(1e-9, 0.4, HOLDS), (1e-9, 1e-5, PARTLY), (0.2, 0.4, FAILS)]
)
def test_surprise_must_spike_at_teleports_in_every_world_and_not_at_colours(teleport, colour, said):
    def edits(teleport, colour):
        of = {
            "teleport of the agent": edited("teleport", teleport),
            "colour": edited("colour", colour),
        }
        return results.surprise(of)

    runs = [run("two-room", edits(1e-9, 0.4)), run("push-t", edits(teleport, colour))]
    assert verdict(16, runs=runs) == said


def test_a_fall_of_surprise_is_no_spike():
    edits = {
        "teleport": edited("teleport", mean_difference=-1.0),
        "colour": edited("colour", 0.5),
    }
    assert verdict(16, runs=[run("two-room", results.surprise(edits))]) == FAILS


@pytest.mark.parametrize(("r", "said"), [(0.99, HOLDS), (0.7, PARTLY)])
def test_one_variable_that_no_probe_reads_is_enough(r, said):
    variables = {
        name: variable(value - 0.05, mlp=value, controls={"random encoder": 0.3})
        for name, value in (("x", 0.999), ("angle", r))
    }
    assert verdict(14, runs=[run("two-room", results.probing(variables))]) == said


def test_straightening_is_read_from_the_curve():
    def ends(*values):
        curve = tuple((10 * (1 + k), value) for k, value in enumerate(values))
        return run("two-room", results.geometry(straightness=results.straightness(curve=curve)))

    assert verdict(15, runs=[ends(0.1, 0.6)]) == PARTLY
    assert verdict(15, runs=[ends(0.6, 0.1)]) == FAILS
    assert verdict(15, runs=[ends()]) == UNTESTED


def of_claim(number, speaks_for):
    """A run that speaks for a claim, or against it."""
    if number == 14:
        return results.probing({"x": variable(0.999 if speaks_for else 0.7)})
    if number == 15:
        curve = ((10, 0.1), (20, 0.6 if speaks_for else -0.3))
        return results.geometry(straightness=results.straightness(curve=curve))
    if number == 16:
        edits = {"teleport": edited("teleport", 1e-9 if speaks_for else 0.5)}
        return results.surprise(edits | {"colour": edited("colour", 0.5)})
    found = results.geometry()
    near, far = found.open_loop.values()
    loop = {"1": near, "2": far} if speaks_for else {"1": far, "2": near}
    return results.geometry(open_loop=loop)


@pytest.mark.parametrize("number", [14, 15, 16, 17])
@pytest.mark.parametrize("worlds", [("two-room", "two-room"), ("two-room", "push-t")])
def test_one_run_that_speaks_against_a_claim_is_enough(number, worlds):
    """Whichever of two it is, of one world or of two."""

    def said(*sides):
        pairs = zip(worlds, sides, strict=False)
        return verdict(number, runs=[run(world, of_claim(number, side)) for world, side in pairs])

    against = said(False)
    assert said(True, True) == said(True) != against
    assert said(True, False) == said(False, True) == said(False, False) == against


@pytest.mark.parametrize("number", [8, 9, 14, 15, 16, 17, 18])
def test_a_claim_about_an_analysis_is_judged_by_its_section_which_reads_fields(number):
    """All analyses give all findings; a record that lost its fields gives none, loudly."""
    whole = [make() for make in results.ALL.values()]
    found = BY_NUMBER[number].found(Evidence(runs=[run("two-room", *whole)]))
    assert found.ours
    assert found.verdict != UNTESTED
    bare = [object.__new__(type(result)) for result in whole]
    with pytest.raises(AttributeError):
        BY_NUMBER[number].found(Evidence(runs=[run("two-room", *bare)]))


def test_numbers_of_all_seeds_stand_in_the_table():
    found = BY_NUMBER[10].found(Evidence([run("push-t"), run("push-t")]))
    assert found.ours.count("50.0% [40.0, 60.0]") == 2
    assert found.verdict == UNTESTED, "rivals that were not run are not beaten"


def test_the_page_is_a_table_of_all_claims_with_their_commands():
    page = to_markdown(Evidence(ablations=[row("base"), row("lambda-0")]), "lewm claims")
    rows = [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == 20
    assert all(line.count("|") == 6 for line in rows), "a cell holds a bar"
    assert "**does not hold**" in rows[0], "a claim that fails stays in the table"
    assert "python -m lewm.experiments.ablations --seeds 0 1 2 --variants base lambda-0`" in page


def test_files_of_one_benchmark_are_taken_together(tmp_path):
    tables = [{"world": world, "rows": []} for world in ("two-room", "push-t", "reacher")]
    paths = []
    for k, some in enumerate((tables[:1], tables[1:])):
        told = {"benchmarks": [{"name": "plan", "results": some}, {"name": f"own {k}", "rows": []}]}
        paths.append(tmp_path / f"{k}.json")
        paths[-1].write_text(json.dumps(told))
    found = command._benchmarks(paths)
    assert found["plan"]["results"] == tables
    assert set(found) == {"plan", "own 0", "own 1"}


def test_the_command_reads_files_and_refuses_others(tmp_path, capsys):
    from lewm.cli.main import main

    (tmp_path / "ablations.json").write_text(
        json.dumps({"rows": [row("base"), row("lambda-0", **POINT)]})
    )
    sigreg = {"name": "sigreg", "rows": []}
    (tmp_path / "bench.json").write_text(json.dumps({"benchmarks": [sigreg]}))
    words = [
        "claims",
        "--ablations",
        str(tmp_path / "ablations.json"),
        "--out",
        str(tmp_path / "claims.md"),
    ]
    assert main([*words, "--benchmarks", str(tmp_path / "bench.json")]) == 0
    assert "predicted 0.25 without, 3.28 with" in (tmp_path / "claims.md").read_text()
    assert "AdaLN" in capsys.readouterr().out
    assert main(["claims", "--ablations", str(tmp_path / "bench.json")]) == 2
    assert "expected a list 'rows'" in capsys.readouterr().err


# --------------------------------------------------------------------------- what studies add to it


def studied(world, **successes):
    """A study of some methods, 40 pairs each."""
    methods = {
        name: {"title": name, "knobs": 1, "control": False, "objection": ""}
        for name in (*successes, "lewm")
    }
    rows = [
        {**studied_row(name, 1e-3, 0, [i < count for i in range(40)], **more), "world": world}
        for name, (count, more) in successes.items()
    ]
    return Study(methods, (1e-3,), tuple(rows))


def finding(number, evidence):
    return next(claim for claim in CLAIMS if claim.number == number).found(evidence)


@pytest.mark.parametrize(
    ("rivals", "verdict"),
    [
        ({"pldm": 10, "dino-wm": 12}, HOLDS),
        ({"pldm": 10, "dino-wm": 30}, PARTLY),
        ({"pldm": 39, "dino-wm": 12}, FAILS),
    ],
)
def test_push_t_is_judged_beside_the_rivals_of_the_paper(rivals, verdict):
    counts = {"lewm": 30, **rivals}
    study = studied("push-t-tiny", **{name: (count, {}) for name, count in counts.items()})
    found = finding(10, Evidence(study=study))
    assert found.verdict == verdict
    assert "LeWM 75.0%" in found.ours
    assert f"pldm {rivals['pldm'] / 40:.1%}" in found.ours
    assert finding(11, Evidence(study=study)).verdict == UNTESTED, "another world"


def test_lambda_is_judged_by_what_bisection_found():
    good = {"rate": 0.99, "low": 0.96, "high": 1.0, "pairs": 200}
    one = {"weight": 0.2, "tried": [{}] * 11, "grid": 18, "confirmed": {"offset 25": good}}
    found = finding(4, Evidence(tunings=[one]))
    assert found.verdict == HOLDS
    assert "lambda 0.2 after 11 short runs (a grid: 18)" in found.ours
    bad = {**one, "confirmed": {"offset 25": {**good, "rate": 0.3, "low": 0.2}}}
    assert finding(4, Evidence(tunings=[bad])).verdict == FAILS
    assert finding(4, Evidence(tunings=[one, bad])).verdict == PARTLY
    assert finding(4, Evidence(tunings=[{**one, "weight": None}])).verdict == FAILS
    assert finding(4, Evidence()).verdict == UNTESTED
