"""The page: one HTML file that loads nothing else. Every section's values are put together here."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from iakd.config import METHODS, Params
from iakd.experiment import run_dir
from iakd.reporting import formatting, key_table, paper, review, tables, verdict
from iakd.reporting.exported import Exports, pareto_front
from iakd.reporting.figures import hints
from iakd.reporting.results import (
    Comparison,
    PairComparison,
    StudyResults,
    most_frequent,
    percentages,
)
from iakd.reporting.swapping import EQUAL_TIME

MAX_CLASSES = 20  # more are folded away
MAX_MISTAKES = 15


def render(
    comparison: Comparison,
    studies: Sequence[StudyResults],
    manifest: dict[str, Any],
    figures: Mapping[str, str],
    methods: str,
    exports: Exports | None = None,
) -> str:
    """Return the page as text. `figures` are SVG elements by name; `methods` is the paragraph for a paper."""
    environment = Environment(
        loader=PackageLoader("iakd.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    params = comparison.params
    used = {name for method in params.methods.values() for name in method.names}
    verdicts = [verdict.pair_verdict(comparison, pair) for pair in comparison.pairs]
    return environment.get_template("report.html.j2").render(
        title=params.report.title,
        dataset=params.dataset.name,
        setup=verdict.describe_setup(comparison),
        overview=verdict.overview(comparison),
        leads=key_table.lead_column([found.lead for found in verdicts], comparison.digits),
        caution=verdict.caution(comparison),
        warnings=verdict.warnings(comparison),
        level=formatting.percent(params.report.confidence),
        references=comparison.references,
        pairs=[
            _pair(comparison, pair, found, f"pair-{position}")
            for position, (pair, found) in enumerate(zip(comparison.pairs, verdicts, strict=True), 1)
        ],
        explanations={name: formatting.explain_method(name) for name in METHODS if name in used},
        init_note=" ".join(
            note for init, (_, note) in formatting.STARTS.items() if init in {m.init for m in params.methods.values()}
        ),
        figures={name: Markup(figure) for name, figure in figures.items()},
        origins=review.figure_origins(comparison, studies, exports),
        alts=_alternatives(comparison, studies, manifest["classes"], exports),
        recommended=verdict.recommendation(comparison, exports),
        top1=formatting.TOP1,
        val_top1=formatting.VAL_TOP1,
        quantities=formatting.QUANTITIES,
        network=key_table.NETWORK,
        balance_columns=tables.BALANCE_COLUMNS,
        balance_note=tables.BALANCE_NOTE,
        runs=review.runs(comparison),
        answers=review.answers(comparison, studies, manifest),
        budgets=[review.budget(comparison, study) for study in studies],
        mistakes=[_mistakes(pair, manifest["classes"]) for pair in comparison.pairs],
        paragraph=paper.as_text(comparison, methods),
        beside=(run_dir.LATEX, run_dir.PARAGRAPH, run_dir.BIBLIOGRAPHY, run_dir.TABLES, run_dir.RESULTS_FILE),
        swaps=any(results.interactive for pair in comparison.pairs for results in pair.methods),
        hints=hints.has_hints(comparison),
        studies=bool(studies),
        exports=exports,
        device=review.distinct(review.measured_on(model) for model in comparison.models),
        equal_time=formatting.ratio(EQUAL_TIME),
        swapping=verdict.swapping_summary(comparison),
        data=_data(params.distill.transfer, manifest),
        origin=review.origin(comparison, studies, manifest),
        commit=comparison.models[0].record["git_commit"],
        settings=settings_text(params),
    )


def _pair(comparison: Comparison, pair: PairComparison, found: verdict.PairVerdict, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "title": pair.title,
        "teacher": pair.teacher_name,
        "student": pair.student_name,
        "verdict": found,
        "sizes": key_table.size_table(pair),
        "networks": key_table.network_table(pair),
        "trainings": key_table.training_table(pair),
        "bits": key_table.bits_table(comparison, pair),
        "balance": tables.balance(comparison, pair),
        "added": key_table.swap_table(comparison, pair),
        "missing": verdict.missing_counterparts(comparison, pair),
        **key_table.key_table(comparison, pair),
    }


def _data(transfer: int | float | None, manifest: dict[str, Any]) -> dict[str, Any]:
    image, classes, splits = manifest["image"], manifest["classes"], manifest["splits"]
    return {
        "about": manifest["source"]["about"].rstrip("."),
        "shape": f"{image['height']} × {image['width']} pixels, {formatting.plural(image['channels'], 'channel')}",
        "splits": list(splits),
        "totals": [formatting.whole(split["n"]) for split in splits.values()],
        "classes": [(name, [split["per_class"][i] for split in splits.values()]) for i, name in enumerate(classes)],
        "n_classes": formatting.whole(len(classes)),
        "folded": len(classes) > MAX_CLASSES,
        "transfer": formatting.percent(transfer) if isinstance(transfer, float) else transfer,
        "problems": manifest["problems"],
        "groups": ", ".join(f"{n} groups in {split}" for split, n in manifest.get("groups", {}).items()),
        "compared": manifest.get("near_duplicates") is not None,
    }


def _alternatives(
    comparison: Comparison, studies: Sequence[StudyResults], classes: Sequence[str], exports: Exports | None
) -> dict[str, str]:
    """Return for each figure of the page what it shows, for those who do not see it."""
    digits = comparison.digits

    def by_pair(describe: Callable[[PairComparison], str]) -> str:
        several = len(comparison.pairs) > 1
        return "; ".join((f"{pair.title}: " if several else "") + describe(pair) for pair in comparison.pairs)

    def curves(pair: PairComparison) -> str:
        ends = (f"{r.label} {formatting.number(r.merit[0], digits)}" for r in pair.in_display_order)
        return ", ".join(ends)

    def calibration(pair: PairComparison) -> str:
        shown = (pair.teacher, *pair.best_of_each_kind)
        return ", ".join(f"{r.label} {formatting.number(r.mean('ece').mean, formatting.ECE_DIGITS)}" for r in shown)

    def confusion(pair: PairComparison) -> str:
        best = pair.ranked[0]
        worst = most_frequent(best.confusion)[:3]
        named = (
            f"{classes[true]} taken for {classes[found]} ({best.confusion[true, found]:.0f})" for true, found in worst
        )
        return f"{best.label}: {', '.join(named) or 'none'}"

    tuned = (f"{study.title}: {study.best['number']}" for study in studies if study.best)
    front = [one.label for one in pareto_front(exports.candidates, "latency_ms")] if exports else []
    return {
        "curves": f"Validation accuracy over the epochs, a panel per method. Last values, %: {by_pair(curves)}.",
        "swaps": "Probability that a student block is kept over the epochs, planned and drawn, a panel per method.",
        "hints": "Similarity of the teacher's blocks, their clusters and the hint points.",
        "tuning": f"Studies: accuracy of each trial, importance of each setting, p over the training. Best trial of "
        f"{'; '.join(tuned)}.",
        "calibration": f"Accuracy against confidence. Expected calibration error: {by_pair(calibration)}.",
        "confusion": f"Confusion and accuracy per class. Most frequent mistakes of {by_pair(confusion)}.",
        "pareto": "Accuracy against latency, file size, training time and MACs. By latency nothing beats: "
        f"{', '.join(front)}.",
    }


def _mistakes(pair: PairComparison, classes: Sequence[str]) -> dict[str, Any]:
    """Return the most frequent mistakes and the accuracy of each class, as tables."""
    best = pair.ranked[0]
    counts, shares = best.confusion, percentages(best.confusion)
    images = counts.sum(1) / len(best.models)
    accuracies = [(results.label, results.per_class) for results in (best, pair.teacher)]
    return {
        "title": pair.title,
        "label": best.label,
        "mistakes": [
            (
                classes[true],
                classes[found],
                formatting.whole(counts[true, found]),
                formatting.number(shares[true, found], 1),
            )
            for true, found in most_frequent(counts)[:MAX_MISTAKES]
        ],
        "names": [label for label, _ in accuracies],
        "classes": [
            (name, formatting.whole(images[i]), [_accuracy(values[i]) for _, values in accuracies])
            for i, name in enumerate(classes)
        ],
    }


def _accuracy(value: float) -> str:
    return "–" if value != value else formatting.number(value, 1)


def settings_text(params: Params) -> str:
    """Return all settings as YAML that gives the same experiment when read back; passwords in addresses are hidden."""
    settings = params.model_dump(mode="json")
    settings["methods"] = {
        label: {**method.settings(), "recipe": method.recipe, **({"seeds": method.seeds} if method.seeds else {})}
        for label, method in params.methods.items()
    }
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)
    return re.sub(r"(://[^\s:/@]*:)[^\s@]*@", r"\1…@", text)
