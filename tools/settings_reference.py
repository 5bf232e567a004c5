"""Write docs/settings.md, the reference of all settings, from the pydantic models in iakd.config (`make reference`)."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iakd.config import METHODS, Params

PAGE = Path(__file__).parent.parent / "docs/settings.md"
INTRODUCTION = """\
# All settings

*Generated from the models in `src/iakd/config/` by `make reference`: change these, not this page.*

Settings are read from `params.yaml`, or from the file that `--params` names. A setting that the file leaves out has
its default. To change single values on the command line, use dotted keys and YAML values:

    iakd distill --set distill.recipe.lr=0.1 --set 'distill.seeds=[0, 1]'

An unknown key is an error, which names the nearest known key.
"""
OPTIONS = "methods.<label>."
SCHEMA = Params.model_json_schema()
MODELS = SCHEMA["$defs"]


def page() -> str:
    """Return the text of the page."""
    paths: dict[str, list[str]] = {}
    for name, path in _models(SCHEMA, ""):
        paths.setdefault(name, []).append(path)
    for places in paths.values():
        places.sort(key=lambda place: place.startswith(OPTIONS))
    links = {name: _link(places[0]) for name, places in paths.items()}
    parts = [INTRODUCTION, "## Sections", "", *_table(SCHEMA, links)]
    options = {name: places for name, places in paths.items() if places[0].startswith(OPTIONS)}
    for name, (place, *others) in paths.items():
        if name not in options:
            parts += [
                "",
                f"{'###' if '.' in place.removesuffix('.<label>') else '##'} `{place}`",
                "",
                _meaning(MODELS[name]),
                "",
            ]
            parts += [f"The same keys: {', '.join(f'`{other}`' for other in others)}.", ""] if others else []
            parts += _table(MODELS[name], links)
    parts += ["", "## Options of each method", "", "A method that is missing here has no options."]
    for name, (place, *_) in options.items():
        parts += ["", f"### `{place}`", "", *_method(place), _meaning(MODELS[name]), "", *_table(MODELS[name], links)]
    return "\n".join(parts) + "\n"


def _models(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield each model below a node of the schema with the dotted path of the section it describes, parents first."""
    if isinstance(node, list):
        for item in node:
            yield from _models(item, path)
    elif isinstance(node, dict):
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[-1]
            yield name, path
            yield from _models(MODELS[name], path)
        for key, value in node.get("properties", {}).items():
            yield from _models(value, f"{path}.{key}" if path else key)
        yield from _models(list(node.get("patternProperties", {}).values()), f"{path}.<label>")
        yield from _models([node.get("items"), node.get("anyOf")], path)


def _link(place: str) -> str:
    anchor = re.sub(r"[^\w-]", "", place.lower())
    return f"[section](#{anchor})"


def _method(place: str) -> list[str]:
    """Return the line that leads from the options of a method to its page."""
    name = place.removeprefix(OPTIONS)
    if name not in METHODS:
        return []
    page = "method.md" if name == "iakd" else f"methods/{name}.md"
    return [f"[`{name}`]({page}): {METHODS[name].summary}.", ""]


def _table(model: dict[str, Any], links: dict[str, str]) -> list[str]:
    rows = ["| setting | type and bounds | default | meaning |", "|---|---|---|---|"]
    for key, schema in model["properties"].items():
        cells = (f"`{key}`", _kind(schema, links), _default(schema, key in model.get("required", [])), _meaning(schema))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _meaning(schema: dict[str, Any]) -> str:
    text = " ".join(schema.get("description", "").split())
    if not text and "$ref" in schema:
        return _meaning(MODELS[schema["$ref"].rsplit("/", 1)[-1]])
    return text.replace("<", "\\<")


def _default(schema: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = schema.get("default")
    if isinstance(value, dict) and value:
        return "see there"
    return "–" if value is None or value == "" else f"`{json.dumps(value, ensure_ascii=False)}`"


def _kind(schema: dict[str, Any], links: dict[str, str]) -> str:
    """Return a schema in words, such as `integer > 0`."""
    if "$ref" in schema:
        return links[schema["$ref"].rsplit("/", 1)[-1]]
    if "anyOf" in schema:
        kinds = (_kind(choice, links) for choice in schema["anyOf"])
        return ", or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    match schema["type"]:
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(_kind(item, links) for item in schema['prefixItems'])}]"
        case "array":
            return f"list of {_kind(schema['items'], links)}" if schema["items"] else "list"
        case "object":
            inner = list(schema.get("patternProperties", {}).values())
            return f"by label: {_kind(inner[0], links)}" if inner else "section"
        case "boolean":
            return "`true`, `false`"
        case "string":
            return "text"
        case kind:
            return f"{kind}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema and schema[key] != 2**31]
    return " " + " and ".join(found) if found else ""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}", file=sys.stderr)
