"""The methods as a list to be read."""

from itertools import groupby

from iakd.params.methods import METHODS

GROUPS = {
    "interactive": "Interactive",
    "reference": "References, without a teacher",
    "logits": "Outputs",
    "features": "Intermediate features",
    "relations": "Relations between images",
    "data": "Data",
}


def listing() -> str:
    """All methods by group, a line each."""
    ordered = sorted(METHODS.items(), key=lambda item: list(GROUPS).index(item[1].group))
    width = max(map(len, METHODS))
    lines = []
    for group, members in groupby(ordered, key=lambda item: item[1].group):
        lines += [GROUPS[group], *(f"  {name.ljust(width)}  {entry.line}" for name, entry in members), ""]
    return "\n".join(lines).rstrip()
