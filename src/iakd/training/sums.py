"""What an epoch adds up: on the device, so that no step waits for the host."""

from typing import Any

import torch
from torch import Tensor


class Sums:
    """Sums over the images of an epoch: of each term of the loss, and of right answers."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.images = 0
        self._terms: dict[tuple[str, ...], Tensor] = {}  # float32 (terms,), by their names
        self._correct = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, names: tuple[str, ...], values: Tensor, right: Tensor, images: int) -> None:
        """Add a batch of so many images: means `values` (terms,), number of `right` answers. Changed in place."""
        if names not in self._terms:
            self._terms[names] = torch.zeros_like(values)
        self._terms[names].add_(values, alpha=images)
        self._correct.add_(right)

    def loss(self) -> float:
        """The sum of all terms; waits for the device."""
        return sum(total.sum().item() for total in self._terms.values())

    def means(self) -> dict[str, float]:
        """`loss`, `loss_<term>` and `train_top1` (percent), over the images so far; waits for the device."""
        totals: dict[str, float] = {}
        for names, values in self._terms.items():
            for name, value in zip(names, values.tolist(), strict=True):
                totals[f"loss_{name}"] = totals.get(f"loss_{name}", 0.0) + value
        means = {name: total / self.images for name, total in totals.items()}
        return {"loss": sum(means.values()), **means, "train_top1": 100.0 * self._correct.item() / self.images}

    def reset(self) -> None:
        """Begin an epoch."""
        self.images = 0
        for tensor in (*self._terms.values(), self._correct):
            tensor.zero_()

    def state_dict(self) -> dict[str, Any]:
        """All sums, for a checkpoint."""
        return {
            "images": self.images,
            "correct": self._correct,
            "terms": [[list(k), v] for k, v in self._terms.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.images = state["images"]
        self._correct.copy_(state["correct"])
        self._terms = {tuple(names): values.to(self.device) for names, values in state["terms"]}
