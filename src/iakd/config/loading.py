"""Load and validate the settings from params.yaml and the command line."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from iakd.config.base import explain
from iakd.config.experiment import Params
from iakd.errors import UserError


def parse(raw: Any, origin: str) -> Params:
    """Validate settings that were read from `origin`. Raises UserError with one line for the first error."""
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: expected settings as 'key: value' lines")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{origin}: {explain(error, Params)}") from None


def load(path: Path, changes: list[str] = []) -> Params:  # noqa: B006 - never changed
    """Read `path` and apply `key=value` changes (dotted keys, YAML values, list positions as numbers).

    Raises UserError with one line if the file or a change is invalid.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; run in the folder of params.yaml, or name a file with --params"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    for change in changes:
        raw = _apply(raw, change)
    return parse(raw, str(path) + (f" with {', '.join(changes)}" if changes else ""))


def _apply(raw: Any, change: str) -> Any:
    """Set one dotted key in `raw` and return it; missing sections are created."""
    key, separator, text = change.partition("=")
    if not separator or not re.fullmatch(r"[^.=]+(\.[^.=]+)*", key):
        raise UserError(f"--set {change}: expected key=value, for instance --set distill.recipe.lr=0.1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {change}: the value is not valid YAML") from None
    node = raw
    *sections, last = key.split(".")
    for section in sections:
        if isinstance(node, list):
            node = _item(node, section, change)
        elif isinstance(node, dict):
            if not isinstance(node.get(section), dict | list):
                node[section] = {}
            node = node[section]
    if isinstance(node, list):
        _item(node, last, change)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    return raw


def _item(node: list[Any], position: str, change: str) -> Any:
    if not position.isdigit() or int(position) >= len(node):
        raise UserError(f"--set {change}: {position!r} is not a position in a list of {len(node)}")
    return node[int(position)]


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
