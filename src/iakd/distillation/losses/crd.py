"""Contrastive representation distillation (Tian, Krishnan and Isola 2020), as in the authors' RepDistiller.

A network's embedding of an image is to be told from noise: it must fit what the other network remembers of the same
image (the positive) and none of what it remembers of images of other classes (the negatives).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.errors import UserError
from iakd.models.features import POOLED
from iakd.seeding import derive

EPSILON = 1e-7  # of the authors' code


class CRDLoss(DistillationLoss):
    """weight·(L_student + L_teacher) beside CE.

    L_student contrasts the student's embeddings with the bank of the teacher's, L_teacher the other way round. Banks
    and normalisation constants are buffers, negatives a function of (seed, step): a resumed training is the same.
    """

    student_features = POOLED
    teacher_features = POOLED
    cross_sample = True
    student_bank: Tensor  # (N, dim), like the teacher's
    teacher_bank: Tensor
    student_constant: Tensor  # Z, 0 until the first batch
    teacher_constant: Tensor

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        self.seed = context.seed
        dim, n = self.options.dim, len(context.data)
        ours, theirs = context.pooled_sizes
        self.student = nn.Linear(ours, dim)
        self.teacher = nn.Linear(theirs, dim)
        self.negatives = Negatives(context.data.labels, self.options.negatives)
        for network in ("student", "teacher"):
            self.register_buffer(f"{network}_bank", torch.empty(n, dim))
            self.register_buffer(f"{network}_constant", torch.zeros(()))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the layers' weights, and the banks uniformly so that a row's length is 1 on average."""
        super().initialise(generator)
        bound = (3 / self.options.dim) ** 0.5
        for bank in (self.student_bank, self.teacher_bank):
            bank.uniform_(-bound, bound, generator=generator)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        ours = F.normalize(self.student(outputs.student.pooled.float()), dim=1)
        theirs = F.normalize(self.teacher(outputs.teacher.pooled.float()), dim=1)
        images = outputs.batch.indices
        generator = torch.Generator(images.device).manual_seed(derive("negatives", self.seed, outputs.step))
        chosen = torch.cat((images[:, None], self.negatives.draw(images, generator)), dim=1)
        temperature = self.options.temperature
        student_loss = contrast(ours, self.teacher_bank, chosen, self.student_constant, temperature)
        teacher_loss = contrast(theirs, self.student_bank, chosen, self.teacher_constant, temperature)
        remember(self.student_bank, images, ours.detach(), self.options.momentum)
        remember(self.teacher_bank, images, theirs.detach(), self.options.momentum)
        return {"crd": self.options.weight * (student_loss + teacher_loss)}


class Negatives(nn.Module):
    """Draws images of other classes, on the device and for a whole batch at once.

    `labels` (N,). An image's `count` negatives are all different, unless an image of the largest class has fewer than
    that: then every image's are drawn with replacement. Raises UserError where all images are of one class.
    """

    labels: Tensor
    order: Tensor  # (N,) positions of the images, class by class
    sizes: Tensor  # (classes,)
    starts: Tensor  # (classes,) of each class in `order`

    def __init__(self, labels: Tensor, count: int) -> None:
        super().__init__()
        self.count = count
        sizes = torch.bincount(labels)
        fewest = len(labels) - int(sizes.max())
        if fewest == 0:
            raise UserError("crd contrasts images of different classes, and all training images are of one")
        self.replacement = fewest < count
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("starts", sizes.cumsum(0) - sizes, persistent=False)

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Positions (B, count) of negatives for the images at positions `images` (B,), uniform among all there are."""
        own = self.labels[images]
        if not self.replacement:
            keys = torch.rand(len(images), len(self.labels), device=images.device, generator=generator)
            keys.masked_fill_(self.labels == own[:, None], -1.0)
            return keys.topk(self.count, dim=1, sorted=False).indices
        # numbered with its own class left out, in the order of the classes
        others = (len(self.labels) - self.sizes[own])[:, None]
        uniform = torch.rand(len(images), self.count, device=images.device, dtype=torch.float64, generator=generator)
        number = (uniform * others).long()
        skipped = torch.where(number >= self.starts[own][:, None], self.sizes[own][:, None], 0)
        return self.order[number + skipped]


def contrast(anchors: Tensor, bank: Tensor, chosen: Tensor, constant: Tensor, temperature: float) -> Tensor:
    """Noise-contrastive loss (equations 18 and 19 of the paper, in the form of its code), mean over the batch.

    With x_ij = exp(a_i·m_j/τ)/Z, K negatives and c = K/N: −mean_i [log x_i0/(x_i0 + c) + Σ_k log c/(x_ik + c)].
    `anchors` (B, D) are embeddings a, `bank` (N, D) memories m, `chosen` (B, 1 + K) positions in the bank, the positive
    first. `constant` is Z, a scalar; where it is still 0 it is estimated from this batch, as N·mean exp, in place.
    """
    return _Contrast.apply(anchors, bank, chosen, constant, temperature)


class _Contrast(torch.autograd.Function):
    """With its gradient worked out in the forward pass, so that the bank may change before the backward pass.

    Products with the whole bank, of which the drawn ones are picked, take a fraction of the time of picking the drawn
    vectors: B·(1 + K) of them would be a hundred times as much memory as the bank of a usual data set.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, bank: Tensor, chosen: Tensor, constant: Tensor, temperature: float
    ) -> Tensor:
        batch, n = len(anchors), len(bank)
        noise = (chosen.shape[1] - 1) / n
        products = anchors @ bank.T
        scores = (products.gather(1, chosen) / temperature).exp_()
        constant.copy_(torch.where(constant > 0, constant, scores.mean() * n))
        scores /= constant
        total = scores + (noise + EPSILON)
        losses = torch.log1p((scores + EPSILON) / noise)  # of negatives; most are nearly 0, so log1p
        losses[:, 0] = torch.log(total[:, 0] / scores[:, 0])
        slopes = scores.div_(total)  # of the losses by a·m/τ; of the positive's, x/(x + c) − 1
        slopes[:, 0] -= 1
        by_product = products.zero_().scatter_add_(1, chosen, slopes)
        ctx.save_for_backward(by_product @ bank / (batch * temperature))
        return losses.sum() / batch

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (by_anchors,) = ctx.saved_tensors
        return gradient * by_anchors, None, None, None, None


def remember(bank: Tensor, images: Tensor, embeddings: Tensor, momentum: float) -> None:
    """Move rows `images` (B,) of the bank towards `embeddings` (B, D), and make them of length 1 again; in place."""
    bank[images] = F.normalize(momentum * bank[images] + (1 - momentum) * embeddings, dim=1)
