"""Marks lie at the numbers of their names: figures of results in which no two numbers are equal are
read back, line by line, band by band, word by word."""

import numpy as np
import pytest

from lewm.analyses.economy import EconomyResult
from lewm.report import animation, rivals, sections
from lewm.report.canvas import THEME
from lewm.report.charts import loss_panels, pareto_panel, success_panel
from lewm.report.rivals import Study
from lewm.report.sections import decoding as decoding_section
from lewm.report.sections import economy as economy_section
from lewm.report.sections import planning as planning_section
from tests.support import distinct, results
from tests.support.marks import bands, drawing, has, lines, rows, theme, words
from tests.support.rows import row, task


@pytest.fixture(scope="module")
def figures():
    """Analysis -> title -> axes, and analysis -> result."""
    found = {}
    for name, make in distinct.ALL.items():
        result = make()
        with drawing() as axes:
            sections.draw(result)
        found[name] = axes, result
    return found


def of(figures, name, title):
    axes, result = figures[name]
    return axes[title], result


# ---------------------------------------------------------------------------------------- geometry


def test_straightness_of_each_path_lies_in_its_row(figures):
    axes, result = of(figures, "geometry", "how straight paths are")
    paths, at = result.straightness, rows(axes)
    for name, found in (
        ("latents", paths),
        ("true states", paths.states),
        ("pixels", paths.pixels),
        ("random encoder", paths.random_encoder),
    ):
        drawn = lines(axes, "accent" if name == "latents" else "floor")
        assert has(drawn, [(end, at[name]) for end in found.interval]), name
        assert has(drawn, [(found.value, at[name])]), name
        assert words(axes)[f"{found.value:.2f}"] == (found.value, at[name])
    assert axes.yaxis_inverted(), "the latents are the first row"
    for name, value in (("paper", 0.6), ("paper, PLDM", 0.4)):
        assert has(lines(axes, "muted"), [(value, 0), (value, 1)])
        assert abs(words(axes)[name][0] - value) < 0.05
    assert axes.get_xlabel() == "mean cosine of velocities 5 env steps apart"


def test_straightness_over_training_ends_beside_that_of_all_episodes(figures):
    axes, result = of(figures, "geometry", "straightness over training")
    found = result.straightness
    assert has(lines(axes, "accent"), found.curve)
    after = 1.03 * found.curve[-1][0]
    assert has(lines(axes, "ink"), [(after, end) for end in found.interval])
    assert has(lines(axes, "ink"), [(after, found.value)])
    assert {words(axes)[name][1] for name in ("paper", "paper, PLDM")} == {0.6, 0.4}
    assert words(axes)["paper"][1] == 0.6
    assert axes.get_xlabel().startswith("update")


def test_the_spectrum_is_numbered_from_one(figures):
    axes, result = of(figures, "geometry", "variance of the latents by direction")
    assert has(lines(axes, "accent"), list(zip((1, 2, 3), result.spectrum, strict=True)))
    assert axes.get_xlabel() == "direction, of 3; effective rank 4.9"


def test_the_statistic_stands_beside_its_band(figures):
    axes, result = of(figures, "geometry", "are latents an isotropic Gaussian?")
    found = result.isotropy
    assert has(lines(axes, "accent"), [(found.statistic, 0), (found.statistic, 1)])
    assert words(axes)["latents 4.40"][0] == found.statistic
    *bars, band = axes.patches
    assert sum(bar.get_height() for bar in bars) == len(result.null)
    ends = bars[0].get_x(), bars[-1].get_x() + bars[-1].get_width()
    np.testing.assert_allclose(ends, (result.null.min(), result.null.max()))
    np.testing.assert_allclose(
        (band.get_x(), band.get_x() + band.get_width()), (found.null_low, found.null_high)
    )
    assert axes.get_xlabel().endswith("Gaussian samples of 38")


