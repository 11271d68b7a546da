"""The layout is a test: five rules, the rest of the package's promises about imports, and a small
public surface."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lewm import registry

PACKAGE = Path(__file__).parent.parent / "lewm"
FILES = sorted(PACKAGE.rglob("*.py"))
GROUND = ("contracts", "registry", "files", "devices", "stats")
PARTS = (
    "worlds",
    "data",
    "models",
    "planning",
    "runs",
    "training",
    "evaluation",
    "analyses",
    "lab",
    "report",
    "experiments",
    "benchmarks",
    "cli",
)
PLUGINS = (
    "worlds",
    "models",
    "data.formats",
    "planning.objectives",
    "planning.solvers",
    "planning.heads",
    "analyses",
    "report.sections",
    "experiments.recipes",
    "cli.commands",
)
MAY_NAME_PLUGINS = ("", "experiments", "benchmarks", "cli")


def module_of(path: Path) -> str:
    """A file's module without the leading "lewm."."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def plugin(module: str) -> str | None:
    """The folder of plug-ins that a module is a plug-in of, if it is one."""
    folder, _, _ = module.rpartition(".")
    return folder if folder in PLUGINS and MODULES[module].name != "__init__.py" else None


def imports(path: Path) -> Iterator[str]:
    """Modules of lewm that a file imports, at any depth of its code, without the leading
    "lewm."."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            inside = name.removeprefix("lewm.")
            if inside != name:
                yield inside if inside in MODULES else inside.rpartition(".")[0]


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def test_every_file_lies_on_the_ground_or_in_a_part():
    tops = {module.partition(".")[0] for module in MODULES} - {""}
    assert tops == {*GROUND, *PARTS}


@each_file
def test_a_part_imports_only_parts_to_its_left(path):
    module = module_of(path)
    own, _, _ = module.partition(".")
    for target in filter(None, imports(path)):
        top, _, _ = target.partition(".")
        if own in GROUND:
            raise AssertionError(f"{module} is on the ground and imports {target}")
        if own in PARTS and top in PARTS:
            assert PARTS.index(top) <= PARTS.index(own), (
                f"{module} imports {target}, which is to its right"
            )


@each_file
def test_plugins_are_strangers_to_each_other(path):
    module = module_of(path)
    own, _, _ = module.partition(".")
    for target in filter(None, imports(path)):
        if plugin(target) is None:
            continue
        section = (
            plugin(module) == "report.sections"
            and target == f"analyses.{module.rpartition('.')[2]}"
        )
        assert own in MAY_NAME_PLUGINS or section, f"{module} names the plug-in {target}"
        assert plugin(module) is None or plugin(module) != plugin(target), (
            f"{module} knows its neighbour {target}"
        )


@each_file
def test_only_the_command_line_prints(path):
    if path.is_relative_to(PACKAGE / "cli"):
        return
    tree = ast.parse(path.read_text())
    tree.body = [
        node
        for node in tree.body
        if ast.unparse(node).partition("\n")[0] != "if __name__ == '__main__':"
    ]
    # run as a script, a file may speak
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [
        call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]


@each_file
def test_nothing_is_unpickled(path):
    text = path.read_text()
    assert "pickle" not in text
    assert "weights_only=False" not in text


def test_the_registry_needs_nobody_to_have_imported_something_before():
    code = "from lewm import registry; print(registry.load('solvers', 'cem').__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "CEM"


def test_importing_the_package_is_cheap():
    code = "import lewm, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_surface_is_small_and_real():
    import lewm

    assert len(lewm.__all__) <= 47
    assert all(hasattr(lewm, name) for name in lewm.__all__)
    assert set(lewm.__all__) == set(dir(lewm))


def test_an_editor_sees_the_public_names():
    """What type checkers read, `from a import b as b`, is what is imported at run time."""
    import lewm

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (seen,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    typed = {}
    for line in seen.body:
        assert isinstance(line, ast.ImportFrom)
        for alias in line.names:
            assert alias.asname == alias.name, "an alias alone is no export to a type checker"
            typed[alias.name] = line.module
    assert typed == lewm._HOME
    plugins = {
        registry.load(kind, name).__name__
        for kind in ("solvers", "objectives", "heads", "analyses")
        for name in registry.names(kind)
    }
    assert plugins <= typed.keys(), "every plug-in of these kinds is public"


def test_no_test_file_imports_another():
    folder = Path(__file__).parent
    for path in folder.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                shared = re.match(r"tests\.(support|\w+\.harness$)", node.module)
                assert shared, f"{path} imports {node.module}"


@each_file
def test_there_is_one_progress_signal(path):
    """Whoever takes long takes a `report` and gives it a `Progress`; there is no second shape."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and module_of(path) != "contracts":
            named = {ast.unparse(target) for target in node.targets}
            assert not named & {"Progress", "Report"}, f"{path}: a second {named}"
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            kind = ast.unparse(argument.annotation) if argument.annotation else None
            if argument.arg == "report":
                assert kind == "Report", f"{path}: report: {kind}"
            elif argument.arg == "progress":
                assert "Callable" not in (kind or ""), f"{path}: progress: {kind}"
            assert not (kind or "").startswith("Callable[[Progress]"), f"{path}: {argument.arg}"


