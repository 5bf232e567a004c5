"""The options of each method, set in the section with its name; formulas and sources: docs/methods/."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from iakd.config.base import Fraction, Strict
from iakd.config.schedule import Schedule
from iakd.config.training import MOST_EPOCHS, Erase, PositiveFraction

TEMPERATURE = "softmax temperature of student and teacher"
CE_WEIGHT = "weight of the cross-entropy; in a sum of methods, the largest is used"
KD_WEIGHT = "weight of the divergence from the teacher"
WEIGHT = "weight of the term that is added to the cross-entropy"
CLUSTERS = "clusters of the teacher's blocks; auto: the number with the highest mean silhouette"
COMPARED = "training images on which the teacher's blocks are compared"
PRETRAIN = "share of the steps in the first phase"

PointCount = Annotated[int, Field(gt=0)] | Literal["auto"]


PathKind = Literal["bernoulli", "teacher_to_student", "student_to_teacher", "any"]
CONTIGUOUS: tuple[PathKind, ...] = ("teacher_to_student", "student_to_teacher")
SINGLE_PATH_ONLY = ("granularity", "at_least_one_student")
TWO_PATH_ONLY = (
    "paths",
    "paths_per_step",
    "weight",
    "warmup",
    "label_weight",
    "teacher_weight",
    "temperature",
    "student_bn",
    "seam_weight",
)


class IakdOptions(Strict):
    """Interactive distillation: student blocks are randomly swapped for the teacher's."""

    form: Literal["single_path", "two_path"] = Field(
        "single_path",
        description="single_path: the hybrid network alone is trained, as in the paper; two_path: the student's own "
        "path is trained in every step, and hybrid paths beside it",
    )
    schedule: Schedule | Literal["tuned"] = Field(
        Schedule(), description="tuned: the schedule that `iakd tune` finds in tune.space"
    )
    granularity: Literal["batch", "sample", "channel"] = Field(
        "batch",
        description="single_path: one random draw per block for the whole batch, for each image, or for each channel, "
        "which is then the student's, the teacher's or the mean of both",
    )
    unit: Literal["block", "stage"] = Field("block", description="swap single blocks, or whole stages")
    teacher_bn: Literal["eval", "batch"] = Field(
        "eval",
        description="BatchNorm statistics in swapped-in teacher blocks; eval: the running ones; batch: the batch's",
    )
    stem: Literal["student", "teacher"] = Field("student", description="teacher: copied from the teacher and frozen")
    head: Literal["student", "teacher"] = Field("student", description="teacher: copied from the teacher and frozen")
    at_least_one_student: bool | None = Field(
        None,
        description="single_path: never swap all blocks at once; default: true if stem and head are frozen, else false",
    )
    bn_reestimate: bool = Field(False, description="recompute the student's BatchNorm statistics at the end")
    paths: PathKind = Field(
        "any",
        description="two_path: which blocks of a hybrid path are the teacher's; bernoulli: each block by itself; "
        "teacher_to_student: the first ones; student_to_teacher: the last ones; any: half of the paths bernoulli, a "
        "quarter each of the others",
    )
    paths_per_step: int = Field(1, gt=0, le=100, description="two_path: hybrid paths that are drawn in each step")
    weight: float = Field(1.0, ge=0, description="two_path: weight of the hybrid paths' loss, γ")
    warmup: Fraction = Field(0.08, description="two_path: share of the steps over which the weights grow linearly")
    label_weight: float = Field(0.0, ge=0, description="two_path: weight of a hybrid path's cross-entropy, within γ")
    teacher_weight: float = Field(
        0.9, ge=0, description="two_path: weight of a hybrid path's divergence from the teacher, within γ"
    )
    temperature: float = Field(4.0, gt=0, description="two_path: softmax temperature of that divergence")
    student_bn: Literal["shared", "batch", "separate"] = Field(
        "batch",
        description="two_path: the student's BatchNorm in hybrid paths; batch: leaves the running statistics alone; "
        "shared: updates them; separate: has layers of its own, which are discarded",
    )
    seam_weight: float = Field(
        0.0, ge=0, description="two_path: weight of the distances between the features of both networks at all blocks"
    )

    @property
    def without_effect(self) -> str | None:
        """Return why these settings train the student as if nothing were ever swapped; None if they do not."""
        if isinstance(self.schedule, Schedule) and self.schedule.never_swaps:
            return "p is 1 throughout"
        path_weight = self.weight * (self.label_weight + self.teacher_weight)
        if self.form == "two_path" and not (path_weight or self.seam_weight):
            return "the weight of the hybrid paths is 0"
        return None

    @model_validator(mode="after")
    def _fits_the_form(self) -> "IakdOptions":
        other = TWO_PATH_ONLY if self.form == "single_path" else SINGLE_PATH_ONLY
        for name in other:
            if getattr(self, name) != type(self).model_fields[name].default:
                form = "two_path" if self.form == "single_path" else "single_path"
                raise ValueError(f"{name} has no effect with form: {self.form}; set form: {form}, or remove it")
        if (self.stem, self.head, self.at_least_one_student) == ("teacher", "teacher", False):
            raise ValueError(
                "at_least_one_student: false leaves nothing to train in a step that swaps all blocks, because stem and "
                "head are the teacher's; remove it"
            )
        if self.paths in CONTIGUOUS and isinstance(self.schedule, Schedule) and self.schedule.slope:
            raise ValueError(f"schedule.slope has no effect with paths: {self.paths}; set it to 0")
        return self


