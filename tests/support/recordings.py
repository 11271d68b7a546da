"""The same few episodes in every layout that `lewm data convert` reads, written with the packages
that such files come from."""

from __future__ import annotations

import csv
import io
import json

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LENGTHS = (5, 9, 6)
SIZE, FPS = 48, 10
ACTIONS, STATES = ("dx", "dy"), ("x", "y", "angle")


def episodes(height=SIZE, width=SIZE):
    """(pixels, actions, states) each: a bright disc that wanders over a ramp of colours, in steps
    that no two frames share."""
    made = []
    y, x = np.mgrid[:height, :width]
    for i, length in enumerate(LENGTHS):
        generator = np.random.default_rng(i)
        ramp = np.stack([x * 120 / width, y * 120 / height, np.full_like(x, 40 * i)], axis=-1)
        at = np.stack([8 + 3 * np.arange(length), 10 + 2 * np.arange(length)], axis=1)
        inside = ((np.stack([x, y], axis=-1) - at[:, None, None]) ** 2).sum(-1) < 36
        pixels = np.where(inside[..., None], 235, ramp).astype(np.uint8)
        actions = generator.standard_normal((length, len(ACTIONS))).astype(np.float32)
        states = np.concatenate([at, generator.standard_normal((length, 1))], axis=1).astype(
            np.float32
        )
        made.append((pixels, actions, states))
    return made


