"""The loss of the labels, in float32 whatever the autocast."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float, other: Tensor | None = None, share: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy in nats; logits (B, classes), labels (B,).

    Of mixed images, share·CE(labels) + (1 - share)·CE(other): `other` and `share` (B,) are those of `Batch`.
    """
    logits = logits.float()
    if other is None or share is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    own, mixed_in = (
        F.cross_entropy(logits, each, label_smoothing=smoothing, reduction="none") for each in (labels, other)
    )
    return (share * own + (1 - share) * mixed_in).mean()
