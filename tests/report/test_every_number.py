"""Whatever is said or tabled of a result is the number of its name: of results in which no two
numbers are equal, all that people read is held word by word.

The lines were written out and compared with the numbers in `tests.support.distinct` by hand.
"""

import importlib

import pytest

from lewm import registry
from lewm.report import sections, words
from tests.support import distinct

SENTENCES = {
    "probing": [
        "Nobody told the model these variables.",
        "A linear probe was fitted on latents of 288 episodes.",
        "It was tested on 1,017 pictures of 72 others, which neither it nor the model saw.",
        (
            "It reads x with r = 0.95 (typical error 3.8 px) and y with r = 0.87 (typical "
            "error 3.6 m)."
        ),
        "The angle heading is off by 12 degrees on average. Chance is 90.",
        (
            "It reads from an encoder with random weights r = 0.45 to 0.53 and from averaged "
            "pixels r = 0.64 to 0.72."
        ),
        "Only what lies above that was learnt.",
        "On latents predicted 10 steps ahead the same probe is off by 4.4 px.",
        "On the frames that came it is off by 0.7 px.",
    ],
    "surprise": [
        "In the middle of 103 episodes something impossible happens.",
        "A thing jumps, or changes its colour.",
        ("Surprise is the squared error of the latent that the model predicted for that frame."),
        (
            "Teleport of agent: 327 times the surprise of the same frames unedited (p = "
            "0.012, effect size 1.62). AUC against normal frames is 0.91 [0.83 to 0.96]."
        ),
        (
            "Teleport of block: 347 times the surprise of the same frames unedited (p = "
            "0.032, effect size 1.82). AUC against normal frames is 0.71 [0.63 to 0.76]."
        ),
        (
            "Colour of agent: 361 times the surprise of the same frames unedited (p = 0.046, "
            "effect size 1.96). AUC against normal frames is 0.57 [0.49 to 0.62]."
        ),
        "On half of the episodes a threshold was set for 5% false alarms.",
        "On the other half it gives 8% [6% to 11%].",
        "Read with care: few of them.",
    ],
    "geometry": [
        "The straightness of its paths is 0.13 (95% interval 0.08 to 0.19).",
        "A straight line has 1.",
        (
            "For comparison: -0.48 of an encoder with random weights, 0.35 of the pixels and "
            "0.67 of the true states."
        ),
        "Over 400 updates of training it went from -0.31 to 0.11.",
        "The SIGReg statistic of the latents is 4.40.",
        "Gaussian samples of that size have 0.94 to 1.19: the cloud is not quite Gaussian.",
        "The effective rank is 4.9 of 192 dimensions.",
        "7 directions hold 99% of the variance.",
        (
            "Distance in latent space comes to 90% of its plateau 10 env steps from the goal. "
            "Even growth would reach it after 22."
        ),
        (
            "The fitted temporal distance comes to 90% of its plateau 25 env steps from the "
            "goal. Even growth would reach it after 23."
        ),
        (
            "Along recorded actions, 3 blocks ahead, the squared error is 17% of that of "
            "predicting no change."
        ),
        "From block 3 on it is not shown to be less.",
    ],
    "decoding": [
        "A decoder was fitted to the frozen latents, for looking only.",
        "It takes no part in training or planning.",
        (
            "On 511 held-out frames it leaves 2.7% of the error of the mean picture (95% "
            "interval 2.2% to 3.1%)."
        ),
        "The nearest frame that it learnt from leaves 10.8%.",
        "With the latents of other frames it would be 24.3%.",
        "After 10 imagined steps the drawn picture is off by 52% of that error.",
        "If the first frame were kept, it would be 135%.",
        "On the frames that came, the decoder alone is off by 24%.",
    ],
    "economy": [
        "A frame is 3 tokens, 192 numbers, 768 bytes.",
        "Encoding it takes 15.1 MFLOP. Predicting the next one takes 0.52 MFLOP.",
        "Plans were timed here, on a CPU.",
        "A plan by CEM takes 2.9 s (median of 21) and predicts 45,000 latents.",
        "A plan by amortised takes 3.9 s (median of 20) and predicts 45,001 latents.",
        "Numbers of other models are published or estimated, and marked so.",
        "None of them was measured here.",
    ],
    "planning": [
        (
            "From each of 23 held-out pictures the agent made a plan. It carried the plan out "
            "to its end without looking."
        ),
        (
            "After 10 steps the imagined latent was off by 54% of how far the latent had "
            "moved (95% interval 44% to 62%)."
        ),
        "In the world it was off by 7.0 px (95% interval 6.2 to 8.6 px).",
        "A plan is chosen for where it is imagined to end. So errors matter most there.",
    ],
}