def test_costs_are_shares_of_their_own_plateau(figures):
    axes, result = of(figures, "geometry", "does the cost grow with the way?")
    for name, colour, label in (
        ("l2", "accent", "l2, \N{GREEK SMALL LETTER RHO} 0.53 up to 25 steps"),
        ("temporal", "warm", "temporal, \N{GREEK SMALL LETTER RHO} 0.67 up to 25 steps"),
    ):
        found, cost = result.saturation[name], result.costs[name]
        share = np.column_stack([result.offsets, cost.mean / found.plateau])
        assert has(lines(axes, colour, label), share)
        assert has(lines(axes, colour), share[result.offsets == found.offset])
        (band,) = bands(axes, colour)
        ends = [result.offsets, cost.low / found.plateau, cost.high / found.plateau]
        np.testing.assert_allclose(band, np.column_stack(ends))
    # even growth has its plateau, the mean of the last quarter, at 1
    assert has(lines(axes, label="even growth"), [(0, 0), (25, 8 / 7)])


def test_open_loop_errors_are_drawn_beside_those_of_no_change(figures):
    axes, result = of(figures, "geometry", "open-loop prediction")
    ahead = [(int(block), found) for block, found in result.open_loop.items()]
    for colour, name, ends in (
        ("accent", "error", "interval"),
        ("floor", "copy", "copy_interval"),
    ):
        assert has(lines(axes, colour), [(k, getattr(found, name)) for k, found in ahead])
        (band,) = bands(axes, colour)
        np.testing.assert_allclose(band, [(k, *getattr(found, ends)) for k, found in ahead])
    shown = words(axes)
    middle, found = ahead[1]
    assert shown["prediction"] == (middle, found.error)
    assert shown["no change"] == (middle, found.copy)
    assert shown["two frames of different episodes"][1] == found.random
    assert axes.get_xlabel() == "blocks of 5 env steps ahead"


# ---------------------------------------------------------------------------------------- surprise


def test_surprise_over_time_is_that_of_the_condition_that_is_named(figures):
    axes, result = of(figures, "surprise", "surprise over time, mean of 103 episodes")
    by_kind = {"muted": [], "accent": [], "warm": []}
    for c, name in enumerate(result.conditions):
        first = 0 if c == 0 else 1  # before the edit all are one
        (line,) = lines(axes, label=name)
        np.testing.assert_allclose(
            line, np.column_stack([result.frames, result.mean[c]])[first:], err_msg=name
        )
        ends = np.column_stack([result.frames, result.low[c], result.high[c]])[first:]
        by_kind[{"t": "accent", "c": "warm", "u": "muted"}[name[0]]].append(ends)
    for colour, expected in by_kind.items():
        for band, ends in zip(bands(axes, colour), expected, strict=True):
            np.testing.assert_allclose(band, ends)
    assert axes.get_xlabel() == "frames since the edit, 5 env steps apart"


def test_surprise_of_each_episode_lies_in_the_row_of_its_condition(figures):
    axes, result = of(figures, "surprise", "surprise at the edit: 103 episodes, mean above")
    at = {name.replace("\n", " "): place for name, place in rows(axes).items()}
    edit = result.frames.tolist().index(0)
    for c, name in enumerate(result.conditions):
        near = [line for line in lines(axes) if abs(np.nanmean(line[:, 1]) - at[name]) < 0.5]
        every, interval, mean = near
        np.testing.assert_allclose(every[::3, 0], result.surprise[c, :, edit], err_msg=name)
        np.testing.assert_allclose(interval[:, 0], (result.low[c, edit], result.high[c, edit]))
        np.testing.assert_allclose(mean[:, 0], result.mean[c, edit])
    assert axes.get_xlabel() == "surprise at the edit"


def test_detectors_are_drawn_under_their_names_and_areas(figures):
    axes, result = of(figures, "surprise", "telling edits from normal motion")
    for curve, (name, edit) in zip(result.roc, result.edits.items(), strict=True):
        assert has(
            lines(axes, label=f"{name}: area {edit.auc:.3f}"),
            np.column_stack([result.roc_false_alarms, curve]),
        )
    assert axes.get_xlabel() == "share of normal frames that raise an alarm"
    assert axes.get_ylabel() == "share of edits found"
    axes, _ = of(figures, "surprise", "telling teleports from changes of colour")
    teleports = list(result.edits.items())[:2]
    for curve, (name, edit) in zip(result.roc_colour, teleports, strict=True):
        label = f"{name}: area {edit.against_colour.auc:.3f}"
        assert has(lines(axes, label=label), np.column_stack([result.roc_false_alarms, curve]))
    assert axes.get_xlabel() == "share of changes of colour that raise an alarm"


