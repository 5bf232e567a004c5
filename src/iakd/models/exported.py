"""The tensors of a program that `torch.export.save` wrote, read without unpickling anything.

MLflow logs PyTorch models in this form. The archive names each tensor of the state_dict in a JSON file and holds its
bytes beside it (format of torch 2.7 and later).
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


def is_exported(path: Path) -> bool:
    """Whether the file is such an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _index(archive) is not None
    except zipfile.BadZipFile:
        return False


def read_exported(path: Path) -> dict[str, Tensor]:
    """The state_dict, in its order. Raises KeyError, ValueError, RuntimeError or BadZipFile where it is damaged."""
    with zipfile.ZipFile(path) as archive:
        index = _index(archive)
        assert index is not None
        folder = index.removesuffix(index.rpartition("/")[2])
        entries = json.loads(archive.read(index))["config"]
        return {name: _tensor(archive.read(folder + entry["path_name"]), entry) for name, entry in entries.items()}


def _index(archive: zipfile.ZipFile) -> str | None:
    return next((name for name in archive.namelist() if name.endswith("/" + INDEX)), None)


def _tensor(content: bytes, entry: dict[str, Any]) -> Tensor:
    if entry["use_pickle"]:
        raise ValueError("a tensor is pickled")
    about = entry["tensor_meta"]
    sizes, strides = ([int(number["as_int"]) for number in about[name]] for name in ("sizes", "strides"))
    flat = torch.frombuffer(bytearray(content), dtype=DTYPES[about["dtype"]])
    return flat.as_strided(sizes, strides, int(about["storage_offset"]["as_int"]))
