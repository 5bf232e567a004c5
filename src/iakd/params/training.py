"""A network and how it is trained."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from iakd.params.base import Fraction, Name, Strict


class Network(Strict):
    """A network of the zoo; docs/networks.md lists them."""

    name: Name = Field("", description="how results name it; default: the architecture, its width and its bits")
    arch: str = Field(description="resnet56, wrn_40_2, vgg13, MobileNetV2, ShuffleV2, torchvision/resnet50, timm/…")
    width: int | None = Field(None, gt=0, description="channels of the first stage; default: the architecture's own")
    shortcut: Literal["A", "B"] = Field(
        "B", description="resnet8 … resnet110x4; A: zero-padded identity; B: 1×1 convolution"
    )

    bits: int | None = Field(
        None, ge=2, le=8, description="precision of weights and features, trained with; default: full"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("arch"), str):
            width = data.get("width")
            plain = re.sub(r"[^A-Za-z0-9_.]", "_", data["arch"])  # torchvision/resnet50: no folder of its own
            bits = data.get("bits")
            plain += (f"w{width}" if width else "") + (f"_{bits}bit" if bits else "")
            data = {**data, "name": plain}
        return data


class Augment(Strict):
    """Random changes of a training image, drawn anew each time it is shown."""

    pad: int = Field(0, ge=0, description="pixels of zero padding before a random crop to the old size: shifts")
    flip: bool = Field(False, description="mirror half of the images left to right")

    @property
    def views(self) -> int | None:
        """How many views there are of an image; None where there are not finitely many."""
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    @property
    def unchanged(self) -> int:
        """The number of the view that is the image itself."""
        return (2 * self.pad + 1) * self.pad + self.pad


class LrSchedule(Strict):
    """The learning rate over a training; fractions are of its epochs."""

    kind: Literal["multistep", "cosine", "onecycle", "constant"] = "multistep"
    milestones: list[Fraction] = Field([0.625, 0.75, 0.875], description="multistep: where the rate drops")
    gamma: float = Field(0.1, gt=0, le=1, description="multistep: factor of each drop")
    warmup: Fraction = Field(0.0, description="linear growth from 0 (onecycle: the rising part)")

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError("must ascend")
        return value


class Recipe(Strict):
    """How one network is trained."""

    epochs: int = Field(240, gt=0)
    batch_size: int = Field(64, gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0, description="the highest learning rate")
    momentum: Fraction = Field(0.9, description="sgd")
    nesterov: bool = Field(False, description="sgd")
    weight_decay: float = Field(5e-4, ge=0)
    lr_schedule: LrSchedule = LrSchedule()
    label_smoothing: Fraction = Field(0.0, description="of every cross-entropy in the loss")
    clip_norm: float | None = Field(None, gt=0, description="bound on the norm of the whole gradient")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast; losses stay in float32")
    ema: float | None = Field(None, gt=0, lt=1, description="decay per step of a moving average of the weights")
    augment: Augment = Augment()
    validate_every: int = Field(10, gt=0, description="epochs between two validations; the last one always is")
