"""A finished model away from its experiment: from images, or files of images, to classes and probabilities."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from iakd.config import Device, did_you_mean, network_called
from iakd.config.networks import USUAL
from iakd.data.decoding import BadImage, EncodedImage, decode, decode_each, decode_opened, from_file
from iakd.data.geometry import centre_crop
from iakd.devices import choose_device
from iakd.errors import UserError, reason_of
from iakd.experiment.run_dir import LABELS, MODEL, ONNX, PREPROCESSING, RUN
from iakd.export.folder import read_labels, read_network, read_preprocessing
from iakd.files import printable
from iakd.models import Network
from iakd.models.external.black_box import BlackBox
from iakd.models.external_weights import load_external
from iakd.models.normalisation import Renormalise, adapt_input
from iakd.models.shapes import image_channels

if TYPE_CHECKING:
    from iakd.models.external.onnx_model import OnnxModel

BATCH = 64  # images

AnyImage = str | Path | Image.Image | NDArray[np.uint8] | Tensor
"""A file, an image that Pillow has opened, uint8 (H, W) or (H, W, C), or a uint8 tensor (C, H, W)."""


@dataclass(frozen=True)
class Prediction:
    """The most probable class of an image, its probability (0–1), and the most probable classes with theirs."""

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]


class Preprocess(v2.Transform):
    """What a model does to an image before it computes: a transform of torchvision (v2).

    A file, an image of Pillow, or a uint8 tensor (C, H, W) → float32 (channels, height, width), from 0 to 1. EXIF
    orientation, grey levels of 16 bits, transparency and colour spaces are treated as in the training; the largest
    centre crop, times `crop_pct`, is scaled to `size` with antialiasing. Labels and whatever else is beside an image
    stay as they are. A file gives exactly what the training computed with; of an image of Pillow all pixels are used,
    while a much larger JPEG file is decoded at less than its size. Raises BadImage for what cannot be used.
    """

    def __init__(self, size: tuple[int, int], channels: int, crop_pct: float = 1.0) -> None:
        super().__init__()
        self.size, self.channels, self.crop_pct = size, channels, crop_pct

    def forward(self, *inputs: Any) -> Any:
        """Return the model's input for a file, or what was given with the images in it transformed."""
        if len(inputs) == 1 and isinstance(inputs[0], str | Path):
            return self.transform(inputs[0], {})
        return super().forward(*inputs)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Tensor:
        """Return the model's input, float32 (channels, height, width)."""
        return torch.from_numpy(self.decode(inpt)).float() / 255

    def decode(self, image: AnyImage) -> NDArray[np.uint8]:
        """Return an image as uint8 (channels, height, width)."""
        crop = centre_crop(self.size, self.crop_pct)
        if isinstance(image, str | Path):
            return np.array(decode(from_file(Path(image)), self.channels, self.size, crop)[0])
        if not isinstance(image, Image.Image | np.ndarray | Tensor):
            raise BadImage(f"is {type(image).__name__}, not a file, an image of Pillow, an array or a tensor")
        pixels: Any = image.numpy(force=True) if isinstance(image, Tensor) else image
        if isinstance(image, Tensor) and image.dim() == 3:
            pixels = pixels.transpose(1, 2, 0)
        if isinstance(pixels, np.ndarray):
            if pixels.ndim not in (2, 3):
                raise BadImage(f"has the shape {pixels.shape}; give single images, a batch as a list of them")
            if pixels.dtype != np.uint8:
                raise BadImage(f"has pixels of type {pixels.dtype}; give uint8, from 0 to 255")
            if pixels.ndim == 3 and not 1 <= pixels.shape[2] <= 4:
                raise BadImage(f"has {pixels.shape[2]} channels; give 1 to 4")
            pixels = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
        stored = pixels.format, getattr(pixels, "tile", [])  # which a copy forgets
        if hasattr(pixels, "tag_v2"):  # a copy of a TIFF forgets how many bits a pixel has, and whether 0 is white
            return np.array(decode_opened(pixels, self.channels, self.size, crop)[0])
        try:
            opened = (
                pixels.copy()
            )  # or a JPEG file that is still to be read would be reduced in the caller's image, too
        except ValueError as error:  # it has been closed
            raise BadImage(f"cannot be read ({error})") from None
        if stored[0] == "PNG" and stored[1]:
            opened.format, opened.tile = stored  # tell how the transparent colour is stored
        return np.array(decode_opened(opened, self.channels, self.size, crop)[0])