def write_video(path, pixels, codec="libx264", rate=FPS, **options):
    """Frames as a video of high quality; B-frames and long groups of pictures included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream(codec, rate=rate, options={"crf": "8", **options})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p" if codec != "gif" else "rgb8"
        for picture in pixels:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        video.mux(stream.encode())
    return path


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def videos(folder, made, shared=False, suffix=".mp4", codec="libx264"):
    """A folder of videos with CSVs: one each, or one for all with a row fewer per video."""
    rows = []
    for i, (pixels, actions, states) in enumerate(made):
        video = write_video(folder / f"push-{i}{suffix}", pixels, codec)
        if shared:
            rows += [
                [video.name if i else video.stem, t, *action]
                for t, action in enumerate(actions[:-1])
            ]
        else:
            write_csv(
                video.with_suffix(".csv"),
                ["step", *ACTIONS, *STATES],
                [[t, *a, *s] for t, (a, s) in enumerate(zip(actions, states))],
            )
    if shared:
        write_csv(folder / "actions.csv", ["video", "frame", *ACTIONS], rows)
    return folder


def hdf5(path, made, pixels="pixels", states=("state",), **options):
    """The published layout; the states under the given names, one column each if there are several
    names."""
    lengths = [len(p) for p, _, _ in made]
    with h5py.File(path, "w") as file:
        frames = np.concatenate([p for p, _, _ in made])
        file.create_dataset(pixels, data=frames, chunks=(1, *frames.shape[1:]), **options)
        file["action"] = np.concatenate(
            [np.concatenate([a[:-1], np.full_like(a[:1], np.nan)]) for _, a, _ in made]
        )
        state = np.concatenate([s for _, _, s in made])
        for name, column in zip(
            states, [state] if len(states) == 1 else [state[:, :2], state[:, 2]]
        ):
            file[name] = column
        file["ep_len"] = np.array(lengths, np.int32)
        file["ep_offset"] = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
        file["ep_idx"] = np.repeat(np.arange(len(made)), lengths)
        file["step_idx"] = np.concatenate([np.arange(n) for n in lengths])
    return path


def lists(values, width=None):
    flat = pa.array(np.asarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, width or np.shape(values)[1])


def lance_table(made, encode):
    """Rows of the published Lance layout."""
    lengths = [len(p) for p, _, _ in made]
    return pa.table(
        {
            "episode_idx": pa.array(np.repeat(np.arange(len(made)), lengths).astype(np.int32)),
            "step_idx": pa.array(np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)),
            "pixels": pa.array([encode(picture) for p, _, _ in made for picture in p], pa.binary()),
            "action": lists(
                np.concatenate(
                    [np.concatenate([a[:-1], np.full_like(a[:1], np.nan)]) for _, a, _ in made]
                )
            ),
            "state": lists(np.concatenate([s for _, _, s in made])),
        }
    )


CAMERA = "observation.images.top"


def lerobot(folder, made, version="v2.1", cameras=(CAMERA,), encode=None, timed=True):
    """A LeRobot folder of either layout; with `encode`, pictures as {bytes, path} in the tables and
    no videos. Without `timed` no column says when a row was recorded."""
    packed = version.startswith("v3")
    height, width = made[0][0].shape[1:3]
    kind = "image" if encode else "video"
    picture = {"dtype": kind, "shape": [height, width, 3], "names": ["height", "width", "channels"]}
    names = list(STATES) if packed else {"motors": list(STATES)}
    features = {
        **dict.fromkeys(cameras, picture),
        "observation.state": {"dtype": "float32", "shape": [len(STATES)], "names": names},
        "action": {"dtype": "float32", "shape": [len(ACTIONS)], "names": list(ACTIONS)},
        "gain": {"dtype": "float32", "shape": [1], "names": None},
        **{
            name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("frame_index", "episode_index", "index")
        },
    }
    if timed:
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    chunk, episode = "{episode_chunk:03d}", "episode_{episode_index:06d}"
    info = {
        "codebase_version": version,
        "fps": FPS,
        "features": features,
        "total_episodes": len(made),
        "chunks_size": 2,
    }
    if packed:
        info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    else:
        info["data_path"] = f"data/chunk-{chunk}/{episode}.parquet"
        info["video_path"] = f"videos/chunk-{chunk}/{{video_key}}/{episode}.mp4"
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    tables = [_lerobot_rows(i, *episode, cameras, encode) for i, episode in enumerate(made)]
    if not timed:
        tables = [table.drop_columns(["timestamp"]) for table in tables]
    if packed:
        _pack(folder, made, tables, cameras, encode)
        return folder
    index = []
    for i, (pixels, _, _) in enumerate(made):
        target = folder / f"data/chunk-{i // 2:03d}/episode_{i:06d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(tables[i], target)
        for number, camera in enumerate(cameras if not encode else ()):
            write_video(
                folder / f"videos/chunk-{i // 2:03d}/{camera}/episode_{i:06d}.mp4",
                np.roll(pixels, number, axis=3),
            )
        index.append(json.dumps({"episode_index": i, "tasks": ["push"], "length": len(pixels)}))
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(index) + "\n")
    return folder


def _lerobot_rows(i, pixels, actions, states, cameras, encode):
    columns = {
        "action": lists(actions),
        "observation.state": lists(states),
        "gain": pa.array(np.full(len(pixels), 2.0, np.float32)),
        "timestamp": pa.array((np.arange(len(pixels)) / FPS).astype(np.float32)),
    }
    columns |= {
        "frame_index": pa.array(np.arange(len(pixels))),
        "episode_index": pa.array(np.full(len(pixels), i)),
    }
    if encode:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pictures = pa.array([{"bytes": encode(picture), "path": None} for picture in pixels], kind)
        columns |= dict.fromkeys(cameras, pictures)
    return pa.table(columns)


def _pack(folder, made, tables, cameras, encode):
    """Version 3: all episodes but the last share files, the last is in the next."""
    rows = []
    for file, members in enumerate((range(len(made) - 1), [len(made) - 1])):
        target = folder / f"data/chunk-000/file-{file:03d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables([tables[i] for i in members]), target)
        for camera in cameras if not encode else ():
            frames = np.concatenate([made[i][0] for i in members])
            write_video(folder / f"videos/{camera}/chunk-000/file-{file:03d}.mp4", frames)
        start = 0
        for i in members:
            length = len(made[i][0])
            row = {
                "episode_index": i,
                "length": length,
                "data/chunk_index": 0,
                "data/file_index": file,
                "tasks": ["push"],
            }
            for camera in cameras if not encode else ():
                row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file}
                row |= {
                    f"videos/{camera}/from_timestamp": start / FPS,
                    f"videos/{camera}/to_timestamp": (start + length) / FPS,
                }
            rows.append(row)
            start += length
    target = folder / "meta/episodes/chunk-000/file-000.parquet"
    target.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), target)


MADE = episodes()


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def jpeg(picture):
    return encoded(picture, "JPEG", quality=95)
