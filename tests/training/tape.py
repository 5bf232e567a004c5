"""CUDA graphs on the CPU: a step's operations are recorded and later replayed on the same memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(*trees: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor))


class Tape(TorchDispatchMode):
    """Records the operations of a block, then undoes them: recording changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], list[tuple[int, Tensor]]]] = []
        self._own: dict[int, UntypedStorage] = {}  # memory allocated by the block
        self._before: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}  # other memory, and its content before
        self._random = torch.get_rng_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for tensor in tensors(args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._own and storage._cdata not in self._before:
                self._before[storage._cdata] = (storage, storage.clone())
        outcome = func(*args, **kwargs)
        made = []
        for position, tensor in enumerate(tensors(outcome)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._own and storage._cdata not in self._before:
                self._own[storage._cdata] = storage
                made.append((position, tensor))
        self.calls.append((func, args, kwargs, made))
        return outcome

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for storage, content in self._before.values():
            storage.copy_(content)
        torch.set_rng_state(self._random)

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the operations on the current content of the same memory."""
        for func, args, kwargs, made in self.calls:
            outcome = list(tensors(func(*args, **kwargs)))
            for position, tensor in made:
                tensor.copy_(outcome[position])


class TapeRecorder:
    """A recorder for `StepGraphs` that needs no GPU."""

    def __init__(self) -> None:
        self.warm, self.recorded, self.replayed = 0, 0, 0

    def warm_up(self, work: Callable[[], None]) -> None:
        """As the real one does."""
        self.warm += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """As the real one does: nothing is changed."""
        tape = Tape()
        with tape:
            work()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay
