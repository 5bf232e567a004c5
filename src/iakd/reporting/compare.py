"""Two reports side by side: where their results and their settings differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from iakd.config.base import cut
from iakd.errors import UserError
from iakd.reporting import formatting
from iakd.reporting.record import ModelRecord, ReportRecord, find, read
from iakd.reporting.statistics import PairedDifference, judge, paired_difference, seed_mean

Key = tuple[str, str]  # of a row: a pair and a method's label, or a teacher's name and ""
NOTHING = "–"


def compare(first: Path, second: Path) -> str:
    """Return what differs between two reports, A and B, for a terminal.

    Raises UserError if one has no report, or if they were tested on different images or have no row in common.
    """
    folders = find(first), find(second)
    a, b = (read(folder) for folder in folders)
    if a.data.test_sha256 != b.data.test_sha256:
        raise UserError(
            f"{folders[0]} and {folders[1]} cannot be compared: they have different test images "
            f"({formatting.whole(a.data.test_images)} of {a.data.name}, {formatting.whole(b.data.test_images)} of "
            f"{b.data.name})"
        )
    rows = _rows(a, b)
    if not any(row.a and row.b for row in rows):
        raise UserError(
            f"{folders[0]} and {folders[1]} cannot be compared: they have no pair and method, and no teacher, in common"
        )
    parts = [
        "\n".join(_head(folders, a, b)),
        _aligned(_results(a, b, rows), right=(2, 3, 4, 6)),
        "\n".join(_notes(a, b, rows)),
        _settings(a.settings, b.settings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


@dataclass(frozen=True)
class _Row:
    key: Key
    a: list[ModelRecord]
    b: list[ModelRecord]
    difference: PairedDifference | None  # B minus A; None if a side or a common seed is missing, or both are the same

    @property
    def same(self) -> bool:
        """Whether the weights of all seeds are equal, and so is what they were found to classify correctly."""
        a, b = ({model.seed: (model.model_sha256, model.correct) for model in side} for side in (self.a, self.b))
        return a == b


def _rows(a: ReportRecord, b: ReportRecord) -> list[_Row]:
    """Return teachers and methods of both, in the order of A, then of B; differences are judged together."""
    of_a, of_b = _grouped(a.models), _grouped(b.models)
    confidence = a.confidence
    keys = sorted(dict.fromkeys([*of_a, *of_b]), key=lambda key: bool(key[1]))
    found = {}
    for key in keys:
        left, right = of_a.get(key, []), of_b.get(key, [])
        difference = paired_difference(b.correct_by_seed(right), a.correct_by_seed(left), confidence)
        if difference and not _Row(key, left, right, None).same:
            found[key] = difference
    judged = dict(zip(found, judge(list(found.values()), 1 - confidence), strict=True))
    return [_Row(key, of_a.get(key, []), of_b.get(key, []), judged.get(key)) for key in keys]


def _grouped(models: Sequence[ModelRecord]) -> dict[Key, list[ModelRecord]]:
    found: dict[Key, list[ModelRecord]] = {}
    for model in models:
        found.setdefault((model.pair, "" if model.is_teacher else model.method), []).append(model)
    return found


def _head(folders: tuple[Path, Path], a: ReportRecord, b: ReportRecord) -> Iterator[str]:
    for name, folder, report in zip("AB", folders, (a, b), strict=True):
        commits = ", ".join(sorted({(model.git_commit or "unknown")[:12] for model in report.models}))
        yield f"{name}: {folder}, trained until {_last(report)} UTC, commit {commits}"
    yield f"{formatting.whole(a.data.test_images)} test images of {a.data.name}, the same in both"


def _last(report: ReportRecord) -> str:
    return max(model.finished for model in report.models)[:16].replace("T", " ")


def _results(a: ReportRecord, b: ReportRecord, rows: Sequence[_Row]) -> list[list[str]]:
    digits, level = formatting.digits(a.data.test_images), formatting.percent(a.confidence)
    title = formatting.TOP1
    lines = [["", title, "A", "B", "B − A", f"{level} interval", "seeds", "training, A → B"]]
    pair = None
    for row in rows:
        name, method = row.key
        lines.append(
            [
                "" if name == pair else name,
                method or "teacher",
                _score(row.a, digits),
                _score(row.b, digits),
                *_difference(row, digits),
                _times(row),
            ]
        )
        pair = name
    return lines


def _score(models: Sequence[ModelRecord], digits: int) -> str:
    if not models:
        return NOTHING
    return f"{formatting.mean_std(seed_mean([model.top1 for model in models]), digits)} ({len(models)})"


def _difference(row: _Row, digits: int) -> list[str]:
    """Return the difference, its interval and the number of common seeds."""
    if not row.a or not row.b:
        return ["", f"only in {'A' if row.a else 'B'}", ""]
    if row.same:
        return ["0", "the same weights", str(len(row.a))]
    if row.difference is None:
        means = [seed_mean([model.top1 for model in models]).mean for models in (row.a, row.b)]
        return [formatting.signed(means[1] - means[0], digits), "no seed in common", "0"]
    interval = formatting.interval(row.difference, digits) or formatting.judgement(row.difference)
    mark = " ✓" if row.difference.significant else ""
    return [formatting.signed(row.difference.mean, digits) + mark, interval, str(row.difference.n)]


def _times(row: _Row) -> str:
    if not row.a or not row.b:
        return ""
    seconds = [seed_mean([model.training_seconds for model in models]).mean for models in (row.a, row.b)]
    return " → ".join(map(formatting.duration, seconds))


def _notes(a: ReportRecord, b: ReportRecord, rows: Sequence[_Row]) -> Iterator[str]:
    both = [row for row in rows if row.a and row.b]
    counted = sum(row.difference is not None and row.difference.p_adjusted is not None for row in rows)
    if counted:
        yield (
            f"Paired by seed and test image. ✓: significant among these {formatting.plural(counted, 'difference')} "
            "(Holm's correction)."
        )
    if all(row.same for row in both):
        yield "All models that both have are the same, to the bit."
    if a.confidence != b.confidence:
        yield f"Intervals have the confidence of A, {formatting.percent(a.confidence)}."
    if a.data.sha256 != b.data.sha256:
        yield "Training or validation images differ; the test images do not."
    for name in ("parameters", "weight_bytes", "macs"):
        changed = [row for row in both if _cost(row.a, name) != _cost(row.b, name)]
        quantity = formatting.QUANTITIES[name]
        for row in changed:
            texts = " → ".join(quantity.text(_cost(models, name)) for models in (row.a, row.b))
            yield f"{quantity.title} of {' '.join(part for part in row.key if part)}: {texts}."
    devices = [", ".join(sorted({model.device for model in report.models})) for report in (a, b)]
    if devices[0] != devices[1]:
        yield f"A was trained on {devices[0]}, B on {devices[1]}; training times are not comparable."


def _cost(models: Sequence[ModelRecord], name: str) -> float:
    return float(max(getattr(model, name) for model in models))


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return a table of the settings that differ."""
    differing = list(_differing(a, b))
    if not differing:
        return "The settings are the same."
    return _aligned([["Settings that differ", "A", "B"], *([name, _shown(x), _shown(y)] for name, x, y in differing)])


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield names and both values of the settings that differ; `...` stands for a setting that is not there."""
    for name in dict.fromkeys([*a, *b]):
        left, right = a.get(name, ...), b.get(name, ...)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _differing(left, right, f"{prefix}{name}.")
        elif left != right:
            yield f"{prefix}{name}", left, right


def _shown(value: Any) -> str:
    if value is ...:
        return NOTHING
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000)
    return cut(text.removesuffix("...\n").strip())


def _aligned(lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return lines of cells as columns, some of them aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(text.rstrip() for text in texts)
