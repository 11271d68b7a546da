"""The command line as a user meets it: quick to answer, says what it did, writes the same numbers
as JSON."""

import dataclasses
import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro

import lewm
from lewm import registry
from lewm.cli.commands import collect as collect_command
from lewm.cli.commands import doctor
from lewm.cli.flags import described
from lewm.cli.main import COMMANDS, main
from lewm.contracts import Progress
from lewm.experiments import quickstart, recipes
from lewm.files import read_json
from lewm.runs import checkpoints
from tests.support.project import SIZE, train_command

ROOT = Path(lewm.__file__).parent


# ----------------------------------------------------------------------------------------- the door


def test_help_lists_every_command_and_imports_next_to_nothing():
    heavy = "{'torch', 'numpy', 'tyro', 'rich'} & set(sys.modules)"
    code = f"import sys; from lewm.cli.main import main; main(['--help']); sys.exit(bool({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, "something heavy was imported"
    assert all(re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE) for name in COMMANDS)


def test_every_command_is_a_file_and_every_file_a_command():
    files = (ROOT / "cli" / "commands").glob("[a-z]*.py")
    assert {path.stem.replace("_", "-") for path in files} == COMMANDS.keys()


def test_every_package_is_installed():
    found = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]["find"]
    assert found == {"include": ["lewm*"]}
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lewm {lewm.__version__}\n"


@pytest.mark.parametrize("words", [["-h"], ["help"]])
def test_help(words, capsys):
    assert main(words) == 0
    assert "usage: lewm COMMAND" in capsys.readouterr().out


def test_no_command_is_an_error_with_help(capsys):
    assert main([]) == 2
    assert "quickstart" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_each_of_its_flags(name, capsys):
    words = [name, "two-room-tiny", "--help"] if name == "train" else [name, "--help"]
    with pytest.raises(SystemExit, match="0"):
        main(words)
    shown = capsys.readouterr().out
    assert f"usage: lewm {name}" in shown
    assert not unexplained(shown)


def unexplained(shown):
    """Flags in tyro's help that go straight from their name and type to their default."""
    flat = " ".join(re.sub("[│╭╰╮╯─]", " ", shown).split())
    return re.findall(r"(--[\w.-]+) (?:\S*[A-Z}\]] )?\((?:default|required)", flat)


def test_unexplained_flags_are_found(capsys):
    def run(bare: int = 0, said: int = 0, flag: bool = False, choice: bool | None = None):
        """Do it.

        Args:
            said: something.
        """

    with pytest.raises(SystemExit):
        tyro.cli(run, args=["--help"])
    assert unexplained(capsys.readouterr().out) == ["--bare", "--no-flag", "--choice"]


def test_help_on_train_lists_the_recipes(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^{name} +\w", shown, re.MULTILINE) for name in recipes.RECIPES)


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(folder="."):
        raise RuntimeError("a bug")

    monkeypatch.setattr("lewm.cli.commands.doctor.examine", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_a_full_disk_is_said_in_one_paragraph(monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "episodes.h5.partial")

    monkeypatch.setattr("lewm.data.collecting.collect", full)
    assert main(["collect", "two-room", "--out", "episodes.h5"]) == 2
    assert capsys.readouterr().err.startswith(
        "lewm collect: episodes.h5.partial: No space left on device. What was complete"
    )


def test_an_extra_that_is_missing_is_named(monkeypatch, capsys, small_run, tmp_path):
    def missing(frames, path):
        raise ImportError("MP4 needs the package 'av'. Install it with: pip install 'lewm[video]'")

    monkeypatch.setattr("lewm.cli.commands.plan.save_animation", missing)
    assert (
        main(["plan", str(small_run), "--out", str(tmp_path / "plan.mp4"), "--iterations=1"]) == 2
    )
    assert "pip install 'lewm[video]'" in capsys.readouterr().err


def test_tensorboard_that_is_missing_is_named_before_any_training(
    monkeypatch, capsys, small_data, tmp_path
):
    for package in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main(train_command(small_data, tmp_path / "run", "--training.tensorboard")) == 2
    said = capsys.readouterr().err
    assert "--training.tensorboard needs" in said
    assert "pip install 'lewm[tensorboard]'" in said
    assert not (tmp_path / "run").exists()


def test_of_several_processes_the_first_says_what_is_wrong(monkeypatch, capsys):
    said = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["data", "info", "nothing.h5"]) == 2
        said[rank] = capsys.readouterr().err
    assert said["0"].startswith("lewm data: nothing.h5: expected")
    assert said["1"] == ""


def test_warnings_are_sentences(monkeypatch, capsys):
    def warn(*_, **__):
        import warnings

        warnings.warn("discarding x.partial", stacklevel=1)
        raise ValueError("stop")

    monkeypatch.setattr("lewm.data.collecting.collect", warn)
    assert main(["collect", "two-room", "--out", "x"]) == 2
    assert (
        capsys.readouterr().err
        == "lewm collect: warning: discarding x.partial\nlewm collect: stop\n"
    )


# ------------------------------------------------------------------------------------ collect, data


def test_collect_says_what_there_is_and_has_nothing_to_do_twice(tmp_path, capsys):
    words = [
        "collect",
        "two-room",
        "--out",
        str(tmp_path / "e.h5"),
        "--episodes=2",
        "--image-size=16",
        "--policy=random",
    ]
    assert main([*words, "--look=agent_color=0000ff", "--json", str(tmp_path / "e.json")]) == 0
    assert "e.h5 holds 2 episodes, 202 frames of 16 px" in capsys.readouterr().out
    told = json.loads((tmp_path / "e.json").read_text())
    assert (told["episodes"], told["provenance"]["look"]) == (2, "agent_color=0000ff")
    assert main([*words, "--look=agent_color=0000ff"]) == 0
    assert capsys.readouterr().out.startswith("nothing to do: ")


def test_collect_makes_the_episodes_of_the_tiny_recipe_unless_told_otherwise():
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(collect_command.run).parameters.items()
    }
    recipe = recipes.load("two-room-tiny").collection
    assert given["policy"] is None, "what the world offers first: its expert, where it has one"
    assert (given["episodes"], "expert", given["seed"]) == (
        recipe.episodes,
        recipe.policy,
        recipe.seed,
    )
    assert given["compression"] is None


