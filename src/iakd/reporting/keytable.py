"""The key table of a pair, ready for the template: texts, and where dots and lines go in percent of a cell's width."""

from typing import Any

from iakd.reporting import scale, words
from iakd.reporting.comparison import Comparison, Entry, Pair, between
from iakd.reporting.statistics import Difference

SIZES = (  # name, title, how much less is better
    ("parameters", "Parameters", "fewer", "more"),
    ("weight_bytes", "Bytes of weights", "fewer", "more"),
    ("macs", "MACs per image", "fewer", "more"),
    ("latency_ms", "Latency, ms", "faster", "slower"),
)


def table(comparison: Comparison, pair: Pair) -> dict[str, Any]:
    """Header and rows, group by group; the teacher first, then the most accurate."""
    entries = [pair.teacher, *pair.ranked]
    accuracy = scale.fit(
        [entry.top1.mean for entry in entries], [v for entry in entries for v in entry.by_seed().values()]
    )
    scales = {
        reference: _gain_scale([entry.gains[reference] for entry in entries if reference in entry.gains])
        for reference in comparison.references
    }
    return {
        "accuracy_axis": _axis(accuracy, comparison.digits),
        "gain_axes": {reference: _axis(limits, 0) for reference, limits in scales.items()},
        "groups": [
            {"title": title, "rows": [_row(comparison, pair, entry, accuracy, scales) for entry in members]}
            for title, members in (("", [pair.teacher]), *pair.groups)
        ],
    }


def leads(differences: list[Difference | None], digits: int) -> dict[str, Any]:
    """Axis and strips of one difference per pair."""
    limits = _gain_scale([difference for difference in differences if difference])
    return {
        "axis": _axis(limits, 0),
        "rows": [_gain(difference, limits, digits) for difference in differences],
    }


def _gain_scale(gains: list[Difference]) -> scale.Scale:
    ends = [end for gain in gains for end in (gain.low, gain.high) if end is not None]
    return scale.fit([0.0, *(gain.mean for gain in gains)], ends, ticks=3)


def _axis(limits: scale.Scale, digits: int) -> dict[str, Any]:
    whole = all(float(tick).is_integer() for tick in limits.ticks)
    shown = 0 if whole else max(1, digits)
    return {
        "ticks": [{"x": _x(limits, tick), "text": words.number(tick, shown)} for tick in limits.ticks],
        "zero": None if limits.outside(0) else _x(limits, 0),
    }


def _x(limits: scale.Scale, value: float) -> str:
    return f"{limits.at(value):.1f}%"


def _row(
    comparison: Comparison, pair: Pair, entry: Entry, accuracy: scale.Scale, scales: dict[str, scale.Scale]
) -> dict[str, Any]:
    d, top1 = comparison.digits, entry.top1
    grouped = len(pair.groups) > 1
    std = top1.std or 0.0
    return {
        "label": entry.label,
        "kind": kind(entry),
        "rank": pair.ranked.index(entry) + 1 if grouped and entry.method else None,
        "settings": words.describe(entry.method, brief=grouped) if entry.method else _teacher(entry),
        "n": top1.n,
        "mean": words.number(top1.mean, d),
        "std": None if top1.std is None else words.number(top1.std, d),
        "strip": {
            "mean": _x(accuracy, top1.mean),
            "low": _x(accuracy, top1.mean - std),
            "high": _x(accuracy, top1.mean + std),
            "seeds": [_x(accuracy, value) for value in entry.by_seed().values() if not accuracy.outside(value)],
            "outside": accuracy.outside(top1.mean),
        },
        "gains": [
            _gain(entry.gains.get(ref), limits, d, between(pair, entry, ref) in comparison.held)
            for ref, limits in scales.items()
        ],
    }


def _teacher(entry: Entry) -> str:
    return "imported, not trained here" if entry.imported_from else "trained alone, on all training images"


def _gain(gain: Difference | None, limits: scale.Scale, digits: int, held: bool = False) -> dict[str, Any] | None:
    if gain is None:
        return None
    bounded = gain.low is not None and gain.high is not None
    return {
        "text": words.signed(gain.mean, digits),
        "interval": f"{words.interval(gain, digits)}" if bounded else gain.judgement,
        "certain": gain.certain,
        "held": held,
        "judgement": gain.judgement,
        "mean": _x(limits, gain.mean),
        "outside": limits.outside(gain.mean),
        "low": _x(limits, gain.low) if gain.low is not None else None,
        "high": _x(limits, gain.high) if gain.high is not None else None,
    }


def kind(entry: Entry) -> str:
    """The CSS class of an entry."""
    return "teacher" if entry.method is None else "iakd" if entry.is_iakd else "other"


def sizes(pair: Pair) -> list[dict[str, str]]:
    """Teacher and student side by side: one row per kind of cost. Students that differ are shown as their range."""
    rows = []
    full = all(
        entry.median("weight_bytes") == 4 * entry.median("parameters") for entry in (pair.teacher, *pair.entries)
    )
    for name, title, less, more in SIZES:
        if name == "weight_bytes" and full:  # tells no more than the number of parameters
            continue
        teacher = pair.teacher.median(name)
        each = sorted(entry.median(name) for entry in pair.entries)
        middle = each[len(each) // 2]
        text = words.significant if name == "latency_ms" else words.count
        same = each[0] == each[-1] or name == "latency_ms"  # a latency that differs by chance
        rows.append(
            {
                "title": title,
                "teacher": text(teacher),
                "student": text(middle) if same else f"{text(each[0])} – {text(each[-1])}",
                "factor": words.factor(teacher, middle, less, more),
            }
        )
    return rows


def costs(pair: Pair) -> list[dict[str, str]]:
    """What every model costs to use, and to train (the median over seeds)."""
    return [
        {
            "label": entry.label,
            "kind": kind(entry),
            "parameters": words.whole(entry.median("parameters")),
            "macs": words.count(entry.median("macs")),
            "latency": words.significant(entry.median("latency_ms")),
            "throughput": words.whole(entry.median("images_per_s")),
            "training": "–" if entry.imported_from else words.duration(entry.training_seconds),
        }
        for entry in (pair.teacher, *pair.shown)
    ]
