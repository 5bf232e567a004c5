"""How figures look (colours, axes, shared panels), and how they are written as SVG and PDF: always the same bytes."""

import base64
import html
import io
import logging
import math
import multiprocessing
import os
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from iakd import files
from iakd.errors import RunFailed
from iakd.processes import cores, serve_parent, signals_held
from iakd.reporting.results import MethodResults

logging.getLogger("fontTools").setLevel(logging.WARNING)  # it has something to say on every glyph

# Blue and orange of Okabe and Ito's palette, slightly darkened: distinguishable with every kind of colour vision; the
# markers (circle, square, diamond) repeat the information. In the page each colour becomes a CSS variable.
INK, MUTED, GRID, PAPER = "#1b2330", "#646e7b", "#d8dde4", "#ffffff"
IAKD, OTHER, TEACHER = "#0a69ab", "#c4580b", "#4f5967"
VARIABLES = {
    "ink": INK,
    "muted": MUTED,
    "grid": GRID,
    "paper": PAPER,
    "iakd": IAKD,
    "other": OTHER,
    "teacher": TEACHER,
}
BITMAPS = ("accuracy",)  # figures that are written as PNG, too
MARKERS = {"teacher": "D", "iakd": "o", "other": "s"}
DEPTH = LinearSegmentedColormap.from_list("depth", ["#e0922f", "#c65f8f", "#2f72c4"])  # first block to last

RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,  # and is embedded as TrueType
    "svg.hashsalt": "iakd",  # ids that depend on the content only
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "normal",
    "axes.labelsize": 8.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is not mathematics
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}
WIDTH = 9.0  # inches

DOT, CHARACTER, LINE = 3.5, 0.6, 1.25  # half a dot, in points; a character and a line, in sizes of the font
NEAR, FAR = 9, 14  # points between a dot and its label; from `FAR` on, a line joins them
PLACES = sorted(  # of a label's end or middle, from its dot: the nearest first
    ((dx, dy) for dx in (0, NEAR, -NEAR, 30, -30, 60, -60) for dy in range(-88, 89, 11) if dx or dy),
    key=lambda place: (math.hypot(*place), -place[0], -place[1]),
)

COLUMNS = 4  # of small multiples
PANEL_HEIGHT, TITLE_HEIGHT = 1.45, 0.34  # inches, of a small panel and of a section's title


FONT = "DejaVu Sans"  # comes with matplotlib
LETTERS = frozenset(string.printable.strip() + " ±×–−…→◂▸")  # so that most figures embed the same part of it
OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "Arial Unicode MS")


