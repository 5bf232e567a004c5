"""What processes that share their batches tell each other in every step."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from iakd.data.batches import Batch
from iakd.training.gradients import Gradients
from iakd.training.synchronised import Switch, synchronised


class Exchange:
    """A step of all processes together is, but for rounding, that of one process with the whole batch."""

    def __init__(self, gradients: Gradients, switch: Switch) -> None:
        self._gradients = gradients
        self._switch = switch

    def begin(self, batch: Batch) -> None:
        """To be called before the forward pass."""
        assert batch.cut is not None
        self._switch.on = batch.cut.divided

    def backward(self, values: Tensor, right: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The backward pass of the sum of `values` (terms,), means over the own images; gradients become the batch's.

        Gives those means and the number of right answers, `right`, of the whole batch, too.
        """
        cut = batch.cut
        assert cut is not None
        (values.sum() * cut.weight).backward()
        self._switch.on = False
        answers = right.float() if cut.divided else right / cut.count
        sums = self._gradients.finish(torch.cat([values.detach() * cut.weight, answers[None]]))
        return sums[:-1], sums[-1].round().long()


@contextlib.contextmanager
def exchanging(modules: Iterable[nn.Module], parameters: Iterable[nn.Parameter]) -> Iterator[Exchange]:
    """While the block runs, `modules` see the batches of all processes, and gradients of `parameters` are added up.

    Raises UserError where a layer cannot.
    """
    with synchronised(modules) as switch, contextlib.closing(Gradients(parameters)) as gradients:
        yield Exchange(gradients, switch)
