"""As many processes as the settings say, on as many nodes: others are refused before they train
twice into one folder."""

import json
import os
import socket
import subprocess
import sys

import pytest

from lewm.cli.main import main
from lewm.files import hold, read_json
from lewm.runs import checkpoints
from lewm.training.config import TrainingConfig
from lewm.training.launch import is_first
from tests.support.project import train_command


@pytest.mark.parametrize(
    ("world_size", "flags"),
    [
        ("2", []),
        ("1", ["--training.devices=2"]),
        ("2", ["--training.nodes=2", "--training.devices=2"]),
        ("4", ["--training.nodes=2"]),
        ("many", []),
    ],
)
def test_a_world_size_that_the_settings_do_not_say_is_refused(
    world_size, flags, small_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    assert main(train_command(small_data, tmp_path / "run", *flags)) == 2
    said = capsys.readouterr().err
    assert f"got WORLD_SIZE={world_size}. Give the numbers that torchrun was given" in said
    assert not (tmp_path / "run").exists()


def test_the_settings_count_processes():
    assert TrainingConfig(devices=2, nodes=3, batch_size=12).processes == 6
    for settings, said in (
        ({"nodes": 0}, "nodes must be at least 1"),
        ({"nodes": 3, "batch_size": 8}, "divisible by 3"),
    ):
        with pytest.raises(ValueError, match=said):
            TrainingConfig(**settings)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"])
def test_one_process_holds_the_run_whoever_started_it(name, monkeypatch):
    assert is_first()
    monkeypatch.setenv(name, "0")
    assert is_first()
    monkeypatch.setenv(name, "1")
    assert not is_first()


def test_nodes_are_recorded_only_where_there_are_several(small_run):
    """So that older runs can be continued."""
    assert "nodes" not in read_json(small_run / "experiment.json")["training"]


def agent(node, port, words, rank_flags=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += [f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return subprocess.Popen(
        [*command, *rank_flags, "-m", "lewm.cli", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def on_two_nodes(words):
    port = free_port()
    agents = [agent(node, port, words) for node in (0, 1)]
    said = [each.communicate(timeout=300)[0] for each in agents]
    return [each.returncode for each in agents], said


@pytest.mark.slow
def test_two_agents_train_the_weights_of_one_process(small_data, tmp_path):
    """One node each, on this machine: they share the batch, and only the order of additions
    differs."""
    flags = ["--training.accelerator=cpu", "--training.precision=32-true", "--training.updates=5"]
    alone = tmp_path / "alone"
    assert main(train_command(small_data, alone, *flags)) == 0
    run = tmp_path / "run"
    words = train_command(small_data, run, *flags, "--training.nodes=2")
    codes, said = on_two_nodes(words)
    assert codes == [0, 0], said
    assert read_json(run / "experiment.json")["training"]["nodes"] == 2
    one, two = ([json.loads(line) for line in (r / "metrics.jsonl").open()] for r in (alone, run))
    assert [row["update"] for row in two] == [5], "one of them writes"
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-4)
    checkpoints.load(run)

    # a second training of the same, while somebody holds the run: all of it ends
    with hold(run):
        codes, said = on_two_nodes(train_command(small_data, run, *flags, "--training.nodes=2"))
    assert 0 not in codes
    assert f"got process {os.getpid()}" in said[0]


@pytest.mark.slow
def test_two_processes_and_one_device_are_refused(small_data, tmp_path):
    """What trained twice into one folder."""
    run = tmp_path / "run"
    codes, said = on_two_nodes(train_command(small_data, run, "--training.accelerator=cpu"))
    assert 0 not in codes
    assert any("got WORLD_SIZE=2" in words for words in said)
    assert not run.exists()
