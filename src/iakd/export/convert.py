"""A trained network as an ONNX graph and as a program of torch.export, and whether these compute the same as it does.

Graphs are made by torch's TorchScript-based exporter: it needs no package besides onnx, takes a tenth of the time of
the one based on torch.export, and translates all networks of the zoo, those with few bits included.
"""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from iakd.data.file_loader import make_loader
from iakd.data.loader import Normaliser
from iakd.data.splits import Indices
from iakd.data.store import PreparedData
from iakd.errors import RunFailed
from iakd.export.folder import FORMAT, INPUT, INPUT_IS, OUTPUT
from iakd.models import Network
from iakd.models.external.onnx_model import open_onnx
from iakd.models.quantisation import Quantiser, bits_in_use, keep_bits, quantised_layers

OPSET = 17  # the first with LayerNormalization; ONNX Runtime has it since 1.12
TOLERANCE = 1e-4  # of logits, relative to the largest if that is above 1
CHECKED = 1000  # validation images, evenly spaced
BATCH = 50
NOISES, SAME_WITH_FEW_BITS = 4, 0.99  # of few bits: typical differences allowed, images with the same class
TIE = 1e-5  # logits as near as this count as equal, relative as above: rounding decides which is the larger

Logits = NDArray[np.float32]
Images = NDArray[np.float32]


class Deployed(nn.Module):
    """Images float32 0–1 (B, C, H, W) → logits float32 (B, K).

    They are normalised by the very operations of the pipeline, from the very values 0–255.
    """

    def __init__(self, network: Network, store: PreparedData) -> None:
        super().__init__()
        self.network = network
        self.normalise = Normaliser(store.mean, store.std, torch.device("cpu"))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images * 255.0))


def to_onnx(model: Deployed, image: tuple[int, int, int], about: dict[str, Any]) -> bytes:
    """Return the content of an ONNX file with a dynamic batch size. Equal models give equal bytes.

    `image` is (C, H, W). `about` becomes the file's metadata, as JSON texts.
    """
    model = copy.deepcopy(model).eval()
    switch = bits_in_use(model.network)
    if switch:
        keep_bits(model.network, switch)
    _use_operators_of_onnx(model.network)
    file = io.BytesIO()
    batch = {0: "batch"}
    with _exporting("ONNX"):
        torch.onnx.export(
            model,
            (torch.zeros(2, *image),),
            file,  # type: ignore[arg-type]  # torch's annotation leaves files out
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: batch, OUTPUT: batch},
        )
    graph = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(
        graph, {name: text if isinstance(text, str) else json.dumps(text) for name, text in _about(about).items()}
    )
    onnx.checker.check_model(graph)
    return bytes(graph.SerializeToString(deterministic=True))


