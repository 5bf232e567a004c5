"""The options of each method, as they stand below its name in the settings; formulas and sources: docs/methods/."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from iakd.config.base import Fraction, Strict
from iakd.config.schedule import Schedule
from iakd.config.training import Erase, PositiveFraction


class IakdOptions(Strict):
    """Interactive distillation: student blocks swapped at random for the teacher's."""

    schedule: Schedule | Literal["tuned"] = Field(Schedule(), description="'tuned': what `iakd tune` found")
    granularity: Literal["batch", "sample", "channel"] = Field(
        "batch",
        description="what is drawn anew for each block: once for the whole batch; once for each image; "
        "once for each channel, which is then the student's, the teacher's or the mean of both",
    )
    unit: Literal["block", "stage"] = Field("block", description="what is swapped as one")
    teacher_bn: Literal["eval", "batch"] = Field(
        "eval", description="statistics in swapped blocks: running or the batch's"
    )
    stem: Literal["student", "teacher"] = Field("student", description="teacher: copied and frozen")
    head: Literal["student", "teacher"] = Field("student", description="teacher: copied and frozen")
    at_least_one_student: bool | None = Field(
        None, description="never swap every block at once; default: only where stem and head are frozen"
    )
    bn_reestimate: bool = Field(False, description="gather the student's BatchNorm statistics anew at the end")
    path: Literal["hybrid", "student"] = Field("hybrid", description="iakd+X: whose output the added loss X sees")


class KdOptions(Strict):
    """Hinton's distillation, ce_weight·CE + kd_weight·T²·KL(teacher_T ‖ student_T)."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)


class LabelSmoothingOptions(Strict):
    """Cross-entropy with smoothed labels."""

    epsilon: Fraction = 0.1


class DkdOptions(Strict):
    """Decoupled distillation, ce_weight·CE + min(epoch/warmup_epochs, 1)·(alpha·TCKD + beta·NCKD)."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(1.0, ge=0)
    alpha: float = Field(1.0, ge=0, description="weight of the target class against all others")
    beta: float = Field(
        8.0, ge=0, description="weight of the other classes; its authors: 2 for resnet56→20, 6 for WRN, VGG, 8 for 32x4"
    )
    warmup_epochs: int = Field(20, ge=0, description="over which the weight of both grows linearly")


