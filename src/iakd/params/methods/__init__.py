"""The ways to train a student: what each is called, its options, and which sums of them there are."""

from itertools import permutations
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from iakd.params.base import did_you_mean
from iakd.params.methods import data_side, features, interactive, logits, relations
from iakd.params.methods.entry import Entry, Group
from iakd.params.methods.interactive import Iakd, Schedule
from iakd.params.methods.logits import Kd, LabelSmoothing

__all__ = ["METHODS", "Entry", "Iakd", "Kd", "LabelSmoothing", "Method", "Schedule"]

METHODS: dict[str, Entry] = {
    **interactive.METHODS,
    **logits.METHODS,
    **features.METHODS,
    **relations.METHODS,
    **data_side.METHODS,
}

LOSSES = ("logits", "features", "relations")  # groups of methods that add a loss of their own


class Method(
    logits.LogitOptions,
    features.FeatureOptions,
    relations.RelationOptions,
    data_side.DataOptions,
    interactive.InteractiveOptions,
):
    """One way to train the student."""

    method: str = Field(
        description="a name that `iakd methods` lists, or a sum of several such as iakd+kd; default: the label"
    )
    init: Literal["random", "teacher"] = Field(
        "random", description="teacher: copy stem, head and first block of each group"
    )
    recipe: dict[str, Any] = Field({}, description="what differs from distill.recipe")

    @property
    def parts(self) -> list[str]:
        """The names that the expression adds up, and what comes along with them: `kcd` alone is kcd+kd."""
        names = self.method.split("+")
        known = [METHODS[name] for name in names if name in METHODS]
        base = next((entry.base for entry in known if entry.base), None)
        has_loss = any(entry.group in LOSSES and not entry.joins for entry in known)
        return names if base is None or has_loss else [*names, base]

    @property
    def group(self) -> Group:
        """Where a sum belongs: with those that swap, or else with its part whose group comes last."""
        groups = {METHODS[part].group for part in self.parts}
        return "interactive" if "interactive" in groups else max(groups, key=get_args(Group).index)

    @property
    def tuned(self) -> bool:
        """Whether the schedule comes from a study."""
        return "iakd" in self.parts and self.iakd.schedule == "tuned"

    @property
    def needs_teacher(self) -> bool:
        """Whether training looks at the teacher at all."""
        return self.init == "teacher" or any(METHODS[part].needs_teacher for part in self.parts)

    @model_validator(mode="after")
    def _known_parts(self) -> "Method":
        for part in self.parts:
            if part not in METHODS:
                raise ValueError(f"unknown method {part!r}{did_you_mean(part, METHODS)}; known: {', '.join(METHODS)}")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"{self.method!r} names a part twice")
        for part, other in permutations(self.parts, 2):
            reason = METHODS[part].alone or METHODS[part].refuses.get(other)
            if reason:
                raise ValueError(f"{self.method!r}: {part} cannot be added to {other}: {reason}")
        for part in self.parts:
            group = METHODS[part].joins
            joined = [name for name, entry in METHODS.items() if entry.group == group and not entry.joins]
            if group and not set(joined) & set(self.parts):
                raise ValueError(f"{self.method!r}: {part} changes other methods; add one of {', '.join(joined)}")
        for name in self.model_fields_set & set(METHODS):
            if name not in self.parts:
                raise ValueError(f"has options for {name!r}, which {self.method!r} does not use")
        return self

    def settings(self) -> dict[str, Any]:
        """What the training depends on: the options of the parts in use."""
        used = {"method", "init"} | (set(self.parts) & set(type(self).model_fields))
        return self.model_dump(mode="json", include=used)
