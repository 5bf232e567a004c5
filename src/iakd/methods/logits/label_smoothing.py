"""Cross-entropy with smoothed labels (Szegedy et al. 2016, section 7)."""

from iakd.methods.part import Part, Setting


class LabelSmoothing(Part):
    """The cross-entropy's target is (1 − ε)·label + ε/classes."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.smoothing = setting.method.label_smoothing.epsilon
