"""The comparison as rows for files: one per model, one per method, and a few numbers for `dvc metrics`."""

from typing import Any

from iakd.reporting import formatting
from iakd.reporting.results import TEACHER, Comparison, MethodResults, PairComparison
from iakd.reporting.statistics import PairedDifference, SeedMean
from iakd.reporting.swapping import Added, by_counterpart

Rows = list[dict[str, Any]]
ADDED_HEADER = ["method", "same loss without swaps", "its time", "compared at", "difference, points", "n"]
COSTS = ("parameters", "weight_bytes", "macs", "latency_ms", "images_per_s")
BALANCED = ("balanced_accuracy", "macro_f1")  # evaluations of earlier versions do not have them
BALANCE_COLUMNS = ("Accuracy, %", "Balanced accuracy, %", "Macro-F1, %")
BALANCE_NOTE = (
    "Balanced accuracy: the mean accuracy of the classes. Macro-F1: the mean over the classes of the harmonic mean of "
    "precision and recall."
)
MAJORITY = "always the most frequent class"
SIMILAR = 1.5  # how many times as large as the smallest class the largest one may be
BIT_COSTS = ("weight_bytes", "bit_operations")


def rounded(value: float | None) -> float | None:
    """Round to four decimals."""
    return None if value is None else round(value, 4)


def runs(comparison: Comparison) -> Rows:
    """Return a row per trained model, teachers first; of one with several bit-widths, columns for each of them."""
    rows = []
    for model in comparison.models:
        evaluation = model.evaluation
        row = {name: evaluation[name] for name in ("dataset", "teacher", "student", "method", "seed", "n")}
        row |= {name: rounded(evaluation[name]) for name in ("top1", "top5", "nll", "ece")}
        row |= {name: rounded(evaluation.get(name)) for name in BALANCED}
        row["val_top1"] = rounded(model.metrics["val_top1"])
        row |= {name: rounded(evaluation[name]) for name in COSTS}
        row["wall_seconds"] = model.record["wall_seconds"]
        row |= {"peer_top1": rounded(evaluation["peer"]["top1"])} if evaluation.get("peer") else {}
        row |= {"model_sha256": evaluation["model_sha256"], "folder": str(model.folder)}
        for bits, found in evaluation.get("bit_widths", {}).items():
            row |= {f"{name}_{bits}bit": rounded(found[name]) for name in ("top1", *BIT_COSTS)}
        rows.append(row)
    return rows


def summary(comparison: Comparison) -> Rows:
    """Return a row per pair and method, the teacher first, then the most accurate; gains with their intervals."""
    return [
        _summary_row(comparison, pair, results) for pair in comparison.pairs for results in (pair.teacher, *pair.ranked)
    ]


def _summary_row(comparison: Comparison, pair: PairComparison, results: MethodResults) -> dict[str, Any]:
    top1 = results.top1
    row: dict[str, Any] = {
        "teacher": pair.teacher_name,
        "student": pair.student_name if results.method else None,
        "method": results.label,
        "settings": formatting.describe_settings(results.method, trained=results.trained) if results.method else None,
        "n": top1.n,
        "top1_mean": rounded(top1.mean),
        "top1_std": rounded(top1.std),
    }
    for reference in comparison.references:
        gain = results.gains.get(reference)
        name = f"gain_{reference}"
        row[name] = rounded(gain.mean) if gain else None
        row[f"{name}_low"] = rounded(gain.low) if gain else None
        row[f"{name}_high"] = rounded(gain.high) if gain else None
        row[f"{name}_judgement"] = _judgement(gain) if gain else None
    row |= {f"{name}_mean": rounded(results.mean(name).mean) for name in ("top5", "nll", "ece")}
    row |= {f"{name}_mean": rounded(results.mean(name).mean) for name in BALANCED if results.measures(name)}
    row |= {name: rounded(results.median(name)) for name in COSTS}
    for name in COSTS:
        teachers = pair.teacher.median(name)  # 0: unknown, of a black box
        row[f"{name}_ratio"] = rounded(results.median(name) / teachers) if teachers else None
    if results.peer_top1:
        row |= {f"peer_top1_{name}": rounded(getattr(results.peer_top1, name)) for name in ("mean", "std")}
    for bits in results.bit_widths:
        top1 = results.at_bits(bits, "top1")
        row |= {f"top1_{bits}bit_mean": rounded(top1.mean), f"top1_{bits}bit_std": rounded(top1.std)}
        row |= {f"{name}_{bits}bit": rounded(results.at_bits(bits, name).mean) for name in BIT_COSTS}
    return row


