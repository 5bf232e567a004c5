"""README.md of an exported model: what it is, how good, how it is used."""

import html
import re
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy.stats import binomtest

CONFIDENCE = 0.95
MAX_CLASSES = 100  # more are left to evaluation.json


def render(**values: Any) -> str:
    """Return the card. `values`: what the template names."""
    environment = Environment(
        loader=PackageLoader("iakd.export"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"yaml": _yaml, "cell": _cell}
    code = environment.get_template("classify.py.j2").render()
    return environment.get_template("README.md.j2").render(code=code, **values) + "\n"


def accuracy_interval(top1: float, n: int) -> tuple[float, float]:
    """Return the ends, in percent, of Wilson's 95 % interval of an accuracy in percent on `n` images."""
    found = binomtest(round(top1 / 100 * n), n).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * found.low, 100 * found.high


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _cell(text: str) -> str:
    """Return text that stays within a cell of a table, and means nothing else in Markdown."""
    return re.sub(r"([\\`*\[\]~|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
