"""From an image file of any kind to a uint8 array of one size and number of channels."""

import io
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iakd.data.geometry import Box, Crop, centre_box

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 90_000_000  # of one image; more is taken for a decompression bomb
MAX_BYTES = 1 << 30  # of one image file
ORIENTATION, TURNED = 0x0112, 5  # EXIF: from this value on, rows and columns change places


class BadImage(Exception):
    """A file that is no usable image; says why, to be put behind the file's name."""


class Item(NamedTuple):
    """An image that is still encoded: what to call it, and how to open it."""

    name: str
    open: Callable[[], IO[bytes]]


def from_file(path: Path, name: str | None = None) -> Item:
    """An image in a file."""
    return Item(name or str(path), lambda: _open(path))


def _open(path: Path) -> IO[bytes]:
    check_kind(path.stat().st_mode)
    return path.open("rb")


def from_bytes(name: str, content: bytes | None) -> Item:
    """An image in memory."""
    return Item(name, lambda: io.BytesIO(content or b""))


def decode(
    item: Item, channels: int, size: tuple[int, int] | None, crop: Crop | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """One image as uint8 (C, H, W), and its (height, width) before scaling. Raises BadImage.

    EXIF orientation is applied. 16-bit grey is scaled to 8 bits, transparency laid over white, then the mode
    becomes RGB or grey (ITU-R 601). With `size`: the part that `crop` chooses, by default as much as possible of
    the centre, is scaled to it, antialiased. A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8.
    """
    from PIL import Image, ImageOps

    try:
        with item.open() as file:
            length = file.seek(0, io.SEEK_END)
            file.seek(0)
            check_length(length)
            image: Image.Image = Image.open(file)
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(_too_large(f"{image.width}×{image.height} pixels"))
            original = None
            if size and image.format == "JPEG":
                turned = image.getexif().get(ORIENTATION, 1) >= TURNED
                original = (image.width, image.height) if turned else (image.height, image.width)
                _reduce(image, _chosen(crop, original, size), size)
            image = ImageOps.exif_transpose(image)
            original = original or (image.height, image.width)
            image = _eight_bits(image)
            image = image.convert("RGB" if channels == 3 else "L")
            if size:
                image = _scaled(image, original, _chosen(crop, original, size), size)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(_too_large(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels")) from None
    except Image.UnidentifiedImageError:
        raise BadImage("is no image of a known kind") from None
    except Exception as error:  # for damaged files Pillow raises nearly anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise BadImage(f"cannot be read ({reason or type(error).__name__})") from None
    array = np.asarray(image, dtype=np.uint8)
    return (array[None] if channels == 1 else array.transpose(2, 0, 1)), original


def check_kind(mode: int) -> None:
    """Raises BadImage for what would be waited for, such as a pipe; `mode` as `stat` gives it."""
    if not stat.S_ISREG(mode):
        raise BadImage("is no regular file")


def check_length(length: int) -> None:
    """Raises BadImage where a file of so many bytes need not be opened."""
    if not length:
        raise BadImage("is empty (0 bytes)")
    if length > MAX_BYTES:
        raise BadImage(f"has {length / 2**30:.1f} GiB, which is no image file")


def _chosen(crop: Crop | None, original: tuple[int, int], size: tuple[int, int]) -> Box:
    return crop(*original) if crop else centre_box(*original, size)


def _reduce(image: "Image", box: Box, size: tuple[int, int]) -> None:
    """Have a JPEG decoded with fewer pixels, as long as `box` has no fewer than `size`."""
    factor = min((box.bottom - box.top) / size[0], (box.right - box.left) / size[1])
    if factor >= 2:
        image.draft(image.mode, (math.ceil(image.width / factor), math.ceil(image.height / factor)))


def _scaled(image: "Image", original: tuple[int, int], box: Box, size: tuple[int, int]) -> "Image":
    """The `box`, in pixels of the `original` (height, width), of the image as decoded, scaled to `size`."""
    from PIL import Image

    height, width = size
    if size == original == (image.height, image.width) and box == (0, 0, width, height):
        return image
    across, down = image.width / original[1], image.height / original[0]
    part = (
        box.left * across,
        box.top * down,
        min(box.right * across, image.width),
        min(box.bottom * down, image.height),
    )
    return image.resize((width, height), Image.Resampling.BILINEAR, box=part)


def _too_large(what: str) -> str:
    return f"has {what}, and more than {MAX_PIXELS // 10**6} million are taken for a decompression bomb"


def _eight_bits(image: "Image") -> "Image":
    """`image` with 8 bits a channel and nothing transparent."""
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("has 32-bit pixels; 8 or 16 bits can be read")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise BadImage("has floating-point pixels; 8 or 16 bits can be read")
    if image.mode in ("LA", "La", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image)
    return image
