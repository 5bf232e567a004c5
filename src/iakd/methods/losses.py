"""The loss of the labels, in float32 whatever the autocast."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy in nats; logits (B, classes), labels (B,)."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
