"""What is remembered of pictures: each once, for all runs on a file, and never anything else."""

import os

import numpy as np
import pytest
import torch

from lewm.files import hold
from lewm.models.nn import memory as module
from lewm.models.nn.memory import ROWS, Memory

DIGEST = "d" * 64


class Encoder:
    """Row = sum of the picture, and how often it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, pixels):
        self.asked += [int(picture.sum()) for picture in pixels]
        return pixels.flatten(1).sum(1, keepdim=True).half().expand(-1, 3).contiguous()


def pictures(*values):
    return torch.stack([torch.full((3, 2, 2), value, dtype=torch.uint8) for value in values])


def rows(*values):
    return torch.tensor(values, dtype=torch.float16)[:, None].mul(12).expand(-1, 3)


@pytest.fixture
def episodes(tmp_path):
    return tmp_path / "episodes.h5"


def opened(episodes=None, name="e", digest=DIGEST):
    memory = Memory(name, digest, 3)
    if episodes is not None:
        memory.recall(episodes)
    return memory


def test_each_picture_is_encoded_once_and_comes_back_in_its_place():
    memory, encode = opened(), Encoder()
    assert torch.equal(memory.rows(pictures(5, 1, 5, 2), encode, "cpu"), rows(5, 1, 5, 2))
    assert encode.asked == [60, 12, 24]
    assert torch.equal(memory.rows(pictures(2, 3, 1, 3), encode, "cpu"), rows(2, 3, 1, 3))
    assert encode.asked == [60, 12, 24, 36]
    # another kind of device rounds otherwise: it is asked itself
    memory.rows(pictures(2), encode, "cuda")
    assert encode.asked[4:] == [24]


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch):
    """Of three numbers of two bytes each, room for four rows; what is left out is encoded again."""
    monkeypatch.setattr(module, "MOST_BYTES", 4 * 6)
    memory, encode = opened(), Encoder()
    for values in ((1, 2, 3), (4, 5, 6), (1, 4, 5), (7,)):
        assert torch.equal(memory.rows(pictures(*values), encode, "cpu"), rows(*values))
    store = memory._stores["cpu"]
    assert len(store.places) == 4
    assert len(store.rows) <= 4 + 2
    assert encode.asked == [12, 24, 36, 48, 60, 72, 60, 84]


def test_what_one_run_kept_another_recalls(episodes):
    first = opened(episodes)
    first.rows(pictures(1, 2), Encoder(), "cpu")
    first.keep()
    encode, second = Encoder(), opened(episodes)
    assert torch.equal(second.rows(pictures(2, 1, 3), encode, "cpu"), rows(2, 1, 3))
    assert encode.asked == [36]
    # both add something, and neither loses the other's
    first.rows(pictures(4), Encoder(), "cpu")
    first.keep()
    second.keep()
    third, encode = opened(episodes), Encoder()
    third.rows(pictures(1, 2, 3, 4), encode, "cpu")
    assert encode.asked == []


def test_other_weights_or_sizes_have_memories_of_their_own(episodes):
    first = opened(episodes)
    first.rows(pictures(1), Encoder(), "cpu")
    first.keep()
    for other in (opened(episodes, digest="a" * 64), opened(episodes, name="f")):
        encode = Encoder()
        other.rows(pictures(1), encode, "cpu")
        assert encode.asked == [12]


def test_nothing_is_written_without_a_file_or_without_news(episodes, tmp_path):
    memory = opened()
    memory.rows(pictures(1), Encoder(), "cpu")
    memory.keep()
    assert list(tmp_path.iterdir()) == []
    memory = opened(episodes)
    memory.rows(pictures(1), Encoder(), "cpu")
    memory.keep()
    (path,) = tmp_path.rglob(ROWS)
    before = path.stat().st_ino, path.stat().st_mtime_ns
    memory.keep()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert [each.name for each in path.parent.parent.iterdir()] == [path.parent.name]


@pytest.mark.parametrize("damage", ["cut", "bit", "text", "width"])
def test_a_damaged_file_is_made_anew_with_a_warning(episodes, tmp_path, damage):
    first = opened(episodes)
    first.rows(pictures(1, 2), Encoder(), "cpu")
    first.keep()
    (path,) = tmp_path.rglob(ROWS)
    content = bytearray(path.read_bytes())
    if damage == "width":
        narrow = Memory("e", DIGEST, 2)
        narrow.recall(episodes)
        memory = narrow
        encode = lambda pixels: Encoder()(pixels)[:, :2]  # noqa: E731
    else:
        memory, encode = opened(episodes), Encoder()
        content[-1] ^= 4
        damaged = {"cut": content[:-3], "bit": content, "text": b"nothing"}[damage]
        path.write_bytes(bytes(damaged))
    with pytest.warns(UserWarning, match="is damaged.*It is made anew"):
        got = memory.rows(pictures(1, 2), encode, "cpu")
    assert torch.equal(got, rows(1, 2)[:, : got.shape[1]])
    memory.keep()
    again = Memory("e", DIGEST, got.shape[1])
    again.recall(episodes)
    assert torch.equal(again.rows(pictures(1, 2), None, "cpu"), got)


def test_there_is_a_bound(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 2 * 3 * 2)  # two rows
    memory, encode = opened(), Encoder()
    assert torch.equal(memory.rows(pictures(1, 2, 3), encode, "cpu"), rows(1, 2, 3))
    assert torch.equal(memory.rows(pictures(3, 1, 2), encode, "cpu"), rows(3, 1, 2))
    assert encode.asked == [12, 24, 36, 36]


def test_while_another_writes_nothing_is_kept_and_the_next_time_it_is(episodes, tmp_path):
    memory = opened(episodes)
    memory.rows(pictures(1), Encoder(), "cpu")
    with hold(memory._folder("cpu"), folder=False):
        memory.keep()
        assert list(tmp_path.rglob(ROWS)) == []
    memory.keep()
    assert len(list(tmp_path.rglob(ROWS))) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_folder_that_may_not_be_written_to_is_a_warning(episodes, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    memory = opened(episodes)
    memory.rows(pictures(1), Encoder(), "cpu")
    monkeypatch.setattr(module, "_write", full)
    with pytest.warns(UserWarning, match="could not be kept .No space left"):
        memory.keep()
    memory.keep()  # once is enough


def test_a_picture_is_known_by_all_of_its_pixels():
    memory, encode = opened(), Encoder()
    pixels = torch.from_numpy(
        np.tile(np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2), (13, 1, 1, 1))
    )
    for place in range(12):
        pixels[place].view(-1)[place] += 100
    memory.rows(pixels, encode, "cpu")
    assert len(encode.asked) == 13
