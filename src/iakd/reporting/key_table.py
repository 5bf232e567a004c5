"""The tables of a pair, ready for the template: texts, and positions of dots and lines in percent of a cell's width."""

from typing import Any

from iakd.reporting import formatting
from iakd.reporting.figures.style import AxisRange, fit_axis
from iakd.reporting.results import Comparison, MethodResults, PairComparison
from iakd.reporting.statistics import PairedDifference
from iakd.reporting.swapping import by_counterpart

COSTS = ("parameters", "weight_bytes", "macs", "latency_ms")
NETWORK = ("parameters", "macs", "weight_bytes", "latency_ms", "images_per_s")


def key_table(comparison: Comparison, pair: PairComparison) -> dict[str, Any]:
    """Return axes and rows, group by group: the teacher first, then the most accurate method."""
    rows = [pair.teacher, *pair.ranked]
    accuracy = fit_axis(
        [results.top1.mean for results in rows], [v for results in rows for v in results.top1_by_seed().values()]
    )
    gain_axes = {
        reference: _gain_axis([results.gains[reference] for results in rows if reference in results.gains])
        for reference in comparison.references
    }
    return {
        "accuracy_axis": _ticks(accuracy, comparison.digits),
        "gain_axes": {reference: _ticks(axis, 0) for reference, axis in gain_axes.items()},
        "groups": [
            {"title": title, "rows": [_row(comparison, pair, results, accuracy, gain_axes) for results in group]}
            for title, group in (("", [pair.teacher]), *pair.groups)
        ],
    }


def swap_table(comparison: Comparison, pair: PairComparison) -> dict[str, Any]:
    """Return axis and rows of what swapping added: a row per method and counterpart."""
    shown = by_counterpart(comparison.swap_effects[pair.name])
    axis = _gain_axis([added.difference for added in shown])
    first = {added.method: added for added in reversed(shown)}
    rows = [
        {
            "label": added.method if added is first[added.method] else "",
            "counterpart": added.reference,
            "condition": formatting.conditions(added.conditions),
            "gain": _gain_cell(added.difference, axis, comparison.digits),
            "n": added.difference.n,
            "time": formatting.ratio(added.time_ratio),
        }
        for added in shown
    ]
    return {"axis": _ticks(axis, 0), "rows": rows}


def lead_column(leads: list[PairedDifference | None], digits: int) -> dict[str, Any]:
    """Return axis and cells of a column with one difference per pair."""
    axis = _gain_axis([lead for lead in leads if lead])
    return {
        "axis": _ticks(axis, 0),
        "rows": [_gain_cell(lead, axis, digits) for lead in leads],
    }


def _gain_axis(gains: list[PairedDifference]) -> AxisRange:
    ends = [end for gain in gains for end in (gain.low, gain.high) if end is not None]
    return fit_axis([0.0, *(gain.mean for gain in gains)], ends, ticks=3)


def _ticks(axis: AxisRange, digits: int) -> dict[str, Any]:
    whole = all(float(tick).is_integer() for tick in axis.ticks)
    shown = 0 if whole else max(1, digits)
    return {
        "ticks": [
            {"x": _x(axis, tick), "text": formatting.number(tick, shown), "anchor": _anchor(axis, tick)}
            for tick in axis.ticks
        ],
        "zero": None if axis.outside(0) else _x(axis, 0),
    }


def _anchor(axis: AxisRange, tick: float) -> str:
    """Return the SVG text anchor that keeps a label at either end out of the neighbouring column."""
    position = axis.position(tick)
    return "start" if position < 4 else "end" if position > 96 else "middle"


def _x(axis: AxisRange, value: float) -> str:
    return f"{axis.position(value):.1f}%"


def _arrows(axis: AxisRange, *values: float | None) -> list[str]:
    """Return the ends of the axis beyond which some of the values are."""
    known = [value for value in values if value is not None]
    return ["0.0%"] * any(value < axis.low for value in known) + ["100.0%"] * any(value > axis.high for value in known)


def _row(
    comparison: Comparison,
    pair: PairComparison,
    results: MethodResults,
    accuracy: AxisRange,
    gain_axes: dict[str, AxisRange],
) -> dict[str, Any]:
    digits, top1 = comparison.digits, results.top1
    grouped = len(pair.groups) > 1
    std = top1.std or 0.0
    return {
        "label": results.label,
        "kind": results.kind,
        "rank": pair.ranked.index(results) + 1 if grouped and results.method else None,
        "settings": formatting.describe_settings(results.method, grouped, results.trained)
        if results.method
        else _describe_teacher(pair),
        "n": top1.n,
        "mean": formatting.number(top1.mean, digits),
        "std": None if top1.std is None else formatting.number(top1.std, digits),
        "peer": formatting.mean_std(results.peer_top1, digits) if results.peer_top1 else None,
        "strip": {
            "mean": _x(accuracy, top1.mean),
            "low": _x(accuracy, top1.mean - std),
            "high": _x(accuracy, top1.mean + std),
            "seeds": [_x(accuracy, value) for value in results.top1_by_seed().values() if not accuracy.outside(value)],
            "outside": accuracy.outside(top1.mean),
            "arrows": _arrows(accuracy, *results.top1_by_seed().values(), top1.mean - std, top1.mean + std),
        },
        "gains": [_gain_cell(results.gains.get(reference), axis, digits) for reference, axis in gain_axes.items()],
    }


