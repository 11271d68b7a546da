"""Sentences that say the numbers, and say what is not defined."""

import importlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import pytest

from lewm import registry
from lewm.analyses.probing import Alike, OpenLoop
from lewm.report import sections
from lewm.report.sections import headlines, tell
from lewm.runs.results import Result
from tests.support import results
from tests.support.results import variable

CURVE = {"rmse_interval": ((3.0, 5.0),) * 2, "copy_rmse": (5.0, 9.0)}
RIVALS = {"random encoder": 0.7, "pixels": 0.95}
RESULTS = {name: make() for name, make in results.ALL.items()} | {
    "probing": results.probing(
        {"x": variable(0.99951, controls=RIVALS), "y": variable(0.5, controls=RIVALS)},
        angles={"block angle": 12.4},
        rollout=OpenLoop(
            steps=(5, 10),
            units={
                "px": Alike("px", (2.0, 4.0), encoded_rmse=(1.0, 1.5), variables=("x",), **CURVE)
            },
        ),
    ),
}
SAID = {
    "probing": (
        "x with r = 0.9995 (typical error 1.5 px) and y with r = 0.50",
        "from averaged pixels r = 0.95",
        "off by 12 degrees",
        "10 steps ahead the same probe is off by 4 px. On the frames that came it is off by "
        "1.5 px.",
    ),
    "surprise": (
        "Teleport of agent: 327 times",
        "(p <0.001, effect size 1.62)",
        "AUC against normal frames is 0.98 [0.96 to 0.99]",
        "it gives 6% [4% to 8%]",
    ),
    "geometry": (
        "0.13 (95% interval 0.08 to 0.18)",
        "-0.40 of an encoder",
        "400 updates",
        "not quite Gaussian",
        "effective rank is 4.9",
        "90% of its plateau 10 env steps",
        "squared error is 50%",
        "From block 2 on",
    ),
    "decoding": (
        "leaves 2.0% of the error of the mean picture",
        "After 60 imagined steps the drawn picture is off by 40%",
    ),
    "economy": (
        "1 token, 192 numbers, 768 bytes",
        "15.1 MFLOP",
        "A plan by CEM takes 2.9 s",
        "None of them was measured here",
    ),
    "planning": (
        "After 10 steps the imagined latent was off by 25%",
        "In the world it was off by 3.5 px",
    ),
}


def test_every_analysis_of_ours_has_a_section_with_all_its_parts():
    folder = Path(sections.__file__).parent
    assert {path.stem for path in folder.glob("[a-z]*.py")} == set(registry.names("analyses"))
    assert RESULTS.keys() == set(registry.names("analyses"))
    for name in RESULTS:
        section = importlib.import_module(f"lewm.report.sections.{name}")
        assert all(hasattr(section, part) for part in ("TITLE", "ORDER", "sentences", "headlines"))


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_are_said(name):
    said = tell(RESULTS[name])
    for words in SAID[name]:
        assert words in said, f"{words!r} in {said!r}"
    assert headlines(RESULTS[name])


@dataclass
class Without:
    """A record one of whose fields has another name."""

    record: object
    missing: str

    def __getattr__(self, name):
        if name == self.missing:
            raise AttributeError(name)
        return getattr(self.record, name)


@pytest.mark.parametrize("name", RESULTS)
def test_a_renamed_field_is_an_error_and_never_a_missing_sentence(name):
    """Of each field that is not said: the sentences and numbers are all there."""
    section, said = importlib.import_module(f"lewm.report.sections.{name}"), tell(RESULTS[name])
    missed = []
    for field in fields(RESULTS[name]):
        try:
            assert " ".join(section.sentences(Without(RESULTS[name], field.name))) == said
        except AttributeError as error:
            missed.append((field.name, str(error)))
    assert missed, "no sentence reads a field"
    assert all(field == named for field, named in missed)


def test_what_is_not_defined_is_said_to_be():
    constant = results.probing({"x": variable(None), "y": variable(None)})
    assert "No correlation is defined" in tell(constant)
    assert headlines(constant) == {}
    still = results.straightness(None, None, ())
    assert "in latent space nothing moved" in tell(results.geometry(straightness=still))
    edits = {"teleport": results.edited("teleport", ratio=None, effect_size=None)}
    told = tell(results.surprise(edits))
    assert "unedited do not surprise at all" in told
    assert "effect size not defined" in told
    blind = replace(RESULTS["planning"].horizon[-1], place_error=None, place_error_interval=None)
    assert "In the world" not in tell(replace(RESULTS["planning"], horizon=(blind,)))
    for result in (constant, results.surprise(edits)):
        assert "None" not in tell(result)
        assert "None" not in str(result.tables())


def test_of_many_variables_the_best_and_the_worst_are_named():
    variables = {f"v{k}": variable(k / 10) for k in range(9)} | {"constant": variable(None)}
    said = tell(results.probing(variables))
    assert "Of 10 variables it reads v8 best, with r = 0.80, and v0 worst, with r = 0.00" in said


@dataclass(frozen=True)
class Strange(Result):
    name: ClassVar[str] = "of-a-stranger"

    def tables(self):
        return {}


def test_another_analysis_has_nothing_said_of_it():
    assert tell(Strange()) == ""
    assert headlines(Strange()) == {}
    assert sections.draw(Strange()) == sections.clips(Strange()) == []
    assert sections.title("of-a-stranger") == "Of a stranger"
    assert sections.ordered(["of-a-stranger", "economy", "planning"])[-1] == "of-a-stranger"
