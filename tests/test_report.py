"""One file that loads nothing, says what was measured and no more, and names commands that exist."""

import copy
import re
import shlex
from html.parser import HTMLParser

import pytest
from test_figures import FRAMES, ROWS, probing

from lewm import cli
from lewm.animation import encode_animation
from lewm.report import Clip, _compared, draw_panels, render


def score(rate, episodes=200):
    return {"rate": rate, "low": rate - 0.03, "high": rate + 0.02, "episodes": episodes}


RESULT = {
    "success": {**score(0.955), "episode_low": 0.915, "episode_high": 0.985},
    "strict": {**score(0.945), "episode_low": 0.905, "episode_high": 0.975},
    "floors": {name: {**score(0.2), "strict": score(0.1)} for name in ("random", "do_nothing", "straight_line")},
    "through_door": {"agent": score(0.84, 40), "straight_line": score(0.6, 40)},
    "other_room": {
        "agent": score(0.62, 100),
        "floors": {name: score(rate, 100) for name, rate in (("random", 0.09), ("do_nothing", 0.03), ("straight_line", 0.64))},
        "protocol": {"offset": 25, "budget": 100, "episodes": 100, "seed": 0, "across": True},
    },
    "published": {"recipe": "two-room-paper", "result": "success 87% (offset 25)", "source": "the paper, table 1"},
    "solved_at_start": 0.05,
    "median_steps": 14.0,
    "seconds_per_plan": 0.0123,
    "predictor_calls_per_plan": 2005.0,
    "planned_together": 128,
    "protocol": {"offset": 25, "budget": 50, "episodes": 200, "seed": 0, "across": False},
    "tolerance": {"value": 16.0, "of": 224, "unit": "px"},
    "recipe": "two-room-tiny",
    "settings": {
        "world": "two-room",
        "image_size": 64,
        "model": {"latent_dim": 192},
        "training": {"updates": 400, "frameskip": 5},
        "planning": {"horizon": 5, "receding": 5, "solver": {"num_candidates": 100, "num_elites": 10, "num_iterations": 4}},
    },
    "data": {"episodes": 360, "heldout_episodes": 72, "frames": 36360},
    "parameters": 555950,
    "machine": {"cpus": 2, "threads": 2, "device": "CPU, x86_64", "precision": "32-true"},
    "versions": {"lewm": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "numpy": "2.4.6"},
    "alarm": "",
    "seed": 7,
    "short": False,
    "resumed": False,
    "command": "lewm quickstart --out 'my run' --seed 7",
    "seconds": {"collect": 4.2, "train": 94.4, "evaluate": 12.0, "probe": 3.0, "report": 6.4, "total": 120.0},
}
SCORES = {"unit": "px", "r": 0.9987, "r2": 0.997, "rmse": 1.5, "strength": 1e-6} | {
    f"{name}_interval": [0.9, 0.999] for name in ("r", "r2", "rmse")
}


@pytest.fixture(scope="module")
def page():
    found = probing()
    found.values.update(variables={"x": SCORES, "y": SCORES}, plane_variance=0.8, fit_episodes=288, test_episodes=72)
    found.values.update(test_frames=len(found.arrays["states"]))
    found.arrays["episodes"] = [3] * len(found.arrays["states"])
    movie, still = encode_animation(FRAMES, ".webp"), encode_animation(FRAMES[-1:], ".webp")
    clips = [Clip("through the door, 21 steps", True, movie, still), Clip("within one room, 50 steps", False, movie, still)]
    panels = draw_panels(RESULT, ROWS, found)

    def write(**changes):
        return render(copy.deepcopy(RESULT) | changes, ROWS, found, panels, clips, "'my run'")

    return write


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source", "br", "use", "path", "rect", "image"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def text_of(page):
    return " ".join(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]).split())


