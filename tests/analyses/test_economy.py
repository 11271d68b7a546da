"""Arithmetic as by hand, plans counted whole, records that say where they are from, and a dot for
every token."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lewm import registry
from lewm.analyses import economy
from lewm.analyses.economy import (
    PAPER,
    PUBLISHED,
    Economy,
    EconomyResult,
    Others,
    count_flops,
    count_plan,
)
from lewm.benchmarks import plan as planners_benchmark
from lewm.benchmarks.engine import flops, machine_limit
from lewm.cli.commands.economy import main
from lewm.cli.main import main as lewm
from lewm.contracts import DataSpec, Statistics, Tokened, WorldSpec
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.planning.solvers.gradient import Gradient
from lewm.report.canvas import THEME
from lewm.report.sections.economy import DOT_PT, PITCH_PT, draw
from lewm.runs.answers import load_result, save_result
from lewm.runs.run import Unsupported, open_run

# --------------------------------------------------------------------------------------- arithmetic


def test_a_linear_costs_two_operations_per_weight_and_row():
    linear, x = torch.nn.Linear(7, 5), torch.randn(3, 4, 7)
    assert count_flops(lambda: linear(x)) == 2 * (3 * 4) * 7 * 5
    with torch.no_grad():
        assert count_flops(lambda: linear(x)) == 2 * (3 * 4) * 7 * 5
    assert count_flops(lambda: torch.nn.functional.gelu(x) + x) == 0


def test_attention_on_a_cpu_is_counted_forwards_and_backwards():
    heads, tokens, asked, width = 3, 11, 4, 8
    q, k, v = (torch.randn(2, heads, n, width, requires_grad=True) for n in (asked, tokens, tokens))
    products = 2 * (2 * heads * asked * tokens * width)  # keys and queries, shares and values
    with torch.no_grad():
        assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * products
    there_and_back = count_flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert there_and_back == 2 * products * 3.5, (
        "the scores are made anew, and two gradients for each of two products"
    )


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_every_kind_of_product_of_the_engine_is_counted(precision):
    from lewm.models.nn.products import PACKING, Affine

    # large enough to be laid out, or quantised
    wide = PACKING[precision](Affine(torch.randn(512, 400), None))
    with torch.no_grad():
        assert count_flops(lambda: wide(torch.randn(1, 30, 400))) == 2 * 30 * 400 * 512


@pytest.fixture(scope="module")
def opened(small_run):
    return open_run(small_run, device="cpu")


@pytest.fixture(scope="module")
def look(opened):
    rows = np.array([0, 3])
    now, goal = opened.episodes.rows("pixels", rows)[:, None]
    return now, goal


SPEC = WorldSpec("any", "", 32, (-1.0, -1.0), (1.0, 1.0), (), (), 0)


def test_encoding_a_frame_costs_what_its_products_do(opened):
    config, spec = opened.model.config, opened.model.spec
    width, tokens, pixels = (
        config.encoder_width,
        (spec.image_size // config.patch_size) ** 2,
        2 * config.patch_size,
    )
    assert config.encoder_depth == 1
    patches = tokens * width * 3 * pixels**2
    tokens += 1
    block = tokens * width * 2 * width + width * width  # keys and values of all, the query of one
    # attention, its output, the MLP
    block += 2 * tokens * width + width * width + 2 * width * 4 * width
    projector = width * config.projector_dim + config.projector_dim * config.latent_dim
    frame = torch.zeros(1, 1, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
    with torch.no_grad():
        assert count_flops(lambda: opened.model.encode(frame)) == 2 * (patches + block + projector)


def test_a_plan_costs_its_pictures_and_its_rounds(opened, look):
    model, planning = opened.model, PlanningConfig(L2(), CEM(20, 4, 3))
    frame = torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)
    with torch.no_grad():
        pictures = 2 * count_flops(lambda: model.encode(frame))

    def rounds(unroll):
        g, blocks = torch.zeros(1, 1, model.latent_dim), model.spec.block_dim
        sizes = (20, 20, 20, 1)  # the final mean is scored alone
        return sum(
            flops(unroll, g, torch.zeros(1, 0, blocks), torch.zeros(1, n, 5, blocks)) for n in sizes
        )

    assert count_plan(model, planning, SPEC, look) == (
        pictures + rounds(model.engine()),
        (3 * 20 + 1) * 5,
    )
    assert count_plan(model, planning, SPEC, look, plain=True) == (
        pictures + rounds(model.rollout),
        (3 * 20 + 1) * 5,
    )
    low = count_plan(model, replace(planning, precision="int8"), SPEC, look, plain=True)
    assert low[0] == pictures + rounds(model.rollout), "the plain way knows no low precision"


def test_gradients_are_paid_for(opened, look):
    done, calls = count_plan(opened.model, PlanningConfig(L2(), Gradient(4, 3)), SPEC, look)
    same = CEM(4, 2, (calls // 5 - 1) // 4)
    forwards, as_many = count_plan(opened.model, PlanningConfig(L2(), same), SPEC, look)
    pictures, _ = count_plan(opened.model, PlanningConfig(L2(), CEM(2, 2, 1)), SPEC, look)
    assert abs(as_many - calls) <= 20
    assert done - pictures > 1.5 * (forwards - pictures)


# ----------------------------------------------------------------------------------------- analysis

QUICK = Economy(plans=3, paper_plans=1, limit_s=0)


@pytest.fixture(scope="module")
def result(opened):
    before = {name: x.clone() for name, x in opened.model.state_dict().items()}
    found = QUICK.run(opened)
    assert all(torch.equal(x, before[name]) for name, x in opened.model.state_dict().items())
    assert not any(module.training for module in opened.model.modules())
    return found


def without_time(values):
    timed = ("seconds", "seconds_range", "processor_seconds", "gflops_per_s")
    plans = {
        name: {k: v for k, v in plan.items() if k not in timed}
        for name, plan in values["plans"].items()
    }
    return {**values, "plans": plans}


def test_what_a_run_costs(opened, result):
    values, model = result, opened.model
    assert (values.tokens_per_frame, values.latent_numbers) == (1, 192)
    assert values.bytes_per_frame == {
        "latent": 768, "raw picture, 32 px": 3 * 32 * 32, "196 patch tokens": 301_056,
        "256 patch tokens": 393_216,
    }  # fmt: skip
    parts = dict(values.parameters)
    assert parts.pop("total") == sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert values.weights_bytes == sum(x.nbytes for x in [*model.parameters(), *model.buffers()])
    paper, own = values.plans[PAPER], values.plans[values.planner]
    assert paper.predictor_calls == (300 * 30 + 1) * 5
    assert paper.steps == 25
    assert paper.predicted_share == pytest.approx(1, abs=0.01)
    assert paper.flops > own.flops > 2 * values.flops.encode
    assert paper.flops == pytest.approx(45_005 * values.flops.predict, rel=0.02)
    assert values.scaling.candidates == pytest.approx(2, abs=0.01)
    assert values.scaling.horizon == pytest.approx(2, abs=0.05)
    for plan in (paper, own):
        least, most = plan.seconds_range
        assert 0 < least <= plan.seconds <= most
        assert plan.gflops_per_s == pytest.approx(plan.flops / plan.seconds / 1e9)


def test_a_run_that_plans_as_the_paper_is_measured_once_and_but_for_time_as_before(opened, result):
    again = without_time(QUICK.run(replace(opened, planning=PlanningConfig(L2(), CEM()))).to_json())
    before = without_time(result.to_json())
    assert again.pop("planner") == PAPER
    assert list(again["plans"]) == [PAPER]
    assert again == {name: value for name, value in before.items() if name != "planner"} | {
        "plans": {PAPER: before["plans"][PAPER]}
    }


def test_it_is_stored_and_read_back(result, tmp_path):
    save_result(tmp_path, result, {})
    read, _ = load_result(tmp_path, EconomyResult)
    assert read == result
    assert [panel.svg for panel in draw(read)] == [panel.svg for panel in draw(result)]


def test_what_cannot_be_measured_is_refused(opened):
    with pytest.raises(Unsupported, match="knows how it plans"):
        QUICK.run(replace(opened, planning=None))
    with pytest.raises(Unsupported, match="1 held-out"):
        QUICK.run(replace(opened, test_ids=()))


# ------------------------------------------------------------------------------------------ records


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model.name)
def test_a_record_says_where_it_is_from_and_never_that_it_was_measured(model):
    assert model.kind in ("published", "estimated")
    assert model.source
    assert re.fullmatch(r"20\d\d-\d\d(; 20\d\d-\d\d)*", model.date)
    assert "measured" not in " ".join(str(value) for value in asdict(model).values()).replace(
        "were measured is", ""
    )
    assert model.kind == "published" or (
        model.tokens and "Estimated:" in model.remark and "Published:" in model.remark
    )
    assert (model.seconds is None) == (not model.hardware)
    if model.tokens and model.numbers:
        assert model.numbers >= model.tokens


def test_a_plan_predicts_candidates_x_horizon_x_iterations_x_tokens():
    tokens = {model.name: model.predicted_tokens for model in PUBLISHED}
    assert tokens["LeWM"] == 300 * 5 * 30
    assert tokens["DINO-WM"] == 196 * tokens["LeWM"]
    assert tokens["V-JEPA 2-AC"] == 800 * 10 * 256
    assert tokens["Cosmos"] is tokens["Sora"] is None


def test_without_a_run_nothing_is_measured():
    result = Others()
    assert set(result.to_json()) == {"published", "sora_factor"}
    for caption, rows in result.tables().items():
        assert "run" not in caption.split()
        assert len({tuple(row) for row in rows}) == 1, "all rows of a table have the same columns"


# ----------------------------------------------------------------------------------------- pictures


def dots(svg):
    """Of every line of dots in the picture, how many it has, summed over the lines of a field."""
    counts = []
    for path in re.findall(r"<path [^>]*stroke-linecap: round[^>]*>", svg):
        ends = re.findall(
            r"M ([\d.]+) [\d.]+ \n?L ([\d.]+) ", re.search(r'd="([^"]*)"', path, re.DOTALL)[1]
        )
        pitch = float(re.search(r"stroke-dasharray: 0,([\d.]+)", path)[1])
        counts.append(sum(int((float(end) - float(start)) / pitch) + 1 for start, end in ends))
    return counts


def test_every_token_has_its_dot(result):
    for found, ours in ((Others(), []), (result, [1])):
        expected = sorted([*ours, *(model.tokens for model in PUBLISHED if model.tokens)])
        svg = draw(found)[0].svg
        assert sorted(dots(svg)) == expected
        assert len(svg) < 40_000
        accent = svg.count(f"var(--accent, {THEME['accent']})")
        assert (accent > 0) == bool(ours), "ours, and only ours, in its colour"
    assert PITCH_PT > DOT_PT


def test_panels_are_whole_and_names_stay_text(result):
    evil = """x" onload='y'><script>&amp;$\\frac$"""
    first, *others = result.published
    plans = {evil if name == PAPER else name: plan for name, plan in result.plans.items()}
    published = (replace(first, name=evil), *others)
    result = replace(result, published=published, plans=plans)
    panels = draw(result)
    assert len(panels) == 3
    for panel in panels:
        root = ElementTree.fromstring(panel.svg)
        assert "<script" not in panel.svg
        assert evil in "".join(root.itertext())
        assert all(
            float(size) >= 9
            for size in re.findall(r"font: (?:bold |normal )?(\d+\.?\d*)px", panel.svg)
        )
    shown = "".join(ElementTree.fromstring(panels[1].svg).itertext())
    assert shown.count("measured, ") == 2
    assert shown.count("published, ") == sum(model.seconds is not None for model in PUBLISHED)