HEADLINES = {
    "probing": {
        "probe r, x": "0.95 [0.93 to 0.95]",
        "probe r, y": "0.87 [0.85 to 0.88]",
    },
    "surprise": {
        "surprise AUC, teleport of agent": "0.91 [0.83 to 0.96]",
        "surprise AUC, teleport of block": "0.71 [0.63 to 0.76]",
        "surprise AUC, colour of agent": "0.57 [0.49 to 0.62]",
    },
    "geometry": {
        "straightness": "0.13 [0.08 to 0.19]",
        "effective rank": "4.9 of 192",
        "SIGReg statistic (if Gaussian)": "4.40 (0.94 to 1.19)",
    },
    "decoding": {
        "decoder error, of the mean picture's": "2.7% [2.2% to 3.1%]",
    },
    "economy": {
        "MFLOP per predicted frame": "0.52",
        "a plan by CEM": "2.9 s",
        "a plan by amortised": "3.9 s",
    },
    "planning": {
        "imagined off after 10 steps, of the change": "54% [44% to 62%]",
    },
}

TABLES = {
    "probing": {
        (
            "What probes read from the latents of 1017 frames of 72 held-out episodes. Fitted "
            "on 2048 frames of 288 others. Controls: r of ridge / MLP."
        ): [
            ("variable | unit | r, ridge | 95% | r, MLP | R2 | RMSE | random encoder | pixels"),
            (
                "x | px | 0.9470 | 0.9260 to 0.9540 | 0.9770 | 0.8970 | 3.84 | 0.5270 / "
                "0.5770 | 0.7170 / 0.7570"
            ),
            (
                "y | m | 0.8680 | 0.8470 to 0.8750 | 0.8980 | 0.8180 | 3.6 | 0.4480 / 0.4980 "
                "| 0.6380 / 0.6780"
            ),
        ],
        (
            "Mean absolute error of angles in degrees, over 1017 frames of 72 held-out "
            "episodes. Guessing gives 90 if all angles occur. 95% intervals."
        ): [
            "angle | ridge | MLP",
            "heading | 12.4 (11.1 to 13.2) | 9.3 (8.5 to 10.6)",
        ],
        (
            "Error (RMSE) of what a ridge probe reads. First: after an open-loop rollout. "
            "Second: from the frame that came. Third: from the last frame before, taken for a "
            "prediction. 61 rollouts in 37 held-out episodes. Only variables with an R2 of "
            "0.5 or more."
        ): [
            "variable | unit | 5 steps | 10 steps | 95% at 10",
            "x | px | 2.1 / 0.5 / 6.2 | 4.4 / 0.7 / 8.3 | 3.3 to 5.2",
            "y | px | 2.7 / 0.1 / 6.8 | 4.9 / 0.9 / 9.9 | 3.3 to 5.2",
        ],
    },
    "surprise": {
        "surprise at the edit, few of them": [
            (
                "edit | times normal | effect size | p (t) | p (Wilcoxon) | AUC | AUC against "
                "colour | found at 5% | picture changes by"
            ),
            (
                "teleport of agent | 327 | 1.62 | 0.012 | 0.034 | 0.91 [0.83, 0.96] | 0.74 "
                "[0.68, 0.78] | 77% | 4.6 grey levels"
            ),
            (
                "teleport of block | 347 | 1.82 | 0.032 | 0.054 | 0.71 [0.63, 0.76] | 0.61 "
                "[0.55, 0.66] | 57% | 6.6 grey levels"
            ),
            (
                "colour of agent | 361 | 1.96 | 0.046 | 0.068 | 0.57 [0.49, 0.62] |  | 43% | "
                "8 grey levels"
            ),
        ],
    },
    "geometry": {
        (
            "Straightness, the mean cosine of velocities 5 env steps apart. 39 held-out "
            "episodes, 95% intervals over episodes."
        ): [
            "path | S | turns | still",
            "latents | 0.130 [0.080, 0.190] | 90 | 1.0%",
            "random encoder | -0.480 [-0.530, -0.420] | 29 | -5.1%",
            "states | 0.670 [0.620, 0.730] | 144 | 6.4%",
            "pixels | 0.350 [0.300, 0.410] | 112 | 3.2%",
        ],
        "Latents beside Gaussian samples of 38, one frame per held-out episode.": [
            "number | latents | Gaussian | inside",
            "SIGReg statistic | 4.400 | 0.940 to 1.190 | no",
            "of the worst direction | 9.200 | 0.000 to 2.600 | no",
            "std | 0.913 | 0.820 to 1.110 | yes",
            "skewness | -0.270 | -0.140 to 0.160 | no",
            "kurtosis | 0.580 | -0.330 to 0.720 | yes",
        ],
        (
            "How many of the 192 dimensions are in use. 917 frames of 39 held-out episodes, "
            "95% intervals over episodes."
        ): [
            "effective rank | directions with 99% of the variance",
            "4.9 | 7",
        ],
        (
            "Rank correlation of costs, over pairs of frames up to so many env steps apart. "
            "39 held-out episodes, 95% intervals over episodes."
        ): [
            "cost | against | 10 | 25",
            "l2 | steps-to-go | 0.830 [0.770, 0.850] | 0.530 [0.460, 0.590]",
            "temporal | steps-to-go | 0.970 [0.910, 0.990] | 0.670 [0.600, 0.730]",
            "l2 | distance of states | 0.650 [0.590, 0.670] | 0.350 [0.280, 0.410]",
            "temporal | distance of states | 0.760 [0.700, 0.780] | 0.460 [0.390, 0.520]",
            "l2 | steps-to-go to another room | 0.450 [0.390, 0.470] | 0.150 [0.080, 0.210]",
            (
                "temporal | steps-to-go to another room | 0.570 [0.510, 0.590] | 0.270 "
                "[0.200, 0.330]"
            ),
        ],
        (
            "Env steps at which the mean cost comes to 90% of its plateau. The plateau is the "
            "mean of the farthest quarter of offsets. 39 held-out episodes, 95% intervals "
            "over episodes."
        ): [
            "cost | env steps | a straight line",
            "l2 | 10 [5, 15] | 22",
            "temporal | 25 [10, 26] | 23",
        ],
        (
            "Open-loop error, mean square per dimension, beside that of no change. 39 "
            "held-out episodes, 95% intervals over episodes."
        ): [
            "block | error | no change",
            "1 | 0.070 [0.050, 0.090] | 0.410 [0.330, 0.460]",
            "2 | 0.140 [0.100, 0.180] | 0.820 [0.660, 0.920]",
            "3 | 0.210 [0.150, 0.270] | 1.230 [0.990, 1.380]",
        ],
    },
    "decoding": {
        (
            "Pictures of 511 frames of 73 held-out episodes; decoder and nearest frame know "
            "2,011 frames of 287 episodes"
        ): [
            (
                "drawn by | share of the mean picture's error | 95% interval | MSE | PSNR, dB "
                "| ms a picture"
            ),
            "decoder | 0.027 | 0.022 to 0.031 | 0.012 | 30.0 | 0.83",
            "nearest frame | 0.108 | 0.088 to 0.124 | 0.048 | 27.0 | 0.24",
            "decoder, latents of other frames | 0.243 | 0.198 to 0.279 | 0.108 | 22.0 | ",
            "mean picture | 0.351 | 0.286 to 0.403 | 0.156 | 18.0 | ",
        ],
        "Share of the mean picture's error while imagining, 64 held-out episodes": [
            "blocks | env steps | imagined | encoded | nearest frame | first frame kept",
            "0 | 0 | 0.43 | 0.15 | 0.68 | 1.26",
            "1 | 5 | 0.47 | 0.19 | 0.72 | 1.3",
            "2 | 10 | 0.52 | 0.24 | 0.77 | 1.35",
        ],
    },
    "economy": {
        "one frame of this run, counted": [
            ("tokens | numbers | MFLOP to encode | MFLOP to predict | MFLOP to predict, plain"),
            "3 | 192 | 15.1 | 0.52 | 0.61",
        ],
        "one plan of this run for one environment, measured on a CPU": [
            (
                "planner | latents predicted | tokens predicted | GFLOP | ms per plan | least "
                "to most | ms of processor | plans | env steps | ms per env step | GFLOP/s"
            ),
            ("CEM | 45,000 | 135,000 | 11 | 2,880 | 2,710 to 3,060 | 2,950 | 21 | 25 | 115 | 3.5"),
            (
                "amortised | 45,001 | 135,003 | 12 | 3,880 | 3,710 to 4,060 | 3,950 | 20 | 20 "
                "| 194 | 4.5"
            ),
        ],
        "a remembered frame of this run in bytes, and how many latents they would hold": [
            "as | bytes | latents",
            "latent | 768 | 1",
            "picture | 12,288 | 16",
        ],
        "parameters of this run by part; the weights take 2.22 MB": [
            "part | parameters",
            "encoder | 301,000",
            "total | 555,950",
        ],
        "models of others, published or estimated: none of it was measured here": [
            ("model | kind | tokens per frame | numbers per frame | s per plan | on | parameters"),
            "One | published | 6 | 60 | 47 | L40S | 1 M",
            "Two | estimated | 450 | 4,500 | - | - | 2 M",
        ],
        ("tokens that a plan predicts, as published: candidates x horizon x iterations x tokens"): [
            (
                "model | candidates | horizon | iterations | tokens | product | s per plan | "
                "us per token"
            ),
            "One | 300 | 5 | 30 | 6 | 270,000 | 47 | 174",
        ],
    },
    "planning": {
        (
            "Imagined against real latents. One plan for each of 23 held-out pairs of 19 "
            "episodes, carried out to its end. Intervals over episodes."
        ): [
            (
                "env steps | latent error | if nothing changed | ratio | 95% interval | place "
                "off by, px | its 95% interval"
            ),
            "5 | 1.13 | 4.21 | 0.27 | 0.220 to 0.310 | 3.5 | 3.10 to 4.30",
            "10 | 2.26 | 8.42 | 0.54 | 0.440 to 0.620 | 7.0 | 6.20 to 8.60",
        ],
        "Attempts drawn: goals 25 steps ahead, 50 allowed.": [
            "attempt | goal | reached | env steps | plans",
            "1 | in another region | yes | 10 | 2",
            "2 | in the same region | no | 15 | 3",
        ],
    },
}


