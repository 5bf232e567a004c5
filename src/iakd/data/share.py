"""A batch, shared out among processes that train together."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise


@dataclass(frozen=True)
class Cut:
    """What process `rank` of `count` computes of a batch of `whole` images: a stretch of it, the first ones first.

    Where there are fewer images than processes the batch is not `divided`: each process computes all of it.
    """

    rank: int
    count: int
    whole: int

    @property
    def divided(self) -> bool:
        """Whether each process has other images."""
        return self.whole >= self.count

    @cached_property
    def sizes(self) -> list[int]:
        """How many images each process has; at most one more than any other."""
        if not self.divided:
            return [self.whole] * self.count
        ends = [rank * self.whole // self.count for rank in range(self.count + 1)]
        return [end - start for start, end in pairwise(ends)]

    @property
    def part(self) -> slice:
        """Where in the batch the own images are."""
        start = sum(self.sizes[: self.rank]) if self.divided else 0
        return slice(start, start + self.sizes[self.rank])

    @property
    def weight(self) -> float:
        """Of the mean over the own images: the sum over all processes is then the mean over the batch."""
        return self.sizes[self.rank] / self.whole if self.divided else 1 / self.count


@dataclass(frozen=True)
class Share:
    """The part that process `rank` of `count` has of every batch."""

    rank: int = 0
    count: int = 1

    def of(self, whole: int) -> Cut:
        """Of a batch of so many images."""
        return Cut(self.rank, self.count, whole)


ALL = Share()