def test_nothing_is_loaded_from_anywhere(page):
    read = Reader(page())
    assert not read.open
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in read.tags}
    for tag, attributes in read.tags:
        for name in ("src", "srcset", "href", "xlink:href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("data:", "#")) or (tag, name) == ("a", "href"), address[:60]
    assert not re.search(r"@import|url\((?!#)", page())


def test_what_was_measured_is_shown_with_its_interval(page):
    shown = text_of(page())
    for words in (
        "95.5% of 200 held-out goals reached",
        "95% interval 92.5% to 97.5%",
        "94.5% (91.5% to 96.5%)",
        "Of the 40 pairs whose goal lies behind the door the agent reaches 84%",
        "r = 0.9987",
        "36,360 pictures",
        "come from the 72 episodes that were set aside",
        "within 16 px of the goal in a picture 224 px wide",
        "555,950 parameters",
        "1 min 34 s",
        "In 2 min 00 s",
        "12.3 ms",
        "success 87% (offset 25). Source: the paper, table 1.",
        "walking straight at the goal does less well than the agent : 20% against 95.5%",
        "91.5% to 98.5% by the paper's protocol and 90.5% to 97.5% by the strict count",
        "there are 100 steps. The agent reaches 62% (59% to 64%) of 100, the straight line 64% (61% to 66%)",
        "do nothing 3% 0% to 5% 100",
        "seed 7",
        "do nothing 20% 17% to 22% 200 10% 7% to 12% 200",  # paper's protocol, then strict
    ):
        assert words in shown, words
    assert shown.count("87%") == 1  # the published number is said once, and is nobody's result


def test_every_figure_has_its_numbers(page):
    assert page().count("<details>") == 4  # success, other room, training, latents and probe
    assert page(other_room=None).count("<details>") == 3
    assert page().count('aria-label="goals in the other room"') == 1
    assert 'aria-label="goals in the other room"' not in page(other_room=None)
    shown = text_of(page())
    for row in ROWS:
        assert f"{row['update']} {row['prediction']:.4g} 5 0.9 3" in shown


def test_misses_are_called_misses(page):
    assert re.search(r'class="solved">reached</span> &middot; through the door, 21 steps', page())
    assert re.search(r'class="missed">missed</span> &middot; within one room, 50 steps', page())


def test_short_runs_collapses_and_interruptions_are_said(page):
    assert "short run" not in text_of(page())
    assert "This is a short run" in text_of(page(short=True))
    assert "stayed silent" in text_of(page())
    broken = text_of(page(alarm="latents have collapsed: std 0.01"))
    assert "Something went wrong in training: latents have collapsed" in broken
    assert "stayed silent" not in broken
    assert "summed over the calls" in text_of(page(resumed=True))
    assert "behind the door" not in text_of(page(through_door=None))
    unplayed = text_of(page(other_room=None))
    assert "A short run does not measure it" in unplayed
    assert "64%" not in unplayed


@pytest.mark.parametrize(("rate", "words"), [(0.99, "as well as the agent"), (0.5, "less well than"), (1.0, "better than")])
def test_the_straight_line_is_called_what_it_is(page, rate, words):
    """With intervals of 3 and 2 points, as `score` makes them, around the agent's 97%."""
    line = {**score(rate), "low": rate - 0.025, "strict": score(rate)}
    floors = {**RESULT["floors"], "straight_line": line}
    agent = {**RESULT["success"], **score(0.97)}
    assert f"walking straight at the goal does {words}" in text_of(page(floors=floors, success=agent))


def test_a_rival_is_as_good_unless_both_intervals_say_otherwise():
    agent = {"rate": 0.95, "low": 0.91, "high": 0.97}
    for rival, words in (
        ((0.98, 0.94, 0.99), "as well"),  # above the agent's interval, but its own holds the agent's rate
        ((0.96, 0.952, 0.965), "as well"),
        ((0.99, 0.96, 1.0), "better"),
        ((0.80, 0.74, 0.85), "less well"),
        ((0.90, 0.80, 0.96), "as well"),
    ):
        assert _compared(dict(zip(("rate", "low", "high"), rival, strict=True)), agent) == words


def test_words_from_outside_cannot_become_markup(page):
    evil = "<script>alert(1)</script>"
    written = page(alarm=evil, command=evil)
    assert evil not in written
    assert written.count("&lt;script&gt;") == 2


def test_the_commands_on_the_page_exist_with_their_options(page, capsys):
    commands = re.findall(r"<pre><code>(lewm [^<]*)</code>", page().replace("&#39;", "'"))
    assert commands[0] == RESULT["command"]
    assert {shlex.split(command)[1] for command in commands} == set(cli.COMMANDS) - {"data", "reproduce", "import", "export"}
    for command in commands:
        words = shlex.split(command)[1:]
        name = words[: 2 if words[0] == "train" else 1]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main([*name, "--help"])
        assert stopped.value.code == 0
        known = capsys.readouterr().out
        assert all(option in known for option in words if option.startswith("--")), command