def _about(about: dict[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "input": INPUT_IS, **about}


def to_pt2(model: Deployed, image: tuple[int, int, int]) -> bytes:
    """Return the content of a file of torch.export, for torch.export.load, with a dynamic batch size."""
    file = io.BytesIO()
    with _exporting("a program of torch.export"):
        program = torch.export.export(
            copy.deepcopy(model).eval(),
            (torch.zeros(2, *image),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        for node in program.graph.nodes:
            for origin in ("stack_trace", "nn_module_stack", "source_fn_stack"):  # paths of this machine among them
                node.meta.pop(origin, None)
        torch.export.save(program, file)
    return file.getvalue()


@contextlib.contextmanager
def _exporting(what: str) -> Iterator[None]:
    """Let an exporter run without gradients, warnings and log lines about itself, and report its failure in one line.

    torch's fused kernel for attention, which no exporter knows, is switched off for as long.
    """
    disabled, fused = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.WARNING)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunFailed(
            f"torch cannot turn this network into {what} ({reason[:200]}); leave its pair out of export.models"
        ) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        logging.disable(disabled)


# Few bits: integers in the file, and QuantizeLinear and DequantizeLinear instead of the simulation.


class _RoundInput(torch.autograd.Function):
    """A layer's input, rounded as `Quantiser.input` does it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: Tensor, zero: Tensor, ends: Tensor) -> Tensor:
        levels = (features / scale + zero).clamp(0, 255).round()
        return ((levels - zero) * scale).clamp(*ends.unbind())

    @staticmethod
    def symbolic(g: Any, features: Any, scale: Any, zero: Any, ends: Any) -> Any:
        low, high = (g.op("Gather", ends, g.op("Constant", value_t=torch.tensor(i))) for i in (0, 1))
        levels = g.op("QuantizeLinear", g.op("Clip", features, low, high), scale, zero)
        return g.op("DequantizeLinear", levels, scale, zero).setType(features.type())


class _FromIntegers(torch.autograd.Function):
    """Weights (out, …), from int8 and a scale per output channel."""

    @staticmethod
    def forward(ctx: Any, levels: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return levels.float() * scale.view(-1, *[1] * (levels.dim() - 1))

    @staticmethod
    def symbolic(g: Any, levels: Any, scale: Any, zero: Any) -> Any:
        weight = g.op("DequantizeLinear", levels, scale, zero, axis_i=0)
        return weight.setType(levels.type().with_dtype(torch.float32))


class _WithIntegers(nn.Module):
    """A convolution or linear layer of few bits in evaluation mode, as operators of ONNX."""

    scale: Tensor
    zero: Tensor
    ends: Tensor
    levels: Tensor
    weight_scale: Tensor
    weight_zero: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        quantiser: Quantiser = layer.quantiser
        self.layer = layer
        low, high = quantiser.range.unbind()
        max_level = 2**quantiser.bits - 1
        scale = ((high - low) / max_level).clamp(min=1e-8)
        zero = (-low / scale).round()
        ends = torch.stack([-zero, max_level - zero]) * scale
        weight = layer.weight.detach()
        rows = weight.flatten(1).abs().amax(1).clamp(min=1e-8) / (2 ** (quantiser.bits - 1) - 1)
        rounded = quantiser.weight(weight) / rows.view(-1, *[1] * (weight.dim() - 1))
        for name, tensor in (  # as buffers they are stored once, like weights
            ("scale", scale),
            ("zero", zero.to(torch.uint8)),
            ("ends", ends),
            ("levels", rounded.round().to(torch.int8)),
            ("weight_scale", rows),
            ("weight_zero", torch.zeros(len(rows), dtype=torch.int8)),
        ):
            self.register_buffer(name, tensor)

    def forward(self, features: Tensor) -> Tensor:
        features = _RoundInput.apply(features, self.scale, self.zero, self.ends)
        weight = _FromIntegers.apply(self.levels, self.weight_scale, self.weight_zero)
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(features, weight, self.layer.bias)
        return F.linear(features, weight, self.layer.bias)


def _use_operators_of_onnx(network: Network) -> None:
    """Replace the layers of few bits, in place."""
    layers = set(quantised_layers(network))
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in layers:
                setattr(parent, name, _WithIntegers(child))


# Agreement


@dataclass(frozen=True)
class Agreement:
    """How far an exported model is from the network on `n` validation images.

    The difference of an image is the largest one of two logits, relative to the largest logit of all if that is above
    1: `difference` that of the worst image, `typical` the median. `top1` is the number of images for which both name
    the same class, those included for which only rounding decides.
    """

    n: int
    difference: float
    typical: float
    top1: int

    @classmethod
    def of(cls, network: Logits, exported: Logits) -> "Agreement":
        """Compare logits (N, K)."""
        scale = max(1.0, float(np.abs(network).max()))
        rows = np.arange(len(network))
        tied = network[rows, network.argmax(1)] - network[rows, exported.argmax(1)] <= TIE * scale
        differences = np.abs(network.astype(np.float64) - exported).max(1) / scale
        return cls(len(network), float(differences.max()), float(np.median(differences)), int(tied.sum()))

    def check(self, name: str, noise: float | None = None) -> None:
        """Raise RunFailed if the exported model called `name` differs from the network.

        `noise`: see `rounding_noise`. With it, most images have to agree, since rounding moves some of them.
        """
        if noise is None:
            allowed, found, share = TOLERANCE, self.difference, 1.0
        else:
            allowed, found, share = max(TOLERANCE, NOISES * noise), self.typical, SAME_WITH_FEW_BITS
        if not found <= allowed or self.top1 < share * self.n:
            raise RunFailed(
                f"{name} differs from the model it was made from: its logits by {found:.1e} ({allowed:.0e} is "
                f"allowed), and it names the same class for {self.top1} of {self.n} validation images; nothing is "
                "exported"
            )


@torch.no_grad()
def rounding_noise(model: Deployed, logits: Logits, images: Iterator[Images]) -> float | None:
    """Return how far a network of few bits is from itself in float64, as `Agreement.typical`; None for full precision.

    Where a value lies between two levels, its last bit decides which of them it becomes, and the next layers see a
    difference of a whole level. So two ways to compute the same sums differ by far more than their rounding errors.
    """
    if not quantised_layers(model.network):
        return None
    double = copy.deepcopy(model.network).double()
    exact = [double(model.normalise(torch.from_numpy(batch) * 255.0).double()).float().numpy() for batch in images]
    return Agreement.of(logits, np.concatenate(exact)).typical


def checked_positions(store: PreparedData) -> Indices:
    """Return the positions of the validation images on which models are compared."""
    n = len(store.labels("val"))
    return np.unique(np.linspace(0, n - 1, min(CHECKED, n)).astype(np.int64))


def images_of(store: PreparedData, split: str, chosen: Indices | None = None) -> Iterator[Images]:
    """Yield the images of a split as exported models take them, float32 0–1 (B, C, H, W)."""
    channels = store.image_shape[0]
    raw = replace(store, manifest={**store.manifest, "mean": [0.0] * channels, "std": [1 / 255] * channels})
    loader = make_loader(raw, split, "cpu", chosen, workers=0)  # `std` 1/255: the values from 0 to 255 as they are
    for batch in loader.plain(BATCH):
        yield np.divide(batch.images.numpy(), 255, dtype=np.float32)


def onnx_logits(model: bytes | str, images: Iterator[Images], threads: int) -> Logits:
    """Return the logits (N, K) of an ONNX model."""
    session = open_onnx(model, threads)
    return np.concatenate([session.run([OUTPUT], {INPUT: batch})[0] for batch in images])


@torch.no_grad()
def torch_logits(model: Callable[[Tensor], Tensor], images: Iterator[Images]) -> Logits:
    """Return the logits (N, K) of a module."""
    return np.concatenate([model(torch.from_numpy(batch)).numpy() for batch in images])


def pt2_logits(content: bytes, images: Iterator[Images]) -> Logits:
    """Return the logits (N, K) of a program of torch.export."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_logits(torch.export.load(io.BytesIO(content)).module(), images)
