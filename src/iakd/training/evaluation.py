"""Logits and the two numbers a training watches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.data.batches import Batches


@torch.no_grad()
def predict(network: nn.Module, data: Batches, batch_size: int, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) float32 and labels (N,) of a whole set, in evaluation mode; the mode is put back."""
    training = network.training
    network.eval()
    logits, labels = [], []
    for batch in data.plain(batch_size, channels_last):
        logits.append(network(batch.images).float())
        labels.append(batch.labels)
    network.train(training)
    return torch.cat(logits), torch.cat(labels)


def validate(network: nn.Module, data: Batches, batch_size: int, channels_last: bool = False) -> dict[str, float]:
    """`val_top1` (percent) and `val_nll` (nats)."""
    logits, labels = predict(network, data, batch_size, channels_last)
    correct = (logits.argmax(1) == labels).double().mean()
    nll = F.cross_entropy(logits.double(), labels)
    return {"val_top1": 100.0 * correct.item(), "val_nll": nll.item()}