# ----------------------------------------------------------------------------------------- probing


def test_correlations_lie_in_the_row_of_their_variable_under_their_rival(figures):
    axes, result = of(figures, "probing", "how well the state is read")
    at = rows(axes)
    readers = {
        "ridge, latents": lambda variable: variable,
        "MLP, latents": lambda variable: variable.mlp,
        "ridge, random encoder": lambda variable: variable.controls["random encoder"],
        "ridge, pixels": lambda variable: variable.controls["pixels"],
    }
    for label, read in readers.items():
        (line,) = lines(axes, label=label)
        (mark,) = [line for line in axes.get_lines() if line.get_label() == label]
        np.testing.assert_allclose(line[:, 0], [read(each).r for each in result.variables.values()])
        assert np.abs(line[:, 1] - [at[name] for name in result.variables]).max() < 0.5
        for (_, y), variable in zip(line, result.variables.values(), strict=True):
            ends = [(end, y) for end in read(variable).r_interval]
            assert has(lines(axes, theme(mark.get_color())), ends), label
    (legend,) = axes.figure.legends
    drawn = {line.get_label(): line.get_marker() for line in axes.get_lines()}
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        assert handle.get_marker() == drawn[text.get_text()]


def test_maps_are_coloured_by_the_variable_that_they_name(figures):
    for column, (name, label) in enumerate((("x", "x, px"), ("y", "y, m"))):
        axes, result = of(figures, "probing", f"the latents by {name}")
        (cloud,) = axes.collections
        np.testing.assert_array_equal(cloud.get_offsets(), result.plane)
        np.testing.assert_array_equal(cloud.get_array(), result.states[:, column])
        assert axes.figure.axes[1].get_ylabel() == label
        axes, _ = of(figures, "probing", f"reading {name} from the latents")
        (cloud,) = axes.collections
        pairs = np.column_stack([result.states[:, column], result.predictions[:, column]])
        np.testing.assert_array_equal(cloud.get_offsets(), pairs)
        assert (axes.get_xlabel(), axes.get_ylabel()) == (f"true {label}", f"read {label}")
        assert f"r = {result.variables[name].r:.4f}" in words(axes)
    axes, result = of(figures, "probing", "the latents, same colours")
    true, _ = of(figures, "probing", "true x and y")
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), result.plane)
    np.testing.assert_array_equal(
        axes.collections[0].get_facecolor(), true.collections[0].get_facecolor()
    )
    assert (true.get_xlabel(), true.get_ylabel()) == ("x, px", "y, m")


def test_the_band_of_predictions_is_theirs(figures):
    axes, result = of(figures, "probing", "open-loop error in px: x, y")
    ((band,), found) = bands(axes, "accent"), result.rollout.units["px"]
    ends = np.column_stack([result.rollout.steps, found.rmse_interval])
    np.testing.assert_allclose(band, ends)
    assert axes.get_ylabel() == "error, px"


# ---------------------------------------------------------------------------------------- planning


def test_plans_are_off_by_percents_of_the_change(figures):
    axes, result = of(figures, "planning", "imagined latents against real ones")
    blocks = result.horizon
    assert has(lines(axes, "accent"), [(b.steps, 100 * b.ratio) for b in blocks])
    (band,) = bands(axes, "accent")
    np.testing.assert_allclose(
        band, [(b.steps, *(100 * e for e in b.ratio_interval)) for b in blocks]
    )
    assert (lines(axes, "muted")[0][:, 1] == 100).all(), "as if nothing changed"


def test_a_search_is_drawn_round_by_round(figures):
    axes, result = of(figures, "planning", "candidates narrow from round to round")
    low, middle, high = np.median(result.costs, axis=0).T
    rounds = (1, 2)
    assert has(lines(axes, label="median candidate"), np.column_stack([rounds, middle]))
    (band,) = bands(axes, "accent")
    np.testing.assert_allclose(band, np.column_stack([rounds, low, high]))


