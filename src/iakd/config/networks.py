"""Networks: students, teachers, and the families that other packages add. Importing it imports no torch.

The networks of this project are in `iakd.models`. Other packages add theirs under the entry-point group `iakd.networks`
(docs/extending.md).
"""

import re
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from iakd.config.base import FilePath, Name, Strict, did_you_mean
from iakd.errors import UserError
from iakd.plugins import NetworkFamily, discover, look_into_folder

REGISTRY, TORCHVISION = "models:/", "torchvision:"


FAMILIES, _UNUSABLE = discover(
    "iakd.networks",
    NetworkFamily,
    {
        "torchvision": NetworkFamily("iakd.models.external.torchvision:build", settings=frozenset({"variant"})),
        "timm": NetworkFamily("iakd.models.external.timm:build", settings=frozenset({"variant"})),
    },
)


def family_of(arch: str) -> NetworkFamily | None:
    """Return the family of an architecture FAMILY/NAME; None for one of this project's own, which have no family name.

    Raises ValueError for an unknown family or name, or for a family that cannot be used, with the reason.
    """
    family, slash, name = arch.partition("/")
    if not slash:
        return None
    if family in _UNUSABLE:
        raise ValueError(f"unknown arch {arch!r}: {_UNUSABLE[family]}")
    if family not in FAMILIES:
        known = ", ".join(f"{known}/…" for known in FAMILIES)
        raise ValueError(f"unknown arch {arch!r}{did_you_mean(family, FAMILIES)}; known families: {known}")
    names = FAMILIES[family].architectures
    if names and name not in names:
        known = ", ".join(f"{family}/{known}" for known in names)
        raise ValueError(f"unknown arch {arch!r}{did_you_mean(name, names)}; known: {known}")
    return FAMILIES[family]


def family_modules() -> list[str]:
    """Return the modules that hold the builders of all families."""
    return [family.builder.partition(":")[0] for family in FAMILIES.values()]


def _known_family(arch: str) -> str:
    family_of(arch)
    return arch


MIN_BITS, MAX_BITS = 2, 8


def _bits(value: Any) -> Any:
    bits = value if isinstance(value, list | tuple) else [value]
    if any(not isinstance(width, int) or isinstance(width, bool) for width in bits):
        raise ValueError(f"must be a whole number or a list of them, not {value!r}")
    if any(not MIN_BITS <= width <= MAX_BITS for width in bits):
        raise ValueError(f"must be from {MIN_BITS} to {MAX_BITS}, not {value!r}")
    if bits is value and len(set(bits)) < max(2, len(bits)):
        raise ValueError(f"a list names different numbers, at least two, not {value!r}")
    return sorted(bits) if bits is value else value


_Width = Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)]
Bits = Annotated[_Width | Annotated[list[_Width], Field(min_length=2)], BeforeValidator(_bits)]


Activation = Literal["leaky_relu", "leaky_relu_0.1", "relu6", "elu", "silu", "gelu"]  # instead of ReLU
Variant = (
    Literal["other_stride", "relu_before_addition", "no_last_relu", "average_pooling", "averaged_shortcut"]
    | Literal["raw_shortcut", "pool_every_group"]
    | Activation
)
VARIANTS: tuple[str, ...] = tuple(name for kind in get_args(Variant) for name in get_args(kind))
ALTERNATIVES = (frozenset(get_args(Activation)), frozenset({"relu_before_addition", "no_last_relu"}))


def excludes(variant: str, other: str) -> bool:
    """Return whether a network cannot have both forms."""
    return variant != other and any({variant, other} <= group for group in ALTERNATIVES)


def _variants(names: list[str]) -> list[str]:
    for name, other in combinations(names, 2):
        if name == other:
            raise ValueError(f"names {name!r} twice")
        if excludes(name, other):
            raise ValueError(f"{name} and {other} exclude each other")
    return sorted(names, key=VARIANTS.index)


