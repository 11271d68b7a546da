"""Archives and hub ids: what is honest arrives whole, what is not is refused and leaves nothing
outside its folder. And files: one writer, no link followed, nothing deleted but what is ours."""

import ast
import errno
import fcntl
import math
import multiprocessing
import os
import re
import signal
import stat
import sys
import tarfile
import threading
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from lewm import files
from lewm.data.archives import is_archive, unpack
from lewm.files import (
    append_line,
    fetch,
    hold,
    legible,
    read_json,
    remove,
    sweep,
    whole_folder,
    write_atomically,
    write_json,
)
from tests.support.archives import tar, zst

NOISE = np.random.default_rng(0).bytes(300_000)


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def put(path, content):
    path.write_bytes(content)
    return path


HONEST = [("./", b""), ("a/b.bin", NOISE), ("c.txt", b"text")]


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("x.tar", tar(HONEST[1:])),
        ("x.tar.zst", zst(tar(HONEST[1:]))),
        ("x.TZST", zst(tar(HONEST[1:]))),
    ],
)
def test_honest_archives_arrive_whole(name, packed, folder, tmp_path):
    archive = put(tmp_path / name, packed)
    assert is_archive(archive)
    unpack(archive, folder)
    assert (folder / "a" / "b.bin").read_bytes() == NOISE
    assert (folder / "c.txt").read_text(encoding="utf-8") == "text"


def test_a_single_file_in_several_frames(folder, tmp_path):
    unpack(put(tmp_path / "x.bin.zst", zst(NOISE[:1000]) + zst(b"") + zst(NOISE[1000:])), folder)
    assert (folder / "x.bin").read_bytes() == NOISE


@pytest.mark.parametrize("name", ["x.h5", "x.zip", "zst"])
def test_what_is_no_archive(name, tmp_path):
    assert not is_archive(put(tmp_path / name, b""))


LEAVING = "which would leave it"
DISHONEST = {
    "parent": ("../out.txt", LEAVING),
    "parent within": ("a/../../out.txt", LEAVING),
    "absolute": ("/tmp/lewm-test-out.txt", LEAVING),
    "backslash": ("..\\out.txt", LEAVING),
    "drive": ("C:out.txt", LEAVING),
    "symbolic link": (special("out", tarfile.SYMTYPE, "/etc"), "a link"),
    "hard link": (special("out", tarfile.LNKTYPE, "../out.txt"), "a link"),
    "device": (special("out", tarfile.CHRTYPE), "a special file"),
    "pipe": (special("out", tarfile.FIFOTYPE), "a special file"),
}


@pytest.mark.parametrize("what", DISHONEST)
def test_members_that_leave_the_folder_are_refused(what, folder, tmp_path):
    member, problem = DISHONEST[what]
    archive = put(tmp_path / "x.tar.zst", zst(tar([(member, b"" if "link" in problem else b"!")])))
    with pytest.raises(ValueError, match="ordinary files below one folder") as error:
        unpack(archive, folder)
    assert str(archive) in str(error.value)
    assert problem in str(error.value)
    assert not list(folder.iterdir())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "x.tar.zst"]


@pytest.mark.parametrize(
    "packed", [tar([("zeros", bytes(50_000_000))]), bytes(50_000_000)], ids=["tar", "file"]
)
def test_bombs_are_refused_before_they_fill_the_disk(packed, folder, tmp_path):
    archive = put(tmp_path / ("x.tar.zst" if packed[:5] == b"zeros" else "x.h5.zst"), zst(packed))
    size = archive.stat().st_size
    assert len(packed) > 1000 * size
    with pytest.raises(ValueError, match=r"archive bomb.*--max-expansion"):
        unpack(archive, folder)
    assert sum(entry.stat().st_size for entry in folder.iterdir()) <= 1000 * size
    for entry in folder.iterdir():
        entry.unlink()
    unpack(archive, folder, max_expansion=1e6)
    assert max(entry.stat().st_size for entry in folder.iterdir()) == 50_000_000


