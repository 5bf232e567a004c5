"""Methods whose authors train something before the training proper: here it is the first share of the same training.

So all methods have equally many steps, one learning-rate schedule and one checkpoint.
"""

from iakd.methods.part import Part, Setting


def first_steps(setting: Setting, share: float) -> int:
    """How many steps the first phase has."""
    return round(share * setting.timeline.total)


class FirstPhase(Part):
    """A part that looks at the teacher in the first share of the steps, without labels, and leaves the rest to them."""

    def __init__(self, setting: Setting, share: float) -> None:
        super().__init__(setting)
        self.first = first_steps(setting, share)

    def label_weight(self, step: int) -> float:
        return 0.0 if self.active(step) else self.ce_weight

    def active(self, step: int) -> bool:
        return step < self.first
