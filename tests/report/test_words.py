"""Sentences that say the numbers, and leave out what they do not have."""

import copy
from pathlib import Path

import pytest

from lewm import registry
from lewm.contracts import Result
from lewm.report import sections
from lewm.report.sections import TITLES, headlines, tell

SCORE = {"unit": "px", "r": 0.99951, "r_interval": [0.9991, 0.9997], "rmse": 1.54}
RIVALS = {"random encoder": {"r": 0.7}, "pixels": {"r": 0.95}}
EDIT = {"ratio": 327.0, "t_p": 1e-9, "effect_size": 1.62, "auc": 0.98, "auc_interval": [0.96, 0.99]}
BAND = {"value": 0.13, "interval": [0.08, 0.18]}
VALUES = {
    "probing": {
        "fit_episodes": 288, "test_episodes": 72, "test_frames": 1024,
        "variables": {"x": {**SCORE, "controls": RIVALS}, "y": {**SCORE, "r": 0.5,
        "controls": RIVALS}},
        "angles": {"block angle": 12.4},
        "rollout": {"steps": [5, 10], "units": {"px": {"rmse": [2.0, 4.0], "encoded_rmse": [1.0,
        1.5]}}},
    },
    "surprise": {
        "episodes": 100, "warning": "", "edits": {"teleport of agent": EDIT},
        "false_alarms": {"nominal": 0.05, "rate": 0.06, "interval": [0.04, 0.08]},
    },
    "geometry": {
        "straightness": {
            **BAND, "random_encoder": {"value": -0.4}, "pixels": None, "states": None,
            "curve": [[10, -0.3], [400, 0.1]],
        },
        "isotropy": {"statistic": 4.4, "null_low": 0.94, "null_high": 1.19},
        "effective_rank": 4.9, "dims_99": 7, "latent_dim": 192,
        "saturation": {"l2": {"offset": 40, "linear": 85}},
        "open_loop": {"1": {"error": 0.1, "copy": 1.0}, "2": {"error": 0.5, "copy": 1.0}},
        "open_loop_not_better_from": 2,
    },
    "decoding": {
        "test_frames": 512, "horizon": 12, "frameskip": 5,
        "reconstruction": {
            "decoder": {"share": 0.02, "share_interval": [0.018, 0.022]}, "nearest": {"share": 0.1},
            "other latents": {"share": 1.7},
        },
        "imagination": {
            name: {"share": [0.0, share]} for name, share in (("imagined", 0.4), ("copy", 1.6),
            ("encoded", 0.02))
        },
    },
    "economy": {
        "tokens_per_frame": 1, "latent_numbers": 192, "bytes_per_frame": {"latent": 768},
        "flops": {"encode": 15.1e6, "predict": 0.5e6},
        "hardware": "a CPU", "plans": {"CEM": {"seconds": 2.88, "plans": 2,
        "predictor_calls": 45000}}, "published": [{}],
    },
    "planning": {
        "pairs": 24, "unit": "px",
        "horizon": [
            {"steps": 25, "ratio": 0.13, "ratio_interval": [0.1, 0.16], "place_error": 9.8,
            "place_error_interval": [8.0, 11.4]}
        ],
    },
}  # fmt: skip
SAID = {
    "probing": (
        "x with r = 0.9995 (typical error 1.5 px) and y with r = 0.50",
        "from averaged pixels r = 0.95",
        "off by 12 degrees",
        "10 steps ahead the same probe is off by 4 px where it is off by 1.5 px",
    ),
    "surprise": (
        "Teleport of agent: 327 times",
        "(p <0.001, effect size 1.62)",
        "AUC 0.98 [0.96 to 0.99]",
        "gives 6% [4% to 8%]",
    ),
    "geometry": (
        "0.13 (95% interval 0.08 to 0.18)",
        "-0.40 of an encoder",
        "400 updates",
        "not quite Gaussian",
        "4.9 are in use",
        "90% of its plateau 40 env steps",
        "squared error is 50%",
        "from block 2 on",
    ),
    "decoding": (
        "leaves 2.0% of the error of the mean picture",
        "After 60 imagined steps the drawn picture is off by 40%",
    ),
    "economy": (
        "1 token, 192 numbers, 768 bytes",
        "15.1 MFLOP",
        "A plan by CEM takes 2.9 s",
        "was not measured here",
    ),
    "planning": ("After 25 steps the imagined latent was off by 13%", "by 9.8 px in the world"),
}


def test_every_analysis_of_ours_has_a_title_sentences_and_headlines():
    assert set(registry.names("analyses")) <= TITLES.keys() == VALUES.keys()
    folder = Path(sections.__file__).parent
    assert {path.stem for path in folder.glob("[a-z]*.py")} == TITLES.keys()


@pytest.mark.parametrize("name", VALUES)
def test_numbers_are_said(name):
    said = tell(Result(name, VALUES[name]))
    for words in SAID[name]:
        assert words in said, f"{words!r} in {said!r}"
    assert headlines(Result(name, VALUES[name]))


@pytest.mark.parametrize("name", VALUES)
def test_what_is_missing_or_not_a_number_silences_its_own_sentence_only(name):
    whole = tell(Result(name, VALUES[name]))
    for key in VALUES[name]:
        for change in (
            lambda values, key=key: values.pop(key),
            lambda values, key=key: values.update({key: None}),
        ):
            values = copy.deepcopy(VALUES[name])
            change(values)
            said = tell(Result(name, values))
            assert all(part.rstrip(".") in whole for part in said.split(". ")), key
            assert "None" not in said
            headlines(Result(name, values))
    assert tell(Result(name, {})) == ""


def test_of_many_variables_the_best_and_the_worst_are_named():
    variables = {f"v{k}": {**SCORE, "r": k / 10} for k in range(9)} | {
        "constant": {**SCORE, "r": None}
    }
    said = tell(Result("probing", {**VALUES["probing"], "variables": variables}))
    assert "Of 10 variables it reads v8 best, with r = 0.80, and v0 worst, with r = 0.00" in said


def test_another_analysis_has_nothing_said_of_it():
    assert tell(Result("of-a-stranger", {"x": 1})) == ""
    assert headlines(Result("of-a-stranger", {"x": 1})) == {}
