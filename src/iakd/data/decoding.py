"""Decode image files of any kind to uint8 arrays of one size and number of channels."""

import contextlib
import io
import math
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from iakd.data.geometry import CropBox, CropFunction, centre_box, centre_crop
from iakd.data.source_data import Images, SourceImages
from iakd.errors import UserError
from iakd.files import plural, printable
from iakd.processes import cores

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 90_000_000  # of one image; a larger one is treated as a decompression bomb
MAX_BYTES = 1 << 30  # of one image file
ORIENTATION, TRANSPOSED = 0x0112, 5  # EXIF tag; from this value on, rows and columns are exchanged
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # from EXIF orientation to PIL.Image.Transpose
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO, SIGNED = 0, 2  # values of the last two


class BadImage(Exception):
    """A file that is not a usable image. The message follows the file's name."""


class EncodedImage(NamedTuple):
    """An image that is still encoded: its name in messages, and a function that opens it."""

    name: str
    open: Callable[[], IO[bytes]]


def from_file(path: Path, name: str | None = None) -> EncodedImage:
    """Return the image in a file. Its name in messages is `name`, or else the path."""
    return EncodedImage(name or str(path), lambda: _open(path))


def _open(path: Path) -> IO[bytes]:
    check_kind(path.stat().st_mode)
    return path.open("rb")


def from_bytes(name: str, content: bytes | None) -> EncodedImage:
    """Return an image in memory."""
    return EncodedImage(name, lambda: io.BytesIO(content or b""))