def _describe_teacher(pair: PairComparison) -> str:
    imported = bool(pair.teacher.imported_from)
    return (
        f"{pair.teacher_name}, {'imported, not trained here' if imported else 'trained alone on all training images'}"
    )


def _gain_cell(gain: PairedDifference | None, axis: AxisRange, digits: int) -> dict[str, Any] | None:
    if gain is None:
        return None
    bounded = gain.low is not None and gain.high is not None
    return {
        "text": formatting.signed(gain.mean, digits),
        "interval": formatting.interval(gain, digits) if bounded else formatting.judgement(gain),
        "significant": gain.significant,
        "judgement": formatting.judgement(gain),
        "mean": _x(axis, gain.mean),
        "outside": axis.outside(gain.mean),
        "arrows": _arrows(axis, gain.low, gain.mean, gain.high),
        "low": _x(axis, gain.low) if gain.low is not None else None,
        "high": _x(axis, gain.high) if gain.high is not None else None,
    }


def size_table(pair: PairComparison) -> list[dict[str, str]]:
    """Return teacher and student side by side, a row per kind of cost; students of different sizes as a range."""
    rows = []
    float32 = all(
        results.median("weight_bytes") == 4 * results.median("parameters") for results in (pair.teacher, *pair.methods)
    )
    for name in COSTS:
        if name == "weight_bytes" and float32:  # adds nothing to the number of parameters
            continue
        quantity = formatting.QUANTITIES[name]
        teacher = pair.teacher.median(name)
        students = sorted(results.median(name) for results in pair.methods)
        middle = students[len(students) // 2]
        equal = students[0] == students[-1] or name == "latency_ms"  # latencies always differ a little
        ends = f"{quantity.text(students[0])} – {quantity.text(students[-1])}"
        rows.append(
            {
                "title": quantity.title,
                "teacher": quantity.text(teacher),
                "student": quantity.text(middle) if equal else ends,
                "ratio": formatting.cost_ratio(teacher, middle, quantity.less, quantity.more),
            }
        )
    return rows


def network_table(pair: PairComparison) -> list[dict[str, Any]]:
    """Return what each network costs to run (`NETWORK`): the teacher, the student, and what methods have made of it."""
    networks: dict[str, list[MethodResults]] = {}
    for results in pair.in_display_order:
        networks.setdefault(results.models[0].network, []).append(results)
    rows = [(pair.teacher_name, pair.teacher)]
    for same in networks.values():
        of = f" of {', '.join(results.label for results in same)}" if len(networks) > 1 else ""
        rows.append((f"{pair.student_name}{of}", same[0]))
    return [
        {
            "label": label,
            "costs": {name: formatting.QUANTITIES[name].text(results.median(name)) for name in NETWORK},
        }
        for label, results in rows
    ]


def training_table(pair: PairComparison) -> list[dict[str, str]]:
    """Return what each model cost to train, the median over the seeds, and where its files are."""
    return [
        {
            "label": results.label,
            "kind": results.kind,
            "training": "–" if results.imported_from else formatting.duration(results.training_seconds),
            "folder": str(results.models[0].folder.parent),
        }
        for results in (pair.teacher, *pair.in_display_order)
    ]


def bits_table(comparison: Comparison, pair: PairComparison) -> dict[str, Any] | None:
    """Return accuracy and cost of a student at each of its bit-widths; None if it has one only."""
    widths = pair.methods[0].bit_widths
    if not widths:
        return None
    costs = [(name, formatting.QUANTITIES[name]) for name in ("weight_bytes", "bit_operations")]
    return {
        "bits": widths,
        "methods": [
            {
                "label": results.label,
                "kind": results.kind,
                "accuracy": [formatting.mean_std(results.at_bits(bits, "top1"), comparison.digits) for bits in widths],
            }
            for results in pair.in_display_order
        ],
        "costs": [
            {
                "title": quantity.title,
                "values": [quantity.text(pair.methods[0].at_bits(bits, name).mean) for bits in widths],
            }
            for name, quantity in costs
        ],
    }
