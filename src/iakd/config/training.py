"""How a network is trained: the recipe and its augmentation."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from iakd.config.base import Fraction, Strict

PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
MOST_EPOCHS = 1_000_000


class Erase(Strict):
    """Random erasing: a rectangle of a normalised image is set to 0, the mean colour (Zhong et al. 2020)."""

    probability: Fraction = Field(0.5, description="probability that an image is erased")
    scale: tuple[Fraction, Fraction] = Field(
        (0.02, 0.33), description="lowest and highest share of the area that is erased"
    )
    ratio: tuple[float, float] = Field(
        (0.3, 3.3), description="lowest and highest ratio height / width of the rectangle"
    )

    @model_validator(mode="after")
    def _low_high(self) -> "Erase":
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected [low, high] with 0 < low ≤ high, got [{low:g}, {high:g}]")
        return self


class Mix(Strict):
    """Images are mixed in pairs, and their labels too."""

    alpha: float = Field(gt=0, description="shares are drawn from Beta(alpha, alpha); 1: uniform")
    probability: Fraction = Field(1.0, description="probability that a batch is mixed")


class Augment(Strict):
    """Random changes of a training image, drawn each time it is shown; docs/data.md describes them."""

    pad: int = Field(
        0, ge=0, le=512, description="pixels of zero padding before a random crop to the original size: shifts"
    )
    flip: bool = Field(False, description="flip half of the images horizontally")
    crop: Literal["none", "resized"] = Field(
        "none",
        description="resized: a random part of the full-size image, resized to dataset.size, as is usual on ImageNet; "
        "needs dataset.storage: files",
    )
    scale: tuple[PositiveFraction, PositiveFraction] = Field(
        (0.08, 1.0), description="crop: resized: lowest and highest share of the area"
    )
    ratio: tuple[Positive, Positive] = Field(
        (0.75, 4 / 3), description="crop: resized: lowest and highest ratio width / height"
    )
    policy: Literal["none", "randaugment", "trivialaugment"] = Field(
        "none", description="random operations on each image"
    )
    operations: int = Field(2, gt=0, le=100, description="randaugment: operations per image")
    magnitude: int = Field(9, ge=0, le=30, description="randaugment: strength of the operations")
    erase: Erase | None = Field(None, description="random erasing")
    cutout: int = Field(
        0, ge=0, description="side in pixels of a square that is set to 0; it may extend over the border"
    )
    mixup: Mix | None = Field(None, description="mixup; if cutmix is set too, one of the two is drawn for each batch")
    cutmix: Mix | None = Field(None, description="CutMix")

    @field_validator("scale", "ratio")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"low {value[0]:g} is above high {value[1]:g}")
        return value

    @model_serializer(mode="wrap")
    def _used(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings without those that are off: they are no part of the identity of runs that do not use them."""
        fields = type(self).model_fields
        off = {name for name in set(fields) - {"pad", "flip"} if getattr(self, name) == fields[name].default}
        for names, used in (
            ({"operations", "magnitude"}, self.policy == "randaugment"),
            ({"scale", "ratio"}, self.crop == "resized"),
        ):
            off = off - names if used else off | names
        return {name: value for name, value in serialise(self).items() if name not in off}

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other."""
        return self.mixup is not None or self.cutmix is not None

    @property
    def views(self) -> int | None:
        """How many views there are of an image; None where there are not finitely many."""
        if self.crop != "none" or self.policy != "none" or self.erase or self.cutout or self.mixes:
            return None
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    @property
    def unchanged(self) -> int:
        """The number of the view that is the image itself."""
        return (2 * self.pad + 1) * self.pad + self.pad


class LrSchedule(Strict):
    """The LR schedule; fractions refer to the epochs of the training."""

    kind: Literal["multistep", "cosine", "onecycle", "constant"] = Field("multistep", description="shape")
    milestones: list[Fraction] = Field([0.625, 0.75, 0.875], description="multistep: when the rate drops")
    gamma: float = Field(0.1, gt=0, le=1, description="multistep: factor of each drop")
    warmup: Fraction = Field(0.0, description="linear growth from 0 at the start; onecycle: the rising part")

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError("must ascend")
        return value


class Recipe(Strict):
    """How one network is trained."""

    epochs: int = Field(240, gt=0, le=MOST_EPOCHS, description="passes over the training images")
    batch_size: int = Field(
        64, ge=2, description="images per step, of all processes together; BatchNorm needs more than one"
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="the optimiser")
    lr: float = Field(0.05, gt=0, description="the highest learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="for sgd")
    nesterov: bool = Field(False, description="for sgd: Nesterov momentum")
    weight_decay: float = Field(5e-4, ge=0, description="of all trained parameters")
    lr_schedule: LrSchedule = LrSchedule()
    class_weights: Literal["balanced"] | dict[str, Positive] | None = Field(
        None,
        description="weight of an image in every cross-entropy, by its class: balanced (all classes weigh the same in "
        "sum), or class name → weight, 1 for the others; scaled to a mean of 1 over the training images; default: none",
    )
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="balanced: each epoch shows all classes equally often, images of small classes several times; "
        "shuffle: each image once",
    )
    label_smoothing: Fraction = Field(0.0, description="label smoothing of every cross-entropy in the loss")
    clip_norm: float | None = Field(
        None, gt=0, description="upper bound on the norm of the whole gradient; default: none"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast; losses stay in float32")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay per step of a moving average of the weights; default: none"
    )
    augment: Augment = Augment()
    validate_every: int = Field(10, gt=0, description="epochs between validations; the last epoch is always validated")

    @model_serializer(mode="wrap")
    def _used(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings without those against imbalance, unless used: they are no part of the identity of other runs."""
        off = {
            name
            for name in ("class_weights", "sampler")
            if getattr(self, name) == type(self).model_fields[name].default
        }
        return {name: value for name, value in serialise(self).items() if name not in off}

    @model_validator(mode="after")
    def _balanced_once(self) -> "Recipe":
        if self.class_weights == "balanced" and self.sampler == "balanced":
            raise ValueError("class_weights and sampler: both balanced would correct twice; choose one")
        return self

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Recipe":
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0; set momentum: 0.9, or nesterov: false")
        return self
