"""Loss functions, in float32 whatever the autocast."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy in nats; logits (B, classes), labels (B,)."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def kd_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the batch (Hinton et al. 2015, section 2)."""
    ours = F.log_softmax(student.float() / temperature, dim=1)
    theirs = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