class Network(Strict):
    """A network of the model zoo; docs/networks.md lists them."""

    name: Name = Field("", description="how results name it; default: the architecture, its width and its bits")
    arch: Annotated[str, AfterValidator(_known_family)] = Field(
        min_length=1, description="resnet56, wrn_40_2, vgg13, MobileNetV2, ShuffleV2, torchvision/resnet50, timm/…"
    )
    width: int | None = Field(
        None, gt=0, le=4096, description="channels of the first stage; default: the architecture's own"
    )
    shortcut: Literal["A", "A_end", "B"] = Field(
        "B",
        description="resnet8 … resnet110x4; A: identity, new channels zero, half before and half behind the old ones; "
        "A_end: all behind; B: 1×1 convolution",
    )
    variant: Annotated[list[Variant], AfterValidator(_variants)] = Field(
        [],
        description="where other code computes something else with the same weights: docs/networks.md; an import "
        "says which form fits",
    )
    bits: Bits | None = Field(
        None,
        description="bits of weights and activations, by quantisation-aware training; default: full; a list, such as "
        "[2, 4, 8]: one network that can be switched between them (students only)",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and data.get("arch") and isinstance(data["arch"], str):
            width, bits = data.get("width"), data.get("bits")
            name = re.sub(
                r"[^A-Za-z0-9_.]", "_", data["arch"]
            )  # the name of a folder: no slash of torchvision/resnet50
            widths = "_".join(map(str, sorted(bits, key=str) if isinstance(bits, list) else [bits]))
            name += (f"w{width}" if width else "") + (f"_{widths}bit" if bits else "")
            data = {**data, "name": name}
        return data

    @model_serializer(mode="wrap")
    def _used(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings that are unused: they are not part of a network's identity."""
        unused = [name for name in self._optional if not getattr(self, name)]
        return {name: value for name, value in serialise(self).items() if name not in unused}

    @property
    def _optional(self) -> tuple[str, ...]:
        """Settings that are left out where they are not set."""
        return ("variant",)

    @property
    def bit_widths(self) -> list[int]:
        """The numbers of bits that it can be switched between, highest first; [] if it cannot."""
        return self.bits[::-1] if isinstance(self.bits, list) else []

    @property
    def modules(self) -> list[str]:
        """Modules that build this network and that are loaded by name only: those of a family."""
        family = family_of(self.arch)
        return [family.builder.partition(":")[0]] if family else []


class Normalisation(Strict):
    """How images become a network's input: (value − mean) / std, values from 0 to 1."""

    mean: list[float] = Field(min_length=1, description="one number per channel, or one for all channels")
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, description="one number per channel, or one for all")

    def of_channels(self, channels: int) -> tuple[list[float], list[float]]:
        """Return the mean and standard deviation of each channel. Raises ValueError for a different number of them."""
        for values in (self.mean, self.std):
            if len(values) not in (1, channels):
                raise ValueError(f"has {len(values)} channels, and the images have {channels}")
        return (self.mean * channels)[:channels], (self.std * channels)[:channels]


USUAL = {
    "imagenet": Normalisation(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    "cifar10": Normalisation(mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616]),
    "cifar100": Normalisation(mean=[0.5071, 0.4865, 0.4409], std=[0.2673, 0.2564, 0.2762]),
    "half": Normalisation(mean=[0.5], std=[0.5]),
    "none": Normalisation(mean=[0.0], std=[1.0]),
}


BLACK_BOXES = (".onnx", ".pt2")  # files that are programs: with these, no architecture needs to be known


class Teacher(Network):
    """A network that students learn from: imported if it has a `checkpoint` or a `callable`, else trained.

    Of a black box only the outputs are known: a `callable`, or a program in a file, without `arch`.
    """

    arch: Annotated[str, AfterValidator(_known_family)] = Field(
        "",
        description="as of students; leave it out for a `callable`, and for a `checkpoint` that is a program (.onnx, "
        ".pt2) and to be used as such",
    )
    callable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="package.module:function in the experiment's folder, or installed; called without arguments, it "
        "returns a torch.nn.Module from normalised images to logits, with the weights in `checkpoint` or its own",
    )
    trained_on: FilePath | None = Field(
        None,
        description="images that an imported one was trained with: a folder of them, or a list of files, one a line; "
        "train: at most the training images of this data set; default: unknown, which the report says",
    )
    outputs: Literal["logits", "probabilities"] | None = Field(
        None, description="what a black box returns; default: logits"
    )
    checkpoint: FilePath | None = Field(
        None,
        description="weights of a trained teacher: a file; models:/NAME/VERSION or models:/NAME@ALIAS in MLflow's "
        "model registry; torchvision:IMAGENET1K_V2 or other weights of torchvision; default: train the teacher",
    )
    normalisation: Normalisation | Literal["imagenet", "cifar10", "cifar100", "half", "none"] | None = Field(
        None,
        description="normalisation of the images that the checkpoint was trained on; half: mean and std 0.5; none: "
        "values from 0 to 1; default: the data set's; of torchvision's weights: the one they were trained with",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_of_black_box(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and not data.get("arch"):
            origin = data.get("callable") or data.get("checkpoint")
            if isinstance(origin, str):
                own = origin.rpartition(":")[2] if data.get("callable") else Path(origin).stem
                return {**data, "name": re.sub(r"[^A-Za-z0-9_.]", "_", own)}
        return data

    @model_validator(mode="before")
    @classmethod
    def _normalisation_of_torchvision(cls, data: Any) -> Any:
        if isinstance(data, dict) and str(data.get("checkpoint")).startswith(TORCHVISION):
            usual = "half" if str(data.get("arch")).endswith("efficientnet_v2_l") else "imagenet"
            return {**data, "normalisation": data.get("normalisation") or usual}
        return data

    @model_validator(mode="after")
    def _one_width(self) -> "Teacher":
        if self.bit_widths:
            raise ValueError(f"bits: a teacher computes with one number of bits, not with {self.bits}; choose one")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> "Teacher":
        if self.callable and self.arch:
            raise ValueError("callable and arch exclude each other: the callable returns its own network")
        if not self.arch and not self.black_box:
            raise ValueError(
                "arch: Field required, unless there is a callable or a checkpoint that is a program (.onnx, .pt2)"
            )
        if self.arch and self.path and self.path.suffix == ".onnx":
            raise ValueError(f"arch: {self.checkpoint} is a program, which is used as it is: leave arch out")
        if not self.black_box and self.outputs:
            raise ValueError(
                "outputs is a setting of a black box: a teacher with a callable, or with a program without arch"
            )
        if self.callable and self.checkpoint and self.path is None:
            raise ValueError("checkpoint: beside a callable, it is a file")
        for name, default in (("width", None), ("shortcut", "B"), ("variant", []), ("bits", None)):
            if self.black_box and getattr(self, name) != default:
                raise ValueError(f"{name} is a setting of networks with an arch, not of a black box")
        return self

    @model_validator(mode="after")
    def _only_with_a_checkpoint(self) -> "Teacher":
        if self.normalisation is not None and not self.imported:
            raise ValueError("normalisation is a setting of a teacher with a `checkpoint`; others use the data set's")
        if self.trained_on is not None and not self.imported:
            raise ValueError("trained_on is a setting of imported teachers; others see the training images alone")
        if self.checkpoint and self.checkpoint.startswith(TORCHVISION) and not self.arch.startswith("torchvision/"):
            raise ValueError(f"{self.checkpoint} is for an arch torchvision/…, not for {self.arch}")
        return self

    @property
    def _optional(self) -> tuple[str, ...]:
        return (*super()._optional, "arch", "callable", "outputs", "trained_on", "checkpoint", "normalisation")

    @property
    def imported(self) -> bool:
        """Whether it is not trained here."""
        return bool(self.checkpoint or self.callable)

    @property
    def origin(self) -> str:
        """Where an imported one comes from, as a message says it."""
        return f"callable {self.callable}" if self.callable else f"checkpoint {self.checkpoint}"

    @property
    def black_box(self) -> bool:
        """Whether nothing but its outputs is known."""
        return bool(self.callable or (not self.arch and self.path and self.path.suffix in BLACK_BOXES))

    @property
    def trainable(self) -> bool:
        """Whether a copy of it can be trained; a program in a file cannot."""
        return not self.black_box or self.callable is not None

    @property
    def modules(self) -> list[str]:
        """As of other networks; of a black box also the user's module. Raises UserError if there is none."""
        if not self.black_box:
            return super().modules
        self.check_callable()
        return ["iakd.models.external.black_box", *([self.callable.partition(":")[0]] if self.callable else [])]

    def check_files(self) -> None:
        """Raise UserError if the checkpoint is a file that does not exist, or the callable in no module."""
        self.check_callable()
        if self.path is not None and not self.path.is_file():
            raise UserError(f"teacher {self.name}: checkpoint {self.path} is not a file (looked for in {Path.cwd()})")

    def check_callable(self) -> None:
        """Raise UserError unless the module of a callable is in this folder, or installed. Nothing is imported."""
        if self.callable:
            look_into_folder(self.callable, f"teacher {self.name}: callable")

    @property
    def path(self) -> Path | None:
        """The checkpoint if it is a file; None if it is a name in a registry."""
        if self.checkpoint is None or self.checkpoint.startswith((REGISTRY, TORCHVISION)):
            return None
        return Path(self.checkpoint).expanduser()

    @property
    def own_normalisation(self) -> Normalisation | None:
        """The normalisation as numbers; None: the data set's."""
        return USUAL[self.normalisation] if isinstance(self.normalisation, str) else self.normalisation
