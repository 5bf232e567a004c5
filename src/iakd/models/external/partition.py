"""Divide a model of another library into stem, stages of blocks and head, by module paths.

The parts are the model's own modules, so together they compute what the model computes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from iakd.errors import UserError, reason_of
from iakd.models.network import Block, Network, are_probabilities
from iakd.models.shapes import Shape, call_on_meta, channels, feature_shapes, trial

ModulePath = (
    str | Callable[[nn.Module], nn.Module]
)  # a module's path in the model, or a function of the model that returns a module


@dataclass(frozen=True)
class Partition:
    """How the models of a family are divided.

    `stem` and `head` are modules in the order in which they are applied. `blocks` are paths of modules, in order; `*`
    in a path stands for all children of the module before it. A path in `reducers` is not a block of its own: it is
    applied directly before the block that follows.
    """

    stem: tuple[ModulePath, ...]
    blocks: tuple[str, ...]
    head: tuple[ModulePath, ...]
    reducers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("stem", "blocks", "head", "reducers"):
            if not isinstance(getattr(self, name), tuple | list):
                raise UserError(f"Partition: {name} is {getattr(self, name)!r}; give a tuple of module paths")


class ExternalBlock(Block):
    """A module of another library as a block; the module is `body`. If it `changes_input`, it gets a copy."""

    changes_input = False

    def __init__(self, body: nn.Module, in_channels: int, out_channels: int, kind: type[nn.Module]) -> None:
        super().__init__(in_channels, out_channels)
        self.body = body
        self._kind = kind

    @property
    def kind(self) -> type[nn.Module]:
        """The class of the other library's block."""
        return self._kind

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features.clone() if self.changes_input else features)


class Modules(nn.Sequential):
    """Modules of another library, one after the other. If they change their input in place, they get a copy."""

    changes_input = False

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.clone() if self.changes_input else features)


class Copy(nn.Identity):
    """Returns a copy, for modules of which nothing is known: they may change their input in place."""

    def forward(self, features: Tensor) -> Tensor:
        return features.clone()