def _judgement(gain: PairedDifference) -> str:
    """Return the value of gain_…_judgement, whose words other programs may rely on."""
    if gain.low is None:
        return "one seed only"
    return "certain" if gain.significant else "not certain"


def swap_effects(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row per method with swaps and condition; without a counterpart, the last three columns say why."""
    return [
        {
            "teacher": pair.teacher_name,
            "student": pair.student_name,
            "method": effect.method,
            "condition": effect.condition,
            "counterpart": effect.counterpart,
            **_numbers_of(effect.difference),
            "time_ratio": rounded(effect.time_ratio),
            "nearest": effect.nearest,
            "differs_in": list(effect.differs_in),
            "epochs_needed": effect.epochs,
        }
        for pair in comparison.pairs
        for effect in comparison.swap_effects[pair.name]
    ]


def _numbers_of(difference: PairedDifference | None) -> dict[str, float | int | bool | None]:
    if difference is None:
        return {"difference": None, "low": None, "high": None, "p": None, "p_adjusted": None, "certain": None, "n": 0}
    return {
        "difference": rounded(difference.mean),
        "low": rounded(difference.low),
        "high": rounded(difference.high),
        "p": difference.p,
        "p_adjusted": difference.p_adjusted,
        "certain": difference.significant,
        "n": difference.n,
    }


def metrics(comparison: Comparison) -> dict[str, dict[str, dict[str, float | int]]]:
    """Return top-1 mean, std (if there is one) and n, for `dvc metrics show` and `diff`.

    Per pair and method; those of teachers, per name, below `teachers`, which is no pair's name as it has no "-".
    """
    teachers = {pair.teacher_name: _numbers(pair.teacher.top1) for pair in comparison.pairs}
    students = {
        pair.name: {results.label: _numbers(results.top1) for results in pair.methods} for pair in comparison.pairs
    }
    return {"teachers": teachers, **students}


def metric_files(comparison: Comparison) -> dict[str, dict[str, float | int]]:
    """Return the rows of `dvc metrics show`: what a file has, by its path; one for each pair and method."""
    rows = {f"teachers/{pair.teacher_name}.json": _numbers(pair.teacher.top1) for pair in comparison.pairs}
    for pair in comparison.pairs:
        rows |= {f"{pair.name}/{results.label}.json": _numbers(results.top1) for results in pair.methods}
    return rows


def headline(comparison: Comparison) -> dict[str, Any]:
    """Return the columns of `dvc exp show`: the best method of each pair, and how far swapping leads."""
    rows = {}
    for pair in comparison.pairs:
        best, lead = pair.ranked[0], comparison.lead(pair)
        row: dict[str, Any] = {"best": best.label, "best_top1": rounded(best.top1.mean)}
        rows[pair.name] = row | ({"lead": rounded(lead.mean)} if lead else {})
    return rows if len(rows) > 1 else next(iter(rows.values()))


def _numbers(top1: SeedMean) -> dict[str, float | int]:
    std = {} if top1.std is None else {"std": round(top1.std, 4)}
    return {"top1": round(top1.mean, 4), **std, "n": top1.n}


def accuracy(comparison: Comparison) -> Rows:
    """Return every model's test accuracy, for `dvc plots`; with several pairs `name` includes the pair.

    A teacher is named as such and has no method, so that it is not taken for a method of that label.
    """
    several = len(comparison.pairs) > 1
    return [
        {
            "name": _plot_name(pair, results, several),
            "pair": pair.name,
            "method": results.label if results.method else None,
            "seed": model.seed,
            "top1": rounded(model.evaluation["top1"]),
        }
        for pair in comparison.pairs
        for results in (pair.teacher, *pair.methods)
        for model in results.models
    ]


def _plot_name(pair: PairComparison, results: MethodResults, several: bool) -> str:
    name = results.label if results.method else f"teacher {pair.teacher_name}"  # labels have no space
    return f"{pair.name} {name}" if several else name


def curves(comparison: Comparison) -> Rows:
    """Return every student's validation accuracy and training loss at the validated epochs, for `dvc plots`."""
    return [
        {
            "teacher": pair.teacher_name,
            "student": pair.student_name,
            "method": results.label,
            "seed": model.seed,
            "epoch": row["epoch"],
            "val_top1": rounded(row["val_top1"]),
            "loss": rounded(row["loss"]),
        }
        for pair in comparison.pairs
        for results in pair.methods
        for model, history in zip(results.models, results.histories, strict=True)
        for row in history
        if row.get("val_top1") is not None
    ]


def balance(comparison: Comparison, pair: PairComparison) -> list[tuple[str, str, list[str]]]:
    """Return name, kind and BALANCE_COLUMNS of each model, and of always answering the most frequent class.

    Nothing if the classes are about as large, or if their sizes are unknown.
    """
    rows = [pair.teacher, *pair.ranked]
    support = [n for n in rows[0].models[0].evaluation.get("support") or [] if n]
    if not support or max(support) <= SIMILAR * min(support) or not all(one.measures("macro_f1") for one in rows):
        return []
    found = [
        (
            _name(pair, results),
            results.kind,
            [formatting.mean_std(results.mean(name), comparison.digits) for name in ("top1", *BALANCED)],
        )
        for results in rows
    ]
    majority = (rows[0].models[0].evaluation["majority_top1"], 100 / len(support))
    return [*found, (MAJORITY, "", [*(formatting.number(value, comparison.digits) for value in majority), "–"])]


def _name(pair: PairComparison, results: MethodResults) -> str:
    return results.label if results.method else f"{TEACHER} ({pair.teacher_name})"


def markdown(comparison: Comparison) -> str:
    """Return the main table of each pair as Markdown, and those on what swapping added and on uneven classes."""
    digits = comparison.digits
    level = formatting.percent(comparison.params.report.confidence)
    parts = []
    for pair in comparison.pairs:
        header = [
            "method",
            formatting.TOP1,
            "n",
            *(f"gain over {ref} [{level} interval]" for ref in comparison.references),
        ]
        lines = [f"## {pair.title}", "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
        for results in (pair.teacher, *pair.ranked):
            name = _name(pair, results)
            gains = [_gain(results, reference, digits) for reference in comparison.references]
            lines.append(_line([name, formatting.mean_std(results.top1, digits), str(results.top1.n), *gains]))
            if peer := results.peer_top1:
                lines.append(
                    _line([f"{name}: its peer", formatting.mean_std(peer, digits), str(peer.n), *[""] * len(gains)])
                )
        parts.append("\n".join(lines))
        added = by_counterpart(comparison.swap_effects[pair.name])
        if added:
            lines = [
                "What swapping itself added:",
                "",
                _line(ADDED_HEADER),
                _line(["---", "---", "---:", "---", "---:", "---:"]),
            ]
            parts.append("\n".join([*lines, *(_line(_added(row, digits)) for row in added)]))
        uneven = balance(comparison, pair)
        if uneven:
            lines = [_line(["method", *BALANCE_COLUMNS]), _line(["---", *["---:"] * len(BALANCE_COLUMNS)])]
            parts.append("\n".join([*lines, *(_line([name, *values]) for name, _, values in uneven)]))
    return "\n\n".join(parts) + "\n"


def _added(added: Added, digits: int) -> list[str]:
    at, difference = formatting.conditions(added.conditions), _difference(added.difference, digits)
    ratio = formatting.ratio(added.time_ratio)
    return [added.method, added.reference, ratio, at, difference, str(added.difference.n)]


def _gain(results: MethodResults, reference: str, digits: int) -> str:
    gain = results.gains.get(reference)
    return _difference(gain, digits) if gain else ""


def _difference(gain: PairedDifference, digits: int) -> str:
    bounds = formatting.interval(gain, digits)
    text = formatting.signed(gain.mean, digits) + (f" [{bounds}]" if bounds else "")
    return f"**{text}**" if gain.significant else text


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
