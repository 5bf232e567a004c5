"""Methods, data sources and networks that other installed packages add, found through Python entry points.

A package declares them in its pyproject.toml; docs/extending.md shows how:

    [project.entry-points."iakd.methods"]
    mymethod = "mypackage.settings:SPEC"
"""

from importlib import metadata
from typing import TypeVar

T = TypeVar("T")


def discover(group: str, kind: type[T], builtin: dict[str, T]) -> tuple[dict[str, T], dict[str, str]]:
    """The entries of `builtin` and those that packages declare in the entry-point `group`, all of type `kind`.

    Also returns, by name, why an entry cannot be used. It must not stop experiments that do not need it, so whoever
    looks up an unknown name shows the reason. A built-in name cannot be replaced.
    """
    found, broken = dict(builtin), dict[str, str]()
    for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name):
        try:
            value = entry.load()
        except Exception as error:  # whatever goes wrong while another package is imported
            broken[entry.name] = f"{entry.value} cannot be loaded ({type(error).__name__}: {error})"
            continue
        if entry.name in found:
            broken[entry.name] = f"{entry.value} uses the name of another {group.removeprefix('iakd.').rstrip('s')}"
        elif not isinstance(value, kind):
            broken[entry.name] = f"{entry.value} is no {kind.__name__}"
        else:
            found[entry.name] = value
    return found, broken


def import_object(reference: str) -> object:
    """The object that `package.module:name` refers to; its module is imported."""
    return metadata.EntryPoint(name="", value=reference, group="").load()
