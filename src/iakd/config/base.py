"""Types and helpers that all sections of the settings share."""

import difflib
import re
import types
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticKnownError

from iakd.plugins import Strict as Strict

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
MOST_PROCESSES = 1024  # and threads
LONGEST_NAME = 100  # two of them and a seed are one folder, and file systems allow 255 bytes
# Names of folders, so not only dots.
NAME = r"^\.*[A-Za-z0-9_][A-Za-z0-9_.]*$"  # '-' joins two names
LABEL = r"^\.*[A-Za-z0-9_+-][A-Za-z0-9_.+-]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME)]
Label = Annotated[str, Field(pattern=LABEL, max_length=LONGEST_NAME)]
IN_WORDS = {NAME: "A–Z, a–z, 0–9, _ and .", LABEL: "A–Z, a–z, 0–9, _, ., + and -"}
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _known_home(text: str) -> str:
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{cut(text)!r}: this machine has no such user") from None
    return text


FilePath = Annotated[str, Field(min_length=1), AfterValidator(_known_home)]  # `~` and `~user` are home folders


def _distinct(values: list[Any]) -> list[Any]:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise ValueError(f"names {value!r} twice")
    return values


Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
Labels = Annotated[list[Label], AfterValidator(_distinct)]


def _amount(value: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise PydanticKnownError("int_type")
    if not value > 0:
        raise PydanticKnownError("greater_than", {"gt": 0})
    if isinstance(value, float) and value >= 1:
        raise ValueError("must be a whole number of images, or a share below 1")
    return value


Amount = Annotated[  # a number of images, or a share of them
    Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)], BeforeValidator(_amount)
]


def _switch(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


# YAML reads a plain on or off as true or false.
AutoOnOff = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]


def types_of(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows, without their bounds."""
    if get_origin(annotation) is Annotated:
        return types_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for one in get_args(annotation) for found in types_of(one)]
    return [annotation]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation allows, or None."""
    return next((one for one in types_of(annotation) if isinstance(one, type) and issubclass(one, BaseModel)), None)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `changes`; nested sections are merged key by key."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def plain(model: BaseModel) -> dict[str, Any]:
    """Return all settings of a section by name, sections as dictionaries, without what a serialiser would leave out."""
    return {name: plain(value) if isinstance(value, BaseModel) else value for name, value in model}


def did_you_mean(word: str, known: Any) -> str:
    """Return ' (did you mean …?)' if a known name is similar, else an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def cut(text: str) -> str:
    """Return a text of the user's as a message shows it: only the start of a long one."""
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"


def shown(value: Any) -> str:
    """Return a value as a message shows it: its repr, or the start of it."""
    try:
        return cut(repr(value))
    except ValueError:  # an integer of more than 4,300 digits
        return "a number of thousands of digits"


LISTED = 20  # mistakes that are told at once
RENAMED = {"solo": "student_only"}  # settings of earlier versions → their present names


UNION_TAG = re.compile(r"(int|float|str|bool)$|(function-\w+|literal|list|tuple|dict|constrained-\w+)\[")


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first validation error as one line, with a similar known name for an unknown key."""
    first, *others = _mistakes(error, model)
    return f"{first} (and {len(others)} more)" if others else first


def explain_all(error: ValidationError, model: type[BaseModel]) -> str:
    """Return all validation errors as one line, as `explain` does; several are numbered."""
    found = _mistakes(error, model)
    if len(found) == 1:
        return found[0]
    more = f"; … ({len(found) - LISTED} more)" if len(found) > LISTED else ""
    numbered = "; ".join(f"({number}) {one}" for number, one in enumerate(found[:LISTED], 1))
    return f"{len(found)} mistakes: {numbered}{more}"


def _mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return each validation error as one line; of a union of types, only that of the alternative that fits best."""
    tags = _schema(model).get("$defs", {})  # pydantic adds the alternatives of a union to the path
    by_path: dict[tuple[int | str, ...], Any] = {}
    for one in error.errors(include_url=False):
        path = tuple(part for part in one["loc"] if part not in tags and not UNION_TAG.match(str(part)))
        around = [known for known in by_path if known == path[: len(known)] or path == known[: len(path)]]
        if all(len(known) < len(path) for known in around):  # within the same union, what is deeper says more
            by_path = {known: what for known, what in by_path.items() if known not in around} | {path: one}
    found = []
    for path, one in by_path.items():
        where = ".".join(map(cut, map(str, path)))
        what = one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            key = str(path[-1])
            what = f"unknown key{did_you_mean(RENAMED.get(key, key), _keys(model, list(path[:-1])))}"
        elif one["type"] == "string_pattern_mismatch" and one["ctx"]["pattern"] in IN_WORDS:
            what = (
                f"may consist of {IN_WORDS[one['ctx']['pattern']]} only, with more than dots, got {shown(one['input'])}"
            )
        elif one["type"] != "value_error" and not isinstance(one["input"], dict | list):
            what += f", got {shown(one['input'])}"
        found += [f"{where}: {line}" if where else line for line in what.split("\n")]
    return found


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _keys(model: type[BaseModel], path: list[int | str]) -> list[str]:
    """Return the known keys of the section at `path` below `model`."""
    schema = _schema(model)
    node: dict[str, Any] = schema
    for part in path:
        node = _resolve(node, schema)
        by_pattern = next(iter(node.get("patternProperties", {}).values()), None)
        node = node.get("properties", {}).get(part) or by_pattern or node.get("items") or {}
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: Any, schema: dict[str, Any]) -> dict[str, Any]:
    for choice in [node, *(node.get("anyOf", []) if isinstance(node, dict) else [])]:
        if isinstance(choice, dict) and "$ref" in choice:
            return schema["$defs"][choice["$ref"].rsplit("/", 1)[-1]]
    return node if isinstance(node, dict) else {}