def decode(
    encoded: EncodedImage, channels: int, size: tuple[int, int] | None, crop: CropFunction | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return one image as uint8 (C, H, W), and its (height, width) before scaling. Raises BadImage.

    EXIF orientation is applied, 12- and 16-bit grey is scaled to 8 bits, transparent pixels are blended with white, and
    the image is converted to RGB or grey (ITU-R 601). With `size`, the box that `crop` returns (default: the largest
    centre crop) is scaled to it with antialiasing. A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its
    size.
    """
    with _as_bad_image(), encoded.open() as file:
        from PIL import Image

        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        check_length(length)
        return decode_opened(Image.open(file), channels, size, crop)


def decode_opened(
    image: "Image", channels: int, size: tuple[int, int] | None, crop: CropFunction | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Do as `decode` does with an image that Pillow has opened. A JPEG that is loaded already keeps all its pixels."""
    with _as_bad_image():
        from PIL import Image

        if image.width * image.height > MAX_PIXELS:
            raise BadImage(_too_large(f"{image.width}×{image.height} pixels"))
        original = None
        if size and image.format == "JPEG":
            transposed = _orientation(image) >= TRANSPOSED
            original = (image.width, image.height) if transposed else (image.height, image.width)
            _reduce(image, _crop_box(crop, original, size), size)
        _check_transparent_colour(image)
        image.load()  # turns a TIFF
        turn = TURNS.get(_orientation(image))
        image = _eight_bits(image).convert("RGB" if channels == 3 else "L")
        if turn is not None:
            image = image.transpose(Image.Transpose(turn))
        original = original or (image.height, image.width)
        if size:
            image = _scaled(image, original, _crop_box(crop, original, size), size)
        array = np.asarray(image, dtype=np.uint8)
    return (array[None] if channels == 1 else array.transpose(2, 0, 1)), original


@contextlib.contextmanager
def _as_bad_image() -> Iterator[None]:
    """Raise BadImage for whatever Pillow raises."""
    from PIL import Image

    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(_too_large(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels")) from None
    except Image.UnidentifiedImageError:
        raise BadImage("is not an image in a known format") from None
    except Exception as error:  # Pillow raises almost anything for a damaged file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise BadImage(f"cannot be read ({reason or type(error).__name__})") from None


def check_kind(mode: int) -> None:
    """Raise BadImage unless `mode` (see `os.stat`) is a regular file's: reading a pipe, for instance, would block."""
    if not stat.S_ISREG(mode):
        raise BadImage("is not a regular file")


def check_length(length: int, what: str = "an image") -> None:
    """Raise BadImage if a file of `length` bytes cannot be what it should be."""
    if not length:
        raise BadImage("is empty (0 bytes)")
    if length > MAX_BYTES:
        raise BadImage(f"has {length / 2**30:.1f} GiB, too much for {what}")


def _crop_box(crop: CropFunction | None, original: tuple[int, int], size: tuple[int, int]) -> CropBox:
    return crop(*original) if crop else centre_box(*original, size)


def _reduce(image: "Image", box: CropBox, size: tuple[int, int]) -> None:
    """Let a JPEG be decoded with fewer pixels, but not fewer than `size` within `box`."""
    factor = min((box.bottom - box.top) / size[0], (box.right - box.left) / size[1])
    if factor >= 2:
        image.draft(image.mode, (math.ceil(image.width / factor), math.ceil(image.height / factor)))


def _scaled(image: "Image", original: tuple[int, int], box: CropBox, size: tuple[int, int]) -> "Image":
    """Crop the decoded image to `box`, in pixels of the `original` (height, width), and scale it to `size`."""
    from PIL import Image

    height, width = size
    if size == original == (image.height, image.width) and box == (0, 0, width, height):
        return image
    x_scale, y_scale = image.width / original[1], image.height / original[0]
    source = (
        box.left * x_scale,
        box.top * y_scale,
        min(box.right * x_scale, image.width),
        min(box.bottom * y_scale, image.height),
    )
    return image.resize((width, height), Image.Resampling.BILINEAR, box=source)


def scale_all(images: Images, size: tuple[int, int]) -> Images:
    """Return images (N, 3, H, W), cropped at the centre and scaled to `size` as `decode` does it."""
    from PIL import Image

    original = images.shape[2], images.shape[3]
    box = centre_box(*original, size)
    scaled = np.empty((*images.shape[:2], *size), np.uint8)
    for position, image in enumerate(images):
        scaled[position] = np.asarray(
            _scaled(Image.fromarray(image.transpose(1, 2, 0)), original, box, size)
        ).transpose(2, 0, 1)
    return scaled


def _too_large(what: str) -> str:
    return f"has {what}, and more than {MAX_PIXELS // 10**6} million are treated as a decompression bomb"


def _orientation(image: "Image") -> int:
    """Return the EXIF orientation, 1–8, also where it was stored as text or bytes; 1 if it is missing or unusable."""
    value = image.getexif().get(ORIENTATION, 1)
    if isinstance(value, tuple):
        value = value[0] if value else 1
    if isinstance(value, bytes):
        value = value.rstrip(b"\0")
        value = value[0] if len(value) == 1 and value[0] <= 8 else value.decode("latin-1")
    try:
        return int(value) if 1 <= int(value) <= 8 else 1
    except (TypeError, ValueError, OverflowError):
        return 1


def _check_transparent_colour(image: "Image") -> None:
    """Scale the transparent grey of a PNG of 2 or 4 bits to 8 bits, which Pillow forgets. Raises BadImage for a colour
    of 16 bits per channel, which cannot be found among pixels of 8.
    """
    if image.format != "PNG" or "transparency" not in image.info:
        return
    stored = image.tile[0].args  # type: ignore[attr-defined]
    if stored in ("L;2", "L;4"):
        image.info["transparency"] *= 255 // (2 ** int(stored[-1]) - 1)
    elif stored == "RGB;16B":
        raise BadImage("has 16-bit colours of which one is transparent; only 8 bits are supported there")


def _eight_bits(image: "Image") -> "Image":
    """Return a loaded image with 8 bits per channel and without transparency."""
    from PIL import Image

    if SIGNED in getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, ()):
        raise BadImage("has signed pixels; only unsigned ones are supported")
    if image.mode.startswith("I"):
        return Image.fromarray(_grey(image))
    if image.mode == "F":
        raise BadImage("has floating-point pixels; only 8 and 16 bits are supported")
    if image.mode in ("LA", "La", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image)
    return image


def _grey(image: "Image") -> NDArray[np.uint8]:
    """Return grey pixels of 12 or 16 bits as 8 bits (H, W), rounded; transparent ones are white."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = tags.get(BITS, (16,))[0]
    values = np.asarray(image).astype(np.int64)
    if bits > 16 or values.min() < 0 or values.max() > 65535:
        raise BadImage("has 32-bit pixels; only 8 and 16 bits are supported")
    highest = 2**bits - 1
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = highest - values
    grey = (values * 255 + highest // 2) // highest
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey.astype(np.uint8)


MAX_ARRAY = 8 << 30  # bytes of all images of a split
CHUNK = 256  # images handed to the threads at a time
LISTED = 20  # bad files that are named


P = TypeVar("P", bound=SourceImages)


@dataclass
class DecodedImages(Generic[P]):
    """Images (n, C, H, W), decoded or in files, and what was found out about them.

    `kept` bool (N,) tells which of the N images that were read are among them; `bad` says what is wrong with the
    others.
    """

    images: P
    kept: NDArray[np.bool_]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width) before scaling
    bad: list[str] = field(default_factory=list)

    def refuse_or_list(self, name: str, error: BadImage, on_bad_file: str) -> None:
        """Raise UserError for a bad file, or list it if `on_bad_file` is skip."""
        name = printable(name)
        if on_bad_file == "refuse":
            raise UserError(f"{name} {error}: repair or remove it, or set dataset.on_bad_file to skip")
        self.bad.append(f"{name} {error}")


def decode_all(
    encoded: Iterable[EncodedImage],
    n: int,
    channels: int,
    size: tuple[int, int] | None,
    on_bad_file: str,
    where: str,
    crop_pct: float = 1.0,
) -> DecodedImages[Images]:
    """Decode `n` images, in order, on several threads. Without `size`, all must be as large as the first one.

    Raises UserError for a bad image unless `on_bad_file` is skip, for images that differ in size if no `size` is given,
    and if the array would be larger than MAX_ARRAY. `where` is the name of the whole in messages.
    """
    images: Images | None = None
    out = DecodedImages(np.empty((0, channels, *(size or (1, 1))), np.uint8), np.zeros(n, dtype=bool))
    for position, (name, result) in enumerate(decode_each(encoded, channels, size, crop_pct)):
        if isinstance(result, BadImage):
            out.refuse_or_list(name, result, on_bad_file)
            continue
        image, original = result
        if images is None:
            images = _allocate(n, image.shape, where)
        if image.shape != images.shape[1:]:
            first, this = ("×".join(map(str, shape[-2:])) for shape in (images.shape, image.shape))
            raise UserError(f"{where}: images differ in size ({first}, then {this} in {name}): set dataset.size")
        images[position] = image
        out.kept[position] = True
        out.sizes[original] += 1
    if images is not None:
        out.images = images if out.kept.all() else images[out.kept]
    return out


def _allocate(n: int, shape: tuple[int, ...], where: str) -> Images:
    wanted = n * int(np.prod(shape))
    if wanted > MAX_ARRAY:
        side = "×".join(map(str, shape[1:]))
        raise UserError(
            f"{where}: {n} images of {side} would take {wanted / 2**30:.1f} GiB, more than the {MAX_ARRAY >> 30} GiB "
            "that are allowed as one array: set a smaller dataset.size, use fewer images, or, if the source has it, "
            "set dataset.storage to files"
        )
    return np.zeros((n, *shape), np.uint8)


DecodeResult = tuple[Images, tuple[int, int]] | BadImage


def decode_each(
    encoded: Iterable[EncodedImage],
    channels: int,
    size: tuple[int, int] | None,
    crop_pct: float = 1.0,
    at_a_time: int = CHUNK,
) -> Iterator[tuple[str, DecodeResult]]:
    """Decode images with centre crops on several threads; yield name and result of each, in order.

    The result is what `decode` returns, or the BadImage that it raises. No more than `at_a_time` are decoded ahead.
    """

    def one(encoded: EncodedImage) -> tuple[str, DecodeResult]:
        try:
            return encoded.name, decode(encoded, channels, size, centre_crop(size, crop_pct) if size else None)
        except BadImage as error:
            return encoded.name, error

    rest = iter(encoded)
    threads = min(8, cores())
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # sizes are checked here, and odd EXIF data do not matter
        while chunk := list(islice(rest, at_a_time)):
            yield from pool.map(one, chunk)


def image_problems(decoded: DecodedImages[Any], size: tuple[int, int] | None, where: str) -> list[str]:
    """Describe what a user should know about the images of a split: bad, resized and enlarged ones."""
    found = []
    if decoded.bad:
        more = f"; … ({len(decoded.bad) - LISTED} more)" if len(decoded.bad) > LISTED else ""
        bad = plural(len(decoded.bad), "bad file was", "bad files were")
        found.append(f"{where}: {bad} left out: {'; '.join(decoded.bad[:LISTED])}{more}")
    if size and len(decoded.sizes) > 1:
        smallest, largest = min(decoded.sizes, key=np.prod), max(decoded.sizes, key=np.prod)
        ends = f"{smallest[0]}×{smallest[1]} to {largest[0]}×{largest[1]}"
        found.append(f"{where}: images have {len(decoded.sizes)} sizes, {ends}; all were scaled to {size[0]}×{size[1]}")
    if size:
        small = sum(n for (height, width), n in decoded.sizes.items() if height < size[0] or width < size[1])
        if small:
            smaller = f"smaller than {size[0]}×{size[1]} and"
            told = plural(small, f"image is {smaller} was", f"images are {smaller} were")
            found.append(f"{where}: {told} enlarged")
    return found
