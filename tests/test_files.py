"""Archives and hub ids: what is honest arrives whole, what is not is refused and leaves nothing
outside its folder."""

import sys
import tarfile

import huggingface_hub
import numpy as np
import pytest

from lewm.data.archives import is_archive, unpack
from lewm.files import fetch
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
    assert (folder / "c.txt").read_text() == "text"


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
