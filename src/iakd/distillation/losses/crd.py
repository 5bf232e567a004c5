"""Contrastive representation distillation: embeddings contrasted with those of images of other classes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config.method_options import CrdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.errors import UnsuitableSettings
from iakd.models.features import POOLED
from iakd.seeding import derive

EPSILON = 1e-7  # added to x + c, as in the authors' code


class CRDLoss(DistillationLoss):
    """CE + weight·(L_student + L_teacher), L the noise-contrastive loss `contrast`.

    Two linear layers embed the pooled features of student and teacher. L_student contrasts the student's embedding of
    an image with the teacher's memory bank, which has a row per training image: it should match the row of the same
    image (the positive), and not those of images of other classes (the negatives). L_teacher is the reverse.
    Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020, equations 18 and 19; values as in the
    authors' RepDistiller.

    Banks and normalisation constants are buffers, and negatives are a function of (seed, step). So a resumed training
    gives the same result.
    """

    student_features = POOLED
    teacher_features = POOLED
    cross_sample = True
    student_bank: Tensor  # (N, dim)
    teacher_bank: Tensor  # (N, dim)
    student_constant: Tensor  # Z, 0 until the first batch
    teacher_constant: Tensor

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: CrdOptions = context.options
        self.seed = context.seed
        dim, n = self.options.dim, len(context.data)
        student_size, teacher_size = context.pooled_sizes
        self.student = nn.Linear(student_size, dim)
        self.teacher = nn.Linear(teacher_size, dim)
        self.negatives = Negatives(context.data.labels, self.options.negatives)
        for network in ("student", "teacher"):
            self.register_buffer(f"{network}_bank", torch.empty(n, dim))
            self.register_buffer(f"{network}_constant", torch.zeros(()))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights of the layers, and the banks, uniformly such that the mean squared length of a row is 1."""
        super().initialise(generator)
        bound = (3 / self.options.dim) ** 0.5
        for bank in (self.student_bank, self.teacher_bank):
            bank.uniform_(-bound, bound, generator=generator)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        student = F.normalize(self.student(outputs.student.pooled.float()), dim=1)
        teacher = F.normalize(self.teacher(outputs.teacher.pooled.float()), dim=1)
        images = outputs.batch.indices
        generator = torch.Generator(images.device).manual_seed(derive("negatives", self.seed, outputs.step))
        chosen = torch.cat((images[:, None], self.negatives.draw(images, generator)), dim=1)
        temperature = self.options.temperature
        student_loss = contrast(student, self.teacher_bank, chosen, self.student_constant, temperature)
        teacher_loss = contrast(teacher, self.student_bank, chosen, self.teacher_constant, temperature)
        update_bank(self.student_bank, images, student.detach(), self.options.momentum)
        update_bank(self.teacher_bank, images, teacher.detach(), self.options.momentum)
        return {"crd": self.options.weight * (student_loss + teacher_loss)}


class Negatives(nn.Module):
    """Draws `count` images of other classes for each image, on the device and for a whole batch at once.

    `labels` (N,) are the classes of all images. The negatives of an image are distinct, unless fewer than `count`
    images are outside the largest class: then all negatives are drawn with replacement. Raises UnsuitableSettings if
    all images are of one class.
    """

    labels: Tensor
    order: Tensor  # (N,) positions of the images, sorted by class
    sizes: Tensor  # (classes,) images of each class
    starts: Tensor  # (classes,) where each class starts in `order`

    def __init__(self, labels: Tensor, count: int) -> None:
        super().__init__()
        self.count = count
        sizes = torch.bincount(labels)
        fewest_others = len(labels) - int(sizes.max())
        if fewest_others == 0:
            raise UnsuitableSettings(
                "crd contrasts images of different classes, but all training images are of one class"
            )
        self.replacement = fewest_others < count
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("starts", sizes.cumsum(0) - sizes, persistent=False)

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return positions (B, count) of negatives, uniformly drawn, for the images at positions `images` (B,)."""
        classes = self.labels[images]
        if not self.replacement:
            keys = torch.rand(len(images), len(self.labels), device=images.device, generator=generator)
            keys.masked_fill_(self.labels == classes[:, None], -1.0)
            return keys.topk(self.count, dim=1, sorted=False).indices
        # images of other classes are numbered in the order of the classes, without the image's class
        others = (len(self.labels) - self.sizes[classes])[:, None]
        uniform = torch.rand(len(images), self.count, device=images.device, dtype=torch.float64, generator=generator)
        number = (uniform * others).long()
        skipped = torch.where(number >= self.starts[classes][:, None], self.sizes[classes][:, None], 0)
        return self.order[number + skipped]


def contrast(anchors: Tensor, bank: Tensor, chosen: Tensor, constant: Tensor, temperature: float) -> Tensor:
    """Return the noise-contrastive loss, mean over the batch (equations 18 and 19, in the form of the authors' code).

    With x_ij = exp(a_i·m_j/τ)/Z, K negatives and c = K/N: −mean_i [log x_i0/(x_i0 + c) + Σ_k log c/(x_ik + c)].
    `anchors` (B, D) are the embeddings a, `bank` (N, D) the memories m, `chosen` (B, 1 + K) positions in the bank, the
    positive first. `constant` is the scalar Z; if it is still 0, it is set in place to N·mean exp(a_i·m_j/τ).
    """
    return _Contrast.apply(anchors, bank, chosen, constant, temperature)


class _Contrast(torch.autograd.Function):
    """Computes the gradient in the forward pass, so that the bank may change before the backward pass.

    Computing the products with the whole bank and picking the chosen ones takes a fraction of the time of gathering the
    chosen vectors: B·(1 + K) vectors would take a hundred times the memory of the bank of a usual data set.
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
        losses = torch.log1p((scores + EPSILON) / noise)  # of the negatives; log1p, as most are nearly 0
        losses[:, 0] = torch.log(total[:, 0] / scores[:, 0])
        slopes = scores.div_(total)  # d loss/d(a·m/τ): x/(x + c), and x/(x + c) − 1 for the positive
        slopes[:, 0] -= 1
        product_gradient = products.zero_().scatter_add_(1, chosen, slopes)
        ctx.save_for_backward(product_gradient @ bank / (batch * temperature))
        return losses.sum() / batch

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (anchor_gradient,) = ctx.saved_tensors
        return gradient * anchor_gradient, None, None, None, None


def update_bank(bank: Tensor, images: Tensor, embeddings: Tensor, momentum: float) -> None:
    """Move rows `images` (B,) of the bank towards `embeddings` (B, D) and scale them to length 1, in place."""
    bank[images] = F.normalize(momentum * bank[images] + (1 - momentum) * embeddings, dim=1)
