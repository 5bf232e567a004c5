"""How image files of any kind become arrays: bit depths, transparency, orientation, scaling."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from iakd.classifier import Preprocess
from iakd.data.decoding import BadImage, decode, from_bytes


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def one(content: bytes, channels: int = 3, size: tuple[int, int] | None = None) -> np.ndarray:
    return decode(from_bytes("x", content), channels, size)[0]


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_grey_becomes_colour_and_colour_grey() -> None:
    grey = one(encoded(Image.fromarray(GREY)))
    assert grey.shape == (3, 8, 8) and (grey == GREY).all()
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert one(encoded(Image.fromarray(red)), channels=1).tolist() == [[[76] * 8] * 8]  # 0.299·255


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    shown = one(encoded(Image.fromarray(values)), channels=1)[0]
    assert np.abs(shown - values / 257).max() <= 0.5 and shown.max() == 255
    assert (one(encoded(Image.fromarray(values), "TIFF"), channels=1)[0] == shown).all()
    with pytest.raises(BadImage, match="has signed pixels"):
        one(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"))
    with pytest.raises(BadImage, match="floating-point"):
        one(encoded(Image.fromarray(values.astype(np.float32)), "TIFF"))


def test_transparency_is_laid_over_white() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0], rgba[:4, :, 3] = 200, 255
    image = Image.fromarray(rgba)
    for content in (encoded(image), encoded(image, "TIFF")):
        shown = one(content)
        assert (shown[:, 4:] == 255).all() and (shown[0, :4] == 200).all() and (shown[1:, :4] == 0).all()
    palette = Image.fromarray(np.repeat([[0], [1]], 4, axis=1).astype(np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert one(encoded(palette))[:, :, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    assert one(encoded(palette, transparency=1))[:, :, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    grey = Image.fromarray(np.full((2, 2, 2), [90, 0], np.uint8), "LA")
    assert (one(encoded(grey), channels=1) == 255).all()


def test_cmyk_and_bilevel_images_are_converted() -> None:
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[..., 0] = 255  # cyan
    shown = one(encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"))
    assert shown[:, 0, 0].tolist() == [0, 255, 255]
    assert one(encoded(Image.fromarray(cmyk, "CMYK"), "JPEG")).shape == (3, 8, 8)
    assert set(np.unique(one(encoded(Image.fromarray(GREY).convert("1"))))) == {0, 255}


def test_the_camera_s_orientation_is_applied() -> None:
    tall = np.zeros((4, 8, 3), np.uint8)
    tall[:, :2] = 255  # white at the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left comes to the top
    shown = one(encoded(Image.fromarray(tall), exif=exif))
    assert shown.shape == (3, 8, 4) and (shown[:, :2] == 255).all() and (shown[:, 2:] == 0).all()


def exif(kind: int, value: bytes) -> bytes:
    """EXIF data with nothing but an orientation, stored as that type of TIFF's."""
    count = len(value) if kind in (1, 2, 6, 7) else 1
    entry = struct.pack("<HHHI", 1, 0x0112, kind, count) + value.ljust(4, b"\0") + bytes(4)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry


@pytest.mark.parametrize("size", [None, (4, 4)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("type_", "value"),
    [(3, b"\6\0"), (2, b"6\0"), (2, b"6"), (1, b"\6"), (7, b"\6"), (7, b"6"), (6, b"\6"), (4, b"\6\0\0\0")],
)
def test_the_orientation_counts_whatever_its_type(
    type_: int, value: bytes, kind: str, size: tuple[int, int] | None
) -> None:
    left = np.zeros((16, 32, 3), np.uint8)
    left[:, :16] = 255
    content = encoded(Image.fromarray(left), kind, exif=exif(type_, value)[0 if kind == "JPEG" else 6 :])
    assert (one(content, 1, size) == one(encoded(Image.fromarray(np.rot90(left, -1)), kind), 1, size)).mean() > 0.9
    assert one(content, 1, size)[0, 0].min() > 200 > 50 > one(content, 1, size)[0, -1].max()


@pytest.mark.parametrize("value", [b"\0\0", b"\x09\0", b"x\0", b"\xff\xff"])
@pytest.mark.parametrize("type_", [1, 2, 3, 7])
def test_an_unusable_orientation_is_none(type_: int, value: bytes) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(4, 16))
    assert (one(encoded(image, exif=exif(type_, value)[6:]), 1) == np.asarray(image)).all()


def test_all_eight_orientations_also_of_a_tiff() -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    shown = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T}
    shown |= {6: np.rot90(stored, -1), 7: stored[::-1, ::-1].T, 8: np.rot90(stored)}
    for orientation, wanted in shown.items():
        data = exif(3, bytes([orientation, 0]))[6:]
        assert (one(encoded(Image.fromarray(stored), exif=data), 1)[0] == wanted).all(), orientation
        assert (one(tiff(stored, 8, orientation=orientation), 1)[0] == wanted).all(), orientation


