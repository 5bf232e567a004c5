"""All images of a part: decoded in order, bad ones refused or left out, sizes counted."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from iakd.data.decode import BadImage, Item, decode
from iakd.data.geometry import centre_crop
from iakd.data.raw import Images, Pictures
from iakd.errors import UserError
from iakd.processes import cores

MAX_ARRAY = 8 << 30  # bytes of all images of a part
TOGETHER = 256  # images decoded between two looks at the outcome
LISTED = 20  # bad files that are named one by one


P = TypeVar("P", bound=Pictures)


@dataclass
class Decoded(Generic[P]):
    """Images (n, C, H, W) of the items with `kept`, and how many had which size and which were bad."""

    images: P
    kept: NDArray[np.bool_]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width) before scaling
    bad: list[str] = field(default_factory=list)

    def refuse_or_list(self, name: str, error: BadImage, on_bad_file: str) -> None:
        """Take note of a bad file; raises UserError unless `on_bad_file` is skip."""
        if on_bad_file == "refuse":
            raise UserError(f"{name} {error}: repair or remove it, or set dataset.on_bad_file to skip")
        self.bad.append(f"{name} {error}")


def decode_all(
    items: Iterable[Item],
    n: int,
    channels: int,
    size: tuple[int, int] | None,
    on_bad_file: str,
    where: str,
    crop_pct: float = 1.0,
) -> Decoded[Images]:
    """Decode `n` items, in order, on several threads. Without `size`, all must have the first one's.

    Raises UserError for a bad image unless `on_bad_file` is skip, for sizes that differ where none is asked for,
    and where the array would be larger than MAX_ARRAY. `where` names the whole in messages.
    """
    images: Images | None = None
    out = Decoded(np.empty((0, channels, *(size or (1, 1))), np.uint8), np.zeros(n, dtype=bool))
    for position, (name, outcome) in enumerate(_decoded(items, channels, size, crop_pct)):
        if isinstance(outcome, BadImage):
            out.refuse_or_list(name, outcome, on_bad_file)
            continue
        image, original = outcome
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
            "that are kept as one array: set a smaller dataset.size, use fewer images, or, where the source has it, "
            "set dataset.storage to files"
        )
    return np.zeros((n, *shape), np.uint8)


Outcome = tuple[Images, tuple[int, int]] | BadImage


def _decoded(
    items: Iterable[Item], channels: int, size: tuple[int, int] | None, crop_pct: float
) -> Iterator[tuple[str, Outcome]]:
    def one(item: Item) -> tuple[str, Outcome]:
        try:
            return item.name, decode(item, channels, size, centre_crop(size, crop_pct) if size else None)
        except BadImage as error:
            return item.name, error

    rest = iter(items)
    threads = min(8, cores())
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # sizes are checked here; oddities of EXIF do not matter
        while some := list(islice(rest, TOGETHER)):
            yield from pool.map(one, some)


def remarks(decoded: Decoded[Any], size: tuple[int, int] | None, where: str) -> list[str]:
    """What a user should know of the images of one part: bad ones, mixed sizes, enlarged ones."""
    found = []
    if decoded.bad:
        more = f"; … ({len(decoded.bad) - LISTED} more)" if len(decoded.bad) > LISTED else ""
        found.append(f"{where}: {len(decoded.bad)} bad files are left out: {'; '.join(decoded.bad[:LISTED])}{more}")
    if size and len(decoded.sizes) > 1:
        smallest, largest = min(decoded.sizes, key=np.prod), max(decoded.sizes, key=np.prod)
        ends = f"{smallest[0]}×{smallest[1]} to {largest[0]}×{largest[1]}"
        found.append(
            f"{where}: images have {len(decoded.sizes)} sizes, {ends}; all were brought to {size[0]}×{size[1]}"
        )
    if size:
        small = sum(n for (height, width), n in decoded.sizes.items() if height < size[0] or width < size[1])
        if small:
            found.append(f"{where}: {small} images are smaller than {size[0]}×{size[1]} and were enlarged")
    return found
