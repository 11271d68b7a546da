"""Every panel of what probes found: whole, themed, names from data files as text, and no more
panels than anybody looks at."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from lewm.analyses.probing import Alike, OpenLoop
from lewm.report import sections
from lewm.report.canvas import THEME
from lewm.report.sections.probing import (
    MOST_LINES,
    MOST_SCATTERS,
    control_panels,
    latent_panels,
    probe_panels,
    rollout_panels,
)
from tests.support.results import probing, variable

EVIL = """x" onload='y'><script>&amp;$\\frac$"""


def alike(unit, names):
    return Alike(
        unit=unit,
        variables=tuple(names),
        rmse=(0.1, 0.2),
        rmse_interval=((0.05, 0.15), (0.1, 0.4)),
        encoded_rmse=(0.05, 0.05),
        copy_rmse=(0.2, 0.6),
    )


def found(readable, unreadable=0, controls=True, rollout=True, names=None, units=None):
    """One variable of those that are not readable has no correlation at all."""
    names = names or [f"part {i}" for i in range(readable + unreadable)]
    variables = {}
    for i, name in enumerate(names):
        own = 0.99 - 0.01 * i if i < readable else None if i == readable else 0.01
        rivals = {"random encoder": 0.2, "pixels": -0.1} if controls else {}
        mlp = (1.0 if i < readable else own) if controls else None
        variables[name] = variable(own, "m", mlp=mlp, controls=rivals)
    units = units or ("m", "degrees", "1")
    of_unit = {unit: alike(unit, names[:3]) for unit in units} if rollout else {}
    return probing(variables, frames=40, rollout=OpenLoop(steps=(5, 10), units=of_unit))


@pytest.mark.parametrize(
    "result",
    [found(2), found(9, 30), found(2, controls=False, rollout=False)],
    ids=["few", "many", "plain"],
)
def test_panels_are_whole_and_the_page_decides_about_colours(result):
    panels = sections.draw(result)
    for panel in panels:
        root = ElementTree.fromstring(panel.svg)
        assert root.attrib["aria-label"] == panel.title
        assert "<script" not in panel.svg
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", panel.svg)]
        assert sizes
        assert min(sizes) >= 9
        for colour in THEME.values():
            assert panel.svg.count(colour) == panel.svg.count(f", {colour})")
    names = [name for panel in panels for name in set(re.findall(r' id="([^"]+)"', panel.svg))]
    assert len(names) == len(set(names))


def test_there_are_no_more_panels_than_can_be_looked_at():
    few, many = found(2), found(MOST_LINES + 4, 30)
    assert [
        len(part(few)) for part in (control_panels, rollout_panels, latent_panels, probe_panels)
    ] == [1, 3, 4, 2]
    assert [
        len(part(many)) for part in (control_panels, rollout_panels, latent_panels, probe_panels)
    ] == [
        2,
        3,
        4,
        MOST_SCATTERS,
    ]
    shown = "".join(panel.svg for panel in control_panels(many))
    assert f">part {MOST_LINES + 3}<" in shown
    assert f">part {MOST_LINES + 20}<" not in shown  # nothing reads it
    plain = found(2, controls=False, rollout=False)
    assert control_panels(plain) == rollout_panels(plain) == []
    assert latent_panels(found(1)) == []


def test_names_of_data_files_stay_text():
    result = found(2, names=[EVIL, "y"], units=[EVIL])
    for panel in sections.draw(result):
        root = ElementTree.fromstring(panel.svg)
        assert "onload" not in root.attrib
        assert "<script" not in panel.svg
    assert EVIL in "".join(ElementTree.fromstring(control_panels(result)[0].svg).itertext())
    assert EVIL in "".join(ElementTree.fromstring(rollout_panels(result)[0].svg).itertext())


def test_a_correlation_of_one_is_drawn_within_the_axes():
    """The axis ends where 1 - r can still be told from 0."""
    panel = control_panels(found(2))[0].svg
    assert "nan" not in panel
    assert "inf" not in re.sub(r"<style.*?</style>", "", panel, flags=re.DOTALL)