class Classifier:
    """A model with all it needs to classify images: `iakd.load` returns one.

    `module` takes images float32 (B, C, H, W) from 0 to 1 and returns logits (B, classes), one for each of `labels`; it
    normalises them itself. `transform` turns an image into such an input; both are plain PyTorch, for a training or
    service of your own. A network from elsewhere becomes a classifier by `Classifier(module, labels, size)`.

    Raises UserError where the module does not take images of that kind, or has another number of classes.
    """

    def __init__(
        self,
        module: nn.Module,
        labels: Sequence[str],
        size: int | tuple[int, int],
        *,
        channels: int = 3,
        crop_pct: float = 1.0,
        device: Device = "auto",
        name: str = "the model",
    ) -> None:
        if not isinstance(module, nn.Module):
            raise UserError(f"{name} is a {type(module).__name__}; give a torch.nn.Module")
        if channels not in (1, 3):
            raise UserError(f"channels {channels}: images have 1 or 3")
        if not 0 < crop_pct <= 1:
            raise UserError(f"crop_pct {crop_pct}: give a part of the image, above 0 and at most 1")
        self.labels = list(labels)
        self.size = (size, size) if isinstance(size, int) else size
        self.channels = channels
        self.device = choose_device(device)
        self.module = module.eval().to(self.device)
        self.transform = Preprocess(self.size, channels, crop_pct)
        self.name = name
        self._check()

    def predict(self, images: AnyImage | Iterable[AnyImage], top: int = 1, batch_size: int = BATCH) -> list[Prediction]:
        """Classify images, `batch_size` at a time, and return a `Prediction` with the `top` classes for each, in order.

        A file is decoded exactly as in the training. Raises UserError, naming the first image that cannot be read.
        """
        if not isinstance(top, int | np.integer) or top < 1:
            raise UserError(f"top {top}: give a number of classes, at least 1")
        found = []
        for name, result in self.each(images, batch_size):
            if isinstance(result, BadImage):
                raise UserError(f"{printable(name)} {result}")
            found.append(self.prediction(result, top))
        return found

    def logits(self, images: AnyImage | Iterable[AnyImage], batch_size: int = BATCH) -> Tensor:
        """Return the logits float32 (N, classes) of images, on the CPU. Raises UserError as `predict` does."""
        rows = [torch.empty(0, len(self.labels))]
        for name, result in self.each(images, batch_size):
            if isinstance(result, BadImage):
                raise UserError(f"{printable(name)} {result}")
            rows.append(result[None])
        return torch.cat(rows)

    def each(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int = BATCH
    ) -> Iterator[tuple[str, Tensor | BadImage]]:
        """Yield the name of each image, and its logits (classes,) or what is wrong with it, as batches are computed."""
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise UserError(f"batch_size {batch_size}: give a number of images, at least 1")
        decoded = self._decoded(_as_many(images), batch_size)
        while batch := list(islice(decoded, batch_size)):
            usable = [result for _, result in batch if not isinstance(result, BadImage)]
            rows = iter(self._forward(np.stack(usable)) if usable else ())
            for name, result in batch:
                yield name, result if isinstance(result, BadImage) else next(rows)

    def prediction(self, logits: Tensor, top: int = 1) -> Prediction:
        """Return what logits (classes,) say, with the `top` most probable classes; ties go to the first class."""
        probabilities = logits.double().softmax(0)
        order = logits.sort(descending=True, stable=True).indices[:top].tolist()
        best = tuple((self.labels[i], probabilities[i].item()) for i in order)
        return Prediction(*best[0], best)

    def _decoded(
        self, images: Iterable[AnyImage], batch_size: int
    ) -> Iterator[tuple[str, NDArray[np.uint8] | BadImage]]:
        number = 0
        for in_file, group in groupby(images, lambda image: isinstance(image, str | Path)):
            if in_file:
                for name, result in decode_each(
                    _counted(group), self.channels, self.size, self.transform.crop_pct, batch_size
                ):
                    number += 1
                    yield name, result if isinstance(result, BadImage) else result[0]
                continue
            for image in group:
                number += 1
                try:
                    yield f"image {number}", self.transform.decode(image)
                except BadImage as error:
                    yield f"image {number}", error

    @torch.inference_mode()
    def _forward(self, images: NDArray[np.uint8]) -> Tensor:
        """Logits float32 (B, classes), on the CPU, of uint8 (B, C, H, W)."""
        return self.module(torch.from_numpy(images).to(self.device).float() / 255).float().cpu()

    def _check(self) -> None:
        shape = (self.channels, *self.size)
        known = isinstance(self.module, Network) and not isinstance(self.module, BlackBox)
        if isinstance(self.module, Network) and known and image_channels(self.module) != self.channels:
            raise UserError(
                f"{self.name} takes images of {image_channels(self.module)} channels, not of {self.channels}: set "
                "`channels`"
            )
        try:
            logits = self._forward(np.zeros((2, *shape), np.uint8))
        except UserError:
            raise
        except Exception as error:  # torch and ONNX Runtime raise almost anything for shapes that do not fit
            reason = reason_of(error)
            raise UserError(f"{self.name} cannot compute images of {'×'.join(map(str, shape))} ({reason})") from None
        if logits.shape != (2, len(self.labels)):
            wanted = f"{len(self.labels)} classes are named"
            raise UserError(f"{self.name} returns {tuple(logits.shape[1:])} numbers for each image, and {wanted}")


