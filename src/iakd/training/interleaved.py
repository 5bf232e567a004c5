"""Several trainings in one process, taking turns step by step; each ends with the same bits as on its own.

On a GPU each training has its own stream, so that small kernels of several run at the same time, and the Python work
between two steps of one is hidden behind the steps of the others. A training that waits for the device, for an epoch's
sums or a validation, waits for its own stream only, and meanwhile the others' queues are full.
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
    """Train all to the end; return, in their order, what `Trainer.fit` would return or raise.

    A failing training does not affect the others. At a signal all save their state, then KeyboardInterrupt is raised.
    """
    with Interrupt() as interrupt:
        return in_turn([training.steps(interrupt) for training in trainings], trainings[0].device, interrupt)


def in_turn(
    works: Sequence[Generator[None, None, T]], device: torch.device, interrupt: Interrupt
) -> list[T | Exception]:
    """Advance each work by one step in turn until all have ended; return what each returned or raised.

    When one raises KeyboardInterrupt, the others see it in `interrupt`, and it is raised once all have ended.
    """
    contexts = [_TrainingContext(device) if len(works) > 1 else contextlib.nullcontext() for _ in works]
    ended: dict[int, T | Exception] = {}
    stopped: list[KeyboardInterrupt] = []
    running = dict(enumerate(works))
    while running:
        for number, work in list(running.items()):
            try:
                with contexts[number]:
                    next(work)
                continue
            except StopIteration as end:
                ended[number] = end.value
            except Exception as error:
                ended[number] = error
            except KeyboardInterrupt as error:
                interrupt.name = interrupt.name or "KeyboardInterrupt"
                stopped.append(error)
            del running[number]
    if stopped:
        raise stopped[0]
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # from here on, results may be used on any stream
    return [ended[number] for number in range(len(works))]


class _TrainingContext(contextlib.AbstractContextManager[None]):
    """One training's own CUDA stream and states of torch's global generators, which dropout draws from."""

    def __init__(self, device: torch.device) -> None:
        self._states = _GeneratorStates(device)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which copied networks and data to the device

    def __enter__(self) -> None:
        self._states.swap()
        self._on_stream = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        self._on_stream.__enter__()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._on_stream.__exit__(kind, error, trace)
        self._states.swap()


class _GeneratorStates:
    """States of torch's global generators; `swap` exchanges them with the current ones."""

    def __init__(self, device: torch.device) -> None:
        self._cpu = torch.get_rng_state()
        self._generator: torch.Generator | None = None
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generator = torch.cuda.default_generators[index]
            self._gpu = self._generator.clone_state()

    def swap(self) -> None:
        """Exchange the states. The GPU's is exchanged as an object: recorded graphs keep drawing from theirs."""
        cpu = torch.get_rng_state()
        torch.set_rng_state(self._cpu)
        self._cpu = cpu
        if self._generator:
            gpu = self._generator.graphsafe_get_state()
            self._generator.graphsafe_set_state(self._gpu)
            self._gpu = gpu