@pytest.fixture(scope="module")
def made():
    return {name: make() for name, make in distinct.ALL.items()}


def lines(rows):
    heads = dict.fromkeys(name for row in rows for name in row)
    return [" | ".join(heads), *(" | ".join(map(str, row.values())) for row in rows)]


def test_every_analysis_is_here():
    assert sorted(distinct.ALL) == registry.names("analyses")
    assert SENTENCES.keys() == HEADLINES.keys() == TABLES.keys() == distinct.ALL.keys()


@pytest.mark.parametrize("name", distinct.ALL)
def test_every_number_is_said_of_what_it_is(name, made):
    section = importlib.import_module(f"lewm.report.sections.{name}")
    assert list(section.sentences(made[name])) == SENTENCES[name]


@pytest.mark.parametrize("name", distinct.ALL)
def test_every_headline_is_the_number_of_its_name(name, made):
    assert sections.headlines(made[name]) == HEADLINES[name]


@pytest.mark.parametrize("name", distinct.ALL)
def test_every_cell_of_a_table_stands_under_its_name(name, made):
    tables = made[name].tables()
    assert {caption: lines(tables[caption]) for caption in TABLES[name]} == TABLES[name]
    assert len(tables) - len(TABLES[name]) == {"economy": 2}.get(name, 0), "of others, as published"


def test_points_are_tabled_as_they_are_drawn(made):
    result = made["probing"]
    ((caption, rows),) = sections.rows(result).items()
    assert caption.startswith("9 of the 9 held-out pictures")
    for i, row in enumerate(rows):
        (x, y), (a, b), (c, d) = (of[i] for of in (result.states, result.predictions, result.plane))
        assert row == {
            "episode": str(40 + i),
            **{"true x": f"{x:.4g}", "true y": f"{y:.4g}", "read x": f"{a:.4g}"},
            **{"read y": f"{b:.4g}", "component 1": f"{c:.2f}", "component 2": f"{d:.2f}"},
        }
    (note,) = sections.notes("probing", [result])
    assert "These hold 81% of the variance" in note


def test_durations_are_told_in_their_unit():
    told = [words.short_time(seconds) for seconds in (2.94, 0.0123, 0.000456)]
    assert told == ["2.9 s", "12.3 ms", "0.456 ms"]
    told = [words.duration(seconds) for seconds in (2.94, 42.4, 61.0, 725.0)]
    assert told == ["2.9 s", "42 s", "1 min 01 s", "12 min 05 s"]
