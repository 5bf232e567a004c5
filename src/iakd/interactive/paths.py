"""Which hybrid paths the two-path form of IAKD trains in a step (docs/method.md).

Draws are functions of (seed, epoch) only, so a resumed training needs no state.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from iakd.config import Schedule
from iakd.config.method_options import PathKind
from iakd.interactive.swap_sampler import EpochDraws
from iakd.seeding import derive
from iakd.training.timeline import Timeline

Path = tuple[bool, ...]
"""A way through both networks: for each block slot, whether the student's blocks are used, or else the teacher's."""


class PathSampler(EpochDraws):
    """Draws `count` paths for each step.

    Whatever the kind, a block is the student's with probability p_i(t) on average over the blocks:

        bernoulli            a_i = [u_i < p_i], u_i uniform, independent
        teacher_to_student   a_i = [u < q_i], one u for the path; q_i = p + 2·min(p, 1 − p)·(i/(L − 1) − ½) grows with
                             depth, p the mean of p_i. With p = ½ the first student block is uniform in 2…L.
        student_to_teacher   its mirror image: q_(L−1−i)
        any                  half of the paths bernoulli, a quarter each of the others

    A path whose blocks are all of one network is no hybrid, and is left out: with p = 1 there are no paths.
    """

    def __init__(
        self, kind: PathKind, schedule: Schedule, timeline: Timeline, slots: int, seed: int, count: int = 1
    ) -> None:
        super().__init__(schedule, timeline, slots, seed)
        self.kind = kind
        self.count = count
        self._drawn: NDArray[np.bool_] = np.zeros((0, count, slots), np.bool_)

    def drawn(self, epoch: int) -> NDArray[np.bool_]:
        """a_i of each path at each step of an epoch, (steps, count, slots)."""
        rng = np.random.Generator(np.random.PCG64(derive("paths", self.seed, epoch)))
        uniform = rng.random((self.timeline.steps_in(epoch), self.count, self.slots + 1))
        p = self.planned(epoch)[:, None, :]
        mean = p.mean(axis=2, keepdims=True)
        ramp = np.arange(self.slots) / max(1, self.slots - 1) - 0.5
        rising = mean + 2 * np.minimum(mean, 1 - mean) * ramp
        bernoulli = uniform[:, :, : self.slots] < p
        to_student = uniform[:, :, :1] < rising
        to_teacher = uniform[:, :, :1] < rising[:, :, ::-1]
        match self.kind:
            case "bernoulli":
                return bernoulli
            case "teacher_to_student":
                return to_student
            case "student_to_teacher":
                return to_teacher
            case "any":
                kind = uniform[:, :, -1:]
                return np.where(kind < 0.5, bernoulli, np.where(kind < 0.75, to_student, to_teacher))

    def paths(self, step: int) -> dict[Path, int]:
        """The hybrid paths of a step of the training, and how often each was drawn."""
        epoch, position = self.timeline.locate(step)
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, self.drawn(epoch)
        paths = Counter(tuple(path) for path in self._drawn[position].tolist())
        return {path: count for path, count in paths.items() if len(set(path)) > 1}
