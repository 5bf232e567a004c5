"""Read foreign checkpoints without running any code in them: safetensors, torch.save, torch.export.save.

MLflow logs PyTorch models as programs of `torch.export.save` (format of torch 2.7 and later): the archive lists each
tensor of the state_dict in a JSON file and holds its bytes beside it.
"""

import argparse
import contextlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iakd.errors import UserError

INDEX = "data/weights/model_weights_config.json"
DTYPES = {  # torch._export.serde.schema.ScalarType
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}


def is_exported(path: Path | BinaryIO) -> bool:
    """Return whether the file is a program of `torch.export.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _index(archive) is not None
    except zipfile.BadZipFile:
        return False


def read_exported(path: Path) -> dict[str, Tensor]:
    """Return the state_dict of an exported program, in order. Raises KeyError, ValueError, RuntimeError or BadZipFile
    if damaged.
    """
    with zipfile.ZipFile(path) as archive:
        index = _index(archive)
        assert index is not None
        folder = index.removesuffix(index.rpartition("/")[2])
        entries = json.loads(archive.read(index))["config"]
        contents = {path: bytearray(archive.read(folder + path)) for path in {e["path_name"] for e in entries.values()}}
        return {name: _tensor(contents[entry["path_name"]], entry) for name, entry in entries.items()}


def _index(archive: zipfile.ZipFile) -> str | None:
    return next((name for name in archive.namelist() if name.endswith("/" + INDEX)), None)


def _tensor(content: bytearray, entry: dict[str, Any]) -> Tensor:
    if entry["use_pickle"]:
        raise ValueError("a tensor is pickled")
    about = entry["tensor_meta"]
    sizes, strides = ([int(number["as_int"]) for number in about[name]] for name in ("sizes", "strides"))
    flat = torch.frombuffer(content, dtype=DTYPES[about["dtype"]])
    if prod(sizes) > flat.numel():  # with steps of 0, a few bytes would fill the memory
        raise ValueError("a tensor is larger than its content")
    return flat.as_strided(sizes, strides, int(about["storage_offset"]["as_int"]))


USUAL_KEYS = (  # names of weights in a training checkpoint; those of a moving average come after the plain ones
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params"),
    *("teacher", "ema", "ema_state_dict", "model_ema", "state_dict_ema"),
)
MAX_DEPTH = 4  # of nested dictionaries
NUMPY_CLASSES = {type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8")}
SAFE_TYPES: tuple[Any, ...] = (  # data without code, which training checkpoints have among their notes
    argparse.Namespace,
    np.dtype,
    *NUMPY_CLASSES,
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
)


@dataclass(frozen=True)
class StateDict:
    """A state_dict in a file. `key_path`: the keys that lead to it; `ordered`: whether the names are in the order of
    definition, which safetensors does not keep.
    """

    key_path: str
    tensors: dict[str, Tensor]
    ordered: bool


def read_checkpoint(path: Path, origin: str) -> list[StateDict]:
    """Return the state_dicts in the file at `path` that may be a network's weights, the most likely first; at least
    one.

    Raises UserError, naming `origin`, if the file is missing, damaged, or holds objects other than tensors, numbers and
    texts.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{origin}: {path} is not a file") from None
    if head[:2] == b"PK":
        _check_size(path, origin)
    if head[8:] == b"{":
        found = [StateDict("", _safetensors(path, origin), ordered=False)]
    elif head[:2] == b"PK" and is_exported(path):
        found = [StateDict("", _exported(path, origin), ordered=True)]
    elif head[:2] == b"PK" or head[:1] == b"\x80":
        found = sorted(_state_dicts(_torch(path, origin)), key=_rank)
    else:
        raise UserError(f"{origin} is not a checkpoint: neither safetensors nor written by torch.save")
    if not any(each.tensors for each in found):
        raise UserError(f"{origin} holds no weights of a network (no dictionary with tensors called ….weight)")
    return found


def _check_size(path: Path, origin: str) -> None:
    """Raise UserError if an archive has more to unpack than its own size: torch compresses nothing but programs."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        # a program is below code/, and nothing here reads it
        unpacked = sum(member.file_size for member in archive.infolist() if "/code/" not in member.filename)
        if unpacked > path.stat().st_size:
            raise UserError(
                f"{origin} is compressed, from {unpacked / 2**20:,.0f} MiB, which torch never does: it is not genuine, "
                "or was packed again"
            )


def _safetensors(path: Path, origin: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise damaged(origin, error) from None


def _exported(path: Path, origin: str) -> dict[str, Tensor]:
    try:
        return read_exported(path)
    except (KeyError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        raise damaged(origin, error) from None


def _torch(path: Path, origin: str) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(SAFE_TYPES)):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # in a damaged file anything can go wrong, an OSError for an impossible place too
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if foreign or "TorchScript" in str(error):
            what = f"other objects than tensors ({foreign[1]})" if foreign else "a TorchScript program"
            raise UserError(
                f"{origin} holds {what} and is not opened, because such a file can run anything; where the model is "
                "at home, save its weights instead: torch.save(model.state_dict(), …)"
            ) from None
        raise damaged(origin, error) from None


def damaged(origin: str, error: Exception) -> UserError:
    """Return the error for a file that is not what it should be."""
    reason = next(iter(str(error).splitlines()), "")[:100].rstrip(". ") or type(error).__name__
    return UserError(f"{origin} is truncated or damaged ({reason}); copy it again")


def _state_dicts(value: Any, key_path: tuple[str, ...] = ()) -> Iterator[StateDict]:
    """Yield dictionaries of tensors in nested dictionaries; an optimiser's have no weights."""
    if not isinstance(value, Mapping) or len(key_path) > MAX_DEPTH:
        return
    texts = {key: item for key, item in value.items() if isinstance(key, str)}
    tensors = {key: item.detach() for key, item in texts.items() if isinstance(item, Tensor)}
    if any(key.rpartition(".")[2] == "weight" for key in tensors):
        yield StateDict(".".join(key_path), tensors, ordered=True)
    for key, item in texts.items():
        yield from _state_dicts(item, (*key_path, key))


def _rank(found: StateDict) -> int:
    """Order the outermost first, then by name."""
    name = found.key_path.rpartition(".")[2]
    with contextlib.suppress(ValueError):
        return USUAL_KEYS.index(name)
    return len(USUAL_KEYS) if name else -1
