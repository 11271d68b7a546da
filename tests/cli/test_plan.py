"""`lewm plan --realtime`; without it the command is tested in test_cli.py."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from lewm.cli.commands import plan as command
from lewm.cli.main import main

QUICK = ["--candidates=20", "--elites=4", "--iterations=2"]


def test_realtime_shows_how_late_actions_were(small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["plan", str(small_run), "--realtime=500", "--episodes=2", *QUICK, "--json", "p.json"])
        == 0
    )
    shown = capsys.readouterr().out
    told = json.loads((tmp_path / "p.json").read_text())
    assert not list(tmp_path.glob("plan.*"))  # nothing is drawn unless it is asked for
    assert "animation" not in told
    assert len(told["attempts"]) == 2
    real = told["realtime"]
    everything, replanning = real["latency"]["all"], real["latency"]["replanning"]
    assert replanning["steps"] == sum(attempt["plans"] for attempt in told["attempts"]) > 0
    assert 0 < replanning["p50_ms"] <= replanning["p99_ms"] <= everything["max_ms"]
    assert everything["missed_share"] == everything["missed"] / everything["steps"]
    assert 0 < real["achieved_hz"] <= 500.5
    assert "500 steps per second, 2 ms each" in shown
    assert re.search(rf"^all +{everything['steps']} +{everything['missed']} ", shown, re.MULTILINE)
    assert (
        f"{real['successes']} of 2 goals reached; {replanning['steps']} plans, "
        f"{real['cut_short']} of them cut" in shown
    )


def test_realtime_is_drawn_where_it_is_asked_for(small_run, tmp_path):
    from PIL import Image

    out = tmp_path / "live.gif"
    assert main(["plan", str(small_run), "--realtime=200", "--out", str(out), *QUICK]) == 0
    assert Image.open(out).n_frames > 10


@pytest.mark.parametrize("how", [(), ("--realtime=500",)])
def test_what_begins_solved_is_not_shown(how, small_run, tmp_path, monkeypatch):
    draw, seen = command.draw_pairs, []

    def first_begins_solved(episodes, held_out, world, protocol):
        pairs = draw(episodes, held_out, world, replace(protocol, episodes=4))
        seen.append(replace(pairs, strict=np.arange(len(pairs)) % 3 > 0))
        return seen[-1]

    monkeypatch.setattr(command, "draw_pairs", first_begins_solved)
    monkeypatch.chdir(tmp_path)
    words = ["plan", str(small_run), "--episodes=2", *QUICK, *how, "--json", "p.json"]
    assert main(words) == 0
    told = json.loads((tmp_path / "p.json").read_text())["attempts"]
    assert [attempt["start"] for attempt in told] == seen[0].starts[1:3].tolist()
    assert [attempt["goal"] for attempt in told] == seen[0].goals[1:3].tolist()


@pytest.mark.parametrize("rate", ["0", "-20"])
def test_a_rate_that_is_none_is_refused(small_run, rate, capsys):
    assert main(["plan", str(small_run), f"--realtime={rate}"]) == 2
    assert "expected a positive rate" in capsys.readouterr().err
