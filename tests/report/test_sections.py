"""Panels that a page can hold, bars as long as their rates, and animations in which things are
where they should be."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from lewm.report.animation import (
    GOAL,
    GOAL_PX,
    IMAGINED,
    MARGIN_PX,
    SCENE_PX,
    Frame,
    View,
    draw_episode,
    encode_animation,
    save_animation,
)
from lewm.report.canvas import THEME
from lewm.report.charts import loss_panels, success_panel
from lewm.report.sections.probing import latent_panels, probe_panels
from tests.support.results import ROWS, probing, recording, variable

# ------------------------------------------------------------------------------------------- panels


SCORES = {
    "agent": {"rate": 0.9, "low": 0.85, "high": 0.93},
    "random": {"rate": 0.3, "low": 0.2, "high": 0.4},
}


@pytest.fixture(scope="module")
def panels():
    drawn = [
        *loss_panels(ROWS),
        success_panel("strict", SCORES),
        *latent_panels(probing()),
        *probe_panels(probing()),
    ]
    return [panel.svg for panel in drawn]


def test_panels_are_whole_svg_without_anything_from_outside(panels):
    assert len(panels) == 4 + 1 + 4 + 2
    for panel in panels:
        root = ElementTree.fromstring(panel)
        assert root.attrib["viewBox"]
        assert root.attrib["aria-label"]
        assert "width" not in root.attrib
        assert all(
            address.startswith(("#", "data:image/png"))
            for address in re.findall(r'href="([^"]*)"', panel)
        )
        assert "<!--" not in panel
        assert "<metadata" not in panel


def test_no_name_is_used_by_two_panels_of_a_page(panels):
    names = [name for panel in panels for name in set(re.findall(r' id="([^"]+)"', panel))]
    assert len(names) == len(set(names))


def test_the_page_decides_about_colours(panels):
    for panel in panels:
        for colour in THEME.values():
            assert panel.count(colour) == panel.count(f", {colour})"), (
                "a colour that CSS cannot change"
            )
    assert len(set(THEME.values())) == len(THEME)
    assert all("var(--ink" in panel and "<text" in panel for panel in panels)


def test_names_from_data_files_stay_text():
    evil = """x" onload='y'><script>&amp;$\\frac$"""
    found = probing({evil: variable(0.9), "y": variable(0.9)})
    for drawn in (
        success_panel(evil, {evil: SCORES["agent"]}),
        latent_panels(found)[2],
        probe_panels(found)[0],
    ):
        panel = drawn.svg
        root = ElementTree.fromstring(panel)
        assert evil in root.attrib["aria-label"]
        assert "onload" not in root.attrib
        assert "<script" not in panel
        assert evil in "".join(root.itertext())


def test_drawing_is_repeatable():
    assert success_panel("strict", SCORES) == success_panel("strict", SCORES)
    assert latent_panels(probing()) == latent_panels(probing())


def test_bars_are_as_long_as_their_rates():
    def lengths(panel, colour):
        paths = [p for p in re.findall(r"<path [^>]*>", panel) if f"fill: var(--{colour}" in p]
        across = [
            [
                float(x)
                for x in re.findall(
                    r"[ML] ([-\d.]+) ", re.search(r'd="([^"]*)"', p.replace("\n", ""))[1]
                )
            ]
            for p in paths
        ]
        return [max(x) - min(x) for x in across]

    panel = success_panel("strict", SCORES).svg
    (agent,), (floor,) = lengths(panel, "accent"), lengths(panel, "floor")
    assert agent / floor == pytest.approx(0.9 / 0.3, rel=1e-3)
    for words in ("agent", "random", "90%", "30%"):
        assert words in panel


def test_curves_are_drawn_for_what_was_logged():
    assert len(loss_panels([{"update": 10, "prediction": 0.1}])) == 1
    assert len(loss_panels([{"update": 1, "other": 0.1}])) == 0


