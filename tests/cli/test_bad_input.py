"""What goes wrong is said in one paragraph that names file, expected, got and cure; nothing is
begun, nothing foreign runs."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from lewm.cli.main import main
from lewm.data.episodes import Episodes
from lewm.files import read_json
from lewm.runs import checkpoints
from tests.support.project import SIZE, train_command

DIE_OF_INTERRUPTS = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
"""A shell may have told us to ignore Ctrl-C, and what we start would inherit that."""


@pytest.fixture
def refused(capsys):
    def check(words, *fragments):
        """The command must end with code 2 and one paragraph that holds all fragments."""
        words = [str(word) for word in words]
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1, "one paragraph"
        assert said.err.startswith("lewm")
        assert "Traceback" not in said.err
        for fragment in fragments:
            assert str(fragment) in said.err
        with pytest.raises((ValueError, OSError)):
            main([*words, "--debug"])

    return check


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian"], "'train'"),
        (["collect", "two-rom", "--out", "x.h5"], "'two-room'"),
        (["collect", "two-room", "--out", "x.h5", "--policy", "export"], "'expert'"),
        (["collect", "two-room", "--out", "x.h5", "--compression", "blosk"], "'blosc'"),
        (
            ["collect", "two-room", "--out", "x.h5", "--look", "agent_colour=0000ff"],
            "'agent_color'",
        ),
        (["train", "two-room-tinny", "--data", "x.h5", "--out", "run"], "'two-room-tiny'"),
        (
            ["train", "two-room-tiny", "--data", "x.h5", "--out", "run", "--world", "tworoom"],
            "'two-room'",
        ),
        (["bench", "sigrek"], "'sigreg'"),
        (["data", "inof", "x.h5"], "'info'"),
        (["plan", "run", "--out", "plan.giff"], "'.gif'"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(words, meant, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(words, "Did you mean", meant)
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(("flag", "meant"), [("solver=cme", "'cem'"), ("objective=l3", "'l2'")])
def test_misspelt_solvers_and_objectives(flag, meant, refused, small_run):
    refused(["evaluate", small_run, f"--{flag}"], "Did you mean", meant)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (
            ["train", "two-room-tiny", "--data=x", "--out=y", "--training.update=3"],
            "--training.updates",
        ),
        (["evaluate", "run", "--episode=3"], "--episodes"),
        (["collect", "two-room", "--out=x", "--imagesize=3"], "--image-size"),
    ],
)
def test_misspelt_flags_are_answered_with_the_nearest(words, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    said = capsys.readouterr().err
    assert "Perhaps you meant" in said
    assert meant in said


def test_values_of_the_wrong_type(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["collect", "two-room", "--out=x", "--episodes=many"])
    assert "many" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--training.batch-size=0"], "batch_size must be at least 1"),
        (["--training.holdout=1.5"], "holdout must be below 1, got 1.5"),
        (["--training.batches=streming"], "Did you mean 'streamed'"),
        (["--training.precision=bf61"], "bf61"),
        (["--training.window=60"], "observations or more"),
        (["--model.patch-size=7"], "patch_size must divide image_size"),
        (["--model.sigreg-weight=-1"], "must not be negative"),
    ],
)
def test_settings_out_of_range(flags, fragment, refused, small_data, tmp_path):
    refused(train_command(small_data, tmp_path / "run", *flags), fragment)
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there(refused, small_data, tmp_path):
    missing = "mps" if sys.platform != "darwin" else "cuda"
    refused(
        train_command(small_data, tmp_path / "run", f"--training.accelerator={missing}"),
        missing,
        "lewm doctor",
    )


# --------------------------------------------------------------------------------------------- data


def spoil(what, path):
    """Turn a sound episode file into a bad one."""
    if what == "truncated":
        os.truncate(path, path.stat().st_size // 2)
        return
    if what == "not HDF5":
        path.write_text("step,reward\n")
        return
    with h5py.File(path, "r+") as file:
        if what == "foreign":
            for name in list(file):
                del file[name]
            file["data/demo_0/obs/image"] = np.zeros((5, 8, 8, 3), np.uint8)
        elif what == "missing column":
            del file["action"]
        elif what == "NaN inside":
            file["action"][150] = np.nan
        elif what == "wider actions":
            actions = file["action"][:]
            del file["action"]
            file["action"] = np.concatenate([actions, actions[:, :1]], axis=1)
        elif what == "another world":
            file.attrs["world"] = "push-t"
        elif what == "float pixels":
            del file["pixels"]
            file["pixels"] = np.zeros((16 * 101, SIZE, SIZE, 3), np.float32)


BAD_FILES = {
    "truncated": ("expected a whole HDF5 file", "cut short", "again"),
    "not HDF5": ("expected an HDF5 file", "got something else"),
    "foreign": ("expected the columns pixels, action", "got no pixels, action", "among ['data']"),
    "missing column": ("expected the columns", "got no action", "rename or convert"),
    "NaN inside": ("expected finite actions", "at step 49 of episode 1", "Cut or drop"),
    "wider actions": ("expected actions of 2 numbers, got 3", "Use the data of the world"),
    "another world": (
        "expected episodes of world 'two-room', got some of 'push-t'",
        "--world push-t",
    ),
    "float pixels": ("of type uint8", "float32", "Store square RGB"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_episode_files_are_refused_before_any_training(what, refused, small_data, tmp_path):
    path = tmp_path / "episodes.h5"
    shutil.copy(small_data, path)
    spoil(what, path)
    refused(train_command(path, tmp_path / "run"), path, *BAD_FILES[what])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["truncated", "foreign", "NaN inside", "wider actions"])
def test_bad_episode_files_are_refused_before_any_evaluation(
    what, refused, small_data, small_run, tmp_path
):
    path = tmp_path / "episodes.h5"
    shutil.copy(small_data, path)
    spoil(what, path)
    refused(["evaluate", small_run, "--data", path], path, *BAD_FILES[what][:1])


def test_foreign_attributes_are_no_obstacle_to_training(small_data, tmp_path):
    path = tmp_path / "episodes.h5"
    shutil.copy(small_data, path)
    with h5py.File(path, "r+") as file:
        file.attrs["version"], file.attrs["state_units"] = np.bytes_("1.0"), np.array([b"px"])
    assert main(train_command(path, tmp_path / "run", "--training.updates=1")) == 0
    assert (
        main(["plan", str(tmp_path / "run"), "--out", str(tmp_path / "plan.gif"), "--iterations=1"])
        == 0
    )


@pytest.mark.parametrize(
    ("command", "side"), [("evaluate", "heldout"), ("plan", "heldout"), ("plan", "train")]
)
def test_states_that_are_no_numbers(
    command, side, refused, small_data, small_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    episode = read_json(small_run / checkpoints.EXPERIMENT)["split"][side][1]
    shutil.copy(small_data, "episodes.h5")
    with h5py.File("episodes.h5", "r+") as file:
        file["state"][101 * episode + 3] = np.nan
    words = [command, small_run, "--data", "episodes.h5", "--episodes=2", "--iterations=1"]
    refused(
        words,
        f"episodes.h5: expected finite states, got [nan, nan] at step 3 of episode {episode}",
        "Cut or drop",
    )


@pytest.fixture(scope="session")
def other_size(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "episodes.h5"
    assert main(["collect", "two-room", "--out", str(path), "--episodes=2", "--image-size=48"]) == 0
    return path


def test_pictures_of_another_size(refused, other_size, small_run, tmp_path):
    refused(
        train_command(other_size, tmp_path / "run"),
        other_size,
        "expected pictures of 32 x 32 px, got 48 x 48",
    )
    assert not (tmp_path / "run").exists()
    for command in ("evaluate", "plan"):
        refused(
            [command, small_run, "--data", other_size],
            other_size,
            "expected pictures of 32 x 32 px, got 48 x 48",
        )


def test_collecting_into_a_file_of_other_episodes(refused, small_data):
    before = small_data.read_bytes()
    words = [
        "collect",
        "two-room",
        "--out",
        small_data,
        "--episodes=16",
        "--image-size=32",
        "--seed=5",
    ]
    refused(words, small_data, "seed 0 against 5", "another path")
    assert small_data.read_bytes() == before


@pytest.mark.parametrize(
    "command", ["train two-room-tiny --out run --data", "data info", "data verify"]
)
def test_files_that_are_not_there(command, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(
        [*command.split(), "nothing.h5"],
        "nothing.h5: expected an episode file, got no such file",
        "lewm collect",
    )
    refused([*command.split(), "."], "got a folder")


# -------------------------------------------------------------------------------------- run folders


@pytest.fixture
def run(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    return tmp_path / "run"


def weights_of(run):
    return checkpoints.latest(run) / "weights.safetensors"


@pytest.mark.parametrize("command", ["evaluate", "plan"])
def test_what_is_no_run(command, refused, tmp_path, small_data):
    refused([command, tmp_path / "nothing"], "nothing is not a run", "lewm train")
    refused([command, tmp_path], "is not a run: expected a file experiment.json")
    refused([command, small_data], small_data)


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_pickle_in_place_of_weights_is_not_executed(refused, run, tmp_path):
    marker = tmp_path / "executed"
    weights_of(run).write_bytes(pickle.dumps(Evil(marker)))
    refused(["evaluate", run], weights_of(run), "expected safetensors")
    assert not marker.exists()
    pickle.loads(weights_of(run).read_bytes()).close()
    assert marker.exists(), "the pickle would have worked"


@pytest.mark.parametrize(
    "name", ["os.system", "../../evil", "lewm.cli.main", "torch.nn.Linear", "__init__", "", None]
)
def test_a_run_cannot_name_code(name, refused, run):
    description = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(
        json.dumps({**description, "model": name, "_target_": "os.system"})
    )
    refused(["evaluate", run], "unknown model", ", lewm, ")


@pytest.mark.parametrize(
    ("file", "change", "fragment"),
    [
        (
            "model.json",
            lambda d: d["config"].update(command="rm -rf"),
            "does not describe a model this version knows",
        ),
        ("model.json", lambda d: d.pop("spec"), "does not describe a model this version knows"),
        ("model.json", lambda d: d["config"].update(latent_dim=100), "does not fit its model.json"),
        ("experiment.json", lambda d: d.pop("split"), "experiment.json is damaged"),
        ("experiment.json", lambda d: d.update(data=[]), "experiment.json is damaged"),
    ],
)
def test_damaged_descriptions(file, change, fragment, refused, run):
    description = json.loads((run / file).read_text())
    change(description)
    (run / file).write_text(json.dumps(description))
    refused(["evaluate", run], run, fragment)


@pytest.mark.parametrize("file", ["model.json", "experiment.json"])
def test_descriptions_that_are_cut_short(file, refused, run):
    os.truncate(run / file, 40)
    refused(["evaluate", run], run / file, "is damaged: expected JSON")


def test_truncated_and_missing_weights(refused, run):
    os.truncate(weights_of(run), 1000)
    refused(["evaluate", run], weights_of(run), "is damaged", "again")
    weights_of(run).unlink()
    refused(["evaluate", run], weights_of(run) if checkpoints.latest(run) else run, "is missing")
    shutil.rmtree(run / checkpoints.CHECKPOINTS)
    refused(["evaluate", run], run, "holds no checkpoint yet")


def test_a_run_whose_episodes_are_gone(refused, run):
    description = json.loads((run / "experiment.json").read_text())
    (run / "experiment.json").write_text(json.dumps({**description, "data_path": "/gone.h5"}))
    refused(["evaluate", run], "/gone.h5: expected the episodes", "--data FILE")


# ------------------------------------------------------------------------------------------- Ctrl-C


def start(words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lewm.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **DIE_OF_INTERRUPTS,
    )


def interrupt_when(process, condition, seconds=120):
    """Press Ctrl-C as soon as the condition holds; return (exit code, stderr)."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


