"""Logits of a whole set, and the validation metrics of a training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.data.loader import UNSHARDED, ImageLoader, Shard
from iakd.training.distributed import all_gather


@torch.no_grad()
def predict(
    network: nn.Module, data: ImageLoader, batch_size: int, channels_last: bool = False, shard: Shard = UNSHARDED
) -> tuple[Tensor, Tensor]:
    """Return logits (N, classes) float32 and labels (N,) of a whole set, in evaluation mode; restores the mode.

    Each process computes its shard, and all return all logits.
    """
    training = network.training
    network.eval()
    part = shard.of(len(data))
    logits, done = torch.empty(0), 0
    for batch in data.plain(batch_size, channels_last, shard=shard):
        some = network(batch.images).float()
        if not done:  # in one piece: keeping each batch's would fragment the memory of large activations
            logits = some.new_empty((part.sizes[part.rank], some.shape[1]))
        logits[done : done + len(some)] = some
        done += len(some)
    network.train(training)
    return all_gather(logits, part) if part.count > 1 and part.divided else logits, data.labels


def validate(
    network: nn.Module, data: ImageLoader, batch_size: int, channels_last: bool = False, shard: Shard = UNSHARDED
) -> dict[str, float]:
    """Return `val_top1` (percent), `val_nll` (nats) and `val_balanced_accuracy` (percent): the mean accuracy of the
    classes that the set has.
    """
    logits, labels = predict(network, data, batch_size, channels_last, shard)
    right = logits.argmax(1) == labels
    nll = F.cross_entropy(logits.double(), labels)
    counts = labels.bincount().double()
    recalls = labels[right].bincount(minlength=len(counts))[counts > 0] / counts[counts > 0]
    return {
        "val_top1": 100.0 * right.double().mean().item(),
        "val_nll": nll.item(),
        "val_balanced_accuracy": 100.0 * recalls.mean().item(),
    }