@contextmanager
def drawing() -> Iterator[None]:
    """Make and write figures in the project's style.

    Letters that DejaVu lacks come from a font of this machine; a PDF shows a box where it has none.
    """
    known = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [FONT, *(name for name in OTHER_SCRIPTS if name in known)]
    with matplotlib.rc_context({**RC, "font.sans-serif": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def colour(results: MethodResults) -> str:
    """Return the colour of the teacher, of a method with swapping or of one without."""
    return VARIABLES[results.kind]


def marker(results: MethodResults) -> str:
    """Return the marker that goes with the colour."""
    return MARKERS[results.kind]


def block_colours(n: int) -> list[str]:
    """Return colours for `n` blocks, from the first to the last."""
    return [to_hex(DEPTH(i / max(1, n - 1))) for i in range(n)]


def short(name: str, length: int = 24) -> str:
    """Shorten a name in the middle: long names tend to differ at their beginning or end."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[-(length - length // 2 - 1) :]}"


def short_all(names: Sequence[str], length: int = 16) -> list[str]:
    """Shorten names so that different ones stay different: in the middle, else at the start, else with a number."""
    found = [short(name, length) for name in names]
    for position, twin in _twins(found):
        found[position] = f"…{names[position][1 - length :]}" if len(names[position]) > length else twin
    for position, _ in _twins(found):
        number = f"… #{position + 1}"
        found[position] = names[position][: length - len(number)] + number
    return found


def _twins(names: Sequence[str]) -> list[tuple[int, str]]:
    """Return positions and texts of those that occur more than once."""
    counts = Counter(names)
    return [(position, name) for position, name in enumerate(names) if counts[name] > 1]


def placeholder(text: str) -> Figure:
    """Return a figure that says why it is empty."""
    figure = Figure(figsize=(WIDTH, 0.9))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED)
    return figure


def label_blocks(axes: Axes, blocks: int) -> None:
    """Label the colours of the first and the last block in a panel's lower right corner."""
    first, last = block_colours(2)
    for height, block, tint in ((0.16, 1, first), (0.03, blocks, last)):
        if blocks > 1:
            text = f"block {block}"
            axes.text(0.98, height, text, color=tint, transform=axes.transAxes, ha="right", fontsize=7.5)


def title_section(section: SubFigure, title: str) -> None:
    """Set the title of a section: the part of a figure that belongs to one pair."""
    section.set_facecolor("none")
    section.suptitle(title, x=0.008, ha="left", fontsize=9, fontweight="bold")


def small_multiples(titles: Sequence[str], counts: Sequence[int]) -> tuple[Figure, Iterator[list[Axes]]]:
    """Return a figure with a section of `counts[i]` equal panels for each of `titles`, and the sections' panels."""
    rows = [math.ceil(count / COLUMNS) for count in counts]
    heights = [PANEL_HEIGHT * n + TITLE_HEIGHT for n in rows]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    sections = figure.subfigures(len(titles), 1, squeeze=False, height_ratios=heights)[:, 0]
    return figure, (_panels(*section) for section in zip(sections, titles, counts, rows, strict=True))


def _panels(section: SubFigure, title: str, count: int, rows: int) -> list[Axes]:
    title_section(section, title)
    panels = list(section.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel())
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[:count]:
        axes.xaxis.set_major_locator(MaxNLocator(3, prune="upper"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    for axes in panels[max(0, count - COLUMNS) : count]:
        axes.tick_params(labelbottom=True)  # nothing below this panel has the axis
    return panels[:count]


@dataclass(frozen=True)
class AxisRange:
    """A linear axis from `low` to `high`, with round numbers as ticks."""

    low: float
    high: float
    ticks: list[float]

    def position(self, value: float) -> float:
        """Return where to draw `value`, in percent of the width; values outside go to the edge."""
        return 100.0 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def outside(self, value: float) -> bool:
        """Whether `value` is beyond either end."""
        return not self.low <= value <= self.high


def fit_axis(centres: Sequence[float], ends: Sequence[float], ticks: int = 4) -> AxisRange:
    """Return an axis that no single failed training or huge interval can spoil.

    It shows `centres`, except those further from the quartiles than four times their distance: a method that failed in
    training. `ends` (seeds, bounds of intervals) widen it by at most half the span of the centres, to either side.
    """
    q1, q3 = np.quantile(centres, [0.25, 0.75])
    reach = 4 * (q3 - q1)
    shown = [c for c in centres if q1 - reach <= c <= q3 + reach]
    low, high = min(shown), max(shown)
    room = max((high - low) / 2, 0.5)
    low = max(low - room, min([low, *ends]))
    high = min(high + room, max([high, *ends]))
    margin = 0.06 * max(high - low, 0.1)
    low, high = low - margin, high + margin
    values = [float(t) for t in MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    return AxisRange(float(low), float(high), [t for t in values if low <= t <= high])


@dataclass(frozen=True)
class Label:
    """The name of a dot at `x`, `y` in the data's units."""

    x: float
    y: float
    text: str
    colour: str


Box = tuple[float, float, float, float]  # left, bottom, right, top, in points


def place_labels(axes: Axes, labels: Sequence[Label], size: float = 7.0) -> None:
    """Write labels beside dots, each where it covers neither another label nor a dot, with a line to a dot far away.

    What is drawn with `axes.plot` is kept free, lines as far as they are horizontal or vertical. The first labels have
    the first choice; where no place is left, a label takes the one where it covers least. The figure must be complete
    otherwise: its layout is settled here.
    """
    figure = axes.get_figure(root=True)
    assert figure
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    left, bottom, right, top = (value * points for value in axes.get_window_extent().extents)
    drawn: list[Box] = []
    for line in axes.get_lines():
        corners = [tuple(corner) for corner in axes.transData.transform(line.get_xydata()) * points]
        drawn += [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in corners]
        drawn += [(min(x, u) - 1, min(y, v) - 1, max(x, u) + 1, max(y, v) + 1) for (x, y), (u, v) in pairwise(corners)]
    placed: list[Box] = []
    for label in labels:
        x, y = axes.transData.transform((label.x, label.y)) * points
        wide, high = CHARACTER * size * len(label.text), LINE * size
        best: tuple[float, list[Box], tuple[int, int]] | None = None
        for dx, dy in PLACES:
            start = x + dx - (0 if dx > 0 else wide if dx < 0 else wide / 2)
            box = (start, y + dy - high / 2, start + wide, y + dy + high / 2)
            joined = _leader(x, y, dx, dy) if math.hypot(dx, dy) > FAR else []
            outside = max(left - box[0], 0) + max(box[2] - right, 0) + max(bottom - box[1], 0) + max(box[3] - top, 0)
            cover = 100 * outside + sum(10 * _shared(mine, other) for mine in (box, *joined) for other in placed)
            cover += sum(_shared(box, other) for other in drawn)
            if best is None or cover < best[0]:
                best = cover, [box, *joined], (dx, dy)
            if not cover:
                break
        assert best
        _, boxes, (dx, dy) = best
        placed += boxes
        leader = {"arrowstyle": "-", "color": label.colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            label.text,
            (label.x, label.y),
            (dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right" if dx < 0 else "center",
            va="center",
            fontsize=size,
            color=label.colour,
            arrowprops=leader if math.hypot(dx, dy) > FAR else None,
        ).set_in_layout(False)


def _leader(x: float, y: float, dx: float, dy: float) -> list[Box]:
    """Return small boxes along the line from a dot to its label."""
    ends = ((x + dx * part, y + dy * part) for part in np.linspace(0.3, 0.9, 7))
    return [(u - 1, v - 1, u + 1, v + 1) for u, v in ends]


def _shared(one: Box, other: Box) -> float:
    """Return the area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0) * max(high, 0)


def svg(figure: Figure, about: str = "") -> str:
    """Return the figure as a stand-alone SVG document; `about` says what it was made from."""
    out = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None, "Description": about or None}
    figure.savefig(out, format="svg", metadata=metadata)
    text = re.sub(r" +\n", "\n", out.getvalue())
    # some of matplotlib's ids are memory addresses; numbered in order of appearance they are the same every time
    ids = {name: f"d{n}" for n, name in enumerate(re.findall(r'id="([a-z][0-9a-f]{10})"', text))}
    return re.sub(r'(id="|#)([a-z][0-9a-f]{10})(?=["\)])', lambda m: m[1] + ids.get(m[2], m[2]), text)


def with_fonts(document: str) -> str:
    """Return an SVG document with the letters that it uses embedded, so that it looks the same everywhere."""
    letters = frozenset(html.unescape("".join(re.findall(r">([^<]*)</text>", document)))) | LETTERS
    weights = ["normal", *["bold"] * bool(re.search(r'style="font(?:-weight)?: (?:700|bold)', document))]
    return document.replace("</style>", "".join(_font_face(weight, letters) for weight in weights) + "</style>", 1)


@cache
def _font_face(weight: str, letters: frozenset[str]) -> str:
    """Return a CSS rule with the part of the font that has these letters."""
    from fontTools import subset

    options = subset.Options(flavor="woff", layout_features=["kern"], hinting=False)
    options.drop_tables = [*options.drop_tables, "FFTM"]
    path = font_manager.findfont(font_manager.FontProperties(family=FONT, weight=weight))
    out = io.BytesIO()
    with closing(subset.load_font(path, options)) as font:
        subsetter = subset.Subsetter(options)
        subsetter.populate(text="".join(letters))
        subsetter.subset(font)
        subset.save_font(font, out, options)
    data = base64.b64encode(out.getvalue()).decode()
    return f"@font-face{{font-family:'{FONT}';font-weight:{weight};src:url(data:font/woff;base64,{data})}}"


def write_all(drawings: Mapping[str, Callable[[], Figure]], folder: Path, about: dict[str, str]) -> dict[str, str]:
    """Draw and `write` each figure, with the text in `about`; return the elements of the page, by name.

    Files of other figures are removed. In several processes, since this is most of the work of a report, and a workflow
    has nothing else to do meanwhile. Raises RunFailed if one of them dies.
    """
    fork = multiprocessing.get_context("fork")  # with what is drawn in memory, in the style of `drawing`
    pool = ProcessPoolExecutor(min(cores(), len(drawings)), fork, _share, (os.getpid(), drawings, folder, about))
    try:
        with signals_held():  # the first call starts processes
            written = pool.map(_write_shared, drawings)
        elements = dict(zip(drawings, written, strict=True))
        for path in folder.glob("*"):
            if path.is_file() and path.stem not in drawings:
                path.unlink()
        return elements
    except BrokenProcessPool:
        raise RunFailed(f"{folder}: a process that writes figures died; probably out of memory") from None
    finally:
        pool.shutdown(cancel_futures=True)


_arguments: list[Any] = []  # the arguments of `write_all`, in its processes


def _share(parent: int, *arguments: Any) -> None:
    serve_parent(parent)
    _arguments[:] = arguments


def _write_shared(name: str) -> str:
    drawings, folder, about = _arguments
    return write(drawings[name](), folder, name, about[name])


def write(figure: Figure, folder: Path, name: str, about: str) -> str:
    """Write NAME.svg and NAME.pdf, both with their fonts, and NAME.png of BITMAPS; return it as an element of the page.

    `about` says what it was made from.
    """
    text = svg(figure, about)
    figure.set_layout_engine("none")  # the places that were found for the SVG hold for the others
    _round_places(figure)
    files.write_text(folder / f"{name}.svg", with_fonts(text))
    metadata = {"Title": name, "Subject": about, "Creator": None, "Producer": None, "CreationDate": None}
    document = io.BytesIO()  # a full disk in the middle would end matplotlib's writer with another error
    figure.savefig(document, format="pdf", metadata=metadata)
    files.write_bytes(folder / f"{name}.pdf", document.getvalue())
    if name in BITMAPS:  # with twice the resolution of a screen
        with files.atomic_path(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=192, metadata={"Software": None})
    return inline(text, name)


def _round_places(figure: Figure | SubFigure) -> None:
    """Round the places of all parts: they differ in the tenth digit from time to time, which a PDF would show."""
    for section in figure.subfigs:
        section.bbox_relative.p0, section.bbox_relative.p1 = np.round(section.bbox_relative.get_points(), 6)
        _round_places(section)
    if isinstance(figure, Figure):
        for axes in figure.get_axes():
            axes.set_position(tuple(round(value, 6) for value in axes.get_position().bounds))


def inline(document: str, name: str) -> str:
    """Return an SVG document as an element of a page: colours as CSS variables, unique ids, nothing superfluous."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'^<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', body)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = re.sub(r"<[^>]+>", lambda tag: re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", tag[0]), body)
    for variable, value in VARIABLES.items():
        body = body.replace(value, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", body)
