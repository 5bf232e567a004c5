"""The page: one HTML file that loads nothing else. Every section's values are put together here."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from iakd.config import METHODS, Params
from iakd.reporting import formatting, key_table, verdict
from iakd.reporting.exported import Exports
from iakd.reporting.figures import hints
from iakd.reporting.results import Comparison, ModelResults, PairComparison, StudyResults
from iakd.reporting.swapping import EQUAL_TIME

MAX_CLASSES = 20  # more do not fit side by side


def render(
    comparison: Comparison,
    studies: Sequence[StudyResults],
    manifest: dict[str, Any],
    figures: Mapping[str, str],
    exports: Exports | None = None,
) -> str:
    """Return the page as text. `figures` are SVG elements by name."""
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
        swaps=any(results.interactive for pair in comparison.pairs for results in pair.methods),
        hints=hints.has_hints(comparison),
        studies=bool(studies),
        exports=exports,
        device=_distinct(_measured_on(model) for model in comparison.models),
        equal_time=formatting.ratio(EQUAL_TIME),
        swapping=verdict.swapping_summary(comparison),
        data=_data(params.distill.transfer, manifest),
        origin=origin(comparison, studies, manifest),
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
        "added": key_table.swap_table(comparison, pair),
        "missing": verdict.missing_counterparts(comparison, pair),
        **key_table.key_table(comparison, pair),
    }


def _data(transfer: int | float | None, manifest: dict[str, Any]) -> dict[str, Any]:
    image, classes = manifest["image"], manifest["classes"]
    listed = len(classes) <= MAX_CLASSES
    return {
        "about": manifest["source"]["about"].rstrip("."),
        "shape": f"{image['height']} × {image['width']} pixels, {formatting.plural(image['channels'], 'channel')}",
        "splits": [
            {"name": name, "n": split["n"], "per_class": split["per_class"] if listed else []}
            for name, split in manifest["splits"].items()
        ],
        "classes": classes if listed else [],
        "n_classes": len(classes),
        "transfer": f"{100 * transfer:g} %" if isinstance(transfer, float) else transfer,
        "problems": manifest["problems"],
    }


def origin(comparison: Comparison, studies: Sequence[StudyResults], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of code, packages, data, seeds and machines; several values if the runs differ."""
    records = [model.record for model in comparison.models]
    versions = {" · ".join(f"{name} {v}" for name, v in record["versions"].items()) for record in records}
    return [
        ("Code", _distinct(record["git_commit"] or "not a git checkout" for record in records)),
        (
            "Locked packages",
            f"requirements.lock, SHA-256 {_distinct(r['lock_sha256'] or 'unknown' for r in records)}",
        ),
        ("Installed", "; ".join(sorted(versions))),
        ("Data", f"{manifest['source']['name']}, SHA-256 of images and labels {manifest['sha256']}"),
        *_imported_teachers(comparison),
        ("Seeds", _seeds(comparison.params)),
        ("Device", _distinct(_device(record) for record in records)),
        (
            "Trained",
            f"{_minute(min(r['started'] for r in records))} to {_minute(max(r['finished'] for r in records))} UTC",
        ),
        ("Training time", _training_times(comparison, studies)),
    ]


def _imported_teachers(comparison: Comparison) -> list[tuple[str, str]]:
    teachers = {pair.teacher_name: pair.teacher.imported_from for pair in comparison.pairs}
    lines = [f"{name}: {checkpoint}" for name, checkpoints in teachers.items() for checkpoint in checkpoints]
    return [("Imported teachers", "; ".join(lines))] if lines else []


def _distinct(values: Iterable[str]) -> str:
    """Return the common value, or all values with the number of runs that had each, the most frequent first."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return counts[0][0]
    ordered = sorted(counts, key=lambda c: (-c[1], c[0]))
    return "; ".join(f"{value} ({formatting.plural(n, 'run')})" for value, n in ordered)


def _device(record: dict[str, Any]) -> str:
    """Return what a model was trained on, with the machine around it as far as its record names it."""
    machine = record.get("machine")
    if not machine:
        return str(record["device"])
    around = formatting.machine(machine["processor"], machine["cores"], machine["system"])
    return around if record["device"] == "cpu" else f"{record['device']} in {around}"


def _measured_on(model: ModelResults) -> str:
    """Return what a model's latency was measured on; if it is that of the training, with the machine around it."""
    device = str(model.evaluation.get("device", "cpu"))
    return _device(model.record) if device == model.record["device"] else device


def _seeds(params: Params) -> str:
    teachers, students = (", ".join(map(str, seeds)) for seeds in (params.teach.seeds, params.distill.seeds))
    return f"teachers {teachers}; students {students}; split {params.dataset.split_seed}"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _training_times(comparison: Comparison, studies: Sequence[StudyResults]) -> str:
    """Return the wall time, summed over the runs of each kind."""
    teachers = {
        pair.teacher_name: [model.record["wall_seconds"] for model in pair.teacher.models]
        for pair in comparison.pairs
        if not pair.teacher.imported_from
    }
    students = [
        model.record["wall_seconds"]
        for pair in comparison.pairs
        for results in pair.methods
        for model in results.models
    ]
    seconds = {
        "teacher": [time for times in teachers.values() for time in times],
        "trial": [trial["seconds"] for study in studies for trial in study.trials if trial.get("seconds")],
        "student": students,
    }
    return "; ".join(
        f"{formatting.plural(len(times), kind)} {formatting.duration(sum(times))}"
        for kind, times in seconds.items()
        if times
    )


def settings_text(params: Params) -> str:
    """Return all settings as YAML that gives the same experiment when read back; passwords in addresses are hidden."""
    settings = params.model_dump(mode="json")
    settings["methods"] = {
        label: {**method.settings(), "recipe": method.recipe} for label, method in params.methods.items()
    }
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)
    return re.sub(r"(://[^\s:/@]*:)[^\s@]*@", r"\1…@", text)
