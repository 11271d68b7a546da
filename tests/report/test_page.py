"""One file that loads nothing, says what was measured and no more, and names commands that
exist."""

import copy
import html
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lewm import registry
from lewm.cli import main
from lewm.report import sections
from lewm.report.canvas import Panel
from lewm.report.figures import panels_of, slug
from lewm.report.page import _compared, _rows, render
from lewm.report.record import Answer, Outcome, Record, _outcomes_of_story
from lewm.report.sections import probing as probing_section
from tests.support.results import ROWS, planning, probing, recording, variable


def score(rate, episodes=200):
    return {"rate": rate, "low": rate - 0.03, "high": rate + 0.02, "episodes": episodes}


RESULT = {
    "success": {**score(0.955), "episode_low": 0.915, "episode_high": 0.985},
    "strict": {**score(0.945), "episode_low": 0.905, "episode_high": 0.975},
    "floors": {
        name: {**score(0.2), "strict": score(0.1)}
        for name in ("random", "do_nothing", "straight_line")
    },
    "through_door": {"agent": score(0.84, 40), "straight_line": score(0.6, 40)},
    "other_room": {
        "agent": score(0.62, 100),
        "floors": {
            name: score(rate, 100)
            for name, rate in (("random", 0.09), ("do_nothing", 0.03), ("straight_line", 0.64))
        },
        "protocol": {"offset": 25, "budget": 100, "episodes": 100, "seed": 0, "across": True},
    },
    "published": {
        "recipe": "two-room-paper",
        "result": "success 87% (offset 25)",
        "source": "the paper, table 1",
    },
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
        "planning": {
            "horizon": 5,
            "receding": 5,
            "solver": {"num_candidates": 100, "num_elites": 10, "num_iterations": 4},
        },
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
    "seconds": {
        "collect": 4.2,
        "train": 94.4,
        "evaluate": 12.0,
        "probe": 3.0,
        "report": 6.4,
        "total": 120.0,
    },
}
SCORE = variable(0.9987, rmse=1.5)


@pytest.fixture(scope="module")
def probed():
    return probing({"x": SCORE, "y": SCORE})


EXPERIMENT = {
    "recipe": "two-room-tiny",
    "world": "two-room",
    "training": {"seed": 7, "updates": 400},
    "model": {"model": "lewm", "spec": {"image_size": 64}, "config": {"latent_dim": 192}},
    "data": {"provenance": {"world": "two-room", "look": "published"}},
    "split": {"train": list(range(288)), "heldout": list(range(72))},
}
NOTHING = Answer(why="Not asked yet.")


@pytest.fixture(scope="module")
def record(probed):
    answers = dict.fromkeys(registry.names("analyses"), NOTHING)
    answers |= {"probing": Answer(probed), "planning": Answer(planning())}
    return Record(
        Path("my run/run"), EXPERIMENT, ROWS, answers, _outcomes_of_story(RESULT), RESULT, "my run"
    )


@pytest.fixture(scope="module")
def page(record):
    def write(alarm="", command=RESULT["command"], **changes):
        story = copy.deepcopy(RESULT) | changes
        metrics = [*ROWS[:-1], {**ROWS[-1], **({"alarm": alarm} if alarm else {})}]
        return render(
            [replace(record, metrics=metrics, story=story, outcomes=_outcomes_of_story(story))],
            command,
        )

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
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :])).split())


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
        "In 40 pairs the goal lies behind the door. The agent reaches 84% of them",
        "x with r = 0.9987 (typical error 1.5 px)",
        "After 10 steps the imagined latent was off by 25% of how far the latent had moved (95% "
        "interval 20% to 31%)",
        "In the world it was off by 3.5 px (95% interval 3.1 to 4.2 px).",
        "36,360 pictures",
        "come from the 72 episodes that were set aside",
        "within 16 px of the goal, in a picture 224 px wide",
        "555,950 parameters",
        "1 min 34 s",
        "In 2 min 00 s",
        "12.3 ms",
        "for orientation: success 87% (offset 25). Source: the paper, table 1.",
        "walking straight at the goal does less well than the agent : 20% against 95.5%",
        "91.5% to 98.5% by the paper's protocol and 90.5% to 97.5% by the strict count.",
        "The agent has 100 steps. It reaches 62% (59% to 64%) of 100 goals, the straight line 64% "
        "(61% to 66%)",
        "do nothing 3% 0% to 5% 100",
        "seed 7",
        "do nothing 20% 17% to 22% 200 10% 7% to 12% 200",  # paper's protocol, then strict
    ):
        assert words in shown, words
    assert shown.count("87%") == 1  # the published number is said once, and is nobody's result