ROLES = ("bare", "config", "head", "model", "model_config", "objective", "solver", "world")
"""Names of arguments that a role of `contracts` stands for."""


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_any_where_there_is_a_role(path):
    untyped = [
        f"line {argument.lineno}: {argument.arg}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if argument.arg in ROLES and isinstance(argument.annotation, ast.Name)
        if argument.annotation.id == "Any"
    ]
    assert not untyped, f"{module_of(path)} takes Any for a role: {untyped}"


def _text_without_encoding(call: ast.Call) -> bool:
    """Does a call read or write text in whatever encoding the machine prefers?"""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg for keyword in call.keywords}
    if "encoding" in named:
        return False
    if name in {"run", "Popen", "check_output"}:
        return bool(named & {"text", "universal_newlines"})
    if name in {"read_text", "write_text"}:
        return isinstance(call.func, ast.Attribute)
    # of the files' own: a bare open(), a path's .open(), os.fdopen
    modes = {"open": call.args[1:2], "fdopen": call.args[1:2]}.get(name)
    if modes is None:
        return False
    if isinstance(call.func, ast.Attribute) and name == "open":
        owner = ast.unparse(call.func.value)
        if owner in {"os", "av", "Image", "tarfile", "Book", "Episodes", "h5a", "h5d", "h5g"}:
            return False
        modes = call.args[:1]
    modes = modes or [k.value for k in call.keywords if k.arg == "mode"]
    mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r"
    return "b" not in str(mode)


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, 'rb')", False),
        ("open(p, encoding='utf-8')", False),
        ("p.open()", True),
        ("p.open('a')", True),
        ("p.open(mode='wb')", False),
        ("os.fdopen(d, 'a')", True),
        ("os.open(p, 1)", False),
        ("p.read_text()", True),
        ("p.write_text(t)", True),
        ("read_text(p, 'a', 'b')", False),  # of `files`, which is UTF-8
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c)", False),
    ],
)
def test_what_counts_as_text_without_an_encoding(code, wrong):
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert _text_without_encoding(call) == wrong


def test_text_is_read_and_written_in_a_named_encoding_and_numbers_in_no_locale():
    """A machine's own may be ASCII, and its decimal sign a comma."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert not _text_without_encoding(node), f"{path}:{node.lineno}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                assert "locale" not in [*names, getattr(node, "module", "")], path
            if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
                spec = ast.unparse(node.format_spec).strip("f'\"")
                assert not re.fullmatch(r"[^{}]*n", spec), f"{path}:{node.lineno}"