def test_ctrl_c_while_collecting_keeps_what_is_complete(tmp_path, capsys):
    path = tmp_path / "episodes.h5"
    partial = tmp_path / "episodes.h5.partial"
    words = [
        "collect",
        "two-room",
        "--out",
        path,
        "--episodes=1000",
        "--image-size=16",
        "--together=2",
    ]
    code, said = interrupt_when(
        start(words), lambda: partial.exists() and partial.stat().st_size > 3_000_000
    )
    assert (code, "Traceback" in said) == (130, False), said
    kept = int(
        re.search(
            r"interrupted. (\d+) complete episodes are kept in .*, and the same command goes on",
            said,
        )[1]
    )
    with Episodes.open(path) as episodes:
        assert 0 < len(episodes) == kept < 1000
        assert not episodes.complete
        first = episodes.episode(0).pixels
    assert main(["data", "verify", str(path)]) == 0

    words[3] = tmp_path / "short.h5"  # a whole collection of the same stream, for comparison
    assert main([str(w) for w in [*words, "--episodes=1"] if w != "--episodes=1000"]) == 0
    with Episodes.open(tmp_path / "short.h5") as short:
        np.testing.assert_array_equal(short.episode(0).pixels, first)


def test_ctrl_c_while_training_keeps_a_checkpoint_and_goes_on(small_data, tmp_path, capsys):
    run = tmp_path / "run"
    words = train_command(
        small_data, run, "--training.updates=60", "--training.checkpoint-every=1000"
    )
    log = run / checkpoints.METRICS
    code, said = interrupt_when(start(words), lambda: log.exists() and log.stat().st_size > 0)
    assert (code, "Traceback" in said) == (130, False), said
    update = int(re.search(r"lewm train: interrupted. Update (\d+) is kept in", said)[1])
    assert 0 < update < 60
    assert checkpoints.load(run).latent_dim == 192
    assert main(words) == 0
    assert f"going on from update {update} of" in capsys.readouterr().out
    assert read_json(checkpoints.latest(run) / "progress.json")["update"] == 60