ODD = {
    "headers that fill the memory": (
        [(special("././@LongLink", b"L"), bytes(3_000_000)), ("a", b"!")],
        "headers of more than",
    ),
    "one name twice": ([("a", b"1"), ("a", b"2")], "two members called 'a'"),
    "a file as a folder": ([("a", b"1"), ("a/b", b"2")], "two members called 'a/b'"),
    "a name without end": ([("a" * 300, b"1")], LEAVING),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_archives_are_refused_in_words_of_ours(what, folder, tmp_path):
    members, problem = ODD[what]
    archive = put(tmp_path / "x.tar", tar(members))
    with pytest.raises(ValueError, match=f"x.tar: expected .*{problem}"):
        unpack(archive, folder)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("name", "packed"),
    [("x.tar", tar(HONEST[1:2])), ("x.tar.zst", zst(tar(HONEST[1:]))), ("x.bin.zst", zst(NOISE))],
)
def test_truncated_archives_are_named(name, packed, share, folder, tmp_path):
    archive = put(tmp_path / name, packed[: int(len(packed) * share)])
    with pytest.raises(ValueError, match="expected a whole archive") as error:
        unpack(archive, folder)
    assert str(archive) in str(error.value)


def test_what_only_looks_like_an_archive(folder, tmp_path):
    for name in ("x.tar", "x.tar.zst", "x.bin.zst"):
        with pytest.raises(ValueError, match="expected a whole archive"):
            unpack(put(tmp_path / name, b"step,reward\n" * 100), folder)


def test_a_missing_package_names_its_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match=r"lewm\[convert\]"):
        unpack(put(tmp_path / "x.bin.zst", zst(b"")), folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"lewm\[hub\]"):
        fetch("hf:user/name")


# ------------------------------------------------------------------------------------------ the hub


def test_hub_ids_ask_for_what_they_name(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *words, **more: asked.append((words, more)) or "file",
    )
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *words, **more: asked.append((words, more)) or "folder",
    )
    assert fetch(tmp_path) == tmp_path
    assert fetch("no/hub/id.h5").as_posix() == "no/hub/id.h5"
    assert not asked
    assert fetch("hf:user/some.name").name == "folder"
    assert fetch("hf:user/name@v2.0/data/x.tar.zst", kind="model").name == "file"
    assert fetch("hf:user/name", kind="model", only=["*.json"]).name == "folder"
    assert asked == [
        (("user/some.name",), {"repo_type": "dataset", "revision": None, "allow_patterns": None}),
        (("user/name", "data/x.tar.zst"), {"repo_type": "model", "revision": "v2.0"}),
        (("user/name",), {"repo_type": "model", "revision": None, "allow_patterns": ["*.json"]}),
    ]


@pytest.mark.parametrize("identifier", ["hf:user", "hf:", "hf:/user/name", "hf://user/name"])
def test_what_is_no_hub_id(identifier):
    with pytest.raises(ValueError, match="expected hf:user/name"):
        fetch(identifier)


def test_without_a_network_the_cure_is_said(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        ValueError,
        match=r"hf:user/name: expected a dataset .* RuntimeError \(no route to host\).*give their "
        r"path",
    ):
        fetch("hf:user/name")


# ------------------------------------------------------------------------------------- one writer


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new" / "a.txt", b"one")
    finally:
        os.umask(before)
    path = tmp_path / "new" / "a.txt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    write_atomically(path, b"two")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o600)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_no_planted_link_is_followed(tmp_path):
    """At the name that earlier versions wrote through, and at the name itself."""
    victim, path = put(tmp_path / "victim", b"precious"), tmp_path / "a.txt"
    (tmp_path / "a.txt.partial").symlink_to(victim)
    write_atomically(path, b"new")
    assert victim.read_bytes() == b"precious"
    assert not path.is_symlink()
    path.unlink()
    path.symlink_to(victim)
    for write in (write_atomically, lambda p, _: append_line(p, "x")):
        with pytest.raises(ValueError, match=r"a\.txt: expected a file.*a symbolic link"):
            write(path, b"new")
    assert path.is_symlink()
    assert victim.read_bytes() == b"precious"