def test_the_map_lies_as_in_the_picture(figures):
    axes, result = of(figures, "planning", "the map that plans go by: 3 stored latents")
    assert has(lines(axes, "accent"), result.map.places)
    assert has(lines(axes, "warm"), result.map.way)
    start, goal = lines(axes, "ink")
    np.testing.assert_array_equal([*start, *goal], result.map.way[[0, -1]])
    (edges,) = axes.collections
    np.testing.assert_array_equal(edges.get_segments(), result.map.places[result.map.links])
    assert axes.get_xlim() == (0, 100)
    assert axes.get_ylim() == (100, 0), "down"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x, px", "y, px")


def test_clips_say_how_their_own_attempt_ended(monkeypatch):
    result, drawn = distinct.planning(), []

    def draw(recording, budget, view):
        drawn.append((recording, budget, view.extent, view.tolerance))
        return [("frame", len(drawn), number) for number in range(3)]

    monkeypatch.setattr(planning_section, "draw_episode", draw)
    monkeypatch.setattr(
        planning_section, "encode_animation", lambda frames, suffix: (tuple(frames), suffix)
    )
    reached, missed = sections.clips(result)
    assert (reached.caption, reached.solved) == ("into the other room, 10 steps", True)
    assert (missed.caption, missed.solved) == (
        "within one room, 15 steps were not enough",
        False,
    )
    for k, (clip, recording) in enumerate(zip((reached, missed), result.recordings, strict=True)):
        assert drawn[k][0] is recording
        assert drawn[k][1:] == (50, 100.0, 6.0)
        frames = tuple(("frame", k + 1, number) for number in range(3))
        assert clip.animation == (frames, ".webp")
        assert clip.still == (frames[-1:], ".webp"), "its end"
        assert (clip.places, clip.searches) == (True, True)


# ----------------------------------------------------------------------------------------- economy


def dots(line):
    """How many dots the rows of a field hold."""
    ends = line.reshape(-1, 3, 2)[:, :2, 0]
    return int(np.round((ends[:, 1] - ends[:, 0]) / economy_section.PITCH_PT - 0.2).sum()) + len(
        ends
    )


def test_a_field_has_a_dot_per_token_below_its_name(figures):
    axes, result = of(figures, "economy", "a frame of each model, one dot per token")
    shown = words(axes)
    fields = [line for line in lines(axes) if len(line) > 1]
    expected = (
        ("this run", "3 tokens", 3, "accent"),
        ("One", "6 tokens", 6, "muted"),
        ("Two", "450 tokens, estimated", 450, "floor"),
    )
    assert len(fields) == len(expected)
    for (name, label, tokens, colour), field in zip(expected, fields, strict=True):
        assert dots(field) == tokens, name
        assert has(lines(axes, colour), field) or any(
            len(line) == len(field) and np.allclose(line, field, equal_nan=True)
            for line in lines(axes, colour)
        ), name
        x, y = shown[name]
        assert shown[label] == (x, y + 13)
        assert 0 < field[0, 0] - x < 6
        assert y < field[0, 1] < y + 40
    assert isinstance(result, EconomyResult)
    assert axes.yaxis_inverted()


def test_bars_of_cost_are_named_and_say_of_what_they_are(figures):
    axes, result = of(figures, "economy", "time per plan")
    cem, amortised = result.plans.values()
    names = ["this run: CEM", "this run: amortised", "One"]
    remarks = ["measured, a CPU, 25 env steps a plan", "measured, a CPU, 20 env steps a plan"]
    values = (cem.seconds, amortised.seconds, 47.0)
    shown = words(axes)
    for bar, name, remark, value in zip(
        axes.patches, names, [*remarks, "published, L40S"], values, strict=True
    ):
        middle = bar.get_y() + bar.get_height() / 2
        np.testing.assert_allclose(bar.get_x() + bar.get_width(), value)
        assert theme(bar.get_facecolor()) == ("floor" if name == "One" else "accent")
        for text in (name, remark):
            assert 0 < middle - shown[text][1] < 0.5, "a name stands above its bar"
        np.testing.assert_allclose(shown[f"{value:.3g}"][1], middle)
    axes, _ = of(figures, "economy", "arithmetic of this run, counted")
    shown = words(axes)
    assert axes.get_xlabel() == "GFLOP"
    names = ["encode a frame", "predict a latent", "a plan: CEM", "a plan: amortised"]
    for bar, name, value in zip(axes.patches, names, (0.0151, 0.00052, 11, 12), strict=True):
        np.testing.assert_allclose(bar.get_x() + bar.get_width(), value)
        assert 0 < bar.get_y() + bar.get_height() / 2 - shown[name][1] < 0.5


