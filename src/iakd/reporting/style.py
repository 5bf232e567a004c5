"""How figures look, and how they are written: the same bytes every time, in files and inside the page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

from iakd import files
from iakd.reporting.comparison import Entry

# Blue and orange of Okabe and Ito's palette, slightly darkened: they differ for every kind of colour vision, and
# shapes (circle, square, diamond) say the same once more. In the page each becomes a CSS variable of that name.
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
DEPTH = LinearSegmentedColormap.from_list("depth", ["#e0922f", "#c65f8f", "#2f72c4"])  # first block to last

RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "iakd",  # ids from content, not from chance
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
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
    "text.parse_math": False,  # a dollar in a name is a dollar
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}
WIDTH = 9.0  # inches


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, figures are made and written in the project's style."""
    with matplotlib.rc_context(RC):
        yield


def colour(entry: Entry) -> str:
    """Of a method: swapping blocks, or not, or the teacher."""
    return TEACHER if entry.method is None else IAKD if entry.is_iakd else OTHER


def marker(entry: Entry) -> str:
    """The shape that says the same as the colour."""
    return "D" if entry.method is None else "o" if entry.is_iakd else "s"


def shades(n: int) -> list[str]:
    """Colours of `n` blocks, from the first to the last."""
    return [to_hex(DEPTH(i / max(1, n - 1))) for i in range(n)]


def short(name: str, length: int = 24) -> str:
    """A name that fits, its beginning and its end kept: long names tend to differ in either."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[-(length - length // 2 - 1) :]}"


def placeholder(text: str) -> Figure:
    """A figure that says why there is nothing to see."""
    figure = Figure(figsize=(WIDTH, 0.9))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED)
    return figure


def name_blocks(axes: Axes, blocks: int) -> None:
    """Say in a panel's lower right corner which colours the first and the last block have."""
    for height, block, tint in ((0.16, 1, shades(2)[0]), (0.03, blocks, shades(2)[1])):
        if blocks > 1:
            text = f"block {block}"
            axes.text(0.98, height, text, color=tint, transform=axes.transAxes, ha="right", fontsize=7.5)


def svg(figure: Figure) -> str:
    """The figure as a stand-alone SVG document."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = re.sub(r" +\n", "\n", out.getvalue())
    # matplotlib makes some ids of memory addresses; numbered in order of appearance they are the same every time
    ids = {name: f"d{n}" for n, name in enumerate(re.findall(r'id="([a-z][0-9a-f]{10})"', text))}
    return re.sub(r'(id="|#)([a-z][0-9a-f]{10})(?=["\)])', lambda m: m[1] + ids.get(m[2], m[2]), text)


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure as a picture, twice as fine as a screen."""
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=192, metadata={"Software": None})


def write(figure: Figure, folder: Path, name: str) -> str:
    """Write NAME.svg and return the figure for the page."""
    text = svg(figure)
    files.write_text(folder / f"{name}.svg", text)
    return inline(text, name)


def inline(document: str, name: str) -> str:
    """An SVG document as an element of a page: colours as CSS variables, ids of its own, nothing superfluous."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'^<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', body)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = re.sub(r"<[^>]+>", lambda tag: re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", tag[0]), body)
    for variable, value in VARIABLES.items():
        body = body.replace(value, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", body)
