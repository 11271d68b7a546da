"""Encoded pictures -> RGB of 8 bits, by rules that are stated here and nowhere else.

- Decoded are PNG, JPEG and WebP: what the layouts name. Nothing else is even tried.
- 16 bits become 8 by their upper 8: 65535 is white.
- What is transparent is laid on black.
- A picture is turned as its EXIF data say.
- Grey, 1 bit and palettes become RGB. CMYK, float and animations are refused.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

__all__ = ["FORMATS", "MAX_PIXELS", "on_black", "rgb"]

FORMATS = ("PNG", "JPEG", "WEBP")

MAX_PIXELS = 1 << 26
"""Of one picture or frame: 8192 x 8192, 200 MB decoded. A few bytes may declare far more."""

DEEP, OPAQUE = ("I", "I;16", "I;16B", "I;16L"), ("1", "L", "P", "RGB", "YCbCr")

ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def rgb(content: bytes) -> np.ndarray:
    """The bytes of a picture -> (H, W, 3) uint8.

    Raises:
        ValueError: what was got in place of a picture, in a few words for a sentence.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"one of {image.width} x {image.height} px, more than {MAX_PIXELS} in all"
                )
            number = getattr(image, "n_frames", 1)
            if image.format != "JPEG" and number > 1:
                raise ValueError(f"an animation of {number} pictures")
            return _upright(image)
    except Image.UnidentifiedImageError:
        raise ValueError(f"bytes that are none of {', '.join(FORMATS)}") from None
    except ValueError:
        raise
    except Exception as error:  # each decoder has errors of its own
        raise ValueError(f"an error ({str(error) or type(error).__name__})") from None


def _upright(image: Image.Image) -> np.ndarray:
    if image.mode in DEEP and "transparency" not in image.info:
        # turned before it is shallow: the EXIF data belong to the image
        deep = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"one of mode {image.mode}, deeper than 16 bits")
        return np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode not in OPAQUE + ALPHA:
        raise ValueError(f"one of mode {image.mode}, where grey, RGB or RGBA are understood")
    image.load()  # a PNG may name its transparency behind its pixels
    clear = image.mode in ALPHA or "transparency" in image.info
    upright: Any = ImageOps.exif_transpose(image).convert("RGBA" if clear else "RGB")
    return on_black(np.asarray(upright)) if clear else np.asarray(upright)


def on_black(picture: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 RGBA -> (H, W, 3) uint8, laid on black."""
    colours, alpha = picture[..., :3].astype(np.uint16), picture[..., 3:].astype(np.uint16)
    return ((colours * alpha + 127) // 255).astype(np.uint8)
