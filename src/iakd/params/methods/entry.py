"""What the settings know of a method without importing torch."""

from dataclasses import dataclass, field
from typing import Literal

from iakd.params.base import Strict

Group = Literal["reference", "interactive", "logits", "features", "relations", "data"]


@dataclass(frozen=True)
class Entry:
    """A part of a method expression: a line on it, the section with its options, and what it goes with.

    `refuses` names other parts that it cannot be added to, and says why. With `alone`, a reason, it goes with none.
    With `joins` it changes what parts of that group do, so a sum with it needs one.
    `base` names the part that comes along where none of the sum looks at outputs, features or relations.
    """

    line: str
    group: Group
    options: type[Strict] | None = None
    needs_teacher: bool = True
    alone: str | None = None
    refuses: dict[str, str] = field(default_factory=dict)
    joins: Group | None = None
    base: str | None = None
