"""An image to an array of colours. What is in the bytes decides, and nothing else: the same bytes give equal arrays.

The size is read from the header, so that a small file of a huge image is refused before there is memory for it. Colours
are those of the file: profiles are not applied.

Dimensions: H rows of W pixels, 3 colours.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_data.blob import Blob, decoding, open_blob, the_extra

MOST_PIXELS = 1 << 26
"""Pixels of 8192 x 8192, which take 200 MB."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def read_image(source: Blob, *, most_pixels: int = MOST_PIXELS) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: red, green and blue of the image as it is meant to be seen. Effect: reads `source`.

    It is turned as its EXIF says; what is transparent is laid over white; palettes and grey become colours; of values
    of 16 bits, the higher 8 stay; of several frames, the first is read.

    Args:
        source: a PNG, JPEG, WebP, GIF, BMP or TIFF: bytes, a path, or `{"bytes": ..., "path": ...}`.
        most_pixels: an image of more is refused; Pillow itself refuses more than 178 million.

    Raises:
        ValueError: with the name of the file, if it is of another format, too large, corrupt or truncated.
    """
    with the_extra():
        from PIL import Image, ImageOps, UnidentifiedImageError
    with open_blob(source) as (file, name), decoding(name):
        try:
            image = Image.open(file, formats=_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"{name}: {error} most_pixels={most_pixels}.") from None
        except UnidentifiedImageError:
            raise ValueError(f"{name}: is no image of a format that is read: {', '.join(_FORMATS)}.") from None
        width, height = image.size
        if width * height > most_pixels:
            raise ValueError(
                f"{name}: {width} x {height} pixels are more than most_pixels={most_pixels}: scale the image down, or "
                "raise the limit."
            )
        image.load()
        # Where there is nothing to do, Pillow makes a copy, unless told not to.
        ImageOps.exif_transpose(image, in_place=True)
        return _colours(image)


def _colours(image: Any) -> NDArray[np.uint8]:
    """The colours of a decoded image."""
    from PIL import Image

    if image.mode in ("I", "F"):
        raise ValueError(f"values of 32 bits (mode {image.mode}) do not say which of them is white")
    if image.mode.startswith("I;16"):
        # Pillow cuts them itself, but in grey.
        grey_HW = np.asarray(image)
        rgb_HW3 = np.repeat((grey_HW >> 8).astype(np.uint8)[..., None], 3, axis=2)
        if (clear := image.info.get("transparency")) is not None:
            rgb_HW3[grey_HW == clear] = 255
        return rgb_HW3
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
