"""The layout is a test: imports go strictly down, plug-ins are strangers to each other, heavy imports wait."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lewm"
FLOORS = (
    ("contracts", "registry", "provenance", "graphs"),
    ("files", "devices", "latents", "nn", "losses", "data", "windows", "stats", "rendering", "rasters", "pushing", "dialects",
     "single", "unrolling", "searching", "scoring", "panels"),
    ("models", "envs", "heads", "objectives", "solvers", "formats", "recording", "decoder"),
    ("planning", "checkpoints", "collection", "conversion", "tasks", "hindsight", "results"),
    ("training", "evaluation", "fitting", "realtime", "subject", "reading"),
    ("analyses", "figures", "animation", "comparison", "records", "telling"),
    ("recipes", "report", "published", "pieces"),
    ("reproduction", "analysing", "verdicts"),
    ("quickstart", "doctor", "runs", "console", "claims"),
    ("commands",),
    ("cli",),
)  # fmt: skip
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PLUGINS = ("models", "envs", "heads", "objectives", "solvers", "formats", "analyses")
FIRST_TO_NAME_PLUGINS = FLOOR_OF["recipes"]
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[tuple[str, ...]]:
    """Every module of lewm that a file imports, at any depth of its code, without the leading "lewm"."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
            continue
        for module in modules:
            parts = tuple(module.split("."))
            if parts[0] == "lewm" and len(parts) > 1 and parts[1] in FLOOR_OF:
                found.add(parts[1:])
    return found


def test_every_module_has_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert rooms <= FLOOR_OF.keys(), f"give these a floor: {sorted(rooms - FLOOR_OF.keys())}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_strictly_down(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__":
        return
    own = FLOOR_OF[parts[0]]
    for target in imports(path):
        assert FLOOR_OF[target[0]] < own, f"{'.'.join(parts)} imports {'.'.join(target)}, which is not below it"
        if own < FIRST_TO_NAME_PLUGINS:
            assert target[0] not in PLUGINS, f"{'.'.join(parts)} names the plug-in {'.'.join(target)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path):
    if path.stem == "cli":
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled(path):
    text = path.read_text()
    assert "pickle" not in text
    assert "weights_only=False" not in text


def test_importing_the_package_is_cheap():
    code = "import lewm, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_surface_is_small_and_real():
    import lewm

    assert len(lewm.__all__) <= 25
    assert all(hasattr(lewm, name) for name in lewm.__all__)
