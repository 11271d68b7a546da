"""What becomes of encoded pictures: known colours in every mode, and what is refused."""

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

from lewm.data import pictures


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, depth, colour, rows):
    """A PNG of any kind, by hand: one of 16 bits in colour is written by no library here."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def of(mode, *pixels):
    """A row of pixels."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def palette(transparent=None):
    image = of("P", 0, 1)
    image.putpalette([200, 10, 20, 30, 40, 250])
    return encoded(image, **({} if transparent is None else {"transparency": transparent}))


RULES = {
    "RGB": (encoded(of("RGB", (1, 2, 3), (250, 251, 252))), [(1, 2, 3), (250, 251, 252)]),
    "WebP": (
        encoded(of("RGB", (1, 2, 3), (250, 251, 252)), "WEBP", lossless=True),
        [(1, 2, 3), (250, 251, 252)],
    ),
    "grey JPEG": (encoded(of("L", *[77] * 8), "JPEG", quality=100), [(77,) * 3] * 8),
    "grey": (encoded(of("L", 0, 7, 255)), [(0,) * 3, (7,) * 3, (255,) * 3]),
    "1 bit": (encoded(of("1", 0, 1)), [(0,) * 3, (255,) * 3]),
    "16 bits": (
        encoded(of("I;16", 0, 255, 256, 32768, 65535)),
        [(0,) * 3, (0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3],
    ),
    "16 bits in colour": (
        png(2, 1, 16, 2, [struct.pack(">6H", 256, 512, 65535, 255, 0, 32768)]),
        [(1, 2, 255), (0, 0, 128)],
    ),
    "palette": (palette(), [(200, 10, 20), (30, 40, 250)]),
    "palette with a clear colour": (palette(1), [(200, 10, 20), (0, 0, 0)]),
    "RGBA": (
        encoded(of("RGBA", (9, 8, 7, 255), (9, 8, 7, 0), (255, 255, 255, 128))),
        [(9, 8, 7), (0, 0, 0), (128, 128, 128)],
    ),
    "grey with alpha": (encoded(of("LA", (200, 255), (200, 0))), [(200,) * 3, (0,) * 3]),
    "RGB with a clear colour": (
        encoded(of("RGB", (9, 8, 7), (1, 1, 1)), transparency=(9, 8, 7)),
        [(0, 0, 0), (1, 1, 1)],
    ),
}


@pytest.mark.parametrize("kind", RULES)
def test_every_kind_of_picture_has_the_colours_that_the_rules_say(kind):
    content, expected = RULES[kind]
    got = pictures.rgb(content)
    assert (got.dtype, got.shape) == (np.uint8, (1, len(expected), 3))
    np.testing.assert_array_equal(got[0], expected)


def test_a_picture_is_turned_as_its_exif_data_say():
    image, exif = of("RGB", (255, 0, 0), (0, 0, 255)), Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right shows it upright
    got = pictures.rgb(encoded(image, exif=exif))
    np.testing.assert_array_equal(got, [[(255, 0, 0)], [(0, 0, 255)]])
    got = pictures.rgb(encoded(of("I;16", 256, 512), exif=exif))
    np.testing.assert_array_equal(got[..., 0], [[1], [2]])


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n0 0 4 4 rectfill\n"

REFUSED = {
    "EPS": (EPS, "bytes that are none of PNG, JPEG, WEBP"),
    "GIF": (encoded(of("P", 0, 1), "GIF"), "none of PNG"),
    "TIFF of floats": (encoded(of("F", 0.5, 1.0), "TIFF"), "none of PNG"),
    "BMP": (encoded(of("RGB", (1, 2, 3)), "BMP"), "none of PNG"),
    "CMYK": (encoded(of("CMYK", (1, 2, 3, 4)), "JPEG"), "one of mode CMYK"),
    "animation": (
        encoded(of("RGB", (1, 2, 3)), save_all=True, append_images=[of("RGB", (9, 9, 9))]),
        "an animation of 2 pictures",
    ),
    "bomb": (png(60000, 60000, 8, 2, [b""]), "px, more than|exceeds limit"),
    "large": (png(9000, 9000, 8, 2, [b""]), "one of 9000 x 9000 px, more than"),
    "cut": (RULES["RGB"][0][:50], "an error"),
    "nothing": (b"", "none of PNG"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_rule_is_for_is_refused_in_words_of_ours(kind, monkeypatch):
    for name in ("Popen", "run", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, lambda *_, **__: pytest.fail("a program was started"))
    content, words = REFUSED[kind]
    with pytest.raises(ValueError, match=words) as error:
        pictures.rgb(content)
    assert "BytesIO" not in str(error.value)


def test_what_is_half_clear_is_laid_on_black_to_the_nearest_level():
    """Every colour with every alpha."""
    colour, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    found = pictures.on_black(np.stack([colour, colour, 255 - colour, alpha], axis=-1))
    exact = colour.astype(float) * alpha / 255
    np.testing.assert_array_equal(found[..., 0], np.floor(exact + 0.5))
    np.testing.assert_array_equal(found[..., 1], found[..., 0])
    np.testing.assert_array_equal(found[..., 2], found[:, ::-1, 0])
    assert found.dtype == np.uint8
