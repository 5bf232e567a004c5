"""The files of an exported model that say what it is: weights with their architecture, labels, preprocessing.

Whoever loads an export reads it with this module.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from iakd import config, models
from iakd.config import Method, Normalisation, explain
from iakd.config.base import Strict
from iakd.data.decoding import EncodedImage, decode
from iakd.data.geometry import centre_crop
from iakd.data.store import PreparedData
from iakd.distillation.registry import build_deployed, changes_student
from iakd.errors import UserError, reason_of
from iakd.models import Network

FORMAT = "iakd-export-1"
INPUT, OUTPUT = "images", "logits"
INPUT_IS = "float32 0–1, NCHW, RGB or grey; normalisation is inside model.onnx and model.pt2"
HEADER = 8  # bytes that hold the length of a safetensors file's header, which is filled up to a multiple of as many


class Preprocessing(Strict):
    """preprocessing.json: how an image file becomes the input of model.onnx and model.pt2.

    `size` is [height, width]. The largest centred box of the image with the aspect ratio of `size`, times `crop` in
    each direction, is scaled to `size` in one step: that is what `resize` names. `mean` and `std` are those inside the
    models, in 0–1 units; `classes` is their number.
    """

    size: tuple[int, int]
    resize: Literal["centre_box"] = "centre_box"
    crop: float = Field(gt=0, le=1)
    channels: int = Field(gt=0)
    mode: Literal["RGB", "L"]
    interpolation: Literal["bilinear"] = "bilinear"
    mean: list[float]
    std: list[float]
    input: str = INPUT_IS
    classes: int = Field(gt=1)
    input_name: str = INPUT
    output_name: str = OUTPUT

    @classmethod
    def of(cls, store: PreparedData, normalisation: Normalisation) -> "Preprocessing":
        """Return the preprocessing of a data set's images for a network with this normalisation."""
        channels, height, width = store.image_shape
        mean, std = normalisation.of_channels(channels)
        return cls(
            size=(height, width),
            crop=float(store.manifest["settings"].get("crop_pct") or 1.0),
            channels=channels,
            mode="RGB" if channels == 3 else "L",
            mean=mean,
            std=std,
            classes=len(store.classes),
        )

    def decode(self, encoded: EncodedImage) -> NDArray[np.uint8]:
        """Return an image file as uint8 (C, H, W), as the pipeline decodes it. Raises BadImage."""
        return decode(encoded, self.channels, self.size, centre_crop(self.size, self.crop))[0]


def read_preprocessing(path: Path) -> Preprocessing:
    """Read a preprocessing.json. Raises UserError if it is missing, damaged or of another format."""
    try:
        return Preprocessing.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is {path.parent} an exported model?") from None
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Preprocessing)}; export the model again") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; export the model again") from None


def labels_text(classes: list[str]) -> str:
    """Return the names of the classes, one per line; line breaks and backslashes within a name are escaped."""
    return "".join(_one_line(name) + "\n" for name in classes)


def read_labels(path: Path) -> list[str]:
    """Read a labels.txt. Raises UserError if it is missing."""
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is {path.parent} an exported model?") from None


def _one_line(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") if set(name) & set("\n\r") else name


@dataclass(frozen=True)
class Model:
    """What a network is built from: its settings, images of shape `image` (C, H, W), the number of classes.

    `method` and `teacher` are those of a student, whose layers a method can have changed.
    """

    network: config.Network
    image: tuple[int, int, int]
    classes: int
    method: Method | None = None
    teacher: config.Network | None = None

    @classmethod
    def of_metadata(cls, metadata: dict[str, str]) -> "Model":
        """Read what `weights_file` wrote. Raises KeyError or ValueError."""
        height, width = json.loads(metadata["image_size"])
        changed_by = json.loads(metadata.get("changed_by", "{}"))
        return cls(
            config.Network.model_validate_json(metadata["architecture"]),
            (int(metadata["channels"]), int(height), int(width)),
            int(metadata["classes"]),
            Method.model_validate(changed_by["method"]) if changed_by else None,
            config.Network.model_validate(changed_by["teacher"]) if changed_by else None,
        )

    def build(self) -> Network:
        """Build the network, without its weights."""
        return build_deployed(self.network, self.teacher, self.method, self.image, self.classes)


def weights_file(network: Network, model: Model) -> bytes:
    """Return a safetensors file with a network's tensors and, in its metadata, what `read_network` builds it from.

    The network's `normalisation` must be known. The same network gives the same bytes.
    """
    assert network.normalisation
    channels, *size = model.image
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(_settings(model.network)),
        "channels": str(channels),
        "classes": str(model.classes),
        "image_size": json.dumps(size),
        "normalisation": json.dumps(network.normalisation.model_dump()),
    }
    if model.method and changes_student(model.method):
        changed_by = {"teacher": _settings(model.teacher), "method": model.method.settings()}
        metadata["changed_by"] = json.dumps(changed_by)
    return _with_metadata(models.save_weights(network), metadata)


def _settings(network: config.Network | None) -> dict[str, Any]:
    """Return what builds a network; of a teacher without its checkpoint, since its weights are in the file."""
    assert network
    settings = config.Network.model_validate({name: getattr(network, name) for name in config.Network.model_fields})
    return settings.model_dump(mode="json")


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """Return a safetensors file with this metadata, in this order: the library's own order differs every time."""
    end = HEADER + int.from_bytes(content[:HEADER], "little")
    header = json.loads(content[HEADER:end])
    text = json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER)
    return len(text).to_bytes(HEADER, "little") + text + content[end:]


def read_network(path: Path) -> Network:
    """Return the network of an exported model.safetensors, in evaluation mode.

    It takes images float32 (B, C, H, W) that are normalised by its `normalisation`. Raises UserError if the file is
    missing, damaged, or not an exported model.
    """
    hint = "give the model.safetensors of an exported model"
    try:
        content = path.read_bytes()
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} does not say how its network is built (format {FORMAT}); {hint}")
        model = Model.of_metadata(metadata)
        normalisation = Normalisation.model_validate_json(metadata["normalisation"])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {hint}") from None
    except (SafetensorError, KeyError, ValueError) as error:
        reason = reason_of(error)
        raise UserError(f"{path} is damaged ({type(error).__name__}: {reason}); {hint}") from None
    network = model.build()
    models.load_weights(network, content, str(path))
    network.normalisation = normalisation
    return network.eval()