def test_data_info_and_verify(small_data, tmp_path, capsys):
    assert main(["data", "info", str(small_data), "--json", str(tmp_path / "info.json")]) == 0
    assert "provenance policy " in capsys.readouterr().out
    assert json.loads((tmp_path / "info.json").read_text())[str(small_data)]["steps"] == 16 * 101
    assert main(["data", "verify", str(small_data)]) == 0
    assert re.search(r"sound +True", capsys.readouterr().out)


def test_verify_looks_at_all_files_before_it_complains(small_data, tmp_path, capsys):
    (tmp_path / "torn.h5").write_bytes(small_data.read_bytes()[:50_000])
    assert (
        main(
            [
                "data",
                "verify",
                str(tmp_path / "torn.h5"),
                str(small_data),
                "--json",
                str(tmp_path / "v.json"),
            ]
        )
        == 2
    )
    said = capsys.readouterr()
    assert re.search(r"sound +True", said.out)
    assert "torn.h5: expected a whole HDF5 file" in said.err
    assert "error" in json.loads((tmp_path / "v.json").read_text())[str(tmp_path / "torn.h5")]


# -------------------------------------------------------------------------------------------- train


def test_the_flags_of_a_recipe_are_its_fields_with_help():
    recipe = recipes.load("two-room-tiny")
    for config in (recipe.model, recipe.training):
        flags = described(config)
        assert type(config)(**vars(flags())) == config
        assert [f.name for f in dataclasses.fields(flags)] == [
            f.name for f in dataclasses.fields(config)
        ]
    training = described(recipe.training)
    said = {f.name: f.type.__metadata__[0].help for f in dataclasses.fields(training)}
    assert said["weight_decay"] == said["clip"] == "of AdamW, and the largest norm of the gradient."
    assert all(said.values())


def test_train_reports_and_has_nothing_to_do_twice(small_data, small_run, tmp_path, capsys):
    assert main(train_command(small_data, small_run, "--json", str(tmp_path / "t.json"))) == 0
    assert "nothing to do: " in capsys.readouterr().out
    told = json.loads((tmp_path / "t.json").read_text())
    assert (told["recipe"], told["alarm"], told["metrics"]["update"]) == ("two-room-tiny", "", 30)
    experiment = read_json(small_run / checkpoints.EXPERIMENT)
    assert (experiment["recipe"], experiment["world"]) == ("two-room-tiny", "two-room")
    assert experiment["model"]["config"]["encoder_width"] == 32


def test_a_collapse_is_said_at_the_end(small_data, tmp_path, capsys):
    words = [
        "--model.sigreg-weight=0",
        "--training.updates=100",
        "--training.learning-rate=0.003",
        "--json",
        str(tmp_path / "t"),
    ]
    assert main(train_command(small_data, tmp_path / "run", *words)) == 0
    assert capsys.readouterr().err.rstrip().splitlines()[-1].startswith("latents have collapsed")
    assert json.loads((tmp_path / "t").read_text())["alarm"]


