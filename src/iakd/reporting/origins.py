"""Where the results come from: code, packages, data, machines, and how to make them again."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from iakd.config import Params
from iakd.reporting import words
from iakd.reporting.comparison import Comparison
from iakd.reporting.studies import Study


def origins(comparison: Comparison, studies: Sequence[Study], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values, in the order of a reader's interest; several values where the runs differ."""
    records = [result.record for result in comparison.results]
    versions = {" · ".join(f"{name} {v}" for name, v in record["versions"].items()) for record in records}
    params = comparison.params
    return [
        ("Code", _all(record["git_commit"] or "not a git checkout" for record in records)),
        (
            "Locked packages",
            f"requirements.lock, SHA-256 {_all(r['lock_sha256'] or 'unknown' for r in records)}",
        ),
        ("Installed", "; ".join(sorted(versions))),
        ("Data", f"{manifest['source']['name']}, SHA-256 of images and labels {manifest['sha256']}"),
        *_imported(comparison),
        ("Seeds", _seeds(params)),
        ("Device", _all(record["device"] for record in records)),
        (
            "When",
            f"{_minute(min(r['started'] for r in records))} to {_minute(max(r['finished'] for r in records))} UTC",
        ),
        ("Time spent in training", _times(comparison, studies)),
    ]


def _imported(comparison: Comparison) -> list[tuple[str, str]]:
    """Teachers that the user brought."""
    found = {pair.teacher_name: pair.teacher.imported_from for pair in comparison.pairs}
    lines = [f"{name}: {where}" for name, places in found.items() for where in places]
    return [("Imported teachers", "; ".join(lines))] if lines else []


def _all(values: Any) -> str:
    """The value, or all of them with how many runs had each, the most frequent first."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return str(counts[0][0])
    return "; ".join(f"{value} ({words.plural(n, 'run')})" for value, n in sorted(counts, key=lambda c: (-c[1], c[0])))


def _seeds(params: Params) -> str:
    teachers, students = (", ".join(map(str, seeds)) for seeds in (params.teach.seeds, params.distill.seeds))
    return f"teachers {teachers}; students {students}; split {params.dataset.split_seed}"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _times(comparison: Comparison, studies: Sequence[Study]) -> str:
    """Wall time, summed over the runs of each kind."""
    teachers = {
        p.teacher_name: [r.record["wall_seconds"] for r in p.teacher.results]
        for p in comparison.pairs
        if not p.teacher.imported_from
    }
    groups = {
        "teacher": [seconds for group in teachers.values() for seconds in group],
        "trial": [trial["seconds"] for study in studies for trial in study.trials if trial.get("seconds")],
        "student": [r.record["wall_seconds"] for p in comparison.pairs for e in p.entries for r in e.results],
    }
    return "; ".join(
        f"{words.plural(len(times), name)} {words.duration(sum(times))}" for name, times in groups.items() if times
    )


def settings_text(params: Params) -> str:
    """All settings as YAML that `iakd` reads back to the same experiment; passwords in addresses are left out."""
    settings = params.model_dump(mode="json")
    settings["methods"] = {
        label: {**method.settings(), "recipe": method.recipe} for label, method in params.methods.items()
    }
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)
    return re.sub(r"(://[^\s:/@]*:)[^\s@]*@", r"\1…@", text)
