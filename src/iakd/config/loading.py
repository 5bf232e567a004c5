"""Load and validate the settings from params.yaml and the command line."""

import copy
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from iakd.config.base import cut, explain_all, section_of, shown, types_of
from iakd.config.experiment import Params
from iakd.errors import UserError

DEEPEST = 32  # sections within sections
LARGEST = 10_000_000  # values, counting those of an alias wherever it is used


class _Loader(yaml.SafeLoader):
    """YAML as users read it: 1e-3 is a number, a date is a text, and there is nothing that JSON does not have."""


PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in PLAIN
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.?|\.[0-9])[0-9_]*[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def params_text(params: Params) -> str:
    """Return checked settings as the text of a settings file, without those that have their defaults."""
    # every training writes its settings, and the C dumper is faster
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(params.model_dump(mode="json", exclude_unset=True), Dumper=dumper, sort_keys=False)


def read_yaml(text: str, origin: str) -> Any:
    """Return the content of YAML text. Raises UserError, naming `origin`, for what is not valid or has a key twice."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, 0, count(1))
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{origin}: {TOO_DEEP}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what a tag such as !!float cannot take
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        raise UserError(f"{origin} is not valid YAML: {reason}") from None


OTHER_BASE = re.compile(r"[-+]?(0[0-9_]+$|[0-9_]+:)")
TOO_DEEP = f"more than {DEEPEST} sections within each other, or one that contains itself"


def _check_nodes(node: yaml.Node, depth: int, counter: Iterator[int]) -> None:
    """Raise ValueError for what would be misread, such as a key that is there twice, and for endless content."""
    if depth > DEEPEST:
        raise ValueError(TOO_DEEP)
    if next(counter) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} values")
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")) and OTHER_BASE.match(node.value):
        raise ValueError(
            f"line {node.start_mark.line + 1}: {node.value} is a number to base 8 or 60 in YAML; write it without the "
            "leading 0 or the colon, or in quotes for a text"
        )
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _check_nodes(inner, depth + 1, counter)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, inner in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {shown(key.value)} is there twice")
                seen.add(key.value)
            _check_nodes(key, depth + 1, counter)
            _check_nodes(inner, depth + 1, counter)


def parse(raw: Any, origin: str) -> Params:
    """Validate settings that were read from `origin`. Raises UserError with one line for all errors."""
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: expected settings as 'key: value' lines")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{origin}: {explain_all(error, Params)}") from None


def read_settings(path: Path) -> Any:
    """Return the content of a settings file, not yet validated. Raises UserError if it cannot be read."""
    return _content(_text(path), path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; run in the folder of params.yaml, or name a file with --params"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _content(text: str, path: Path) -> Any:
    if path.suffix == ".json":  # which is YAML, too, but read in a fiftieth of the time
        with suppress(ValueError, RecursionError):
            return json.loads(text, object_pairs_hook=_without_repetition)
    return read_yaml(text, str(path))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")  # `read_yaml` says which one
    return found


def load(path: Path, changes: list[str] = []) -> Params:  # noqa: B006 - never changed
    """Read `path` and apply `key=value` changes (dotted keys, YAML values, list positions as numbers).

    Raises UserError with one line if the file or a change is invalid.
    """
    text = _text(path)
    if text in _remembered and not changes:
        return _remembered[text]
    raw = _content(text, path)
    for change in changes:
        raw = _apply(raw, change)
    return parse(raw, str(path) + (f" with {', '.join(map(cut, changes))}" if changes else ""))


_remembered: dict[str, Params] = {}  # by the text of the file


def remember(path: Path) -> None:
    """Load settings that processes will need that are forked from this one. It is they who report a mistake."""
    with suppress(UserError):
        _remembered[_text(path)] = load(path)


def load_teachers(path: Path, changes: list[str]) -> Params:
    """Like `load`, but the file needs neither students nor methods."""
    raw = read_settings(path)
    for change in changes:
        raw = _apply(raw, change)
    if isinstance(raw, dict):
        raw = {"students": [{"arch": "resnet8"}], "methods": {"scratch": {}}, **raw}
    return parse(raw, str(path))


def typed(value: Any, annotation: Any = Params) -> Any:
    """Give texts from a command line that leaves all values as texts the types that settings have where they stand.

    A setting that can be a text stays a text, whatever it looks like.
    """
    kinds = types_of(annotation)
    if isinstance(value, dict):
        section = section_of(annotation)
        by_name = {name: setting.annotation for name, setting in section.model_fields.items()} if section else {}
        others = next((get_args(kind)[1] for kind in kinds if get_origin(kind) is dict), Any)
        return {str(name): typed(inner, by_name.get(name, others)) for name, inner in value.items()}
    if isinstance(value, list):
        items = [one for kind in kinds if get_origin(kind) in (list, tuple) for one in get_args(kind)]
        return [typed(inner, Union[tuple(items)] if items else Any) for inner in value]  # noqa: UP007 - made at run time
    if not isinstance(value, str):
        return value
    literals = {type(one) for kind in kinds if get_origin(kind) is Literal for one in get_args(kind)}
    try:
        parsed = read_yaml(value, "")
    except UserError:
        return value
    if str in kinds or str in literals:
        return None if parsed is None and type(None) in kinds else value
    return parsed if parsed is None or isinstance(parsed, bool | int | float) else value


def _apply(raw: Any, change: str) -> Any:
    """Set one dotted key in `raw` and return it; missing sections are created.

    Sections on the way are copied: with YAML's aliases, one section can be in several places.
    """
    origin = f"--set {cut(change)}"
    key, separator, text = change.partition("=")
    if not separator or not re.fullmatch(r"[^.=]+(\.[^.=]+)*", key):
        raise UserError(f"{origin}: expected key=value, for instance --set distill.recipe.lr=0.1")
    if key.count(".") > DEEPEST:
        raise UserError(f"{origin}: {TOO_DEEP}")
    value = read_yaml(text, f"{origin}: the value")
    node: Any = raw
    *sections, last = key.split(".")
    for section in sections:
        place = _place(node, section, origin)
        inner = node.get(place) if isinstance(node, dict) else node[place]
        node[place] = copy.copy(inner) if isinstance(inner, dict | list) else {}
        node = node[place]
    node[_place(node, last, origin)] = value
    return raw


def _place(node: Any, part: str, origin: str) -> int | str:
    """Return a part of a dotted key as the key of a section, or as the position in a list."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise UserError(f"{origin}: there are no sections to change in this settings file")
    if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(node):
        raise UserError(f"{origin}: {cut(part)!r} is not a position in a list of {len(node)}")
    return int(part)


def schema_text() -> str:
    """Return the JSON schema of params.yaml, the content of workflow/schemas/params.schema.json."""
    schema = Params.model_json_schema()
    for definition in (
        schema,
        schema["$defs"]["Method"],
    ):  # `method` defaults to the label; a schema cannot express that
        definition["required"] = [name for name in definition.get("required", []) if name != "method"]
    labels = schema["properties"]["methods"]["patternProperties"]
    for pattern, target in labels.items():
        labels[pattern] = {"anyOf": [target, {"type": "null"}]}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"
