"""Numbers and the settings of methods as text for readers: the one place that decides names, digits and units."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iakd.config import METHODS, Candidate, Method, Schedule
from iakd.files import plural as plural
from iakd.reporting.statistics import MIN_SEEDS, PairedDifference, SeedMean
from iakd.reporting.swapping import Condition

EXPLANATIONS = {
    "scratch": "The student trained on the labels only, without a teacher.",
    "label_smoothing": "As scratch, with part of each label spread over all classes.",
    "kd": "Hinton's distillation: the student also learns to match the teacher's softened outputs.",
    "iakd": (
        "Interactive distillation: during training, student blocks are randomly swapped for the frozen teacher's, so "
        "that the remaining blocks learn to work with the teacher's features. p is the probability that a block stays "
        "the student's. In the two-path form the student itself is trained in every step, and hybrid paths beside it. "
        "The finished student is always tested on its own."
    ),
}
DESCRIBED = {  # settings whose values `describe_settings` shows in the terms of their methods
    *("kd.temperature", "label_smoothing.epsilon", "init", "iakd.paths", "iakd.weight"),
    *(f"iakd.schedule.{name}" for name in ("kind", "p0", "p1", "slope")),
}
STARTS = {  # by `init`: how a table calls it, and what that means
    "teacher": (
        "starts from the teacher",
        "“Starts from the teacher” means that the student starts with copies of teacher blocks, stem and head.",
    ),
    "blockwise": (
        "block-wise warm start",
        "In a “block-wise warm start” each student block first learns what the teacher's blocks in its place compute.",
    ),
}


def explain_method(name: str) -> str:
    """Return a sentence on one term of a method expression, for the report."""
    summary = METHODS[name].summary
    starts_with_method = summary.split()[0] in METHODS  # names of methods keep their lower case
    return EXPLANATIONS.get(name) or f"{summary if starts_with_method else summary[:1].upper() + summary[1:]}."


def digits(test_images: int) -> int:
    """Return the decimals of an accuracy in percent that a test set of this size can resolve."""
    return 1 if test_images < 5000 else 2


def number(value: float, digits: int) -> str:
    """Format with a true minus sign, and never as a negative zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """Format with a sign, except zero."""
    text = number(value, digits)
    return f"+{text}" if float(f"{value:.{digits}f}") > 0 else text


def mean_std(value: SeedMean, digits: int) -> str:
    """Return '94.6 ± 0.8', or only the mean for a single seed."""
    if value.std is None:
        return number(value.mean, digits)
    return f"{number(value.mean, digits)} ± {number(value.std, digits)}"


def interval(difference: PairedDifference, digits: int) -> str:
    """Return '+3.9 to +7.1', or nothing for one seed; of an interval without zero no bound is rounded to zero."""
    if difference.low is None or difference.high is None:
        return ""
    while (
        difference.excludes_zero
        and digits < 6
        and not all(float(f"{b:.{digits}f}") for b in (difference.low, difference.high))
    ):
        digits += 1
    return f"{signed(difference.low, digits)} to {signed(difference.high, digits)}"


def judgement(difference: PairedDifference) -> str:
    """Return 'significant', 'not significant', 'one seed only' or 'two seeds only'.

    Beside an interval without zero, say why it is not: of many intervals, some exclude zero by chance.
    """
    if difference.n < MIN_SEEDS:
        return "one seed only" if difference.n == 1 else "two seeds only"
    if difference.significant:
        return "significant"
    return "not significant" + " among all differences" * difference.excludes_zero


def with_prefix(value: float) -> str:
    """Format to three significant digits with a unit prefix: '78.0 k', '40.8 M'."""
    for size, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{prefix}"
    return f"{value:g}"


def whole(value: float) -> str:
    """Round to a whole number, with digits in groups of three."""
    return f"{value:,.0f}".replace(",", "\u202f")


def three_digits(value: float) -> str:
    """Format to three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def megabytes(value: float) -> str:
    """Format a number of bytes in MB, without the unit."""
    return three_digits(value / 1e6)


def cost_ratio(teacher: float, student: float, less: str, more: str) -> str:
    """Compare the student's cost with the teacher's: '3.5× fewer'."""
    if not teacher or not student:
        return "unknown"  # of a black box
    if teacher == student:
        return "the same"
    ratio = teacher / student
    return f"{ratio:.1f}× {less}" if ratio > 1 else f"{1 / ratio:.1f}× {more}"


def ratio(value: float | None) -> str:
    """Return '1.04×', or a dash if it is unknown."""
    return "–" if value is None else f"{number(value, 2)}×"


def percent(fraction: float) -> str:
    """Format a fraction as a percentage without trailing zeros."""
    return f"{100 * fraction:g} %"


def setting(name: str) -> str:
    """Return a searched setting's name without its section, where that is clear."""
    return name.removeprefix("iakd.schedule.").removeprefix("recipe.")


