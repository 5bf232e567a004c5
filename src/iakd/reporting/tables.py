"""The comparison as rows for files: one per run, one per method, and small numbers for `dvc metrics`."""

from typing import Any

from iakd.experiment.run_dir import HISTORY, read_history
from iakd.reporting import words
from iakd.reporting.comparison import TEACHER, Comparison, Entry, Pair
from iakd.reporting.statistics import Mean

Rows = list[dict[str, Any]]
COST = ("parameters", "weight_bytes", "macs", "latency_ms", "images_per_s")


def rounded(value: float | None) -> float | None:
    """As many decimals as anybody reads."""
    return None if value is None else round(value, 4)


def runs(comparison: Comparison) -> Rows:
    """One row per trained model, teachers first."""
    rows = []
    for result in comparison.results:
        e = result.evaluation
        row: dict[str, Any] = {name: e[name] for name in ("dataset", "teacher", "student", "method", "seed", "n")}
        row |= {name: rounded(e[name]) for name in ("top1", "top5", "nll", "ece")}
        row["val_top1"] = rounded(result.metrics["val_top1"])
        row |= {name: rounded(e[name]) for name in COST}
        row["wall_seconds"] = result.record["wall_seconds"]
        row |= {"model_sha256": e["model_sha256"], "folder": str(result.folder)}
        rows.append(row)
    return rows


def summary(comparison: Comparison) -> Rows:
    """One row per pair and method, the teacher first, then the most accurate; gains with their intervals."""
    return [
        _summary_row(comparison, pair, entry) for pair in comparison.pairs for entry in (pair.teacher, *pair.ranked)
    ]


def _summary_row(comparison: Comparison, pair: Pair, entry: Entry) -> dict[str, Any]:
    top1 = entry.top1
    row: dict[str, Any] = {
        "teacher": pair.teacher_name,
        "student": pair.student_name if entry.method else None,
        "method": entry.label,
        "settings": words.describe(entry.method) if entry.method else None,
        "n": top1.n,
        "top1_mean": rounded(top1.mean),
        "top1_std": rounded(top1.std),
    }
    for reference in comparison.references:
        gain = entry.gains.get(reference)
        name = f"gain_{reference}"
        row[name] = rounded(gain.mean) if gain else None
        row[f"{name}_low"] = rounded(gain.low) if gain else None
        row[f"{name}_high"] = rounded(gain.high) if gain else None
        row[f"{name}_judgement"] = gain.judgement if gain else None
    row |= {f"{name}_mean": rounded(entry.mean(name).mean) for name in ("top5", "nll", "ece")}
    row |= {name: rounded(entry.median(name)) for name in COST}
    row |= {f"{name}_ratio": rounded(entry.median(name) / pair.teacher.median(name)) for name in COST}
    return row


def metrics(comparison: Comparison) -> dict[str, dict[str, dict[str, float | int]]]:
    """Per pair and method: top-1 mean, std (where there is one) and n, for `dvc metrics show` and `diff`."""
    return {
        pair.name: {entry.label: _numbers(entry.top1) for entry in (pair.teacher, *pair.entries)}
        for pair in comparison.pairs
    }


def _numbers(top1: Mean) -> dict[str, float | int]:
    std = {} if top1.std is None else {"std": round(top1.std, 4)}
    return {"top1": round(top1.mean, 4), **std, "n": top1.n}


def accuracy(comparison: Comparison) -> Rows:
    """Test accuracy of every student, for `dvc plots`; `name` tells pairs apart where there are several."""
    several = len(comparison.pairs) > 1
    return [
        {
            "name": f"{pair.name} {entry.label}" if several else entry.label,
            "pair": pair.name,
            "method": entry.label,
            "seed": result.seed,
            "top1": rounded(result.evaluation["top1"]),
        }
        for pair in comparison.pairs
        for entry in (pair.teacher, *pair.entries)
        for result in entry.results
    ]


def curves(comparison: Comparison) -> Rows:
    """Every student's validation accuracy and training loss at the epochs that were validated, for `dvc plots`."""
    return [
        {
            "teacher": pair.teacher_name,
            "student": pair.student_name,
            "method": entry.label,
            "seed": result.seed,
            "epoch": row["epoch"],
            "val_top1": rounded(row["val_top1"]),
            "loss": rounded(row["loss"]),
        }
        for pair in comparison.pairs
        for entry in pair.entries
        for result in entry.results
        for row in read_history(result.folder / HISTORY)
        if row.get("val_top1") is not None
    ]


def markdown(comparison: Comparison) -> str:
    """The key table of each pair as Markdown."""
    d = comparison.digits
    level = words.percent(comparison.params.report.confidence)
    parts = []
    for pair in comparison.pairs:
        header = [
            "method",
            "top-1 (%)",
            "n",
            *(f"gain over {ref} [{level} interval]" for ref in comparison.references),
        ]
        lines = [f"## {pair.title}", "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
        for entry in (pair.teacher, *pair.ranked):
            name = f"{entry.label} ({pair.teacher_name})" if entry.label == TEACHER else entry.label
            gains = [_gain(entry, reference, d) for reference in comparison.references]
            lines.append(_line([name, words.spread(entry.top1, d), str(entry.top1.n), *gains]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _gain(entry: Entry, reference: str, digits: int) -> str:
    gain = entry.gains.get(reference)
    if gain is None:
        return ""
    bounds = words.interval(gain, digits)
    text = words.signed(gain.mean, digits) + (f" [{bounds}]" if bounds else "")
    return f"**{text}**" if gain.certain else text


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