class DistOptions(Strict):
    """Relations instead of values, ce_weight·CE + T²·(inter·(1 − ρ over classes) + intra·(1 − ρ over the batch))."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(1.0, ge=0)
    inter: float = Field(2.0, ge=0, description="weight of the relations between classes, image by image")
    intra: float = Field(2.0, ge=0, description="weight of the relations between images, class by class")


class CtkdOptions(Strict):
    """kd whose temperature is learned against the student, start + span·sigmoid(θ)."""

    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)
    start: float = Field(1.0, gt=0, description="the lowest temperature")
    span: float = Field(20.0, gt=0, description="from there to the highest")
    epochs: int = Field(10, gt=0, description="over which the reversed gradient of θ grows from 0, by half a cosine")
    strength: float = Field(1.0, ge=0, description="what it grows to, as a multiple of the gradient")


class LskdOptions(Strict):
    """kd between logits that are standardised image by image."""

    temperature: float = Field(2.0, gt=0)
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(9.0, ge=0)


class MlkdOptions(Strict):
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
    def _known_temperatures(self) -> "MlkdOptions":
        odd = sorted(set(self.strong_temperatures) - set(self.temperatures))
        if odd:
            raise ValueError(f"strong_temperatures: {odd[0]:g} is none of the temperatures")
        return self


class MutualOptions(Strict):
    """A copy of the teacher that learns along; each of the two has ce_weight·CE + kd_weight·T²·KL(other ‖ own)."""

    temperature: float = Field(1.0, gt=0)
    ce_weight: float = Field(1.0, ge=0)
    kd_weight: float = Field(1.0, ge=0)


class OtOptions(Strict):
    """Optimal transport between feature vectors, CE + weight·Sinkhorn divergence."""

    weight: float = Field(0.1, ge=0)
    blur: float = Field(0.05, gt=0, description="square root of the entropic regularisation, in units of the features")


class FitnetOptions(Strict):
    """A hint: weight·MSE(regressor(student's maps), teacher's maps) at one level."""

    weight: float = Field(100.0, ge=0)
    level: int = Field(2, gt=0, description="the end of which stage of the student, from 1")


class AtOptions(Strict):
    """Attention transfer: weight·Σ MSE of normalised maps of squares, over the ends of all stages."""

    weight: float = Field(1000.0, ge=0)


class NstOptions(Strict):
    """Neuron selectivity transfer: weight·Σ squared maximum mean discrepancy between channels, over all stages."""

    weight: float = Field(50.0, ge=0)


class VidOptions(Strict):
    """Variational information distillation: weight·Σ −log q(teacher's maps | student's maps), over all stages."""

    weight: float = Field(1.0, ge=0)


class ReviewkdOptions(Strict):
    """Knowledge review: min(epoch/warmup_epochs, 1)·weight·Σ hierarchical context losses of fused features."""

    weight: float = Field(1.0, ge=0, description="the authors use 0.6 to 8, by pair of networks")
    warmup_epochs: int = Field(20, ge=0)


class SimkdOptions(Strict):
    """The teacher's classifier reused: weight·MSE between its last maps and the student's projected ones."""

    weight: float = Field(1.0, gt=0)
    factor: int = Field(2, gt=0, description="the projector narrows to this fraction of the teacher's channels")


class HintsOptions(Strict):
    """Hints at the centres of clusters of the teacher's blocks, CE + weight·hint regression."""

    weight: float = Field(100.0, ge=0)
    points: int = Field(3, gt=0, description="clusters of the teacher's blocks, with a hint at the centre of each")
    images: int = Field(512, ge=4, description="training images on which the teacher's blocks are compared")


PRETRAIN = "share of the steps that make up the first phase"


class FtOptions(Strict):
    """Factor transfer: first a paraphraser learns the teacher's last maps, then weight·‖factors − factors‖₁."""

    weight: float = Field(200.0, ge=0)
    rate: PositiveFraction = Field(0.5, description="channels of the factors, as a share of the teacher's")
    pretrain: PositiveFraction = Field(0.125, description=PRETRAIN)


class FspOptions(Strict):
    """Flow of the solution procedure: a first phase of weight·Σ MSE of products of channels, then labels."""

    weight: float = Field(1.0, gt=0)
    pretrain: PositiveFraction = Field(0.125, description=PRETRAIN)


class AbOptions(Strict):
    """Activation boundaries: a first phase of weight·Σ distances from the teacher's side of zero, then labels."""

    weight: float = Field(1.0, gt=0)
    margin: float = Field(1.0, ge=0)
    pretrain: PositiveFraction = Field(0.125, description=PRETRAIN)


class CrdOptions(Strict):
    """Contrastive representation distillation, CE + weight·contrastive."""

    weight: float = Field(0.8, ge=0)
    dim: int = Field(128, gt=0, description="of the embeddings that are compared")
    negatives: int = Field(16384, gt=0, description="images of other classes that each image is compared with")
    temperature: float = Field(0.07, gt=0)
    momentum: float = Field(0.5, ge=0, lt=1, description="share of its old value in an image's remembered embedding")


class SpOptions(Strict):
    """Similarity-preserving distillation: weight·‖G_s − G_t‖²/B², G the batch's row-normalised Gram matrix."""

    weight: float = Field(3000.0, ge=0)


class CcOptions(Strict):
    """Correlation congruence, between each two neighbours of the batch, of features embedded into `dim` numbers."""

    weight: float = Field(0.02, ge=0)
    dim: int = Field(128, gt=0)


class RkdOptions(Strict):
    """Relational distillation: distance_weight·L(distances) + angle_weight·L(angles), L smooth L1."""

    distance_weight: float = Field(25.0, ge=0)
    angle_weight: float = Field(50.0, ge=0)


class PktOptions(Strict):
    """Probabilistic knowledge transfer: weight·mean of p_t·log(p_t/p_s), p from cosine similarities in the batch."""

    weight: float = Field(30000.0, ge=0)


class KcdOptions(Strict):
    """Knowledge condensation: images that the student is sure of are dropped, and mixed into others."""

    every: int = Field(40, gt=0, description="epochs between two rankings of the images")
    drop: Fraction = Field(0.05, description="share of all images that each ranking drops")
    keep: Annotated[float, Field(gt=0, le=1)] = Field(0.7, description="share that stays at the least")
    exponent: float = Field(0.03, ge=0, description="of (times shown / every), by which the mean entropy is multiplied")
    mixed: Fraction = Field(0.7, description="weight of the last of the images that dropped ones are mixed into")