def test_every_figure_has_its_numbers_and_its_command(page):
    written = page()
    assert written.count("<details>") == 5  # success, other room, training, planning, probing
    assert page(other_room=None).count("<details>") == 4
    assert written.count('aria-label="goals in the other room"') == 1
    assert 'aria-label="goals in the other room"' not in page(other_room=None)
    shown = text_of(written)
    for row in ROWS:
        assert f"{row['update']} {row['prediction']:.4g} 5 0.9 3" in shown
    assert "variable unit r, ridge 95% R2 RMSE x px 0.9987" in shown
    for name in registry.names("analyses"):
        assert f"lewm analyse 'my run/run' {name}" in shown


def test_what_is_missing_is_one_line_with_its_command(page, record):
    shown = text_of(page())
    assert shown.count("Not asked yet.") == len(registry.names("analyses")) - 2
    answers = {**record.answers, "surprise": Answer(why="Not possible for this run: no world.")}
    bare = replace(record, answers=answers, outcomes=(), story=None, metrics=())
    shown = text_of(render([bare], "lewm report"))
    assert "Not possible for this run: no world. lewm analyse 'my run/run' surprise" in shown
    assert "lewm evaluate 'my run/run' --json 'my run/run/evaluation.json'" in shown
    assert "No training is on record" in shown
    nothing = replace(bare, answers=dict.fromkeys(bare.answers, NOTHING))
    assert "Watch it plan" not in text_of(render([nothing], "lewm report"))


def test_an_answer_that_names_what_it_lacks_is_missing_from_its_section_alone(record, monkeypatch):
    """Its file was changed by hand. The page comes all the same, and says what to do."""
    telling = probing_section.sentences

    def broken(result):
        raise KeyError("no such variable")

    monkeypatch.setattr(probing_section, "sentences", broken)
    monkeypatch.setattr(probing_section, "headlines", broken)
    shown = text_of(render([record, replace(record, label="other")], "lewm report"))
    assert shown.count("expected entries that belong together") == 2
    assert "lewm analyse RUN probing --again" in shown
    assert "variable unit r, ridge" not in shown
    assert sections.title("planning") in shown
    monkeypatch.setattr(probing_section, "sentences", telling)
    monkeypatch.undo()
    assert "variable unit r, ridge" in text_of(render([record], "lewm report"))


def test_runs_stand_side_by_side(record):
    second = replace(
        record,
        label="other",
        path=Path("other/run"),
        outcomes=record.outcomes[:1],
        answers={**record.answers},
    )
    second.answers["planning"] = NOTHING
    written = render([record, second], "lewm report a b")
    assert not Reader(written).open
    shown = text_of(written)
    assert "Two runs, side by side" in shown
    assert "probe r, x 0.9987 [0.98 to 1.0000] 0.9987 [0.98 to 1.0000]" in shown
    assert "imagined off after 10 steps, of the change 25% [20% to 31%] -" in shown
    assert "reached, goals in the other room 62% [59% to 64%]; random 9% -" in shown
    assert shown.count("not for this run") == 3 + 1  # three figures of plans, one of the other room
    assert written.count('aria-label="reading x from the latents"') == 2
    assert "--runs: 2" in written
    assert "From pixels to a plan" not in shown  # no story of one of them


def test_runs_of_one_name_are_told_apart_by_their_paths(record):
    shown = text_of(
        render([record, replace(record, path=Path("elsewhere/run"))], "lewm report a b")
    )
    assert "elsewhere/run: the same questions" in shown


