"""Methods, data sources and networks of other installed packages, found through Python entry points.

A package declares them in its pyproject.toml; docs/extending.md shows how:

    [project.entry-points."iakd.methods"]
    mymethod = "mypackage.plugin:SPEC"

All that such a declaration needs is here. The rest of this project loads plugins while it is imported, so a module with
declarations must not import anything else of it.
"""

import importlib.util
import logging
import math
import re
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

from iakd.errors import UserError

T = TypeVar("T")
Group = Literal["reference", "interactive", "logits", "features", "relations", "data"]

log = logging.getLogger(__name__)


LARGEST_INTEGER = 2**31 - 1
LARGEST, SMALLEST = 1e30, 1e-30  # of numbers other than 0: float32 can hold them and their products with most others


class Strict(BaseModel):
    """A section of settings that refuses unknown keys and cannot be changed once read.

    It also refuses what no setting of any section can use: true and false for numbers, numbers that are infinite, not a
    number or far beyond float32, and texts that no file name or file can hold.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, data: Any) -> Any:
        """Refuse true, which pydantic would read as 1."""
        for name in sorted(_numbers(cls) & data.keys()) if isinstance(data, dict) else ():
            value = data[name]
            listed = value if isinstance(value, list | tuple) else [value]
            for switch in (one for one in listed if isinstance(one, bool)):
                raise ValueError(
                    f"{name}: got {str(switch).lower()}, which is neither a number nor a text; YAML reads yes, no, on "
                    "and off as true and false, unless they are in quotes"
                )
        return data

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for name in self.model_fields_set:
            problem = next(_problems(getattr(self, name)), None)
            if problem:
                raise ValueError(f"{name}: {problem}")
        return self


def _problems(value: Any) -> Iterator[str]:
    """What is wrong with a value and those in it; sections have checked their own."""
    match value:
        case bool():
            pass
        case int() if abs(value) > LARGEST_INTEGER:
            yield f"must be at most {LARGEST_INTEGER:,}"
        case float() if not math.isfinite(value):
            yield "must be a finite number"
        case float() if value and not SMALLEST <= abs(value) <= LARGEST:
            yield f"must be 0, or from {SMALLEST:g} to {LARGEST:g} in size, got {value:g}"
        case str() if re.search("[\0\ud800-\udfff]", value):
            yield f"contains a character that no file can hold, got {value[:80]!r}"
        case dict():
            for key, inner in value.items():
                yield from _problems(key)
                yield from _problems(inner)
        case list() | tuple():
            for inner in value:
                yield from _problems(inner)


@cache
def _numbers(section: type[BaseModel]) -> set[str]:
    """The settings of a section that are numbers, or may be, and cannot be true or false."""
    found = {name: set(_leaves(setting.annotation)) for name, setting in section.model_fields.items()}
    return {name for name, types in found.items() if types & {int, float} and not types & {bool, Any}}


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types in an annotation; of a literal, those of its values."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from map(type, inner)
    elif origin is None:
        yield annotation
    else:
        for one in inner[:1] if origin is Annotated else inner:
            yield from _leaves(one)


@dataclass(frozen=True)
class MethodSpec:
    """A method, alone or as a term of a sum such as iakd+kd.

    `loss` refers to its `DistillationLoss` as package.module:Class; without one it adds nothing to the cross-entropy.
    `refuses` names methods that it cannot be added to, and says why; with `alone`, a reason, it goes with none.
    `compares_levels` says that it compares features at several depths, or at one that is set, in `LossContext.levels`.
    With `joins` it changes what methods of that group do, or those that compare levels, so a sum with it needs one.
    `base` is the method that is added where no other one of the sum has a loss of its own.
    With `full_precision`, a reason, it cannot train a student of few bits; with `one_bit_width`, none of several.
    `cites` names its sources, for the report: keys of iakd/reporting/references.bib, or whole BibTeX entries.
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
    cites: tuple[str, ...] = ()

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


def look_into_folder(reference: str, where: str) -> None:
    """Let Python find the module of `package.module:name` in the working folder, too; nothing is imported.

    Raises UserError, which begins with `where`, if it is neither there nor installed, or if its name is taken.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # at the end: a file here must not take the place of a library's module
    module = reference.partition(":")[0]
    top, *rest = module.split(".")
    here = Path.cwd() / top
    try:
        found = importlib.util.find_spec(top)
    except ValueError:  # a module without a specification, such as __main__
        found = None
    places = [] if found is None else [found.origin, *(found.submodule_search_locations or [])]
    roots = [Path(place).resolve() for place in places if place]
    if here.with_suffix(".py").is_file() or here.is_dir():
        if not any(root.is_relative_to(Path.cwd().resolve()) for root in roots):
            raise UserError(f"{where} {reference}: the name {top} is that of an installed module: rename yours")
        file = here.joinpath(*rest)
        if not (file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()):
            raise UserError(f"{where} {reference}: there is no module {module} in {Path.cwd()}")
    elif found is None:
        raise UserError(f"{where} {reference}: there is no module {top}, neither in {Path.cwd()} nor installed")


def _cannot_load(reference: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{reference} cannot be loaded ({type(error).__name__}: {reason})"
