"""Accuracy against latency and against size: a dot per exported file, and the models that no other one beats."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from iakd.reporting.exported import ExportedModel, Exports, pareto_front
from iakd.reporting.figures import style

HEIGHT = 3.0  # inches
LABEL = 36  # characters
COSTS = (("latency_ms", 1.0, "ms per image in ONNX Runtime, median"), ("bytes", 1024.0, "KiB of the file"))


def draw_pareto(exports: Exports) -> Figure:
    """Draw a panel for each cost, both with the same accuracies."""
    figure = Figure(figsize=(style.WIDTH, HEIGHT), layout="constrained")
    for axes, (cost, unit, title) in zip(figure.subplots(1, 2, sharey=True), COSTS, strict=True):
        _draw_panel(axes, exports.models, cost, unit)
        axes.set_xlabel(title)
    figure.axes[0].set_ylabel("top-1 on the test images (%)")
    return figure


def _draw_panel(axes: Axes, models: list[ExportedModel], cost: str, unit: float) -> None:
    front = pareto_front(models, cost)
    axes.set_xscale("log")
    axes.step([getattr(m, cost) / unit for m in front], [m.top1 for m in front], where="post", color=style.MUTED, lw=1)
    by_cost = sorted(models, key=lambda model: getattr(model, cost))
    for model in models:
        above = by_cost.index(model) % 2 == 0  # neighbours have their labels on different sides
        teacher = model.role == "teacher"
        tint, marker = (style.TEACHER, "D") if teacher else (style.IAKD, "o")
        x = getattr(model, cost) / unit
        axes.plot(x, model.top1, marker, color=tint, markerfacecolor=tint if model in front else style.PAPER)
        axes.annotate(
            style.short(model.label, LABEL),
            (x, model.top1),
            (0, 6 if above else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=7,
            color=tint,
        )
    axes.margins(x=0.5, y=0.25)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
