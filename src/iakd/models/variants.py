"""Forms of a network that its weights do not show: the same tensors, computed in another way.

Public code differs in where a block has its stride, where its last ReLU is, how it pools. A checkpoint of one form
loads into another without a word, and is then right for few images. The setting `variant` names the form; the import
of a teacher tries the others (`twins`).
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from iakd import config
from iakd.config.networks import VARIANTS, excludes
from iakd.errors import UserError
from iakd.models.cifar.resnet import PaddedIdentity, ResidualBlock
from iakd.models.cifar.vgg import ConvolutionBlock, LastPooling
from iakd.models.cifar.wrn import PreActivationBlock
from iakd.models.external.partition import ExternalBlock
from iakd.models.network import Block, Network


def _gelu(features: Tensor, inplace: bool = False) -> Tensor:
    return F.gelu(features)


ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[[], nn.Module]]] = {  # instead of ReLU
    "leaky_relu": (F.leaky_relu, nn.LeakyReLU),
    "leaky_relu_0.1": (partial(F.leaky_relu, negative_slope=0.1), partial(nn.LeakyReLU, 0.1)),
    "relu6": (F.relu6, nn.ReLU6),
    "elu": (F.elu, nn.ELU),
    "silu": (F.silu, nn.SiLU),
    "gelu": (_gelu, nn.GELU),
}


def apply_variants(network: Network, settings: config.Network) -> None:
    """Give a newly built network the form that `settings.variant` names; its tensors and their names stay.

    Raises UserError where the architecture has nothing that would change.
    """
    for name in settings.variant:
        if name == "pool_every_group":  # VGG is built so: its stages are others
            continue
        if not _change(network, name):
            raise UserError(f"network {settings.name}: variant {name} changes nothing in {settings.arch}; leave it out")


def _change(network: Network, name: str) -> bool:
    """Change the form in one respect, and return whether there was anything to change."""
    each: dict[str, Callable[[nn.Module], bool]] = {
        "other_stride": _move_stride,
        "average_pooling": _pool_on_average,
        "averaged_shortcut": _average_shortcut,
    }
    match name:
        case "relu_before_addition" | "no_last_relu":
            blocks = [block for block in network.blocks if isinstance(block, ResidualBlock)]
            for block in blocks:
                block.last_relu = "before" if name == "relu_before_addition" else "none"
            return bool(blocks)
        case "raw_shortcut":
            wide = [block for block in network.blocks if isinstance(block, PreActivationBlock)]
            for wide_block in wide:
                wide_block.raw_shortcut = True
            return bool(wide)
    change = each.get(name) or partial(_activate_by, name)
    changed = [change(module) for module in list(network.modules())]
    return any(changed)


def _move_stride(module: nn.Module) -> bool:
    """Exchange the strides of a block's first two convolutions."""
    first, second = getattr(module, "conv1", None), getattr(module, "conv2", None)
    if not (isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)) or first.stride == second.stride:
        return False
    first.stride, second.stride = second.stride, first.stride
    return True


def _pool_on_average(module: nn.Module) -> bool:
    if isinstance(module, ConvolutionBlock | LastPooling):
        module.pooling = F.avg_pool2d
        return module.pool
    changed = False
    for name, child in module.named_children():
        if isinstance(child, nn.MaxPool2d):
            pooling = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
            setattr(module, name, pooling)
            changed = True
    return changed


class AveragedShortcut(nn.Sequential):
    """A shortcut of a 1×1 convolution and its normalisation, after averages over `stride`×`stride` pixels."""

    def __init__(self, stride: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(features, self.stride, ceil_mode=True, count_include_pad=False))


def _average_shortcut(module: nn.Module) -> bool:
    """Let a shortcut that reduces maps average pixels instead of leaving some out."""
    if isinstance(module, PaddedIdentity):
        module.averaged = module.stride > 1
        return module.averaged
    for name in ("shortcut", "downsample"):
        shortcut = getattr(module, name, None)
        layers = list(shortcut) if isinstance(shortcut, nn.Sequential) else []
        if layers and isinstance(layers[0], nn.Conv2d) and layers[0].stride[0] > 1:
            setattr(module, name, AveragedShortcut(layers[0].stride[0], *layers))
            layers[0].stride = (1, 1)
            return True
    return False


def _activate_by(name: str, module: nn.Module) -> bool:
    function, layer = ACTIVATIONS[name]
    changed = False
    if isinstance(module, Block) and not isinstance(module, ExternalBlock):
        module.relu = function
        changed = True
    for child_name, child in module.named_children():
        if type(child) is nn.ReLU:
            setattr(module, child_name, layer())
            changed = True
    return changed


def twins(settings: config.Network) -> Iterator[config.Network]:
    """Yield the settings that differ in one respect that weights do not show."""
    if settings.shortcut.startswith("A"):
        yield settings.model_copy(update={"shortcut": "A" if settings.shortcut == "A_end" else "A_end"})
    for name in VARIANTS:
        chosen = {each for each in settings.variant if each != name and not excludes(each, name)}
        changed = chosen if name in settings.variant else {*chosen, name}
        yield settings.model_copy(update={"variant": [each for each in VARIANTS if each in changed]})


def describe(form: config.Network, instead_of: config.Network) -> str:
    """Return what has to be set for this form instead of another one."""
    changes = []
    if form.shortcut != instead_of.shortcut:
        changes.append(f"shortcut: {form.shortcut}")
    if form.variant != instead_of.variant:
        changes.append(f"variant: [{', '.join(form.variant)}]")
    return " and ".join(changes)
