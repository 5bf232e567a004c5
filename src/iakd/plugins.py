"""Methods, data sources and networks of other installed packages, found through Python entry points.

A package declares them in its pyproject.toml; docs/extending.md shows how:

    [project.entry-points."iakd.methods"]
    mymethod = "mypackage.plugin:SPEC"

All that such a declaration needs is here. The rest of this project loads plugins while it is imported, so a module with
declarations must not import anything else of it.
"""

import logging
from collections.abc import Container
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from iakd.errors import UserError

T = TypeVar("T")
Group = Literal["reference", "interactive", "logits", "features", "relations", "data"]

log = logging.getLogger(__name__)


class Strict(BaseModel):
    """A section of settings that refuses unknown keys and cannot be changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class MethodSpec:
    """A method, alone or as a term of a sum such as iakd+kd.

    `loss` refers to its `DistillationLoss` as package.module:Class; without one it adds nothing to the cross-entropy.
    `refuses` names methods that it cannot be added to, and says why; with `alone`, a reason, it goes with none.
    `compares_levels` says that it compares features at several depths, or at one that is set, in `LossContext.levels`.
    With `joins` it changes what methods of that group do, or those that compare levels, so a sum with it needs one.
    `base` is the method that is added where no other one of the sum has a loss of its own.
    With `full_precision`, a reason, it cannot train a student of few bits; with `one_bit_width`, none of several.
    """

    summary: str
    group: Group
    loss: str | None = None
    options: type[Strict] | None = None
    needs_teacher: bool = True
    alone: str | None = None
    refuses: dict[str, str] = field(default_factory=dict)
    compares_levels: bool = False
    joins: Group | Literal["levels"] | None = None
    base: str | None = None
    one_bit_width: str | None = None
    full_precision: str | None = None

    def __post_init__(self) -> None:
        if self.options is not None:
            self.options()  # raises where an option has no default, which a method that is not used cannot have

    def changed_by(self, other: "MethodSpec") -> bool:
        """Return whether the method `other` changes what this one does."""
        if self.joins or not other.joins:
            return False
        return self.compares_levels if other.joins == "levels" else self.group == other.joins


@dataclass(frozen=True)
class SourceSpec:
    """A kind of data set: a one-line summary, its reader, and the optional settings of `dataset` that it uses.

    `reader` refers to a function, as package.module:name, that takes the `Dataset` settings and returns all images as
    `iakd.data.source_data.SourceData`. `settings` names those of the settings that only some sources use, such as
    `path` or `size`.
    """

    summary: str
    reader: str
    settings: frozenset[str] = frozenset()


@dataclass(frozen=True)
class NetworkFamily:
    """Architectures that one function builds, and the settings of `Network` that it uses (`width`, `shortcut`).

    `builder` refers to a function, as package.module:name, that takes the `Network` settings, the number of image
    channels and the number of classes, and returns an `iakd.models.Network`. It raises UserError for an `arch` that it
    does not know, unless `architectures` lists those it knows. A family of another package is called by the name of
    its entry point, and its networks are `arch: FAMILY/NAME`; `architectures` has the names.
    """

    builder: str
    architectures: tuple[str, ...] = ()
    settings: frozenset[str] = frozenset()


def discover(
    group: str, kind: type[T], builtin: dict[str, T], reserved: Container[str] = ()
) -> tuple[dict[str, T], dict[str, str]]:
    """Return `builtin` plus what packages declare in the entry-point `group`, all of type `kind`, by name.

    The second result gives, by name, the reason why an entry cannot be used. A broken entry must not stop experiments
    that do not need it, so the reason is shown when the name is looked up. A name that is taken, or
    `reserved`, keeps its meaning; a warning is logged.
    """
    found, broken = dict(builtin), dict[str, str]()
    for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name):
        if entry.name in found or entry.name in reserved:
            log.warning("%s: %s is ignored, because the name %r is taken", group, entry.value, entry.name)
            continue
        try:
            value = entry.load()
        except Exception as error:  # importing another package can fail in any way
            broken[entry.name] = _cannot_load(entry.value, error)
            continue
        if not entry.name.isidentifier():
            broken[entry.name] = "the name of an entry point must consist of letters, digits and underscores"
        elif not isinstance(value, kind):
            broken[entry.name] = f"{entry.value} is not a {kind.__name__}"
        else:
            found[entry.name] = value
    return found, broken


def import_object(reference: str) -> object:
    """Import and return the object that `package.module:name` refers to.

    Raises UserError if it is of another package and cannot be loaded.
    """
    try:
        return metadata.EntryPoint(name="", value=reference, group="").load()
    except Exception as error:
        if reference.startswith("iakd."):
            raise
        raise UserError(_cannot_load(reference, error)) from error


def _cannot_load(reference: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{reference} cannot be loaded ({type(error).__name__}: {reason})"