def test_pyplot_and_its_global_state_are_never_imported():
    draw = "success_panel('t', {'a': {'rate': 1, 'low': 1, 'high': 1}})"
    code = f"""
import sys
from lewm.report.animation import save_animation
from lewm.report.charts import success_panel
assert not {{"matplotlib", "PIL", "av"}} & set(sys.modules)
{draw}
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------- animations

VIEW = View(read=lambda latents: np.asarray(latents) * 10, extent=100, tolerance=8)


def at(frame, place, radius=0):
    """Mean colour of a frame around a state."""
    x, y = (round((v + 0.5) / VIEW.extent * SCENE_PX) + MARGIN_PX for v in place)
    return (
        frame.pixels[y - radius : y + radius + 1, x - radius : x + radius + 1]
        .reshape(-1, 3)
        .mean(axis=0)
    )


def test_an_episode_is_its_searches_its_plans_and_its_steps():
    frames = draw_episode(recording(), budget=50, view=VIEW)
    # two replans of two rounds (the scored mean is none) and a plan; steps; the end
    assert len(frames) == 2 * (2 + 1) + 10 + 1
    assert {frame.pixels.shape for frame in frames} == {
        (SCENE_PX + 2 * MARGIN_PX, SCENE_PX + GOAL_PX + 3 * MARGIN_PX, 3)
    }
    assert frames[-1].milliseconds == max(frame.milliseconds for frame in frames)


def test_marks_lie_where_states_and_read_latents_say():
    frames = draw_episode(recording(), budget=50, view=VIEW)
    first_round, plan, end = frames[0], frames[2], frames[-1]
    np.testing.assert_allclose(at(first_round, (70, 80), 1), IMAGINED, atol=45)
    np.testing.assert_allclose(at(first_round, (50, 80)), 255)
    # between the two imagined places
    np.testing.assert_allclose(at(plan, (50, 80)), IMAGINED, atol=10)
    np.testing.assert_allclose(at(plan, (70, 80)), 255)
    np.testing.assert_allclose(at(end, (60 + VIEW.tolerance - 0.3, 50)), GOAL, atol=60)
    red, green, blue = at(end, (22, 20))
    assert blue > green > red  # the way that was walked
    np.testing.assert_allclose(at(plan, (22, 20)), 255)  # and not yet here


def test_a_plan_is_drawn_from_where_it_was_made():
    """The first at step 0, in (10, 20); the second at step 5, in (30, 20); both to (40, 80)."""
    frames = draw_episode(recording(), budget=50, view=VIEW)
    for plan, middle, other in ((2, (25, 50), (35, 50)), (10, (35, 50), (25, 50))):
        np.testing.assert_allclose(at(frames[plan], middle), IMAGINED, atol=45)
        np.testing.assert_allclose(at(frames[plan], other), 255)


def test_without_a_view_only_pictures_and_captions_are_drawn():
    frames = draw_episode(recording(), budget=50)
    np.testing.assert_allclose(at(frames[-1], (60, 50), 30), 255)
    reached, missed = (
        draw_episode(recording(success=s), budget=50)[-1].pixels for s in (True, False)
    )
    assert (reached != missed).any()


def test_small_pictures_stay_crisp():
    checks = recording()
    checks.pixels[:, ::2, ::2] = 0
    scene = draw_episode(checks, budget=50)[-1].pixels[
        MARGIN_PX + 1 : MARGIN_PX + SCENE_PX - 1, MARGIN_PX + 1 : MARGIN_PX + SCENE_PX - 1
    ]
    assert set(np.unique(scene)) == {0, 255}


FRAMES = [
    Frame(np.full((40, 61, 3), level, np.uint8), ms)
    for level, ms in ((0, 90), (120, 450), (255, 900))
]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_read_back(tmp_path, suffix):
    with Image.open(save_animation(FRAMES, tmp_path / "new" / f"plan{suffix}")) as image:
        assert image.n_frames == 3
        assert image.info["loop"] == 0
        for number, frame in enumerate(FRAMES):
            image.seek(number)
            assert abs(np.asarray(image.convert("RGB")).mean() - frame.pixels.mean()) < 6
            assert image.info["duration"] == pytest.approx(frame.milliseconds, abs=10)


def test_mp4_reads_back(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(save_animation(FRAMES, tmp_path / "plan.mp4"))) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 1 + 5 + 10
    assert pictures[0].shape == (40, 60, 3)
    assert [abs(pictures[i].mean() - level) < 6 for i, level in ((0, 0), (3, 120), (-1, 255))] == [
        True
    ] * 3


def test_mp4_without_pyav_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"lewm\[video\]"):
        save_animation(FRAMES, tmp_path / "plan.mp4")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(monkeypatch, tmp_path):
    for name in ("plan.png", "plan"):
        with pytest.raises(ValueError, match=r"\.gif, \.mp4, \.webp"):
            save_animation(FRAMES, tmp_path / name)
    with pytest.raises(ValueError, match="at least one frame"):
        encode_animation([], ".gif")
    old = tmp_path / "plan.gif"
    old.write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_animation(FRAMES, old)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