@pytest.mark.slow
def test_two_processes_train_and_one_speaks(small_data, tmp_path):
    words = train_command(
        small_data, tmp_path / "run", "--training.devices=2", "--training.updates=12"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lewm.cli", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("effective_rank") == 1
    assert checkpoints.load(tmp_path / "run").latent_dim == 192


@pytest.mark.slow
def test_two_processes_train_both_stages_as_one_does(small_data, tmp_path):
    """A part that rests has no gradient, which several processes must know of."""
    small = ["training.updates=6", "training.batch-size=8", "training.checkpoint-every=6"]
    small += ["training.precision=32-true", "model.predictor-depth=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ends = []
    for devices in ("1", "2"):
        run = tmp_path / devices
        words = ["train", "two-room-tiny+vjepa2-ac", "--data", str(small_data), "--out", str(run)]
        words += [f"--image-size={SIZE}", f"--training.devices={devices}", "--model.patch-size=8"]
        done = subprocess.run(
            [sys.executable, "-m", "lewm.cli", *words, *(f"--{word}" for word in small)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        ends.append(checkpoints.load(run).state_dict())
    assert ends[0]["pretrained"] == 1
    # Adam makes much of what rounding decides here and there; that all is equal in double
    # precision is shown by tests/models/test_distributed.py
    apart = {n: (ends[1][n] - value).abs().float().mean() for n, value in ends[0].items()}
    assert max(apart.values()) < 1e-4, max(apart, key=apart.get)


# -------------------------------------------------------------------------------- evaluate and plan

QUICK = ["--candidates=20", "--elites=4", "--iterations=2"]


def test_evaluate_shows_a_table_and_writes_the_same_numbers(small_run, tmp_path, capsys):
    assert (
        main(
            ["evaluate", str(small_run), "--episodes=8", *QUICK, "--json", str(tmp_path / "e.json")]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "on 3 episodes held out of its training" in shown
    told = json.loads((tmp_path / "e.json").read_text())
    (task,) = told["tasks"]
    assert task["planning"]["predictor_calls_per_plan"] == (20 * 2 + 1) * 5
    for policy in ("agent", "do-nothing", "random", "straight-line"):
        score = task["paper"][policy]
        assert re.search(
            rf"offset 25 +{policy} +{score['rate']:.1%} \[{score['low']:.1%}, "
            rf"{score['high']:.1%}\] of 8",
            shown,
        )


def test_full_evaluation_as_markdown(small_run, capsys):
    words = ["--full", "--markdown", "--horizon=2", "--receding=1", "--hold-actions=False"]
    assert main(["evaluate", str(small_run), "--episodes=4", "--together=4", *QUICK, *words]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0][2:] for row in rows[2::4]] == [
        "offset 25",
        "offset 50",
        "offset 75",
        "other room",
    ]


def test_evaluate_refuses_tasks_that_the_data_cannot_set(small_run, capsys):
    assert main(["evaluate", str(small_run), "--episodes=1000"]) == 2
    assert "expected at least 1000 start/goal pairs" in capsys.readouterr().err


def test_plan_draws_an_animation(small_run, tmp_path, capsys):
    from PIL import Image

    out = tmp_path / "plan.gif"
    assert (
        main(
            [
                "plan",
                str(small_run),
                "--out",
                str(out),
                "--episodes=2",
                *QUICK,
                "--json",
                str(tmp_path / "p.json"),
            ]
        )
        == 0
    )
    assert str(out) in capsys.readouterr().out
    assert Image.open(out).n_frames > 10
    told = json.loads((tmp_path / "p.json").read_text())
    assert len(told["attempts"]) == 2
    assert all(attempt["start"] != attempt["goal"] for attempt in told["attempts"])


# ------------------------------------------------------------------------ bench, doctor, quickstart


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    row = '{"case": "time", "ours": 1.0, "reference": 12.5, "unit": "ms", "ratio": 12.5}'
    (tmp_path / "made_up.py").write_text(
        "def run(quick=False):\n"
        f'    return {{"name": "made up", "quick": quick, "rows": [{row}]}}\n'
    )
    (tmp_path / "study.py").write_text("")
    monkeypatch.setattr("lewm.benchmarks.__path__", [str(tmp_path)])
    yield tmp_path
    for name in ("made_up", "study"):
        sys.modules.pop(f"lewm.benchmarks.{name}", None)


def test_bench_shows_ratios_and_passes_over_what_is_none(benchmarks, capsys):
    assert main(["bench", "--quick", "--json", str(benchmarks / "b.json")]) == 0
    assert re.search(r"time +1 +12.5 +ms +12.5", capsys.readouterr().out)
    (told,) = json.loads((benchmarks / "b.json").read_text())["benchmarks"]
    assert told["quick"] is True


@pytest.mark.parametrize(
    ("name", "answer"),
    [("made-op", "Did you mean 'made-up'?"), ("study", "no comparison of speeds")],
)
def test_bench_by_name(benchmarks, name, answer, capsys):
    assert main(["bench", name]) == 2
    assert answer in capsys.readouterr().err


def test_doctor(tmp_path, capsys):
    assert main(["doctor", "--json", str(tmp_path / "d.json")]) == 0
    shown = capsys.readouterr().out
    told = json.loads((tmp_path / "d.json").read_text())
    assert told["verdict"] in shown
    assert told["versions"]["lewm"] == lewm.__version__
    assert told["device"]["precision"] in ("32-true", "bf16-mixed")
    assert told["plug-ins"]["solvers"]["cem"] == "loads"
    assert set(told["files"].values()) == {"readable"}
    assert not told["problems"]


@pytest.mark.parametrize(("free_gb", "enough"), [(0.15, False), (0.3, True)])
def test_doctor_knows_what_disk_a_quickstart_needs(free_gb, enough, monkeypatch, tmp_path):
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free_gb * 1e9)
    )
    problems = [problem for problem in doctor.examine(tmp_path)["problems"] if "disk" in problem]
    assert problems == (
        []
        if enough
        else [f"Only 0.1 GB are free on the disk of {tmp_path}: a quickstart needs 0.1."]
    )


def test_doctor_never_fails_on_what_is_missing(monkeypatch):
    known, load = doctor._version, registry.load
    monkeypatch.setattr(
        doctor, "_version", lambda name: None if name in ("av", "tyro") else known(name)
    )

    def lacking(kind, name):
        if kind == "worlds":
            raise ImportError("world 'two-room' needs the package 'simulator'.")
        return load(kind, name)

    monkeypatch.setattr(registry, "load", lacking)
    found = doctor.examine()
    assert found["extras"]["video"].startswith(
        "lacks av; install it with: pip install 'lewm[video]'"
    )
    assert (
        found["plug-ins"]["worlds"]["two-room"]
        == "does not load: world 'two-room' needs the package 'simulator'."
    )
    assert found["versions"]["tyro"] == "missing"
    assert "tyro is required and not installed" in found["verdict"]


def test_quickstart_shows_the_result(monkeypatch, tmp_path, capsys):
    score = {"rate": 0.97, "low": 0.94, "high": 0.99, "episodes": 200}
    result = {
        "success": score,
        "strict": score,
        "floors": {"do_nothing": {**score, "rate": 0.03, "strict": score}},
        "probe_r": {"x": 0.9991},
        "seconds": {"total": 80.0},
        "alarm": "",
    }

    def run(out, seed, short, report):
        report(Progress("train", 1, 2, "loss 1"))
        return {**result, "seed": seed, "short": short}

    monkeypatch.setattr(quickstart, "run", run)
    words = [
        "quickstart",
        "--out",
        str(tmp_path),
        "--seed=3",
        "--short",
        "--json",
        str(tmp_path / "r.json"),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert re.search(r"agent +97.0% \[94.0%, 99.0%\]", shown)
    assert re.search(r"do nothing +3.0%", shown)
    assert "report.html" in shown
    assert json.loads((tmp_path / "r.json").read_text())["seed"] == 3


def test_the_module_runs_by_itself():
    done = subprocess.run(
        [sys.executable, "-m", "lewm.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("lewm ")


@pytest.mark.parametrize("spelt", ["--json {}", "--json={}"])
@pytest.mark.parametrize("kind", ["folder", "link"])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("report", "claims")])
def test_a_json_that_cannot_be_written_is_refused_before_the_work(
    name, kind, spelt, tmp_path, capsys, monkeypatch
):
    begun = SimpleNamespace(import_module=lambda _: pytest.fail("the work has begun"))
    monkeypatch.setattr("lewm.cli.main.importlib", begun)
    target, whole = tmp_path / "told.json", tmp_path / "of-others.json"
    whole.write_text("{}")
    target.mkdir() if kind == "folder" else target.symlink_to(whole)
    assert main([name, "anything", *spelt.format(target).split()]) == 2
    said = capsys.readouterr().err
    assert {"folder": "got a folder", "link": "got a symbolic link"}[kind] in said
    assert whole.read_text() == "{}"


@pytest.mark.parametrize("name", COMMANDS)
def test_sigterm_is_like_ctrl_c_in_every_command(name, capsys, monkeypatch):
    ends = []

    def work(words):
        pid = os.fork()
        if pid == 0:  # what is forked, such as a worker, just ends
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    begun = SimpleNamespace(import_module=lambda _: SimpleNamespace(main=work))
    monkeypatch.setattr("lewm.cli.main.importlib", begun)
    assert main([name]) == 130
    assert ends == [-signal.SIGTERM]
    assert f"lewm {name}: interrupted." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