def test_panels_of_one_kind_share_a_row_whatever_numbers_their_titles_hold(record):
    first = [
        Panel("16 plans", "a"),
        Panel("episode 3 from step 5", "b"),
        Panel("episode 4 from step 6", "c"),
    ]
    second = [Panel("12 plans", "d"), Panel("episode 9 from step 1", "e"), Panel("only here", "f")]
    rows = _rows([first, second], [record, record])
    assert [[panel and panel.svg for _, panel in row] for row in rows] == [
        ["a", "d"],
        ["b", "e"],
        ["c", None],
        [None, "f"],
    ]


def test_clips_show_what_was_recorded():
    clips = sections.clips(planning(("reached", "missed", "missed")))
    assert [clip.caption for clip in clips] == [
        "into the other room, 10 steps",
        "within one room, 10 steps were not enough",
        "within one room, 10 steps were not enough",
    ]
    assert [clip.solved for clip in clips] == [True, False, False]
    # evenly spaced
    assert [
        clip.solved for clip in sections.clips(planning(("missed", "reached", "reached")), 2)
    ] == [
        False,
        True,
    ]
    again = planning().recordings[0]
    original = recording()
    np.testing.assert_array_equal(again.pixels, original.pixels)
    assert again.success_step == original.success_step
    for replan, true in zip(again.replans, original.replans, strict=True):
        assert replan.step == true.step
        np.testing.assert_allclose(replan.latents, 10 * true.latents)
        assert len(replan.rounds) == 2  # the scored mean is no round
        np.testing.assert_allclose(replan.rounds[1].ends, 10 * true.rounds[1].ends)


def test_everything_that_is_drawn_has_a_name_for_a_file():
    drawn = panels_of(planning())
    names = [slug(panel.title) for panel in drawn]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)
    assert [bool(panel.webp) for panel in drawn] == [False, False, False, True, True]
    assert slug("../../é / x") == "x"


def test_misses_are_called_misses(page):
    assert re.search(
        r'class="solved">reached</span> &middot; into the other room, 10 steps', page()
    )
    assert re.search(r'class="missed">missed</span> &middot; within one room, 10 steps', page())


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


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.99, "as well as the agent"), (0.5, "less well than"), (1.0, "better than")],
)
def test_the_straight_line_is_called_what_it_is(page, rate, words):
    """With intervals of 3 and 2 points, as `score` makes them, around the agent's 97%."""
    line = {**score(rate), "low": rate - 0.025, "strict": score(rate)}
    floors = {**RESULT["floors"], "straight_line": line}
    agent = {**RESULT["success"], **score(0.97)}
    assert f"walking straight at the goal does {words}" in text_of(
        page(floors=floors, success=agent)
    )


def test_a_rival_is_as_good_unless_both_intervals_say_otherwise():
    agent = {"rate": 0.95, "low": 0.91, "high": 0.97}
    for rival, words in (
        # above the agent's interval, but its own holds the agent's rate
        ((0.98, 0.94, 0.99), "as well"),
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


def test_a_strangers_run_cannot_put_markup_into_the_page(record, probed):
    evil = "<script>alert(1)</script>"
    told = probing({evil: SCORE, "y": SCORE})
    assert any(evil in row.values() for rows in told.tables().values() for row in rows)
    outcomes = [Outcome(evil, record.outcomes[0].counts)]
    hostile = {**record.answers, "probing": Answer(told), "surprise": Answer(why=evil)}
    experiment = {**EXPERIMENT, "recipe": evil}
    made = replace(
        record, answers=hostile, outcomes=outcomes, label=evil, experiment=experiment, story=None
    )
    for page in (render([made], evil), render([made, record], evil)):
        assert "<script" not in page
        assert not Reader(page).open


def test_the_commands_on_the_page_exist_with_their_options(page, capsys):
    commands = re.findall(r"<pre><code>(lewm [^<]*)</code>", page().replace("&#39;", "'"))
    assert RESULT["command"] in commands
    assert {"analyse", "report", "plan", "evaluate", "collect", "train", "fit"} <= {
        shlex.split(c)[1] for c in commands
    }
    for command in commands:
        words = shlex.split(command)[1:]
        name = words[: 2 if words[0] == "train" else 1]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.main([*name, "--help"])
        assert stopped.value.code == 0
        known = capsys.readouterr().out
        assert all(option in known for option in words if option.startswith("--")), command