# ----------------------------------------------------------------------------------------- commands


def test_the_command_without_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main([])
    shown = capsys.readouterr().out
    assert re.search(r"DINO-WM +published +196 +75,264 +47 +L40S", shown)
    assert re.search(r"Sora +estimated +8,100 +- +-", shown)
    assert re.search(r"V-JEPA 2-AC +800 +1 +10 +256 +2,048,000 +16", shown)
    assert "cannot be traced" in shown
    assert "this run" not in shown
    ElementTree.parse(tmp_path / "economy.svg")


def test_the_command_with_a_run(small_run, tmp_path, monkeypatch, capsys):
    # its class's defaults
    monkeypatch.setattr(
        Economy, "__init__", lambda self, seed: object.__setattr__(self, "seed", seed)
    )
    for name in ("plans", "paper_plans"):
        monkeypatch.setattr(Economy, name, 1)
    monkeypatch.setattr(Economy, "limit_s", 0)
    main(
        [
            str(small_run),
            "--out",
            str(tmp_path / "new" / "e.svg"),
            "--json",
            str(tmp_path / "e.json"),
            "--device=cpu",
        ]
    )
    shown = capsys.readouterr().out
    assert re.search(rf"{re.escape(PAPER)} +45,005 ", shown)
    assert re.search(r"latent +768 +1\b", shown)
    told = json.loads((tmp_path / "e.json").read_text())
    assert told["run"] == str(small_run)
    assert told["plans"][PAPER]["predictor_calls"] == 45_005
    assert "this run" in (tmp_path / "new" / "e.svg").read_text()