# ---------------------------------------------------------------------------------------- pictures


@pytest.fixture
def texts(monkeypatch):
    """What is written into pictures: text -> (x, y, colour)."""
    from PIL import ImageDraw

    seen, write = [], ImageDraw.ImageDraw.text

    def text(self, xy, words, fill=None, **how):
        seen.append((words, *xy, fill))
        write(self, xy, words, fill=fill, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return seen


def test_pictures_of_a_way_stand_below_their_names_at_their_time(texts):
    result = distinct.decoding()
    for k in (0, 1):
        films = {name: film[k] for name, film in vars(result.films).items()}
        for t in range(3):
            texts.clear()
            card = decoding_section._side_by_side(films, t, 2, 5)
            at = {words: (x, y) for words, x, y, _ in texts}
            for name, film in films.items():
                x, y = at[name]
                below = card[y + 60 : y + 160, x - 40 : x + 40]
                assert (below == film[t][0, 0]).all(), (name, t)
            assert f"{5 * t} steps imagined" in at or "the frame it starts from" in at
            assert ("the frame it starts from" in at) == (t == 0)


def test_a_strip_names_its_rows_and_both_its_ends(texts, monkeypatch):
    result, cards = distinct.decoding(), []
    grid, side = decoding_section._grid, decoding_section._side_by_side

    def kept(rows, first, last):
        texts.clear()
        card = grid(rows, first, last)
        at = {words: (x, y) for words, x, y, _ in texts}
        cards.append((card, at, first, last))
        return card

    shown = []
    monkeypatch.setattr(decoding_section, "_grid", kept)
    monkeypatch.setattr(
        decoding_section,
        "_side_by_side",
        lambda films, t, horizon, frameskip: (
            shown.append((films, t, horizon, frameskip)) or side(films, t, horizon, frameskip)
        ),
    )
    with drawing():
        panels = sections.draw(result)
    assert [panel.title for panel in panels[1:3]] == [
        "10 steps imagined of episode 3, from step 10",
        "10 steps imagined of episode 8, from step 25",
    ]
    ends = [("better decoded", "worse"), ("start", "10 steps on"), ("start", "10 steps on")]
    sources = [vars(result.pictures)]
    sources += [{name: film[k] for name, film in vars(result.films).items()} for k in (0, 1)]
    for (card, at, first, last), told, source in zip(cards, ends, sources, strict=True):
        assert (first, last) == told
        assert at[first][0] < at[last][0]
        left = at[first][0]
        for name, pictures in source.items():
            step = decoding_section.STRIP_PX + decoding_section.GAP_PX
            for c, picture in enumerate(pictures):
                x, y = left + c * step + 60, at[name][1]
                assert (card[y, x] == picture[0, 0]).all(), (name, c)
    assert [(t, horizon, frameskip) for _, t, horizon, frameskip in shown] == [
        (t, 2, 5) for _ in (0, 1) for t in (0, 1, 2)
    ]
    for number, (films, *_) in enumerate(shown):
        for name, film in vars(result.films).items():
            np.testing.assert_array_equal(films[name], film[number // 3])


@pytest.mark.parametrize("success", [True, False])
def test_an_animation_counts_its_steps_and_says_how_it_ends(success, monkeypatch, texts):
    recording = results.recording(success=success)
    view = animation.View(lambda latents: np.asarray(latents) * 10, 100, 8)
    frames = []
    card = animation._card

    def kept(*of):
        texts.clear()
        picture = card(*of)
        frames.append([words for words, *_ in texts])
        return picture

    monkeypatch.setattr(animation, "_card", kept)
    animation.draw_episode(recording, 50, view)
    told = [words[1:4] for words in frames]
    search = [["imagining 6 plans", f"round {k} of 2"] for k in (1, 2)] + [["the chosen plan", ""]]
    expected = []
    for step in range(10):
        lines = [*(search if step in (0, 5) else []), ["executing it", ""]]
        expected += [[f"step {step} / 50", *line] for line in lines]
    end = ["goal reached", "after 10 steps"] if success else ["goal not reached", "in 10 steps"]
    assert told == [*expected, ["step 10 / 50", *end]]


def test_a_legend_is_in_the_colours_of_what_it_names(texts):
    recording = results.recording()
    recording.goal_pixels[:] = 70  # not what is seen
    view = animation.View(lambda latents: np.asarray(latents) * 10, 100, 8)
    frames = animation.draw_episode(recording, 50, view)
    pixels = frames[-1].pixels
    colours = {words: pixels[y + 10, x - 11] for words, x, y, _ in texts}
    for name, colour in (
        ("walked", animation.WALKED),
        ("imagined", animation.IMAGINED),
        ("goal", animation.GOAL),
    ):
        np.testing.assert_array_equal(colours[name], colour, err_msg=name)
    ((x, y),) = {(x, y) for words, x, y, _ in texts if words == "goal picture"}
    picture = pixels[y + 40 : y + 120, x + 10 : x + 110]
    assert (picture == 70).all(), "the picture of the goal is not the goal's"


def test_the_cheapest_candidate_is_the_clearest_and_on_top():
    """Two groups of ends, the cheaper ones first: each alone, and where they meet."""
    view = animation.View(np.asarray, 100, 8)
    ends = np.array([[50.0, 30.0], [20.0, 70.0], [80.0, 70.0]])
    overlay = animation._overlay(
        view, np.array([5.0, 95.0]), np.zeros((1, 2)), animation._Marks(ends)
    )
    alpha = np.asarray(overlay)[..., 3]
    at = [alpha[round(y * 3.2), round(x * 3.2)] for x, y in ends + 0.5]
    assert at[0] > at[1] > at[2] > 0
    same = animation._Marks(np.tile(ends[:1], (3, 1)))
    top = np.asarray(animation._overlay(view, np.array([5.0, 95.0]), np.zeros((1, 2)), same))
    assert top[round(30.5 * 3.2), round(50.5 * 3.2), 3] == at[0], "the last drawn is the clearest"


# ------------------------------------------------------------------------------------------ charts


def test_success_is_drawn_and_written_with_its_interval():
    scores = {
        "agent": {"rate": 0.9, "low": 0.83, "high": 0.94},
        "random": {"rate": 0.31, "low": 0.22, "high": 0.43},
        "nothing": {"rate": 0.07, "low": 0.01, "high": 0.12},
    }
    with drawing() as found:
        success_panel("strict", scores)
    axes = found["strict"]
    texts = [(text.get_text(), *text.get_position()) for text in axes.texts]
    for place, (name, score) in enumerate(scores.items()):
        bar = axes.patches[place]
        np.testing.assert_allclose(bar.get_width(), 100 * score["rate"])
        assert bar.get_y() < place < bar.get_y() + bar.get_height()
        ends = [(100 * score["low"], place), (100 * score["high"], place)]
        drawn = [line for line in lines(axes) if (line[:, 1] == place).all()]
        assert len(drawn) == 2
        for line in drawn:
            np.testing.assert_allclose(line, ends)
        beside = {word: x for word, x, y in texts if y == place}
        assert beside == {name: -2, f"{100 * score['rate']:.0f}%": 104}
    assert axes.yaxis_inverted(), "the agent is on top"
    assert (axes.get_xlim(), axes.get_xlabel()) == ((0, 100), "success, %")


def test_curves_of_a_training_are_those_that_their_titles_name():
    titles = {
        "prediction": "prediction loss",
        "sigreg": "SIGReg",
        "latent_std": "standard deviation of the latents",
        "effective_rank": "effective rank of the latents",
        "straightness": "straightness of held-out paths",
    }
    rows = [
        {"update": 10 * k} | {name: j + k / 7 for j, name in enumerate(titles, 1)}
        for k in (1, 2, 5)
    ]
    del rows[1]["straightness"]
    with drawing() as found:
        loss_panels(rows)
    assert sorted(found) == sorted(titles.values())
    for name, title in titles.items():
        known = [(line["update"], line[name]) for line in rows if name in line]
        assert has(lines(found[title], "accent"), known), name
        assert found[title].get_xlabel() == "update"
        assert found[title].get_yscale() == (
            "log" if name in ("prediction", "sigreg") else "linear"
        )


def test_planners_lie_at_their_time_and_success_under_their_number():
    points = {
        "paper": (900.0, 0.971, 0.95, 0.985),
        "slow": (300.0, 0.96, 0.942, 0.978),
        "quick": (3.0, 0.953, 0.931, 0.964),
        "middle": (30.0, 0.98, 0.968, 0.993),
    }
    front = [2, 3]
    with drawing() as found:
        pareto_panel("planners", points, front)
    axes = found["planners"]
    for place, (ms, rate, low, high) in enumerate(points.values()):
        drawn = lines(axes, "accent" if place in front else "floor")
        assert has(drawn, [(ms, 100 * low), (ms, 100 * high)])
        assert has(drawn, [(ms, 100 * rate)])
    assert has(lines(axes, "accent"), [(3.0, 95.3), (30.0, 98.0)])
    shown = words(axes)
    assert shown["1"] == pytest.approx((3.0, 95.3))
    assert shown["2"] == pytest.approx((30.0, 98.0))
    assert shown["paper"] == pytest.approx((900.0, 98.5))
    assert "1 quick\n2 middle" in shown
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ms per plan", "success, %")


# ------------------------------------------------------------------------------------------ rivals

ABOUT = {"way": "", "knobs": 1, "source": "s", "objection": "", "answer": "", "control": False}


def compared():
    """Three methods of two seeds and two rates, no two of whose numbers are equal."""
    rows = []
    for m, name in enumerate(("lewm", "pldm", "none")):
        for rate in (1e-3, 1e-2):
            for seed in (0, 1):
                k = 12 + 6 * m + (3 if rate == 1e-2 else 0) + seed
                u = 1 + m + seed / 4 + 10 * (rate == 1e-3)
                more = {
                    "probe_r": 0.9 - u / 30,
                    "latent_std": 0.3 + u / 20,
                    "effective_rank": 4 + u,
                    "straightness": -0.1 * u,
                    "cost_rank_states": 0.2 + u / 40,
                    "train_cpu_s": 40.0 + 4 * u,
                    "train_s": 900.0 + u,
                    "tokens": 1 + m,
                    "parameters": 540_000 + 20_000 * m,
                    "plan_ms": 12.0 * u,
                    "error_of_copying": {"1": 0.1 + u / 9, "5": 0.5 + u / 7},
                }
                one = row(name, rate, seed, [i < k for i in range(40)], **more)
                near = [i < k + 8 for i in range(40)]
                one["tasks"]["near"] = task(near, f"near{seed}", episodes=list(range(40)))
                rows.append(one)
        if name != "none":
            rows += [
                row(name, 1e-2, 0, [i < n + m for i in range(40)], draw=n) for n in (4, 31, 20)
            ]
    methods = {name: {**ABOUT, "title": name.upper(), "knobs": 2 + i} for i, name in
               enumerate(("lewm", "pldm", "none"))}  # fmt: skip
    methods["none"]["control"] = True
    return Study(methods, (1e-3, 1e-2), tuple(rows))


def test_the_table_of_methods_holds_each_number_under_its_name():
    study = compared()
    told = rivals.table(study, "w")
    assert [line["method"] for line in told] == ["NONE (control)", "PLDM", "LEWM"]
    for m, line in zip((2, 1, 0), told, strict=True):
        counts = [15 + 6 * m, 16 + 6 * m]
        mean = np.mean([1 + m, 1 + m + 0.25])  # of the two seeds, at the better rate
        far = 100 * np.array(counts) / 40
        near = 100 * (np.array(counts) + 8) / 40
        for name, rates in (("75 steps, %", far), ("25 steps, %", near)):
            low, high = (100 * end for end in rivals.wilson(round(rates.sum() * 0.4), 80))
            each = ", ".join(f"{rate:.1f}" for rate in rates)
            assert line[name] == f"{100 * np.mean(rates / 100):.1f} [{low:.1f}, {high:.1f}]: {each}"
        assert line["knobs"] == str(2 + m)
        assert line["worst r"] == f"{0.9 - mean / 30:.4f}"
        assert line["std"] == f"{0.3 + mean / 20:.2f}"
        assert line["rank"] == f"{4 + mean:.1f}"
        assert line["error / copying, 1 and 5 blocks"] == (
            f"{0.1 + mean / 9:.2f} / {0.5 + mean / 7:.2f}"
        )
        assert line["cost's rank"] == f"{0.2 + mean / 40:.2f}"
        assert line["S"] == f"{-0.1 * mean:.2f}"
        assert line["tokens"] == str(1 + m)
        assert line["parameters"] == f"{0.54 + 0.02 * m:.2f} M"
        assert line["train, cpu-s"] == f"{40 + 4 * mean:.0f}"
        assert line["plan, ms"] == f"{12 * mean:.0f}"
        assert line["best rate"] == "0.01"
    assert told[2]["against LeWM"] == "-"
    assert told[1]["against LeWM"].startswith("+15.0, better (p ")
    assert told[0]["against LeWM"].startswith("+30.0, better (p ")
    lines_ = rivals._tuning(study, "w")
    assert lines_[0] == "| method | 0.001 | 0.01 |"
    assert lines_[2:] == [
        "| NONE | 60.0 | 67.5 |",
        "| PLDM | 45.0 | 52.5 |",
        "| LEWM | 30.0 | 37.5 |",
    ]


def test_words_about_methods_have_the_signs_of_their_numbers():
    told = rivals.result_in_words(compared(), "w")
    assert told[0] == "Best 75 steps ahead: PLDM, 53.8% (2 seeds).", "a control is no rival"
    assert told[1] == "LeWM is number 2 of 2: 38.8%."
    assert told[2] == "Shown to be better than LeWM: NONE, PLDM."
    worse = Study(compared().methods, (1e-3,), tuple(
        row(name, 1e-3, 0, [i < k for i in range(40)]) for name, k in (("lewm", 36), ("pldm", 9))
    ))  # fmt: skip
    told = rivals.result_in_words(worse, "w")
    assert told == [
        "Best 75 steps ahead: LEWM, 90% (1 seed).",
        "Shown to be worse than LeWM: PLDM.",
    ]
    assert rivals.table(worse, "w")[1]["against LeWM"].startswith("-67.5, worse (p ")


def test_figures_of_methods_lie_at_their_numbers():
    study = compared()
    with drawing() as found:
        rivals.figures(study, "w")
    axes = found["success and planning time, w"]
    for n, one in enumerate(study.standings("w"), 1):
        colour = {"lewm": "accent", "none": "floor", "pldm": "warm"}[one.method]
        low, high = one.interval("far")
        ms, mean = one.plan_ms, 100 * np.mean(one.rates("far"))
        assert has(lines(axes, colour), [(ms, 100 * low), (ms, 100 * high)])
        assert has(lines(axes, colour), [(ms, mean)])
        assert words(axes)[str(n)] == pytest.approx((ms, mean))
    assert "1 NONE\n2 PLDM\n3 LEWM" in words(axes)
    axes = found["settings within a decade of the published ones, w"]
    best = max(row["tasks"]["far"]["rate"] for row in study.rows)
    shown = words(axes)
    for place, (method, m) in enumerate((("LEWM", 0), ("PLDM", 1))):
        rates = [100 * (n + m) / 40 for n in (4, 20, 31)]
        (line,) = lines(axes, "accent" if method == "LEWM" else "warm")
        np.testing.assert_allclose(line[:, 0], rates)
        assert np.abs(line[:, 1] - place).max() < 0.5
        assert shown[method] == (-2, place)
        hits = sum(rate >= 90 * best for rate in rates)
        assert f"{hits} of 3" in shown
    assert has(lines(axes, "muted"), [(90 * best, 0), (90 * best, 1)])
    assert axes.yaxis_inverted()
    assert len(set(THEME)) == 6