def test_names_of_what_is_written_cannot_be_guessed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        files, "sync", lambda folder: seen.append(sorted(entry.name for entry in folder.iterdir()))
    )
    for _ in range(2):
        with whole_folder(tmp_path / "a" / "b"):
            seen.append(sorted(entry.name for entry in (tmp_path / "a").iterdir()))
    names = {name for names in seen for name in names if name.endswith(".partial")}
    assert len(names) == 2
    assert all(re.fullmatch(r"\.b\.[0-9a-f]{16}\.partial", name) for name in names)


def test_what_is_written_is_made_anew_whatever_bears_its_name(tmp_path, monkeypatch):
    victim, guessed = put(tmp_path / "victim", b"precious"), tmp_path / "guessed"
    monkeypatch.setattr(files, "temporary", lambda *_: guessed)
    guessed.symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a.txt", b"new")
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "a"):
        pass
    guessed.unlink(missing_ok=True)
    os.link(victim, guessed)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a.txt", b"new")
    assert victim.read_bytes() == b"precious"


def test_half_a_folder_never_bears_its_name(tmp_path, monkeypatch):
    """Whoever is killed while deleting leaves what is swept."""
    (tmp_path / "a").mkdir()
    put(tmp_path / "a" / "x", b"")
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        remove(tmp_path / "a")
    assert re.fullmatch(r"\.a\.[0-9a-f]{16}\.partial", next(tmp_path.iterdir()).name)
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["/dev/null", "."])
def test_devices_and_folders_are_no_files(target, tmp_path):
    with pytest.raises(ValueError, match="expected a file, or a name that is free"):
        write_atomically(tmp_path / target, b"")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    left = [f".a.json.{'0' * 16}.partial", f".b.{'f' * 16}.partial", f".c.{'1' * 16}.old"]
    put(tmp_path / left[0], b"half")
    for name in left[1:]:
        (tmp_path / name).mkdir()
        put(tmp_path / name / "x", b"half")
    (tmp_path / "c").mkdir()  # it is there again, so its old self is not needed
    outside = tmp_path / "outside"
    outside.mkdir()
    put(outside / "y", b"precious")
    (tmp_path / f".b.{'1' * 16}.partial" / "..").parent.mkdir()
    (tmp_path / f".b.{'1' * 16}.partial" / "link").symlink_to(outside)
    others = ["a.json", ".a.json.partial", f".a.{'0' * 15}.partial", f"a.{'0' * 16}.partial", ".x"]
    for name in others:
        put(tmp_path / name, b"")
    link = tmp_path / f".a.json.{'2' * 16}.partial"
    link.symlink_to(outside)
    alive = put(tmp_path / f".a.json.{'3' * 16}.partial", b"")
    with alive.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep(tmp_path)
    kept = {"c", "outside", link.name, alive.name, *others}
    assert {entry.name for entry in tmp_path.iterdir()} == kept
    assert (outside / "y").read_bytes() == b"precious"
    sweep(tmp_path)
    assert not alive.exists()
    assert link.is_symlink()


def test_what_was_about_to_be_replaced_comes_back(tmp_path):
    old = tmp_path / f".head.{'0' * 16}.old"
    old.mkdir()
    put(old / "x", b"precious")
    sweep(tmp_path, "head")
    assert (tmp_path / "head" / "x").read_bytes() == b"precious"


