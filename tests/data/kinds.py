"""Tiny files in the layouts of the publishers: few images, the real formats."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat


def pixels(n: int, seed: int, shape: tuple[int, ...] = (3, 32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    """A (C, H, W) image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class Set:
    """CIFAR in miniature: `per` images of each class in training (five files in CIFAR-10), and in the test."""

    def __init__(self, classes: int, per: int = 5) -> None:
        self.classes, self.coarse_of = classes, np.arange(classes) // 5
        self.train_labels = np.tile(np.arange(classes), per)
        self.test_labels = np.arange(classes)
        self.train, self.test = pixels(classes * per, 0), pixels(classes, 1)


def cifar10() -> Set:
    return Set(10)


def cifar100() -> Set:
    return Set(100, per=2)


NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _batches(data: Set) -> list[tuple[str, np.ndarray, np.ndarray]]:
    size = len(data.train) // 5
    parts = [slice(i * size, (i + 1) * size) for i in range(5)]
    named = [(f"data_batch_{i + 1}", data.train[p], data.train_labels[p]) for i, p in enumerate(parts)]
    return [*named, ("test_batch", data.test, data.test_labels)]


def cifar10_files(data: Set, form: str) -> dict[str, bytes]:
    if form == "python":
        files = {
            f"cifar-10-batches-py/{name}": pickle.dumps(
                {b"data": images.reshape(len(images), -1), b"labels": labels.tolist()}, protocol=2
            )
            for name, images, labels in _batches(data)
        }
        return {**files, "cifar-10-batches-py/batches.meta": pickle.dumps({"label_names": NAMES10}, protocol=2)}
    files = {
        f"cifar-10-batches-bin/{name}.bin": np.c_[labels.astype(np.uint8), images.reshape(len(images), -1)].tobytes()
        for name, images, labels in _batches(data)
    }
    return {**files, "cifar-10-batches-bin/batches.meta.txt": ("\n".join(NAMES10) + "\n\n").encode()}


def names100(level: str) -> list[str]:
    from iakd.data.sources import cifar

    return (cifar.FINE_CLASSES if level == "fine" else cifar.COARSE_CLASSES).split()


def cifar100_files(data: Set, form: str) -> dict[str, bytes]:
    parts = [("train", data.train, data.train_labels), ("test", data.test, data.test_labels)]
    if form == "python":
        files = {
            f"cifar-100-python/{name}": pickle.dumps(
                {
                    "data": images.reshape(len(images), -1),
                    "fine_labels": labels.tolist(),
                    "coarse_labels": data.coarse_of[labels].tolist(),
                }
            )
            for name, images, labels in parts
        }
        meta = {f"{level}_label_names": names100(level) for level in ("fine", "coarse")}
        return {**files, "cifar-100-python/meta": pickle.dumps(meta)}
    files = {
        f"cifar-100-binary/{name}.bin": np.c_[
            data.coarse_of[labels].astype(np.uint8), labels.astype(np.uint8), images.reshape(len(images), -1)
        ].tobytes()
        for name, images, labels in parts
    }
    names = {
        f"cifar-100-binary/{level}_label_names.txt": "\n".join(names100(level)).encode() for level in ("fine", "coarse")
    }
    return {**files, **names}


def image_table(
    images: np.ndarray | list[bytes | None], names: dict[str, list[str]] | None = None, **labels: list[int] | list[str]
) -> pa.Table:
    """A table with the column `img` and columns of labels; `names`: class names by column, as `datasets` writes."""
    encoded = images if isinstance(images, list) else [png(image) for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array([{"bytes": x, "path": None} for x in encoded], kind), **labels})
    if names:
        features = {column: {"names": values, "_type": "ClassLabel"} for column, values in names.items()}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    return table


def cifar_parquet(folder: Path, data: Set) -> None:
    (folder / "data").mkdir(parents=True)
    for name, images, labels in (("train", data.train, data.train_labels), ("test", data.test, data.test_labels)):
        columns = (
            {"label": labels.tolist()}
            if data.classes == 10
            else {"fine_label": labels.tolist(), "coarse_label": data.coarse_of[labels].tolist()}
        )
        pq.write_table(image_table(images, **columns), folder / f"data/{name}-00000-of-00001.parquet")


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fast = {"mode": "w:gz", "compresslevel": 1} if path.suffix == ".gz" else {"mode": "w"}
    with tarfile.open(path, **fast) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fashion(images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict[str, bytes]:
    files = {f"{part}-images-idx3-ubyte.gz": gzip.compress(idx(images[part])) for part in images}
    return {**files, **{f"{part}-labels-idx1-ubyte.gz": gzip.compress(idx(labels[part])) for part in labels}}


def mat(images: np.ndarray, digits: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    numbers = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
    savemat(buffer, {"X": images.transpose(2, 3, 1, 0), "y": numbers}, do_compression=True)
    return buffer.getvalue()