def test_transparent_grey_of_a_tiff_of_both_kinds() -> None:
    for multiplied, shown in ((1, 50 + 127), (2, round((50 * 128 + 255 * 127) / 255))):
        content = tiff(np.array([[50, 128]]), 8, alpha=multiplied)
        assert one(content, 1).tolist() == [[[shown]]]


def tiff(
    values: np.ndarray,
    bits: int,
    white_is_zero: bool = False,
    signed: bool = False,
    orientation: int = 1,
    alpha: int | None = None,
) -> bytes:
    """A grey TIFF; 12 bits are packed. With `alpha` (1: multiplied, 2: not), every second value is that."""
    packed = values.astype({8: "<u1", 12: "<u2", 16: "<u2", 32: "<u4"}[bits]).tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).tolist()
        packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    samples = 2 if alpha else 1
    height, width = values.shape[0], values.shape[1] // samples
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 274: orientation}
    tags |= {277: samples, 278: height, 279: len(packed), 339: 2 if signed else 1}
    if alpha:
        tags |= {258: bits | bits << 16, 338: alpha}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, samples if tag == 258 else 1, tags[tag])
        for tag in sorted(tags)
    )
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


def in_memory(content: bytes) -> np.ndarray:
    """What a classifier makes of the image when Pillow has opened it."""
    image = Image.open(io.BytesIO(content))
    return Preprocess((image.height, image.width), 1).decode(image)[0]


def test_grey_tiffs_of_every_depth() -> None:
    values = np.array([[0, 1], [100, 2000], [4000, 4095]])
    wanted = {8: np.minimum(values, 255), 12: np.rint(values / 4095 * 255), 16: np.rint(values / 65535 * 255)}
    for bits, shown in wanted.items():
        content = tiff(np.minimum(values, 2**bits - 1), bits)
        assert (one(content, 1)[0] == shown).all(), bits
        assert (in_memory(content) == shown).all(), bits
    for bits in (8, 16):  # Pillow knows no others
        content = tiff(2**bits - 1 - np.minimum(values, 2**bits - 1), bits, white_is_zero=True)
        assert (one(content, 1)[0] == wanted[bits]).all(), bits
        assert (in_memory(content) == wanted[bits]).all(), bits
    for bits in (8, 16, 32):
        with pytest.raises(BadImage, match="has signed pixels"):
            one(tiff(values, bits, signed=True))
    for values in (np.array([[0, 255]]), np.array([[0, 2**32 - 1]])):
        with pytest.raises(BadImage, match="has 32-bit pixels"):
            one(tiff(values, 32))


def raw_png(width: int, bits: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row; `colour` is 0 for grey, 2 for RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    rest = chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + rest


def test_the_transparent_colour_of_a_png_of_any_depth_is_white() -> None:
    for bits, row, transparent, wanted in (
        (1, b"\x0f", 0, [255, 255, 255, 255, 255, 255, 255, 255]),
        (2, b"\x1b", 1, [0, 255, 170, 255]),
        (4, b"\x1f", 1, [255, 255]),
        (4, b"\x2c", 2, [255, 204]),
        (8, b"\x05\x06", 5, [255, 6]),
        (16, b"\x01\x2c\x80\x80", 300, [255, 128]),
    ):
        content = raw_png(len(wanted), bits, 0, row, struct.pack(">H", transparent))
        assert one(content, 1)[0, 0].tolist() == wanted, bits
    assert one(raw_png(2, 8, 2, bytes([5, 6, 7, 8, 9, 10]), struct.pack(">3H", 5, 6, 7)))[:, 0, 0].tolist() == [255] * 3
    with pytest.raises(BadImage, match="16-bit colours of which one is transparent"):
        one(raw_png(2, 16, 2, bytes(12), struct.pack(">3H", 300, 300, 300)))


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (32, 64), (16, 16), (10, 15)])
def test_scaling_is_torchvisions_resize_and_centre_crop(height: int, width: int) -> None:
    import torchvision.transforms.functional as vision

    y, x = np.mgrid[:height, :width]
    smooth = np.stack([127 + 120 * np.sin(x / 5), 127 + 120 * np.cos(y / 4), 127 + 120 * np.sin((x + y) / 7)])
    image = Image.fromarray(smooth.transpose(1, 2, 0).astype(np.uint8))
    theirs = np.asarray(vision.center_crop(vision.resize(image, [16]), [16, 16])).transpose(2, 0, 1)
    ours = one(encoded(image), size=(16, 16))
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # where they need not round the scaled size
    wide = one(encoded(image), size=(8, 32))
    assert wide.shape == (3, 8, 32)


def test_the_middle_is_kept() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert (one(encoded(Image.fromarray(image)), size=(10, 10)) == 255).all()


def test_scaling_down_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    shown = one(encoded(Image.fromarray(stripes)), size=(8, 8))
    assert shown.min() > 115 and shown.max() < 140