def test_only_files_and_folders_are_removed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    put(outside / "y", b"precious")
    link = tmp_path / "link"
    link.symlink_to(outside)
    remove(link)
    assert link.is_symlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(outside)
    remove(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert (outside / "y").read_bytes() == b"precious"
    remove(tmp_path / "folder")


DOORS = {
    "files.py": "the door",
    "benchmarks/reading.py": "works in a folder of the system's, of its own",
    "data/archives.py": "fills the new folder that it is given",
    "data/writing.py": "appends to one growing file, which it holds, and HDF5 opens",
    "report/animation.py": "has a video written into memory",
}


def test_nothing_else_writes_replaces_or_deletes():
    """One rule for all files: what is not listed above goes through `lewm.files`."""
    package = Path(files.__file__).parent
    changing = {"unlink", "rmdir", "rmtree", "remove", "rename", "replace", "truncate", "touch"}
    changing |= {"write_text", "write_bytes", "symlink_to", "hardlink_to", "copytree", "copyfile"}
    changing |= {"move", "mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryDirectory"}
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = (
                node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            )
            words: list[object] = [a.value for a in node.args if isinstance(a, ast.Constant)]
            words += [k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)]
            # of lists, strings, dates and records: no path
            of_values = name == "replace" and (len(node.args) != 1 or bool(node.keywords))
            of_values |= name == "remove" and isinstance(node.func, ast.Name)
            opens = name == "open" and any(re.fullmatch("[wax]b?[+]?", str(w)) for w in words)
            if (name in changing and not of_values) or opens:
                found.add(path.relative_to(package).as_posix())
    assert found == {*DOORS}


# ------------------------------------------------------------------------------------------- locks


def holding(place, folder, tell, wait):
    with hold(place, folder):
        child = os.fork()  # as a reader's worker process
        if not child:
            wait()
            os._exit(0)
        tell(child)
        wait()


@pytest.mark.parametrize("folder", [True, False])
def test_a_place_has_one_writer_and_a_kill_releases_it(folder, tmp_path):
    place = tmp_path / "made" / "run"
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=holding, args=(place, folder, theirs.send, signal.pause))
    process.start()
    child = ours.recv()
    try:
        lock = place / files.LOCK if folder else place.with_name(f".{place.name}{files.LOCK}")
        assert lock.is_file()
        words = rf"{place}: expected to be its only writer, got process {process.pid} on "
        with (
            pytest.raises(ValueError, match=words + r".*since \d{4}-.*\. Wait for it, stop it"),
            hold(place, folder),
        ):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        os.kill(child, 0)  # what it forked lives on, and holds nothing
        with hold(place, folder):
            with (
                pytest.raises(ValueError, match=f"got this process {os.getpid()}"),
                hold(place, folder),
            ):
                pass
            assert lock.is_file()
        assert not lock.exists()
        with hold(tmp_path / "other" / "run"):
            pass
        assert not (tmp_path / "other").exists(), "what was made for the lock alone is gone"
    finally:
        os.kill(child, signal.SIGKILL)
        process.kill()


def test_who_may_wait_comes_next(tmp_path):
    held, released = threading.Event(), threading.Event()

    def first():
        with hold(tmp_path):
            held.set()
            released.wait()

    other = threading.Thread(target=first)
    other.start()
    held.wait()
    with pytest.raises(files.Held), hold(tmp_path, wait=0.01):
        pass
    threading.Timer(0.1, released.set).start()
    with hold(tmp_path, wait=600.0):
        assert released.is_set()
    other.join()


def test_who_holds_is_not_believed_to_be_text(tmp_path):
    with hold(tmp_path):
        for content in (b"", b"\xff", b"[" * 5000, b'{"pid": 1}'):
            (tmp_path / files.LOCK).write_bytes(content)
            with pytest.raises(ValueError, match="got another process"), hold(tmp_path):
                pass


