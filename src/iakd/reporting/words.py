"""Numbers and settings as a reader wants them."""

import re

from iakd.config import METHODS, Method, Schedule
from iakd.reporting.statistics import Difference, Mean

WHAT = {
    "scratch": "The student alone, with the labels and nothing else.",
    "label_smoothing": "As scratch, with a part of each label spread over all classes.",
    "kd": "Hinton's distillation: the student also imitates the teacher's softened outputs.",
    "iakd": (
        "Interactive distillation: while the student trains, its blocks are swapped at random for the frozen "
        "teacher's, so that the others learn to work between the teacher's features. p is the probability that a "
        "block stays the student's; the test is always taken by the student alone."
    ),
}
INIT = "“From the teacher” means that the student starts with copies of some of the teacher's blocks, stem and head."


def what(part: str) -> str:
    """A part of a method expression, explained to a reader of the report."""
    line = METHODS[part].summary
    named = line.split()[0] in METHODS  # names of methods are written small
    return WHAT.get(part) or f"{line if named else line[:1].upper() + line[1:]}."


def number(value: float, digits: int) -> str:
    """With a true minus sign, and never a negative zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """With its sign, but for zero."""
    text = number(value, digits)
    return f"+{text}" if float(f"{value:.{digits}f}") > 0 else text


def spread(value: Mean, digits: int) -> str:
    """'94.6 ± 0.8'; only the mean where there is one seed."""
    if value.std is None:
        return number(value.mean, digits)
    return f"{number(value.mean, digits)} ± {number(value.std, digits)}"


def interval(difference: Difference, digits: int) -> str:
    """'+3.9 to +7.1', or nothing for one seed; a bound that is certainly not zero is not rounded to zero."""
    if difference.low is None or difference.high is None:
        return ""
    while (
        difference.certain
        and digits < 6
        and not all(float(f"{b:.{digits}f}") for b in (difference.low, difference.high))
    ):
        digits += 1
    return f"{signed(difference.low, digits)} to {signed(difference.high, digits)}"


def count(value: float) -> str:
    """Three significant digits with a unit prefix: '78.0 k', '40.8 M'."""
    for size, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{prefix}"
    return f"{value:g}"


def whole(value: float) -> str:
    """A count, in groups of three digits."""
    return f"{value:,.0f}".replace(",", "\u202f")


def significant(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def factor(teacher: float, student: float, less: str, more: str) -> str:
    """How the student's cost stands to the teacher's: '3.5× fewer'."""
    if teacher == student:
        return "the same"
    ratio = teacher / student
    return f"{ratio:.1f}× {less}" if ratio > 1 else f"{1 / ratio:.1f}× {more}"


def percent(fraction: float) -> str:
    """A fraction as a percentage without needless digits."""
    return f"{100 * fraction:g} %"


def plural(n: int, one: str, many: str = "") -> str:
    """'1 seed', '3 seeds'."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """'48 s', '12 min', '3.4 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def describe(method: Method, brief: bool = False) -> str:
    """The settings of a method that tell it from its neighbours, in a line.

    `brief`: of most methods only what differs from the defaults, where another place says what they are.
    """
    parts = [text for part in method.names if (text := _part(part, method, brief))]
    if method.init == "teacher":
        parts.append("starts from the teacher")
    if method.recipe:
        parts.append(f"own recipe: {', '.join(sorted(method.recipe))}")
    return "; ".join(parts)


def _part(part: str, method: Method, brief: bool) -> str:
    match part:
        case "scratch":
            return "labels only"
        case "label_smoothing":
            return f"ε = {method.options('label_smoothing').epsilon:g}"
        case "kd":
            return f"teacher's outputs, T = {method.options('kd').temperature:g}"
        case "iakd":
            return _interactive(method)
    options = getattr(method, part, None)
    changed = options.model_dump(exclude_defaults=True) if options else {}
    line = re.sub(r" \([^)]*\)$", "", METHODS[part].summary)  # without its source
    return ", ".join([*([] if brief else [line]), *(f"{name} = {value}" for name, value in changed.items())])


def _interactive(method: Method) -> str:
    options = method.iakd
    frozen = [name for name in ("stem", "head") if getattr(options, name) == "teacher"]
    text = _schedule(options.schedule) if isinstance(options.schedule, Schedule) else "schedule found by Optuna"
    return f"{text}, the teacher's {' and '.join(frozen)}" if frozen else text


def _schedule(schedule: Schedule) -> str:
    s = schedule
    course = f"p = {s.p0:g}" if s.kind == "uniform" else f"p {s.p0:g} → {s.p1:g}"
    tilt = f", tilt {signed(s.slope, 1)}" if s.slope else ""
    return f"{s.kind} {course}{tilt}"
