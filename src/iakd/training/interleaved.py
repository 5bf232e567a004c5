"""Several trainings in one process, a step of each in turn; each ends with the bits that it would have alone.

On a GPU every training has a stream of its own, so that small kernels of several run at the same time, and what Python
does between two steps of one is hidden behind the steps of the others. Where a training waits for the device (for an
epoch's sums, for a validation) it waits for its own stream, and the others' queues are full meanwhile.
"""

import contextlib
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import TypeVar

import torch

from iakd.processes import Interrupt
from iakd.training.trainer import Trainer, TrainingResult

T = TypeVar("T")


def fit_interleaved(trainings: Sequence[Trainer]) -> list[TrainingResult | Exception]:
    """Train all of them to the end; returns in their order what `Trainer.fit` would return, or what it would raise.

    One that fails takes nothing from the others. At a signal all save their state, then KeyboardInterrupt is raised.
    """
    with Interrupt() as interrupt:
        return in_turn([training.steps(interrupt) for training in trainings], trainings[0].device, interrupt)


def in_turn(
    works: Sequence[Generator[None, None, T]], device: torch.device, interrupt: Interrupt
) -> list[T | Exception]:
    """Advance each work by a step in turn until all have ended; returns what each returned or raised.

    Where one raises KeyboardInterrupt, the others see it in `interrupt`, and it is raised when all have ended.
    """
    places = [_Slot(device) if len(works) > 1 else contextlib.nullcontext() for _ in works]
    ended: dict[int, T | Exception] = {}
    stopped: list[KeyboardInterrupt] = []
    left = dict(enumerate(works))
    while left:
        for number, work in list(left.items()):
            try:
                with places[number]:
                    next(work)
                continue
            except StopIteration as end:
                ended[number] = end.value
            except Exception as error:
                ended[number] = error
            except KeyboardInterrupt as error:
                interrupt.name = interrupt.name or "KeyboardInterrupt"
                stopped.append(error)
            del left[number]
    if stopped:
        raise stopped[0]
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was made on a stream of its own may be used on any from here on
    return [ended[number] for number in range(len(works))]


class _Slot(contextlib.AbstractContextManager[None]):
    """What each of several works has for itself: torch's global generators, which dropout draws from, and a stream."""

    def __init__(self, device: torch.device) -> None:
        self._states = _States(device)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # networks and data were put there on this one

    def __enter__(self) -> None:
        self._states.swap()
        self._on_stream = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        self._on_stream.__enter__()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._on_stream.__exit__(kind, error, trace)
        self._states.swap()


class _States:
    """States of torch's global generators; `swap` exchanges them with those that are in use."""

    def __init__(self, device: torch.device) -> None:
        self._cpu = torch.get_rng_state()
        self._generator: torch.Generator | None = None
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generator = torch.cuda.default_generators[index]
            self._gpu = self._generator.clone_state()

    def swap(self) -> None:
        """The GPU's is exchanged as an object: graphs that were recorded with it go on drawing from it."""
        cpu = torch.get_rng_state()
        torch.set_rng_state(self._cpu)
        self._cpu = cpu
        if self._generator:
            gpu = self._generator.graphsafe_get_state()
            self._generator.graphsafe_set_state(self._gpu)
            self._gpu = gpu