def test_without_locks_of_the_system_a_file_stands_in(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock._unix.fcntl.flock", refuse)

    def twice():
        with hold(tmp_path):
            with pytest.raises(ValueError, match="its only writer"), hold(tmp_path):
                pass
            write_atomically(tmp_path / "a", b"x")

    with pytest.warns(UserWarning, match="without locks"):
        twice()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("folder", [True, False])
def test_without_locks_what_a_killed_process_left_is_named_and_never_deleted(
    folder, tmp_path, monkeypatch
):
    """Nobody can tell there whether another still writes it."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock._unix.fcntl.flock", refuse)
    monkeypatch.setattr(files.fcntl, "flock", refuse)
    place = tmp_path if folder else tmp_path / "a.h5"
    left = [f".a.h5.{digit * 16}.partial" for digit in "0123456"]
    for name in left[1:]:
        (tmp_path / name).mkdir()
        put(tmp_path / name / "x", b"half")
    put(tmp_path / left[0], b"half")
    other, old = tmp_path / f".b.{'0' * 16}.partial", tmp_path / f".a.h5.{'f' * 16}.old"
    put(other, b"")
    old.mkdir()
    put(old / "x", b"precious")
    (tmp_path / f".a.h5.{'9' * 16}.partial").symlink_to(other)
    with pytest.warns(UserWarning, match="without locks|unfinished") as told, hold(place, folder):
        assert (tmp_path / "a.h5" / "x").read_bytes() == b"precious"
    (named,) = [str(each.message) for each in told if "unfinished" in str(each.message)]
    more = 3 if folder else 2  # of the file's own names alone
    assert f"found {', '.join(left[:5])} and {more} more, unfinished" in named
    assert named.endswith("delete it")
    assert all((tmp_path / name).exists() for name in left)
    assert other.exists()


# -------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"a": 1' + "0" * 10_000 + "}", "digits"),
        ('{"a": NaN}', "NaN, which is no number"),
        ('{"a": -Infinity}', "-Infinity, which is no number"),
        ('{"a": 1e999}', "1e999, which is no number"),
        ('{"a": 1', "line 1 column"),
        ("", "line 1 column"),
        ("[1]", "not an object but list"),
        ("null", "not an object but NoneType"),
    ],
)
def test_damaged_json_names_its_file(text, said, tmp_path):
    path = put(tmp_path / "a.json", text.encode())
    with pytest.raises(ValueError, match=rf"a\.json is damaged: expected JSON, got .*{said}"):
        read_json(path)


def test_bytes_that_are_no_text_name_their_file(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json is damaged: expected JSON, got 'utf-8'"):
        read_json(put(tmp_path / "a.json", b'{"a": "\xff"}'))


@pytest.mark.parametrize("number", [math.nan, math.inf, np.float64("nan")])
def test_json_never_holds_what_is_no_number(number, tmp_path):
    path = put(tmp_path / "a.json", b"old")
    with pytest.raises(ValueError, match=r"a\.json: expected numbers, got (nan|inf) at 'a\.1\.b'"):
        write_json(path, {"a": [0.5, {"b": number}]})
    assert path.read_bytes() == b"old"


def test_text_is_spelt_out_where_it_would_steer_or_turn():
    evil = "a\x1b]8;;http://x\x07b\x9b2Jc\u202ed\u2066e\rf\x00g\x7fh\udcffi\u2028"
    told = legible(evil)
    assert told == (r"a\x1b]8;;http://x\x07b\x9b2Jc\u202ed\u2066e\rf\x00g\x7fh\udcffi\u2028")
    assert legible("é ü 日本 👩‍🚀 a\tb\n") == "é ü 日本 👩‍🚀 a\tb\n"
    assert legible("a\nb\tc", lines=False) == r"a\nb\tc"


@pytest.mark.parametrize("folder", [False, True])
def test_what_was_replaced_never_comes_back_over_what_replaced_it(tmp_path, folder):
    """A process killed after the new one took the name leaves the old one beside it."""
    for name, content in (("run", "new"), (f".run.{'a' * 16}.old", "old")):
        place = tmp_path / name
        if folder:
            place.mkdir()
        (place / "file" if folder else place).write_text(content)
    files.sweep(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "file" if folder else tmp_path / "run").read_text() == "new"
