"""The block-wise warm start (`init: blockwise`): each student block learns what the teacher's blocks in its place do.

As in block-wise distillation (Wang et al., Progressive Blockwise Knowledge Distillation, IJCAI 2018; Li et al.,
DNA, CVPR 2020; Shen et al., Progressive Network Grafting, AAAI 2021), but all blocks at once, from one pass of the
frozen teacher. docs/method.md explains it.
"""

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from iakd.config import Compute, LrSchedule
from iakd.config.method_options import BlockwiseOptions
from iakd.data.loader import Batch, ImageLoader, steps_per_epoch
from iakd.distillation.distiller import Distiller, reestimate_statistics
from iakd.distillation.losses.maps import TINY
from iakd.experiment.run_dir import WarmStartRun
from iakd.interactive.hybrid import make_adapter, resized
from iakd.models import Network
from iakd.models.features import FeatureSpec, forward_features
from iakd.models.network import Frozen, initialise
from iakd.models.pairing import copy_weights, pair_blocks, weights_fit
from iakd.models.quantisation import start_lower_bits
from iakd.models.shapes import Shape, channels
from iakd.seeding import derive
from iakd.training.timeline import Timeline
from iakd.training.trainer import LossTerms, Objective, Trainer


def add_warm_start(trainer: Trainer, options: BlockwiseOptions, compute: Compute) -> None:
    """Let the training of a student begin with the block-wise warm start.

    Raises UserError for networks whose blocks cannot be paired.
    """
    distiller, recipe, data = trainer.objective, trainer.recipe, trainer.data
    assert isinstance(distiller, Distiller)
    changes = {
        "epochs": options.epochs,
        "optimizer": "adamw",  # the errors of blocks differ in scale, and the recipe's rate is for another loss
        "lr": options.lr,
        "lr_schedule": LrSchedule(kind="cosine"),
        "weight_decay": 0.0,
        "ema": None,
        "validate_every": options.epochs,
    }
    recipe = recipe.model_copy(update=changes)
    timeline = Timeline.of(recipe, steps_per_epoch(len(data), recipe.batch_size))
    run = WarmStartRun.of(trainer.run)
    objective = BlockwiseStart(distiller, data.image_shape, timeline, run.seed)
    compute = compute.model_copy(update={"channels_last": trainer.channels_last})  # both train the same tensors
    trainer.warm_start = Trainer(run, objective, data, trainer.validation, recipe, compute, processes=trainer.processes)


