"""What a frozen encoder said of each picture, kept by the picture's content.

A training shows every frame many times, and other runs on the same episodes show it again. So each
is encoded once. The rows lie beside the episode file, in `EPISODES.features/`, for all runs on it:

    episodes.h5.features/dinov2-small-56px-from-64px-<12 digits of its weights>-cpu/rows.safetensors

Nothing is lost with that folder but time. A damaged file is made anew, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lewm.files import hold, parse_json, sync, whole_folder

__all__ = ["Memory"]

MOST_BYTES = 2 * 2**30
"""Of the rows that are remembered; further pictures are encoded whenever they are shown. 16 tokens
of DINOv2 are 12 KB, so 170,000 frames fit; 196 tokens are 150 KB, 14,000 frames."""

KEY = 16
"""Bytes of a picture's hash: no two pictures of any data set share one."""

ROWS = "rows.safetensors"


class Memory:
    """Pictures' hashes and their rows of float16. Copies of an encoder share it.

    Args:
        name: of the encoder and of how it is shown pictures; part of a file name.
        digest: of its weights.
        width: numbers per row.
    """

    def __init__(self, name: str, digest: str, width: int) -> None:
        self.name, self.digest, self.width = name, digest, width
        self.episodes: Path | None = None
        self._stores: dict[str, _Store] = {}

    def __deepcopy__(self, copies: Any) -> Memory:
        return self

    def rows(self, pixels: Tensor, encode: Callable[[Tensor], Tensor], device: str) -> Tensor:
        """The rows of pictures; those that are not known are encoded, each once.

        Args:
            pixels: (n, ...) uint8 pictures, on any device.
            encode: (m, ...) pictures -> (m, width) float16 on the CPU; each must be the same bits
                whatever it is encoded with.
            device: the kind of device that encodes, "cpu" or "cuda": they round differently, so
                what one said is not taken for the other's.

        Returns:
            (n, width) float16 on the CPU.
        """
        store = self._stores.get(device)
        if store is None:
            store = self._stores[device] = _Store(self.width, self._folder(device))
        keys = [
            hashlib.blake2b(picture, digest_size=KEY).digest()
            for picture in pixels.detach().cpu().contiguous().numpy()
        ]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        new = sorted(place for key, place in first.items() if key not in store.places)
        fresh: dict[bytes, Tensor] = {}
        if new:
            encoded = encode(pixels[torch.tensor(new, device=pixels.device)])
            fresh = {keys[place]: row for place, row in zip(new, encoded)}
            store.add(list(fresh), encoded)
        known = [store.places.get(key, -1) for key in keys]
        if -1 not in known:
            return store.rows[known]
        return torch.stack(
            [fresh[key] if place < 0 else store.rows[place] for key, place in zip(keys, known)]
        )

    def recall(self, episodes: Path) -> None:
        """Remember, from the first picture on, what others have encoded of an episode file."""
        self.episodes = episodes
        for device, store in self._stores.items():
            store.folder = self._folder(device)
            store.read()

    def keep(self) -> None:
        """Leave what was encoded beside the episode file, with what others have left meanwhile.

        Nothing happens without an episode file, without anything new, and while another writes: it
        is kept the next time. A disk that is full or may not be written to is a warning.
        """
        for store in self._stores.values():
            store.keep()

    def _folder(self, device: str) -> Path | None:
        if self.episodes is None:
            return None
        home = self.episodes.with_name(f"{self.episodes.name}.features")
        return home / f"{self.name}-{self.digest[:12]}-{device}"


class _Store:
    """Rows of one kind of device, and the folder where they are kept; None keeps nothing."""

    def __init__(self, width: int, folder: Path | None) -> None:
        self.width, self.folder = width, folder
        self.places: dict[bytes, int] = {}
        self.rows = torch.empty(0, width, dtype=torch.float16)
        self.kept = 0  # how many of the rows are known to be on disk
        self.seen: tuple[int, ...] = ()  # which file was read last
        self.read()

    def add(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """Remember rows that are not known, as many as there is room for."""
        count = len(self.places)
        room = max(0, MOST_BYTES // (2 * self.width) - count)
        keys, rows = keys[:room], rows[:room]
        if count + len(keys) > len(self.rows):
            grown = torch.empty(max(2 * count, count + len(keys)), self.width, dtype=torch.float16)
            grown[:count] = self.rows[:count]
            self.rows = grown
        self.rows[count : count + len(keys)] = rows
        self.places.update(zip(keys, range(count, count + len(keys))))

    def read(self) -> None:
        """Add what is on disk, unless it was read before."""
        if self.folder is None:
            return
        path = self.folder / ROWS
        try:
            status = path.stat()
        except OSError:
            return
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        if mark == self.seen:
            return
        self.seen = mark
        try:
            keys, rows = _read(path, self.width)
        except (ValueError, OSError) as error:
            warnings.warn(f"{error} It is made anew: pictures are encoded again", stacklevel=2)
            self.kept = 0
            return
        new = [place for place, key in enumerate(keys) if key not in self.places]
        self.add([keys[place] for place in new], rows[new])
        self.kept = len(keys)

    def keep(self) -> None:
        if self.folder is None or len(self.places) <= self.kept:
            return
        try:
            with hold(self.folder, folder=False):
                self.read()
                if len(self.places) > self.kept:
                    with whole_folder(self.folder) as partial:
                        _write(partial / ROWS, self.places, self.rows)
                    status = (self.folder / ROWS).stat()
                    self.seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                    self.kept = len(self.places)
        except ValueError:  # another run on these episodes is writing
            return
        except OSError as error:
            warnings.warn(
                f"{self.folder}: what was encoded could not be kept ({error.strerror or error}). "
                "The next run encodes it again",
                stacklevel=2,
            )
            self.folder = None


def _write(path: Path, places: dict[bytes, int], rows: Tensor) -> None:
    keys = torch.from_numpy(np.frombuffer(b"".join(places), np.uint8).reshape(-1, KEY).copy())
    rows = rows[: len(places)]
    told = {"lewm": json.dumps({"sha256": _checksum(keys, rows)})}
    try:
        save_file({"keys": keys, "rows": rows}, path, metadata=told)
    except Exception as error:  # the library wraps the system's own errors
        raise OSError(str(error)) from None
    sync(path)


def _read(path: Path, width: int) -> tuple[list[bytes], Tensor]:
    """Keys and rows of a file.

    Raises:
        ValueError: it is damaged, or another encoder's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told = dict(file.metadata() or {})
            keys, rows = file.get_tensor("keys"), file.get_tensor("rows")
        checksum = parse_json(told["lewm"], path, "", "")["sha256"]
        expected = (torch.uint8, torch.float16, (len(rows), KEY), (len(rows), width))
        if (keys.dtype, rows.dtype, tuple(keys.shape), tuple(rows.shape)) != expected:
            raise ValueError(f"{tuple(keys.shape)} keys of {tuple(rows.shape)} rows")
        if checksum != _checksum(keys, rows):
            raise ValueError("other bytes than were written")
    # a damaged header may provoke anything, of the library or of torch
    except Exception as error:
        raise ValueError(
            f"{path} is damaged: expected what an encoder said, got {error!r:.200}."
        ) from None
    text = keys.numpy().tobytes()
    return [text[start : start + KEY] for start in range(0, len(text), KEY)], rows


def _checksum(keys: Tensor, rows: Tensor) -> str:
    total = hashlib.sha256(keys.numpy().data)
    total.update(rows.numpy().data)
    return total.hexdigest()