class BlockwiseOptions(Strict):
    """The block-wise warm start (`init: blockwise`): a short training before the method's own."""

    epochs: int = Field(
        5, gt=0, le=MOST_EPOCHS, description="epochs of the warm start; they come on top of the recipe's"
    )
    lr: float = Field(0.01, gt=0, description="its learning rate for AdamW, which falls to 0 along half a cosine")


class WeightedSum(Strict):
    """The options of a loss that weighs the cross-entropy, too; alone, one of its weights must not be 0."""

    WEIGHTS: ClassVar[tuple[str, ...]] = ("ce_weight", "kd_weight")


class KdOptions(WeightedSum):
    """Hinton's distillation: ce_weight·CE + kd_weight·T²·KL(teacher_T ‖ student_T)."""

    temperature: float = Field(4.0, gt=0, description=TEMPERATURE)
    ce_weight: float = Field(0.1, ge=0, description=CE_WEIGHT)
    kd_weight: float = Field(0.9, ge=0, description=KD_WEIGHT)


class RcnOptions(Strict):
    """A second branch for each convolution, the teacher's where it fits, mixed by channel and merged in the end."""

    freeze: bool = Field(True, description="leave the teacher's convolutions as they are; false: train them, too")
    mean_only: Fraction = Field(
        0.2, description="share of the steps, at the end, in which each channel is the mean of both branches"
    )


class LabelSmoothingOptions(Strict):
    """Cross-entropy with smoothed labels."""

    epsilon: Fraction = Field(0.1, description="probability mass spread evenly over all classes")


class DkdOptions(WeightedSum):
    """Decoupled distillation: ce_weight·CE + min(epoch/warmup_epochs, 1)·(alpha·TCKD + beta·NCKD)."""

    WEIGHTS = ("ce_weight", "alpha", "beta")

    temperature: float = Field(4.0, gt=0, description=TEMPERATURE)
    ce_weight: float = Field(1.0, ge=0, description=CE_WEIGHT)
    alpha: float = Field(1.0, ge=0, description="weight of TCKD: the target class against all others")
    beta: float = Field(
        8.0,
        ge=0,
        description="weight of NCKD: the other classes; its authors: 2 for resnet56→20, 6 for WRN and VGG, 8 for 32x4",
    )
    warmup_epochs: int = Field(20, ge=0, description="epochs over which both weights grow linearly from 0")


