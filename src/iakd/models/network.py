"""The one interface of all networks: head ∘ block_L ∘ … ∘ block_1 ∘ stem."""

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config import Normalisation


class Block(nn.Module):
    """A unit that can be swapped; it knows its numbers of input and output channels, and its activation."""

    relu: Callable[..., Tensor] = staticmethod(F.relu)  # or what takes its place: iakd.models.variants

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels

    @property
    def kind(self) -> type[nn.Module]:
        """The type of the unit; networks with blocks of the same type differ in depth and width only."""
        return type(self)

    @property
    def input_norm(self) -> nn.Module | None:
        """The layer that normalises the input before anything else, in pre-activation blocks; else None."""
        return None

    def preactivation(self, features: Tensor) -> Tensor:
        """Return the output before the block's last activation, or the output if there is no activation at the end."""
        return self(features)

    def activate(self, features: Tensor) -> Tensor:
        """Apply the last activation: `activate(preactivation(x))` equals the output, bit for bit."""
        return features


class ReluBlock(Block):
    """A block that ends in a ReLU; subclasses define `preactivation`."""

    def activate(self, features: Tensor) -> Tensor:
        return self.relu(features)

    def forward(self, features: Tensor) -> Tensor:
        return self.relu(self.preactivation(features), inplace=True)  # like `activate`, in place


class Network(nn.Module):
    """An image classifier, (B, C, H, W) float → (B, classes) logits: head ∘ block_L ∘ … ∘ block_1 ∘ stem ∘ input.

    `stages` hold blocks with equal spatial size; the first block of a stage may reduce it. `input` has no parameters:
    it is the identity, or converts images whose normalisation differs from the one that the network was trained with.
    `normalisation` is the latter, if known. `size` is the side in pixels of the images that the architecture was
    designed for. `original_names` maps the names of tensors in the library that the network comes from to their names
    here (empty for this project's own networks). `level_blocks` are the positions of the blocks after which features
    are compared with another network's; by default, those that end a stage. `draw` has functions that draw the weights
    of layers of a type, where `initialise` should not draw them as usual.
    """

    def __init__(self, stem: nn.Module, stages: Iterable[Iterable[Block]], head: nn.Module, size: int = 32) -> None:
        super().__init__()
        self.size = size
        self.original_names: dict[str, str] = {}
        self.draw: dict[type[nn.Module], Callable[[Any, torch.Generator], None]] = {}
        self.input: nn.Module = nn.Identity()
        self.normalisation: Normalisation | None = None
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.head = head
        self.level_blocks = [end - 1 for end in accumulate(len(stage) for stage in self.stages)]  # type: ignore[arg-type]

    @property
    def blocks(self) -> list[Block]:
        """All blocks, from the first to the last."""
        return [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]

    def enter(self, images: Tensor) -> Tensor:
        """Return the input of the first block."""
        return self.stem(self.input(images))

    def forward(self, images: Tensor) -> Tensor:
        features = self.enter(images)
        for stage in self.stages:
            features = stage(features)
        return self.head(features)


class Frozen(nn.Module):
    """A network, or part of one, that is used but never trained.

    Its parameters need no gradient, it stays in evaluation mode whatever the mode of the module around it, and no
    state_dict contains it: its weights come from elsewhere. With `batch_statistics`, BatchNorm normalises by the
    statistics of the batch instead of the running ones, and leaves its buffers alone.
    """

    def __init__(self, module: nn.Module, batch_statistics: bool = False) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.batch_statistics = batch_statistics
        self.train(False)
        self.register_load_state_dict_pre_hook(_keep_own_state)

    def forward(self, features: Tensor) -> Tensor:
        return self.module(features)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode."""
        super().train(False)
        if self.batch_statistics:
            for layer in self.module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.train()
                    layer.track_running_stats = False
        return self

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing."""
        return {} if destination is None else destination


def _keep_own_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Let `load_state_dict` find the tensors that a frozen module has, so that none is reported missing."""
    assert isinstance(module, Frozen)
    state_dict |= {f"{prefix}module.{name}": tensor for name, tensor in module.module.state_dict().items()}


def are_probabilities(outputs: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether outputs (B, classes) of a network are probabilities instead of logits.

    Their sums differ from 1 by less than `tolerance`, which is for float32: the sums of a few logits are near 1, too.
    """
    return bool((outputs >= 0).all() and ((outputs.double().sum(1) - 1).abs() < tolerance).all())


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights of a newly built module again, from `generator`.

    Convolutions as in He et al. 2015 (fan-out per group, ReLU), linear layers uniform in ±1/√fan-in, normalisation
    layers as the identity with reset statistics. Parameters of other layers (class tokens, positions, layer scales)
    keep a constant value that they were built with; otherwise they are normal with σ = 0.02, as is usual in
    transformers. A network's `draw` comes first. Weights are drawn on the CPU, so that they do not depend on the
    device that the module is on.
    """
    own = module.draw if isinstance(module, Network) else {}
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    module.cpu()
    for layer in module.modules():
        draw = next((draw for kind, draw in own.items() if isinstance(layer, kind)), None)
        if draw:
            draw(layer, generator)
        else:
            _draw_layer(layer, generator)
    module.to(device)


def _draw_layer(layer: nn.Module, generator: torch.Generator) -> None:
    match layer:
        case nn.Conv2d():
            _draw_convolution(layer, generator)
        case nn.ConvTranspose2d():  # torch exchanges fan-in and fan-out here
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        case nn.Linear():
            draw_uniformly(layer, generator)
        case nn.BatchNorm2d() | nn.GroupNorm() | nn.LayerNorm():
            layer.reset_parameters()
        case _:
            for parameter in layer.parameters(recurse=False):
                if bool((parameter != parameter.flatten()[0]).any()):
                    nn.init.normal_(parameter, std=0.02, generator=generator)


def draw_uniformly(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Draw weights and biases uniformly in ±1/√fan-in, fan-in per group, as torch does when it builds a layer."""
    bound = layer.weight[0].numel() ** -0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def _draw_convolution(layer: nn.Conv2d, generator: torch.Generator) -> None:
    if layer.groups == 1:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    else:  # torch's own ignores that an input channel feeds one group only
        fan_out = layer.out_channels // layer.groups * layer.weight[0, 0].numel()
        nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