def _as_many(images: Any) -> Iterable[AnyImage]:
    one = isinstance(images, str | Path | Image.Image | np.ndarray | Tensor) or not isinstance(images, Iterable)
    return [images] if one else images


def _counted(paths: Iterable[Any]) -> Iterator[EncodedImage]:
    return (from_file(Path(path)) for path in paths)


def load(path: str | Path, device: Device = "auto") -> Classifier:
    """Return the classifier in the folder `path` that `iakd export` wrote, or in one file of it.

    Folders and `model.safetensors` are computed by torch, files of ONNX by ONNX Runtime on the CPU. No code in the
    files is run. Raises UserError if a file is missing, damaged or does not fit the others.
    """
    if not isinstance(path, str | Path):
        raise UserError(f"path is a {type(path).__name__}; give the folder of an exported model")
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not is_exported(path):
        raise UserError(f"{path} is not an exported model{export_hint(path)}")
    folder = path if path.is_dir() else path.parent
    file = folder / MODEL if path.is_dir() else path
    about = read_preprocessing(folder / PREPROCESSING)
    labels = read_labels(folder / LABELS)
    if about.classes != len(labels):
        raise UserError(f"{folder / LABELS} names {len(labels)} classes, and {PREPROCESSING} has {about.classes}")
    module: nn.Module
    match file.suffix:
        case ".safetensors":
            module = _for_unit_range(read_network(file))
        case ".onnx":
            module = _onnx(file)
        case ".pt2" | ".pt" | ".pth" | ".ckpt" | ".bin":
            raise UserError(f"{file} can hold code, which is not run; load the folder, {MODEL} or {ONNX}")
        case _:
            raise UserError(f"{file} is not a model; load the folder, {MODEL} or {ONNX}")
    return Classifier(
        module, labels, about.size, channels=about.channels, crop_pct=about.crop, device=device, name=str(path)
    )


