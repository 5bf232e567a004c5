"""Which images of a data set an imported teacher was trained with, as far as it is known.

Test images say nothing about a teacher that has learned them, and little about its students.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iakd.config import Teacher
from iakd.data.decoding import BadImage, decode_each, from_file
from iakd.data.file_index import content_hash
from iakd.data.layout import files_below, is_image
from iakd.data.store import PreparedData
from iakd.errors import UserError

TRAIN = "train"  # the setting `trained_on` of a teacher that knows the training images of the data set at most
PARTS = ("val", "test")


def count_seen(teacher: Teacher, store: PreparedData) -> dict[str, Any] | None:
    """Return what is known of the images that an imported teacher was trained with, for its run.json.

    `{"split": "train"}`, or how many `files` were listed, and how many images of `val` and `test` are among them, by
    content: byte for byte where a data set stays in its files, else pixel by pixel. None: nothing. Raises UserError
    if a list cannot be read, or names files that do not exist.
    """
    if teacher.trained_on is None:
        return None
    if teacher.trained_on == TRAIN:
        return {"split": TRAIN}
    where = f"teacher {teacher.name}: trained_on {teacher.trained_on}"
    paths = _listed(Path(teacher.trained_on).expanduser(), where)
    seen = set(_contents(paths, store, where))
    counts = {part: sum(image in seen for image in _prepared(store, part)) for part in PARTS}
    return {"files": len(paths), **counts}


def _listed(path: Path, where: str) -> list[Path]:
    """The images below a folder, or those that a text file names, one a line, relative to its own folder."""
    if path.is_dir():
        found = [file for file in files_below(path) if is_image(file)]
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where} is neither a folder nor a list of files, one a line ({error})") from None
        found = [path.parent / Path(line.strip()).expanduser() for line in lines if line.strip()]
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise UserError(f"{where}: {len(missing)} of its {len(found)} files do not exist, such as {missing[0]}")
    if not found:
        raise UserError(f"{where} names no images")
    return found


def _contents(paths: list[Path], store: PreparedData, where: str) -> Iterator[bytes]:
    """Yield the hash of each file's content as the data set stores it."""
    if store.storage == "files":
        yield from (content_hash(path.read_bytes()) for path in paths)
        return
    channels, *size = store.image_shape
    given = store.manifest["settings"].get("size") is not None
    crop_pct = float(store.manifest["settings"].get("crop_pct") or 1.0)
    decoded = decode_each(map(from_file, paths), channels, (size[0], size[1]) if given else None, crop_pct)
    for name, result in decoded:
        if isinstance(result, BadImage):
            raise UserError(f"{where}: {name} {result}")
        yield content_hash(result[0].tobytes())


def _prepared(store: PreparedData, part: str) -> Iterator[bytes]:
    if store.storage == "files":
        yield from (bytes(row["hash"].tobytes()) for row in store.files(part))
    else:
        yield from (content_hash(image.tobytes()) for image in store.images(part))


def note(name: str, record: dict[str, Any]) -> str:
    """Return a sentence on the test images that a teacher may have seen, from its run.json; empty if trained here."""
    if not record.get("origin"):
        return ""
    known = record.get("trained_on")
    if not known:
        return (
            f"What the imported teacher {name} was trained with is not known here (its setting trained_on): if test "
            "images were among it, its accuracy is too high, and so may be that of its students."
        )
    if known.get("split") == TRAIN:
        return f"The imported teacher {name} was trained without them, according to the settings (trained_on: train)."
    of = f"the {known['files']:,} images that the imported teacher {name} was trained with"
    if not known["test"]:
        return f"None of them is among {of}."
    return f"{known['test']:,} of them are among {of}: its accuracy is too high, and so may be that of its students."
