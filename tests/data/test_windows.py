"""Windows: what is in them, in what order they come, and that both ways of reading them give the
same bits."""

import dataclasses
import multiprocessing
import shutil

import numpy as np
import pytest
import torch

from lewm.contracts import Progress, Statistics
from lewm.data import readers as module
from lewm.data.episodes import Episode, Episodes, Provenance
from lewm.data.readers import Resident, Streamed, _free_device_bytes, _free_ram_bytes, open_windows
from lewm.data.split import statistics
from lewm.data.windows import Windows, beginnings
from lewm.data.writing import EpisodeWriter
from tests.support import tiny

LENGTHS = (20, 9, 16, 3, 17)
# a window spans 16 observations: 5 in episode 0, 1 in episode 2, 2 in episode 4
T, FRAMESKIP = 4, 5
IDENTITY = Statistics((0.5,) * 3, (0.5,) * 3, (0.0, 0.0), (1.0, 1.0))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Every pixel of a frame says which row it is; the first number of an action its row, the
    second its episode."""
    path = tmp_path_factory.mktemp("windows") / "a.h5"
    with EpisodeWriter(path, Provenance(requested_episodes=len(LENGTHS)), "blosc") as writer:
        row = 0
        for i, length in enumerate(LENGTHS):
            pixels = np.broadcast_to(
                np.arange(row, row + length, dtype=np.uint8)[:, None, None, None], (length, 6, 6, 3)
            ).copy()
            pixels[..., 1], pixels[:, 0, :, 2] = i, 7  # channels differ, rows of the picture differ
            actions = np.stack([np.arange(row, row + length), np.full(length, i)], axis=1).astype(
                np.float32
            )
            actions[-1] = np.nan
            writer.append(Episode(pixels, actions))
            row += length
    return path


@pytest.fixture
def episodes(path):
    with Episodes.open(path) as episodes:
        yield episodes


def obvious_windows(episodes, ids, length, frameskip, stats):
    """Slow and plain twin of `Windows`: a list of (pixels, actions), ordered by episode and
    start."""
    found = []
    for i in sorted(ids):
        episode = episodes.episode(i)
        for start in range(len(episode)):
            rows = [start + t * frameskip for t in range(length)]
            if rows[-1] < len(episode):
                blocks = [episode.actions[row : row + frameskip].reshape(-1) for row in rows[:-1]]
                actions = stats.normalise_actions(torch.from_numpy(np.stack(blocks)))
                found.append((torch.from_numpy(episode.pixels[rows]).permute(0, 3, 1, 2), actions))
    return found


@pytest.mark.parametrize(("length", "frameskip"), [(4, 5), (2, 1), (3, 4), (2, 19)])
@pytest.mark.parametrize("ids", [(0, 1, 2, 3, 4), (4, 0), (2, 0, 3)])
@pytest.mark.parametrize("reader", [Resident, Streamed])
def test_windows_are_all_that_fit_and_what_they_say(episodes, length, frameskip, ids, reader):
    stats = statistics(episodes, ids)
    expected = obvious_windows(episodes, ids, length, frameskip, stats)
    windows = Windows(episodes, ids, length, frameskip, stats)
    assert len(windows) == len(expected)
    got = reader(windows, batch_size=len(windows))
    order = got.draw(0)
    batch = got.batch(0)
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.is_contiguous()
    for place, number in enumerate(order):
        assert torch.equal(batch.pixels[place], expected[number][0])
        assert torch.equal(batch.actions[place], expected[number][1])


def test_blocks_lead_from_frame_to_frame_and_hold_no_end_mark(episodes):
    batch = Resident(Windows(episodes, range(5), T, FRAMESKIP, IDENTITY), batch_size=8).batch(0)
    assert batch.pixels.shape == (8, 4, 3, 6, 6)
    assert batch.actions.shape == (8, 3, 10)
    rows = batch.pixels[:, :, 0, 1, 1].long()
    steps = batch.actions.reshape(8, 3, FRAMESKIP, 2)
    assert torch.equal(steps[..., 0].long(), rows[:, :-1, None] + torch.arange(FRAMESKIP))
    assert (rows.diff(dim=1) == FRAMESKIP).all()
    # every action is of the frame's own episode
    assert (steps[..., 1] == batch.pixels[:, :1, 1, 1, 1, None]).all()
    last_rows = torch.tensor(np.cumsum(LENGTHS) - 1)
    assert not torch.isin(steps[..., 0].long(), last_rows).any()
    assert torch.isin(rows[:, -1], last_rows).any()


def test_no_window_is_refused_with_the_length_it_takes(episodes):
    with pytest.raises(
        ValueError, match=r"episode of 16 observations or more .*got at most 9\. Record longer"
    ):
        Windows(episodes, (1, 3), T, FRAMESKIP, IDENTITY)
    with pytest.raises(ValueError, match="2 frames or more"):
        Windows(episodes, (0,), 1, FRAMESKIP, IDENTITY)
    with pytest.raises(ValueError, match="actions of 1 numbers, as in the statistics, got 2"):
        Windows(
            episodes,
            (0,),
            T,
            FRAMESKIP,
            dataclasses.replace(IDENTITY, action_mean=(0.0,), action_std=(1.0,)),
        )


def in_blocks(path, episodes, every):
    """The same episodes with a row per `every` steps; a tail that fills no block is cut."""
    with EpisodeWriter(path, Provenance(every=every)) as writer:
        for i in range(len(episodes)):
            episode = episodes.episode(i)
            blocks = (len(episode) - 1) // every
            actions = np.full((blocks + 1, every * 2), np.nan, np.float32)
            actions[:-1] = episode.actions[: blocks * every].reshape(blocks, every * 2)
            writer.append(Episode(episode.pixels[::every][: blocks + 1], actions))
    return path


@pytest.mark.parametrize(("every", "frameskip"), [(5, 5), (2, 4), (1, 5), (5, 10)])
def test_a_row_per_block_gives_the_aligned_windows_bit_by_bit(tmp_path, episodes, every, frameskip):
    ids, length = (4, 0, 2), 2 if frameskip == 10 else 3
    stats = statistics(episodes, ids)
    fine = Windows(episodes, ids, length, frameskip, stats)
    with Episodes.open(in_blocks(tmp_path / "blocks.h5", episodes, every)) as blocks:
        coarse = Windows(blocks, ids, length, frameskip, stats)
        # The same frame, by its value: one row of the one file, one of the other.
        first = [value(windows, np.arange(len(windows))) for windows in (fine, coarse)]
        begin = np.array([episodes.offsets[i] for i in (0, 2, 4)])
        since = first[0] - begin[np.searchsorted(begin, first[0], side="right") - 1]
        aligned = np.flatnonzero(since % every == 0)
        assert first[0][aligned].tolist() == first[1].tolist()
        assert len(coarse) > (2 if frameskip == 10 else 5)
        pairs = [
            (Resident(windows, 1)._pixels(windows.frames(numbers)), windows.actions(numbers))
            for windows, numbers in ((fine, aligned), (coarse, np.arange(len(coarse))))
        ]
        for one, other in zip(*pairs, strict=True):
            assert torch.equal(one, other)


def value(windows, numbers):
    """(B,) value of the first frame of some windows."""
    return windows.source.pixels_at(windows.file_rows[windows.frames(numbers)[:, 0]])[
        :, 0, 0, 0
    ].astype(int)


def test_a_frameskip_that_cuts_blocks_is_refused(tmp_path, episodes):
    with Episodes.open(in_blocks(tmp_path / "blocks.h5", episodes, 2)) as blocks:
        with pytest.raises(
            ValueError,
            match=r"blocks\.h5: expected a frameskip that is a multiple of 2, .*, got 5\. Choose",
        ):
            Windows(blocks, (0, 2, 4), 2, 5, IDENTITY)
        with pytest.raises(
            ValueError,
            match=r"episode of 10 observations or more \(T=4 frames, 3 rows apart\), got at most 9",
        ):
            Windows(blocks, (2, 4), 4, 6, IDENTITY)


def order(count, batch_size=4, **settings):
    """A reader with nothing to read: the order asks its windows for nothing but their number."""
    # decodes nothing until pixels are asked for
    return Resident(range(count), batch_size, **settings)


def test_every_epoch_visits_every_window_once_in_an_order_of_its_own():
    reader = order(30)
    # two epochs; batch 7 spans both
    seen = np.concatenate([reader.draw(update) for update in range(15)])
    first, second = seen[:30], seen[30:]
    assert sorted(first) == sorted(second) == list(range(30))
    assert (first != second).any()
    assert (first != np.arange(30)).any()


def test_order_depends_on_seed_and_update_alone():
    late = order(30).draw(9)
    reader = order(30)
    for update in (3, 0, 40, 9):
        drawn = reader.draw(update)
    assert (drawn == late).all()
    assert (order(30, seed=1).draw(9) != late).any()


def test_no_epoch_of_any_seed_repeats_the_order_of_another():
    """Not even an epoch later: repeats with seeds 0, 1, 2 would otherwise share most batches."""
    epochs = [order(30, 30, seed=seed).draw(epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 16


def test_batches_larger_than_an_epoch_repeat_windows_evenly():
    assert np.bincount(order(3, batch_size=12).draw(5)).tolist() == [4, 4, 4]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_one_global_batch(world_size):
    for update in (0, 7):
        shares = [
            order(30, rank=rank, world_size=world_size).draw(update) for rank in range(world_size)
        ]
        assert (np.concatenate(shares) == order(30).draw(update)).all()
    with pytest.raises(ValueError, match="share evenly"):
        order(30, batch_size=6, world_size=4)


@pytest.mark.parametrize("settings", [{}, {"rank": 1, "world_size": 2}])
def test_both_readers_give_the_same_bits_from_any_update_on(episodes, settings):
    stats = statistics(episodes, (0, 2, 4))
    both = [
        open_windows(
            episodes,
            (0, 2, 4),
            T,
            FRAMESKIP,
            stats,
            batch_size=6,
            seed=5,
            mode=mode,
            workers=2,
            **settings,
        )
        for mode in ("resident", "streamed")
    ]
    for start, stop in [(0, 9), (4, 6), (3, 3)]:
        with both[0].between(start, stop) as resident, both[1].between(start, stop) as streamed:
            pairs = list(zip(resident, streamed, strict=True))
        assert len(pairs) == stop - start
        for update, batches in enumerate(pairs, start):
            for batch in (*batches, both[1].batch(update)):
                assert torch.equal(batch.pixels, batches[0].pixels)
                assert torch.equal(batch.actions, batches[0].actions)
                assert batch.pixels.is_contiguous()
    assert [len(reader) for reader in both] == [8, 8]
    assert torch.equal(next(both[1].first(1)).pixels, both[0].batch(0).pixels)


def test_leaving_early_leaves_no_worker_behind(episodes):
    reader = open_windows(
        episodes, (0, 2, 4), T, FRAMESKIP, IDENTITY, batch_size=6, mode="streamed", workers=2
    )
    with reader.between(0, 10_000) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []
    with pytest.raises(KeyboardInterrupt), reader.between(0, 10_000):
        raise KeyboardInterrupt
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_workers_may_be_spawned(episodes, monkeypatch):
    reader = Streamed(Windows(episodes, (0, 2, 4), T, FRAMESKIP, IDENTITY), 6, workers=1)
    loader = module.DataLoader
    monkeypatch.setattr(
        module,
        "DataLoader",
        lambda *args, **kwargs: loader(*args, **kwargs, multiprocessing_context="spawn"),
    )
    with reader.between(2, 4) as batches:
        assert torch.equal(next(batches).pixels, reader.batch(2).pixels)


def in_context(reader):
    with reader.between(0, 3) as batches:
        yield from batches


def test_a_worker_that_cannot_read_says_why(path, tmp_path):
    doomed = tmp_path / "doomed.h5"
    shutil.copy(path, doomed)
    with Episodes.open(doomed) as episodes:
        reader = open_windows(
            episodes, (0, 2), T, FRAMESKIP, IDENTITY, batch_size=2, mode="streamed", workers=1
        )
        doomed.unlink()
        with pytest.raises(
            ValueError, match=r"^.*doomed\.h5: expected an episode file, got no such file"
        ):
            next(in_context(reader))
        assert multiprocessing.active_children() == []


def test_auto_takes_memory_where_there_is_enough(episodes, monkeypatch):
    def mode(free, **settings):
        monkeypatch.setattr(module, "_free_ram_bytes", lambda: free)
        return open_windows(episodes, (0, 2), T, FRAMESKIP, IDENTITY, batch_size=2, **settings).mode

    needed = (20 + 16) * 6 * 6 * 3
    assert mode(2 * needed) == "resident"
    assert mode(2 * needed - 2) == "streamed"
    assert mode(2 * needed, world_size=2) == "streamed"  # each process would hold its own copy
    assert mode(0, mode="resident") == "resident"
    with pytest.raises(ValueError, match="Did you mean 'resident'"):
        mode(0, mode="residnt")


def test_free_memory_is_plausible():
    assert 1 << 26 < _free_ram_bytes() < 1 << 45
    assert _free_device_bytes("cpu") == 0


def test_streamed_reads_without_workers_where_shared_memory_is_short(episodes, monkeypatch):
    monkeypatch.setattr(module, "_shared_memory_bytes", lambda: 1000)
    reader = open_windows(
        episodes, (0, 2), T, FRAMESKIP, IDENTITY, batch_size=2, mode="streamed", workers=4
    )
    with reader.between(0, 3) as batches:
        assert len(list(batches)) == 3
        assert multiprocessing.active_children() == []


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_workers_of_all_devices_together_fit_shared_memory(episodes, monkeypatch, world_size):
    one = (module.PREFETCH + 1) * T * 3 * 6 * 6 * (4 // world_size)  # what a worker has ahead
    settings = {"batch_size": 4, "mode": "streamed", "workers": 9, "world_size": world_size}
    for room in (0, one * world_size - 1, one * world_size, 3 * one * world_size, 10**9):
        monkeypatch.setattr(module, "_shared_memory_bytes", lambda room=room: room)
        reader = open_windows(episodes, (0, 2), T, FRAMESKIP, IDENTITY, **settings)
        assert reader.workers == min(9, room // (one * world_size))


def test_resident_tells_its_progress(episodes, monkeypatch):
    monkeypatch.setattr(module, "LOAD_BYTES", 6 * 6 * 3 * 16)
    told = []
    Resident(
        Windows(episodes, (0, 2), T, FRAMESKIP, IDENTITY),
        2,
        report=told.append,
    ).batch(0)
    assert told == [Progress("read", done, 36) for done in (16, 32, 36)]


def test_which_beginnings_are_looked_at_depends_on_the_seed_alone(tmp_path):
    with Episodes.open(tiny.write(tmp_path / "episodes.h5", count=12)) as episodes:
        drawn = [beginnings(episodes, range(12), 2, count=3, seed=seed) for seed in (4, 4, 5)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        first = episodes.pixels_at(episodes.offsets[:12])
    # frames of some episodes, each from its beginning
    for path in drawn[0]:
        assert (first == path[0].permute(1, 2, 0).numpy()).all(axis=(1, 2, 3)).sum() == 1