def conditions(names: Sequence[Condition]) -> str:
    """Return 'equal epochs', 'equal training time, both tuned', 'equal epochs and training time'."""
    what = " and ".join("epochs" if name.endswith("epochs") else "training time" for name in names)
    return f"equal {what}{', both tuned' if names[0].startswith('tuned') else ''}"


def machine(processor: str, cores: int, system: str) -> str:
    """Return what something ran on, as `provenance.machine` knows it."""
    return f"{processor} ({plural(cores, 'core')}), {system}"


def duration(seconds: float) -> str:
    """Return '48 s', '12 min', '3.4 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Quantity:
    """What is measured of a model: its name with the unit, as text, and the words for less and for more of it."""

    title: str
    form: Callable[[float], str]
    less: str = "lower"
    more: str = "higher"

    def text(self, value: float | None) -> str:
        """Return the value with the quantity's digits, without its unit; 0 stands for what is not known."""
        return self.form(value) if value else "unknown"


ECE_DIGITS = 3
TOP1, VAL_TOP1 = "Test accuracy, %", "Validation accuracy, %"  # their digits depend on the test set
QUANTITIES = {
    "parameters": Quantity("Parameters", with_prefix, "fewer", "more"),
    "weight_bytes": Quantity("Weights, MB", megabytes, "smaller", "larger"),
    "macs": Quantity("MACs per image", with_prefix, "fewer", "more"),
    "latency_ms": Quantity("Latency, ms", three_digits, "faster", "slower"),
    "images_per_s": Quantity("Images per s", whole, "slower", "faster"),
    "training_seconds": Quantity("Training, one seed", duration, "shorter", "longer"),
    "bit_operations": Quantity("Bit operations per image", with_prefix, "fewer", "more"),
    "bytes": Quantity("ONNX file, MB", megabytes, "smaller", "larger"),
    "memory_mib": Quantity("Memory, MiB", whole),
}


def describe_settings(method: Method, brief: bool = False, trained: Candidate | None = None) -> str:
    """Return the settings that distinguish a method from similar ones, in one line.

    With `brief`, most terms show only what differs from their defaults. `trained` has what a study has chosen.
    """
    shown = trained.method if trained else method
    terms = [text for name in shown.names if (text := _describe_term(name, shown, brief))]
    if shown.init in STARTS:
        terms.append(STARTS[shown.init][0])
    if method.recipe:
        own = [
            name if isinstance(value, dict) else _value(name, value) for name, value in sorted(method.recipe.items())
        ]
        terms.append(f"own recipe: {', '.join(own)}")
    if method.tuned:
        found = ["schedule"] * (shown.tunes_schedule < method.tunes_schedule)  # else its own term says so
        found += [_chosen(name, trained) for name in method.tune]
        terms += [f"from Optuna: {', '.join(found)}"] * bool(found)
    return "; ".join(terms)


def _chosen(name: str, trained: Candidate | None) -> str:
    """Return the name of a searched setting, with the value that a study found unless another term shows it."""
    last = name.rpartition(".")[2]
    return _value(last, trained.value(name)) if trained and name not in DESCRIBED else last


def _value(name: str, value: Any) -> str:
    return f"{name} = {value:.3g}" if isinstance(value, float) else f"{name} = {value}"


def _describe_term(name: str, method: Method, brief: bool) -> str:
    match name:
        case "scratch":
            return "labels only"
        case "label_smoothing":
            return f"ε = {method.options('label_smoothing').epsilon:g}"
        case "kd":
            return f"teacher's outputs, T = {method.options('kd').temperature:.3g}"
        case "iakd":
            return _describe_iakd(method)
    options = getattr(method, name, None)
    changed = options.model_dump(exclude_defaults=True) if options else {}
    summary = re.sub(r" \([^)]*\)$", "", METHODS[name].summary)  # without its source
    return ", ".join([*([] if brief else [summary]), *(f"{key} = {value}" for key, value in changed.items())])


def _describe_iakd(method: Method) -> str:
    options = method.iakd
    frozen = [part for part in ("stem", "head") if getattr(options, part) == "teacher"]
    text = _describe_schedule(options.schedule) if isinstance(options.schedule, Schedule) else "schedule from Optuna"
    if options.form == "two_path":
        text = f"two-path: {options.paths}, γ = {options.weight:.3g}; {text}"
    return f"{text}, the teacher's {' and '.join(frozen)}" if frozen else text


def _describe_schedule(schedule: Schedule) -> str:
    p = f"p = {schedule.p0:.3g}" if schedule.kind == "uniform" else f"p {schedule.p0:.3g} → {schedule.p1:.3g}"
    slope = f", slope {signed(schedule.slope, 1)}" if schedule.slope else ""
    return f"{schedule.kind} {p}{slope}"