class DistOptions(WeightedSum):
    """Match relations, not values: ce_weight·CE + T²·(inter·(1 − ρ over classes) + intra·(1 − ρ over the batch))."""

    WEIGHTS = ("ce_weight", "inter", "intra")

    temperature: float = Field(4.0, gt=0, description=TEMPERATURE)
    ce_weight: float = Field(1.0, ge=0, description=CE_WEIGHT)
    inter: float = Field(2.0, ge=0, description="weight of the relations between classes, for each image")
    intra: float = Field(2.0, ge=0, description="weight of the relations between images, for each class")


class CtkdOptions(WeightedSum):
    """kd with an adversarially learned temperature: start + span·sigmoid(θ)."""

    ce_weight: float = Field(0.1, ge=0, description=CE_WEIGHT)
    kd_weight: float = Field(0.9, ge=0, description=KD_WEIGHT)
    start: float = Field(1.0, gt=0, description="the lowest temperature")
    span: float = Field(20.0, gt=0, description="the highest temperature minus the lowest")
    epochs: int = Field(
        10, gt=0, description="epochs over which θ's reversed gradient grows from 0 along half a cosine"
    )
    strength: float = Field(1.0, ge=0, description="factor of the reversed gradient after that")


class LskdOptions(WeightedSum):
    """kd between logits that are standardised per image."""

    temperature: float = Field(2.0, gt=0, description=TEMPERATURE)
    ce_weight: float = Field(0.1, ge=0, description=CE_WEIGHT)
    kd_weight: float = Field(9.0, ge=0, description=KD_WEIGHT)


class MlkdOptions(WeightedSum):
    """Several temperatures and relations, on a weak and a strong view of each image."""

    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        [2.0, 3.0, 4.0, 5.0, 6.0], min_length=1, description="temperatures of the softmax; the terms are summed"
    )
    strong_temperatures: list[float] = Field(
        [3.0, 4.0, 5.0],
        description="temperatures at which the strong view is compared; at the others, the weak view is compared twice",
    )
    ce_weight: float = Field(0.1, ge=0, description="weight of each view's cross-entropy")
    kd_weight: float = Field(0.9, ge=0, description="weight of all divergences and relations")
    weak_weight: float = Field(0.5, ge=0, description="factor of the weak view's divergences and relations")
    operations: int = Field(
        2, gt=0, le=100, description="strong view: operations of RandAugment, besides the recipe's crop and flip"
    )
    magnitude: int = Field(10, ge=0, le=30, description="strong view: magnitude of these operations")
    erase: Erase | None = Field(
        Erase(probability=1.0, scale=(0.001, 0.25), ratio=(1.0, 1.0)), description="strong view: a square set to 0"
    )

    @model_validator(mode="after")
    def _known_temperatures(self) -> "MlkdOptions":
        odd = sorted(set(self.strong_temperatures) - set(self.temperatures))
        if odd:
            raise ValueError(f"strong_temperatures: {odd[0]:g} is not one of the temperatures")
        return self


class MutualOptions(WeightedSum):
    """A copy of the teacher is trained with the student; each minimises ce_weight·CE + kd_weight·T²·KL(other ‖ own)."""

    temperature: float = Field(1.0, gt=0, description=TEMPERATURE)
    ce_weight: float = Field(1.0, ge=0, description=CE_WEIGHT)
    kd_weight: float = Field(1.0, ge=0, description="weight of the divergence from the other network")
    turns: Literal["together", "steps", "epochs"] = Field(
        "together",
        description="who learns: both in every step, or the student and the peer in alternate steps or epochs",
    )
    peer_lr: float | None = Field(
        None, gt=0, description="the peer's highest learning rate, on the recipe's LR schedule; default: the recipe's"
    )


