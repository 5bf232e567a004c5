"""Methods that look at outputs alone."""

from typing import Annotated

from pydantic import Field, model_validator

from iakd.params.base import Fraction, Strict
from iakd.params.methods.entry import Entry
from iakd.params.training import Erase


class Kd(Strict):
    """Hinton's distillation, ce_weight·CE + kd_weight·T²·KL(teacher_T ‖ student_T)."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)


class LabelSmoothing(Strict):
    """Cross-entropy with smoothed labels."""

    epsilon: Fraction = 0.1


class Dkd(Strict):
    """Decoupled distillation, ce_weight·CE + min(epoch/warmup_epochs, 1)·(alpha·TCKD + beta·NCKD)."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(1.0, ge=0)
    alpha: float = Field(1.0, ge=0, description="weight of the target class against all others")
    beta: float = Field(
        8.0, ge=0, description="weight of the other classes; its authors: 2 for resnet56→20, 6 for WRN, VGG, 8 for 32x4"
    )
    warmup_epochs: int = Field(20, ge=0, description="over which the weight of both grows linearly")


class Dist(Strict):
    """Relations instead of values, ce_weight·CE + T²·(inter·(1 − ρ over classes) + intra·(1 − ρ over the batch))."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(1.0, ge=0)
    inter: float = Field(2.0, ge=0, description="weight of the relations between classes, image by image")
    intra: float = Field(2.0, ge=0, description="weight of the relations between images, class by class")


class Ctkd(Strict):
    """kd whose temperature is learned against the student, start + span·sigmoid(θ)."""

    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)
    start: float = Field(1.0, gt=0, description="the lowest temperature")
    span: float = Field(20.0, gt=0, description="from there to the highest")
    epochs: int = Field(10, gt=0, description="over which the reversed gradient of θ grows from 0, by half a cosine")
    strength: float = Field(1.0, ge=0, description="what it grows to, as a multiple of the gradient")


class Lskd(Strict):
    """kd between logits that are standardised image by image."""

    temperature: float = Field(2.0, gt=0)
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(9.0, ge=0)


class Mlkd(Strict):
    """Several temperatures and relations, on a weak and a strong view of each image; docs/methods/mlkd.md."""

    temperatures: list[Annotated[float, Field(gt=0)]] = Field([2.0, 3.0, 4.0, 5.0, 6.0], min_length=1)
    strong_temperatures: list[float] = Field(
        [3.0, 4.0, 5.0], description="at which the strong view is compared; at the others the weak one is, twice"
    )
    ce_weight: float = Field(0.1, ge=0, description="of each view's cross-entropy")
    kd_weight: float = Field(0.9, ge=0)
    weak_weight: float = Field(0.5, ge=0, description="factor of the weak view's divergences and relations")
    operations: int = Field(2, gt=0, description="strong view: of RandAugment, beside the recipe's crop and flip")
    magnitude: int = Field(10, ge=0, le=30, description="strong view: of these operations")
    erase: Erase | None = Field(
        Erase(probability=1.0, scale=(0.001, 0.25), ratio=(1.0, 1.0)), description="strong view: a square set to 0"
    )

    @model_validator(mode="after")
    def _known_temperatures(self) -> "Mlkd":
        odd = sorted(set(self.strong_temperatures) - set(self.temperatures))
        if odd:
            raise ValueError(f"strong_temperatures: {odd[0]:g} is none of the temperatures")
        return self


class Mutual(Strict):
    """A copy of the teacher that learns along; each of the two has ce_weight·CE + kd_weight·T²·KL(other ‖ own)."""

    temperature: float = Field(1.0, gt=0)
    ce_weight: float = Field(1.0, ge=0)
    kd_weight: float = Field(1.0, ge=0)


class LogitOptions(Strict):
    """Sections of the methods in this module."""

    label_smoothing: LabelSmoothing = LabelSmoothing()
    kd: Kd = Kd()
    dkd: Dkd = Dkd()
    dist: Dist = Dist()
    ctkd: Ctkd = Ctkd()
    lskd: Lskd = Lskd()
    mlkd: Mlkd = Mlkd()
    mutual: Mutual = Mutual()


METHODS = {
    "scratch": Entry("cross-entropy alone", "reference", needs_teacher=False, alone="it adds no loss"),
    "label_smoothing": Entry("cross-entropy with smoothed labels", "reference", LabelSmoothing, needs_teacher=False),
    "kd": Entry("the teacher's softened outputs as targets (Hinton et al. 2015)", "logits", Kd),
    "dkd": Entry("kd with target and other classes weighed apart (Zhao et al. 2022)", "logits", Dkd),
    "dist": Entry("correlations of outputs, over classes and over images (Huang et al. 2022)", "logits", Dist),
    "ctkd": Entry("kd with a temperature that learns to make it harder (Li et al. 2023)", "logits", Ctkd),
    "lskd": Entry("kd between logits standardised image by image (Sun et al. 2024)", "logits", Lskd),
    "mlkd": Entry("kd at several temperatures, with Gram matrices, on two views (Jin et al. 2023)", "logits", Mlkd),
    "mutual": Entry("the student and a copy of the teacher teach each other (Zhang et al. 2018)", "logits", Mutual),
    "standardize": Entry(
        "the same standardisation for every loss between outputs in a sum",
        "logits",
        refuses={"lskd": "its logits are standardised already"},
        joins="logits",
    ),
}