def test_another_format_is_refused_before_any_work(small_run, tmp_path):
    with pytest.raises(ValueError, match=r"unknown picture format '\.pdf'.*\.svg"):
        main([str(small_run), "--out", str(tmp_path / "e.pdf")])
    assert not list(tmp_path.iterdir())


def test_the_table_of_planners_tells_the_arithmetic(monkeypatch, capsys):
    paper = planners_benchmark.Planner(
        planners_benchmark.PAPER, PlanningConfig(L2(), CEM(20, 4, 3))
    )
    monkeypatch.setattr(planners_benchmark, "planners", lambda: (paper,))
    monkeypatch.setattr(planners_benchmark.LeWMConfig, "paper", planners_benchmark.LeWMConfig.tiny)
    assert lewm(["bench", "plan"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"multiply large matrices at \d+ GFLOP/s", shown)
    done, plain, speed = (
        float(x) for x in re.search(r"1x +305 +([\d.]+) +([\d.]+) +([\d.]+)", shown).groups()
    )
    assert 0.8 < plain / done < 1.3, "the engine fills rounds of few candidates up"
    assert 0 < speed < 10 * machine_limit()


@pytest.mark.parametrize(
    ("place", "name", "size"),
    [(0, "lewm", 224), (1, "dino-wm", 224), (2, "vjepa2-ac", 256), (3, "dreamer", 64)],
)
def test_what_is_computed_is_what_the_models_count(place, name, size):
    """On the meta device: shapes alone."""
    told = economy.COMPUTED[place]
    spec = DataSpec(size, 5, Statistics((0.5,) * 3, (0.2,) * 3, (0.0,) * 2, (1.0,) * 2))
    with torch.device("meta"), torch.no_grad():
        model = registry.load("models", name).paper().build(spec).eval()
        latent, past = torch.zeros(1, 1, model.latent_dim), torch.zeros(1, 0, spec.block_dim)
        blocks = torch.zeros(1, 4, 1, spec.block_dim)
        predict = economy.count_flops(lambda: model.rollout(latent, past, blocks)) / 4
        if name == "dino-wm":  # which remembers what its encoder said
            net = model.encoder.net
            encode = economy.count_flops(lambda: net(torch.zeros(1, 3, 196, 196)))
        else:
            pixels = torch.zeros(1, 1, 3, size, size, dtype=torch.uint8)
            encode = economy.count_flops(lambda: model.encode(pixels))
    assert (told.predict, told.encode) == pytest.approx((predict / 1e9, encode / 1e9))
    assert told.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert told.numbers == model.latent_dim
    assert told.tokens == (model.tokens if isinstance(model, Tokened) else 1)