def _onnx(path: Path) -> "OnnxModel":
    from iakd.models.external.onnx_model import OnnxModel  # slow to import, and most models are computed by torch

    return OnnxModel(path, str(path))


def _for_unit_range(network: Network) -> Network:
    """Let a network, which knows how the images of its training were normalised, take images from 0 to 1."""
    channels = image_channels(network)
    adapt_input(network, network.normalisation, [0.0] * channels, [1.0] * channels)
    return network


def load_foreign(
    path: Path,
    labels: Sequence[str],
    *,
    normalisation: str,
    size: int | tuple[int, int] | None = None,
    arch: str | None = None,
    channels: int | None = None,
    crop_pct: float = 1.0,
    device: Device = "auto",
) -> Classifier:
    """Return a model that this project did not export: an ONNX file, or a checkpoint of the network `arch`.

    `normalisation` is that of its input, one of the names in `iakd.config.networks.USUAL`. `size` and `channels` may be
    left out where an ONNX file says them. Raises UserError where something is missing or does not fit.
    """
    if normalisation not in USUAL:
        near = did_you_mean(normalisation, USUAL)
        raise UserError(f"--normalisation {normalisation}: unknown{near}; known: {', '.join(USUAL)}")
    if path.suffix == ".onnx":
        model = _onnx(path)
        fixed = [side if isinstance(side, int) else None for side in model.image_shape]
        if len(fixed) != 4:
            raise UserError(f"{path} takes {len(fixed)} dimensions instead of images (B, C, H, W)")
        if fixed[3] in (1, 3) and fixed[1] not in (1, 3, None):
            raise UserError(f"{path} takes images (B, H, W, C); only models that take (B, C, H, W) are supported")
        channels = channels or fixed[1]
        size = size or ((fixed[2], fixed[3]) if fixed[2] and fixed[3] else None)
    channels = 3 if channels is None else channels
    if channels not in (1, 3):
        raise UserError(f"{path}: images have 3 channels, or 1 where they are grey, not {channels}")
    if size is None:
        raise UserError(f"{path}: say with --size how large its images are, in pixels")
    wanted = USUAL[normalisation]
    if len(wanted.mean) not in (1, channels):
        raise UserError(f"--normalisation {normalisation} is for {len(wanted.mean)} channels, not for {channels}")
    module: nn.Module
    if path.suffix == ".onnx":
        module = nn.Sequential(Renormalise(USUAL["none"], wanted, channels), model)
    elif arch is None:
        raise UserError(f"{path}: say with --arch which network it is, for instance --arch torchvision/resnet50")
    else:
        network = load_external(network_called(arch, "teacher", None), channels, len(labels), path, str(path))
        network.normalisation = wanted
        module = _for_unit_range(network)
    return Classifier(module, labels, size, channels=channels, crop_pct=crop_pct, device=device, name=str(path))


def export_hint(path: Path) -> str:
    """Return what to do with a path that is not an exported model: name one below, or export the training in it."""
    folder = path if path.is_dir() else path.parent
    below = sorted(found.parent for pattern in ("*", "*/*") for found in folder.glob(f"{pattern}/{PREPROCESSING}"))
    if below:
        more = f" or one of {len(below) - 1} others below" if len(below) > 1 else ""
        return f"; give {below[0]}{more}"
    if (folder / RUN).is_file() and folder.resolve().parts[-4:-3] == ("students",):
        model = "/".join(folder.resolve().parts[-3:])
        return f", but a training's folder; export it by `iakd export --set 'export.models=[{model}]'`"
    return f": it has no {PREPROCESSING}; `iakd export` makes one"


def is_exported(path: Path) -> bool:
    """Return whether `path` is a folder that `iakd export` wrote, or a file in one."""
    return ((path if path.is_dir() else path.parent) / PREPROCESSING).is_file()
