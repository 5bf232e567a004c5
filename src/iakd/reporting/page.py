"""The page: one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from iakd.config import METHODS
from iakd.reporting import keytable, verdict, words
from iakd.reporting.comparison import Comparison
from iakd.reporting.figures import hints
from iakd.reporting.origins import origins, settings_text
from iakd.reporting.studies import Study

MANY_CLASSES = 20  # more would not fit side by side


def render(
    comparison: Comparison, studies: Sequence[Study], manifest: dict[str, Any], figures: Mapping[str, str]
) -> str:
    """The page as text. `figures` are SVG elements by name."""
    environment = Environment(
        loader=PackageLoader("iakd.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    params = comparison.params
    parts = {part for method in params.methods.values() for part in method.names}
    return environment.get_template("report.html.j2").render(
        title=params.report.title,
        dataset=params.dataset.name,
        compared=verdict.compared(comparison),
        overview=verdict.overview(comparison),
        leads=_leads(comparison),
        caution=verdict.caution(comparison),
        level=words.percent(params.report.confidence),
        references=comparison.references,
        pairs=[_pair(comparison, i) for i in range(len(comparison.pairs))],
        what={part: words.what(part) for part in METHODS if part in parts},
        init=words.INIT if any(method.init == "teacher" for method in params.methods.values()) else "",
        figures={name: Markup(figure) for name, figure in figures.items()},
        swaps=any(entry.is_iakd for pair in comparison.pairs for entry in pair.entries),
        hints=hints.recorded(comparison),
        studies=bool(studies),
        data=_data(params.distill.transfer, manifest),
        origins=origins(comparison, studies, manifest),
        commit=comparison.results[0].record["git_commit"],
        settings=settings_text(params),
    )


def _leads(comparison: Comparison) -> dict[str, Any]:
    """A strip per pair: the best method that swaps blocks minus the best that does not."""
    leads = [verdict.verdict(comparison, pair).lead for pair in comparison.pairs]
    return keytable.leads(leads, comparison.digits)


def _pair(comparison: Comparison, position: int) -> dict[str, Any]:
    pair = comparison.pairs[position]
    return {
        "id": f"pair-{position + 1}",
        "title": pair.title,
        "teacher": pair.teacher_name,
        "student": pair.student_name,
        "verdict": verdict.verdict(comparison, pair),
        "sizes": keytable.sizes(pair),
        "costs": keytable.costs(pair),
        **keytable.table(comparison, pair),
    }


def _data(transfer: int | float | None, manifest: dict[str, Any]) -> dict[str, Any]:
    image, classes = manifest["image"], manifest["classes"]
    listed = len(classes) <= MANY_CLASSES
    return {
        "about": manifest["source"]["about"],
        "shape": f"{image['height']} × {image['width']} pixels, {words.plural(image['channels'], 'channel')}",
        "splits": [
            {"name": name, "n": split["n"], "per_class": split["per_class"] if listed else []}
            for name, split in manifest["splits"].items()
        ],
        "classes": classes if listed else [],
        "n_classes": len(classes),
        "transfer": f"{100 * transfer:g} %" if isinstance(transfer, float) else transfer,
        "problems": manifest["problems"],
    }