class _InputChangers(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[list[nn.Module], list[nn.Module]]:
        parts = [self.network.stem, *self.network.blocks, self.network.head]
        found: list[nn.Module] = []
        features = images
        for position, part in enumerate(parts):
            version = features._version
            try:
                output = part(features)
            except Exception:  # a module of any kind may fail without real data
                return found, parts[position:]
            if features._version != version:
                found.append(part)
            features = output
        return found, []


def input_changers(network: Network, image: Shape) -> tuple[set[nn.Module], set[nn.Module]]:
    """Return which of stem, blocks and head change their input in place, and of which this cannot be told.

    A block that begins with a ReLU may do so; another network that gets the same input, or a loss that compares it,
    would see something else. Uses meta tensors of one shape (channels, height, width), so nothing is computed.
    """
    changers, unknown = set[nn.Module](), set[nn.Module]()
    for training in (False, True):
        with trial(network, training):
            images = torch.empty(2, *image, device="meta")
            found = call_on_meta(_InputChangers(network), images)
        changers.update(found[0])
        unknown.update(found[1])
    return changers, unknown


def copy_changed_inputs(network: Network, image: Shape) -> None:
    """Give those parts of a network made by `split_model` a copy of their input that may change it."""
    for part in set[nn.Module]().union(*input_changers(network, image)):
        part.changes_input = True  # type: ignore[assignment]


def check_inputs(network: Network, image: Shape, name: str) -> None:
    """Raise UserError if a part of a network that was written for iakd changes its input in place."""
    changers, _ = input_changers(network, image)
    blocks = {f"block {position}": block for position, block in enumerate(network.blocks)}
    for place, part in {"stem": network.stem, **blocks, "head": network.head}.items():
        if part in changers:
            raise UserError(
                f"{name}: its {place} ({type(part).__name__}) changes its input in place, which other networks and "
                "losses use as well: let it return a new tensor, such as ReLU without inplace"
            )


def check_outputs(network: Network, image: Shape, classes: int, name: str) -> None:
    """Raise UserError unless a network that was written for iakd maps images (B, channels, H, W) to its logits.

    One on the meta device, which has shapes only, is not tried.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return
    try:
        with trial(network, training=False):
            outputs = network(torch.zeros(2, *image))
    except Exception as error:  # somebody's code can fail in any way
        raise UserError(f"{name} cannot compute images of {tuple(image)} ({reason_of(error)})") from None
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
    if shape != (2, classes):
        raise UserError(f"{name} returns {shape} for two images of {classes} classes, not logits (2, {classes})")
    if are_probabilities(outputs):
        raise UserError(f"{name} returns probabilities instead of logits: leave out its softmax")


def split_model(model: nn.Module, scheme: Partition, image: Shape) -> Network:
    """Divide `model`; `image` is the shape it was designed for, by which blocks are sorted into stages."""
    stem = Modules(*(_module_at(model, part) for part in scheme.stem))
    head = Modules(*(_module_at(model, part) for part in scheme.head))
    bodies = list(_bodies(model, scheme))
    kinds = [type(body[-1]) if isinstance(body, nn.Sequential) else type(body) for body in bodies]
    loose = Network(stem, [[ExternalBlock(body, 0, 0, kind) for body, kind in zip(bodies, kinds, strict=True)]], head)
    shapes = feature_shapes(loose, image)
    stages: list[list[Block]] = []
    size: Shape = ()
    for body, kind, (before, after) in zip(bodies, kinds, pairwise(shapes), strict=True):
        spatial = after[1:] if len(after) == 3 else after[:1]
        if spatial != size or not stages:
            stages.append([])
            size = spatial
        stages[-1].append(ExternalBlock(body, channels(before), channels(after), kind))
    network = Network(stem, stages, head, size=image[-1])
    ours = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    theirs = model.state_dict(keep_vars=True)
    network.original_names = {name: ours[id(tensor)] for name, tensor in theirs.items() if id(tensor) in ours}
    return network


def missing_module(model: nn.Module, scheme: Partition) -> str | None:
    """Return the first path in the scheme at which the model has no module; None if it has all."""
    paths = [part for part in (*scheme.stem, *scheme.blocks, *scheme.reducers, *scheme.head) if isinstance(part, str)]
    for path in paths:
        try:
            model.get_submodule(path.partition(".*")[0])
        except (AttributeError, RuntimeError):  # a ScriptModule tells nothing of its modules
            return path
    return None


def is_equivalent(model: nn.Module, network: Network, image: tuple[int, ...], training: bool = False) -> bool:
    """Return whether the parts compute what the model computes: a model may do more than its modules show.

    In evaluation mode, or in `training` mode with the same random numbers. Both are left as they are.
    """
    images = torch.randn(2, *image, generator=torch.Generator().manual_seed(0))
    with trial(model, training):
        expected = model(images.clone())
    with trial(network, training):
        found = network(images)
    return isinstance(expected, Tensor) and torch.equal(expected, found)


def change_channels(model: nn.Module, count: int) -> None:
    """Give the model's first convolution `count` input channels."""
    path, first = next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == count:
        return
    parent, _, name = path.rpartition(".")
    new = nn.Conv2d(
        count,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        first.dilation,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    setattr(model.get_submodule(parent), name, new)


def _module_at(model: nn.Module, part: ModulePath) -> nn.Module:
    return model.get_submodule(part) if isinstance(part, str) else part(model)


def _bodies(model: nn.Module, scheme: Partition) -> Iterator[nn.Module]:
    waiting: list[nn.Module] = []
    for path, module in (found for pattern in scheme.blocks for found in _expand(model, pattern)):
        if path in scheme.reducers:
            waiting.append(module)
        else:
            yield nn.Sequential(*waiting, module) if waiting else module
            waiting = []


def _expand(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield paths and modules that a path with `*` stands for."""
    before, star, after = path.partition(".*")
    module = model.get_submodule(before)
    if not star:
        yield path, module
        return
    for name in [name for name, child in module._modules.items() if child is not None]:  # each use of a shared one
        yield from _expand(model, f"{before}.{name}{after}")