class OtOptions(Strict):
    """Optimal transport between feature vectors: CE + weight·Sinkhorn divergence."""

    weight: float = Field(0.1, ge=0, description=WEIGHT)
    blur: float = Field(0.05, gt=0, description="square root of the entropic regularisation, in units of the features")
    sets: Literal["positions", "images"] = Field(
        "positions",
        description="what a set of vectors is; positions: those at all positions of an image's last maps; images: the "
        "pooled features of all images of the batch",
    )


class FitnetOptions(Strict):
    """A hint: weight·MSE(regressor(student's maps), teacher's maps) at one level."""

    weight: float = Field(100.0, ge=0, description=WEIGHT)
    level: int = Field(
        2,
        gt=0,
        description="number of the level, from 1, usually the end of the stage with this number, or of the hint point",
    )


class AtOptions(Strict):
    """Attention transfer: weight·Σ MSE between normalised maps of squared features, over the ends of all stages."""

    weight: float = Field(1000.0, ge=0, description=WEIGHT)


class NstOptions(Strict):
    """Neuron selectivity transfer: weight·Σ squared maximum mean discrepancy between channels, over all stages."""

    weight: float = Field(50.0, ge=0, description=WEIGHT)


class VidOptions(Strict):
    """Variational information distillation: weight·Σ −log q(teacher's maps | student's maps), over all stages."""

    weight: float = Field(1.0, ge=0, description=WEIGHT)


class ReviewkdOptions(Strict):
    """Knowledge review: min(epoch/warmup_epochs, 1)·weight·Σ hierarchical context losses of fused features."""

    weight: float = Field(1.0, ge=0, description="weight of the term; the authors use 0.6 to 8, depending on the pair")
    warmup_epochs: int = Field(20, ge=0, description="epochs over which the weight grows linearly from 0")


class SimkdOptions(Strict):
    """Reuse the teacher's classifier: weight·MSE between its last maps and the student's projected ones."""

    weight: float = Field(1.0, gt=0, description="weight of the term, which is the whole loss")
    factor: int = Field(2, gt=0, description="the projector's bottleneck has the teacher's channels divided by this")


class SrrlOptions(Strict):
    """The teacher's classifier on the student's features: weighted MSE between last features, and between outputs."""

    feature_weight: float = Field(1.0, ge=0, description="weight of the distance from the teacher's pooled features")
    regression_weight: float = Field(
        1.0, ge=0, description="weight of the distance between the teacher's classifier's outputs for both"
    )


class HintsOptions(Strict):
    """Hints at the cluster centres of the teacher's blocks: CE + weight·hint regression."""

    weight: float = Field(100.0, ge=0, description=WEIGHT)
    points: PointCount = Field(3, description=f"{CLUSTERS}; each has a hint at its centre")
    images: int = Field(512, ge=4, description=COMPARED)


class HintPointsOptions(Strict):
    """The levels at which the other losses of a sum compare features: cluster centres of the teacher's blocks."""

    points: PointCount = Field("auto", description=f"{CLUSTERS}; features are compared at the centre of each")
    images: int = Field(512, ge=4, description=COMPARED)


class FcfdOptions(WeightedSum):
    """Function consistency: CE + KL of the student and of two hybrid paths, and distances between feature maps."""

    WEIGHTS = ("ce_weight", "kd_weight", "path_weight", "appearance_weight")

    temperature: float = Field(4.0, gt=0, description=TEMPERATURE)
    ce_weight: float = Field(1.0, ge=0, description=CE_WEIGHT)
    kd_weight: float = Field(1.0, ge=0, description="weight of the student's divergence from the teacher")
    path_weight: float = Field(
        1.0, ge=0, description="weight of each hybrid path's divergence; its authors: 0.2 for wrn_40_2→wrn_16_2"
    )
    appearance_weight: float = Field(
        5.0, ge=0, description="weight of the distances between feature maps; its authors: 0.02 for resnet56→20"
    )
    warmup_epochs: int = Field(20, ge=0, description="epochs over which that weight grows linearly")