class BlockwiseStart(Objective):
    """Σ_i mean over images of ‖a_i(S_i(x_i)) − t_i‖² / ‖t_i‖², where t_i are the features after the teacher's group i.

        teacher (frozen)   stem ── t_0 ── T_1 ── t_1 ── T_2 ── t_2 ── … ── head ── logits
                             ·      ╲      ·      ╲      ·
        student            stem      └─── S_1      └─── S_2                     each learns what is above it

    The input x_i of a block is the teacher's t_{i−1}, where it has the shape that the student's block takes. Otherwise
    it is what the student's preceding block returns, without a gradient to it, so that a block never learns to use
    features that the student does not have; the adapter a_i (1×1 convolution and BatchNorm), which only compares, is
    discarded with this objective. Stem and head count as blocks: the head learns the logits. A stem whose counterpart
    in the teacher is empty (VGG) learns with the first block.

    What has the same weights and shapes as its counterpart starts as a copy of it: stem, head, and blocks whose group
    has a single block of the same kind. A student of several bit-widths learns at the highest, from which the others
    start. At the end, BatchNorm statistics are those of the student's own activations.
    """

    lr_setting = "blockwise.lr"

    def __init__(self, distiller: Distiller, image: Shape, timeline: Timeline, seed: int) -> None:
        super().__init__()
        student, teacher = distiller.student, distiller.teacher
        assert teacher is not None
        self.timeline = timeline
        self.network = student
        self.frozen_teacher = Frozen(teacher)
        self._teacher, self._hybrid = (teacher,), (distiller.hybrid,)  # not submodules of their own
        self.pairs = pair_blocks(teacher, student, image)
        first = self.pairs[0]
        self.has_stems = not any(isinstance(network.stem, nn.Identity) for network in (student, teacher))
        self._copy_what_fits()
        ends = channels(first.student.before), channels(first.teacher.before)
        self.stem_adapter = make_adapter(first, *ends) if self.has_stems else nn.Identity()
        self.adapters = nn.ModuleList(
            make_adapter(pair, channels(pair.student.after), channels(pair.teacher.after)) for pair in self.pairs
        )
        generator = torch.Generator().manual_seed(derive("adapters", seed))
        for adapter in (self.stem_adapter, self.adapters):
            initialise(adapter, generator)
            adapter.to(next(student.parameters()).device)

    @property
    def student(self) -> Network:
        """The network that is trained."""
        return self.network

    def forward(self, batch: Batch, step: int) -> tuple[LossTerms, Tensor]:
        """The relative errors of stem, blocks and head, and the logits (B, classes) that the student's head returns."""
        spec = FeatureSpec(frozenset(pair.teacher.last for pair in self.pairs), stem=True, logits=True)
        with torch.no_grad():
            taught = forward_features(self._teacher[0], batch.images, spec)
        assert taught.stem is not None and taught.logits is not None
        terms: LossTerms = {}
        features = self.network.enter(batch.images)
        if self.has_stems:
            terms["stem"] = relative_error(self.stem_adapter, features, taught.stem)
            same = self.pairs[0].student.before == self.pairs[0].teacher.before
            features = taught.stem if same else features.detach()
        for number, (pair, adapter) in enumerate(zip(self.pairs, self.adapters, strict=True), 1):
            output = features
            for block in pair.student.blocks:
                output = block(output)
            target = taught.blocks[pair.teacher.last]
            terms[f"block_{number}"] = relative_error(adapter, output, target)
            features = target if pair.student.after == pair.teacher.after else output.detach()
        logits = self.network.head(features)
        terms["head"] = relative_error(nn.Identity(), logits, taught.logits)
        return terms, logits

    def train(self, mode: bool = True) -> "BlockwiseStart":
        """Set the mode of all parts but the frozen ones: a stem or head that the method has copied and frozen."""
        super().train(mode)
        for part in (self.network.stem, self.network.head):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def graph_key(self, step: int) -> Hashable:
        """All steps are alike."""
        return "warm start"

    def finish(self, data: ImageLoader, batch_size: int) -> None:
        """Take the BatchNorm statistics from the student's own activations: its blocks have seen the teacher's."""
        self.train()
        start_lower_bits(self.network)
        reestimate_statistics(self.network, data, batch_size)
        if self._hybrid[0]:
            self._hybrid[0].copy_norms()

    def _copy_what_fits(self) -> None:
        """Copy the weights of stem, head and single blocks that compute the same function as the student's could."""
        student, teacher, first = self.network, self._teacher[0], self.pairs[0]
        candidates: list[tuple[nn.Module, nn.Module]] = [(teacher.head, student.head)]
        if first.student.before == first.teacher.before:
            candidates.append((teacher.stem, student.stem))
        for pair in self.pairs:
            if len(pair.student.blocks) == len(pair.teacher.blocks) == 1 and pair.same_shape:
                source, target = pair.teacher.blocks[0], pair.student.blocks[0]
                if source.kind is target.kind:
                    candidates.append((source, target))
        for theirs, own in candidates:
            if weights_fit(theirs, own):
                copy_weights(theirs, own, "")


def relative_error(adapter: nn.Module, features: Tensor, target: Tensor) -> Tensor:
    """Return the mean over images of ‖adapter(features) − target‖² / ‖target‖², float32.

    `features` (B, …) are brought to the channels and the size of `target` (B, …). For an image whose target is 0, the
    error is not divided.
    """
    adapted = resized(adapter, features, target.shape[2:]) if features.dim() == 4 else adapter(features)
    with torch.autocast(features.device.type, enabled=False):
        target = target.float().flatten(1)
        error = (adapted.float().flatten(1) - target).square().sum(1)
        norm = target.square().sum(1)
        return (error / torch.where(norm > TINY, norm, 1.0)).mean()
