"""Videos: every frame upright and in its place, nothing beside the video is opened, and a killed
conversion leaves nothing."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from lewm.data import footage
from lewm.data.converting import verify
from tests.support import recordings
from tests.support.recordings import MADE

ONE = 1 << 16
QUARTERS = {
    # clockwise degrees: (a, b, c, d) of the display matrix
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


def displayed(path, a, b, c, d):
    """Write the display matrix of an MP4, where phones put it."""
    content = bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 44
    matrix = (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    content[at : at + 36] = struct.pack(">9i", *map(round, matrix))
    path.write_bytes(content)
    return path


def read(path):
    return np.stack([picture for _, picture in footage.frames(path)])


@pytest.mark.parametrize("degrees", QUARTERS)
def test_frames_are_turned_as_the_video_says(degrees, tmp_path):
    pixels = np.concatenate([MADE[1][0][:3], np.zeros_like(MADE[1][0][:3])], axis=2)  # 48 x 96
    path = recordings.write_video(tmp_path / "a.mp4", pixels)
    plain = read(path)
    turned = read(displayed(path, *QUARTERS[degrees]))
    np.testing.assert_array_equal(turned, np.rot90(plain, -degrees // 90, axes=(1, 2)))


def test_frames_are_mirrored_too_and_other_angles_refused(tmp_path):
    path = recordings.write_video(tmp_path / "a.mp4", MADE[1][0][:3])
    plain = read(path)
    np.testing.assert_array_equal(read(displayed(path, -1, 0, 0, 1)), plain[:, :, ::-1])
    np.testing.assert_array_equal(read(displayed(path, 0, 1, 1, 0)), plain.swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"a.mp4: expected whole, upright frames, got one that is"):
        read(displayed(path, 0.8, 0.6, -0.6, 0.8))


def test_clear_pixels_are_black(tmp_path):
    pixels = np.full((2, 16, 16, 4), 255, np.uint8)
    pixels[:, :, 8:, 3] = 0
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as video:
        stream = video.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgra"
        for picture in pixels:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        video.mux(stream.encode())
    got = read(path)
    assert (got[:, :, :8] == 255).all()
    assert (got[:, :, 8:] == 0).all()


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_list_of_other_files_is_no_video(text, tmp_path):
    recordings.write_video(tmp_path / "secret.mp4", MADE[0][0])
    (tmp_path / "a.mp4").write_text(text)
    for use in (footage.count, read):
        with pytest.raises(ValueError, match=r"a.mp4: expected a video that decodes"):
            use(tmp_path / "a.mp4")


def test_the_declared_size_is_held_against_the_limit(tmp_path, monkeypatch):
    path = recordings.write_video(tmp_path / "a.mp4", MADE[0][0])
    monkeypatch.setattr(footage, "MAX_PIXELS", 48 * 48 - 1)
    with pytest.raises(ValueError, match=r"a.mp4: expected"):
        read(path)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as video:
        stream = video.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 8000, 0
        video.mux(stream.encode(frame))
        video.mux(stream.encode())
    with pytest.raises(
        ValueError, match=r"a.mp4: expected a video that decodes, got a file without"
    ):
        read(path)


def test_a_folder_of_videos_says_where_frames_are_missing(tmp_path):
    folder = recordings.videos(tmp_path / "v", MADE)
    with av.open(str(folder / "push-1.mp4"), "w") as video:
        stream = video.add_stream("libx264", rate=10)
        stream.height = stream.width = 48
        for t, picture in enumerate(MADE[1][0]):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 10), t + 3 * (t > 4)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    with pytest.warns(UserWarning, match=r"push-1.mp4: frames are not evenly spaced: step 4 takes"):
        verify(folder)