class BlockkdOptions(WeightedSum):
    """Block-wise logit distillation: CE + KL of the student and of stepping stones between it and the teacher."""

    WEIGHTS = ("ce_weight", "kd_weight", "stone_weight", "label_weight")

    temperature: float = Field(4.0, gt=0, description=TEMPERATURE)
    ce_weight: float = Field(1.0, ge=0, description=CE_WEIGHT)
    kd_weight: float = Field(1.0, ge=0, description="weight of the student's divergence from the teacher")
    stone_weight: float = Field(
        1.0, ge=0, description="weight of the last stone's divergence; half of it for the one before, and so on"
    )
    label_weight: float = Field(0.0, ge=0, description="the same for the stones' cross-entropy")


class FtOptions(Strict):
    """Factor transfer in RepDistiller's form: a paraphraser, then weight·mean |a_s − a_t|, a: attention of factors."""

    weight: float = Field(200.0, ge=0, description=WEIGHT)
    rate: PositiveFraction = Field(0.5, description="channels of the factors, as a share of the teacher's")
    pretrain: PositiveFraction = Field(0.125, description=PRETRAIN)


class FspOptions(Strict):
    """Flow of the solution procedure: a first phase of weight·Σ MSE of products of channels, then labels."""

    weight: float = Field(1.0, gt=0, description="weight of the first phase's loss")
    pretrain: PositiveFraction = Field(0.125, description=PRETRAIN)


class AbOptions(Strict):
    """Activation boundaries: a first phase of weight·Σ distances from the teacher's side of zero, then labels."""

    weight: float = Field(1.0, gt=0, description="weight of the first phase's loss")
    margin: float = Field(1.0, ge=0, description="distance from zero that the student's features should keep")
    pretrain: PositiveFraction = Field(0.125, description=PRETRAIN)


class CrdOptions(Strict):
    """Contrastive representation distillation: CE + weight·contrastive loss."""

    weight: float = Field(0.8, ge=0, description=WEIGHT)
    dim: int = Field(128, gt=0, le=16384, description="dimension of the embeddings that are compared")
    negatives: int = Field(
        16384, gt=0, le=1_000_000, description="images of other classes that each image is compared with"
    )
    temperature: float = Field(0.07, gt=0, description="divides the similarities")
    momentum: float = Field(0.5, ge=0, lt=1, description="weight of the old value when the memory bank is updated")


class SpOptions(Strict):
    """Similarity-preserving distillation: weight·‖G_s − G_t‖²/B², G the batch's row-normalised Gram matrix."""

    weight: float = Field(3000.0, ge=0, description=WEIGHT)


class CcOptions(Strict):
    """Correlation congruence between neighbouring images of the batch, of features embedded into `dim` numbers."""

    weight: float = Field(0.02, ge=0, description=WEIGHT)
    dim: int = Field(128, gt=0, le=16384, description="dimension of the embeddings")


class RkdOptions(Strict):
    """Relational distillation: distance_weight·L(distances) + angle_weight·L(angles), L smooth L1."""

    distance_weight: float = Field(25.0, ge=0, description="weight of the distances between all pairs")
    angle_weight: float = Field(50.0, ge=0, description="weight of the angles between all triples")


class PktOptions(Strict):
    """Probabilistic knowledge transfer: weight·mean of p_t·log(p_t/p_s), p from cosine similarities in the batch."""

    weight: float = Field(30000.0, ge=0, description=WEIGHT)


class KcdOptions(Strict):
    """Knowledge condensation: images on which the student is confident are dropped and mixed into others."""

    every: int = Field(40, gt=0, description="epochs between two rankings of the images")
    drop: Fraction = Field(0.05, description="share of all images that each ranking drops")
    keep: Annotated[float, Field(gt=0, le=1)] = Field(0.7, description="smallest share of the images that is kept")
    exponent: float = Field(
        0.03, ge=0, description="the mean entropy is multiplied by (times shown / every) to this power"
    )
    mixed: Fraction = Field(0.7, description="lowest weight of a kept image when mixed with a dropped one")
