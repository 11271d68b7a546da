"""The page as a file: whole, small, quiet, and honest about what it cannot hold."""

import json
import re
import subprocess
from dataclasses import replace

import pytest
import torch

from lewm.cli.main import main
from lewm.contracts import DataSpec
from lewm.data.episodes import Episodes
from lewm.experiments import quickstart, recipes
from lewm.lab import page
from lewm.lab.page import BUDGET, MODULES, library, render
from lewm.planning.config import PlanningConfig, attach
from lewm.planning.heads.amortised import AmortisedConfig
from lewm.planning.heads.temporal import TemporalConfig
from lewm.planning.objectives.temporal import Temporal
from lewm.planning.solvers.amortised import Amortised
from lewm.runs.run import Run
from lewm.worlds.two_room import TwoRoomWorld
from tests.support.exported import CONFIGS, STATISTICS, heads_of, lewm, run_of
from tests.support.node import needs_node


@pytest.fixture(scope="module")
def run(small_data):
    model = lewm(**CONFIGS["overlap"])
    return run_of(small_data, model, heads_of(model))


@pytest.fixture(scope="module")
def written(run):
    return render(run, "<script>alert(1)</script>", "lewm lab 'a b' --out \"</script>\"")


def data_of(text):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*)</script>', text)[1]
    )


def test_everything_is_inside(written, run):
    assert not re.findall(r'(?:src|href|action)="(?!data:,")', written)
    assert "http:" not in written
    assert "https:" not in written
    assert "@import" not in written
    assert "default-src 'none'" in written, "and the browser holds it to that"
    data = data_of(written)
    assert set(data) == {"exported", "wasm", "states", "economy", "rule"}
    assert len(data["states"]) == 256
    known = {tuple(state) for i in run.fit_ids for state in run.episodes.states(i).tolist()}
    assert {tuple(state) for state in data["states"]} <= known, "training frames alone"
    assert data["rule"] == {"knots": run.model.config.sigreg_knots, "last": 3.0}


def test_a_name_is_text(written):
    assert "<script>alert" not in written
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written
    assert len(re.findall("</script>", written)) == 2


def test_it_says_what_the_model_never_saw(written):
    assert "never saw other walls" in " ".join(written.split())
    assert "many layouts" in page._never("walls,agent_color=00ff00")


@needs_node
def test_the_modules_are_one_function(tmp_path):
    """Each gives what its file exports; none touches a page by being read."""
    names = json.dumps(list(MODULES))
    file = tmp_path / "whole.js"
    file.write_text(
        library() + "\nconst made = library();\nconst shown = Object.fromEntries("
        f"{names}.map((name) => [name, Object.keys(made[name]).sort()]));\n"
        "console.log(JSON.stringify(shown));"
    )
    done = subprocess.run(["node", str(file)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert list(found) == list(MODULES)
    assert "Model" in found["model.js"]
    assert "serve" in found["mind.js"]
    assert found["widgets.js"] == ["start"]


def test_a_tiny_model_fits_the_budget(tmp_path):
    """Of the quickstart's recipe, with weights that no training has made smaller."""
    data = tmp_path / "episodes.h5"
    assert (
        main(["collect", "two-room", "--out", str(data), "--episodes=13", "--image-size=64"]) == 0
    )
    torch.manual_seed(0)
    config = recipes.load(quickstart.RECIPE).model
    model = config.build(DataSpec(64, 5, STATISTICS)).eval().requires_grad_(False)
    heads = {
        name: head.build(model.latent_dim, model.spec.block_dim).eval().requires_grad_(False)
        for name, head in {"temporal": TemporalConfig(), "amortised": AmortisedConfig()}.items()
    }
    planning = attach(PlanningConfig(Temporal(), Amortised()), heads)
    with Episodes.open(data) as episodes:
        run = Run(
            model,
            episodes,
            tuple(range(10)),
            (10, 11, 12),
            open_world=lambda number, *look: TwoRoomWorld(number, 64, *look),
            planning=planning,
            heads=heads,
        )
        size = len(render(run, "tiny", "lewm lab RUN").encode())
    assert 1_500_000 < size <= BUDGET


def test_a_run_without_heads_is_refused_by_name(small_run, tmp_path, capsys):
    out = tmp_path / "lab.html"
    assert main(["lab", str(small_run), "--out", str(out)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "expected heads amortised and temporal" in said
    assert "lewm fit" in said
    assert not out.exists()


def test_a_quickstart_goes_on_where_no_page_can_be(run, tmp_path):
    """And links to the page where there is one."""
    made = quickstart._lab(tmp_path, run)
    assert made == "lab.html"
    assert "lewm lab" in (tmp_path / "lab.html").read_text()
    without = tmp_path / "without"
    without.mkdir()
    assert quickstart._lab(without, replace(run, heads={})) is None
    assert not (without / "lab.html").exists()


def test_a_report_links_to_the_page_beside_it(small_run, tmp_path):
    out = tmp_path / "report.html"
    assert main(["report", str(small_run), "--out", str(out)]) == 0
    assert "lab.html" not in out.read_text()
    (tmp_path / "lab.html").write_text("page")
    assert main(["report", str(small_run), "--out", str(out)]) == 0
    assert '<a href="lab.html">' in out.read_text()
