"""The page as a browser has it: valid HTML, accessible, and readable on a phone, in dark mode and in print.

`npm install axe-core vnu-jar` in the project's folder brings what two of the tests need, besides Chromium and Java.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from iakd.experiment.jobs import Experiment

MODULES = Path(__file__).parents[2] / "node_modules"
AXE, VNU = MODULES / "axe-core/axe.min.js", MODULES / "vnu-jar/build/dist/vnu.jar"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=20000"]
MEASURE = """
document.querySelectorAll('details').forEach(one => one.open = true);
const done = found => parent.document.body.textContent = JSON.stringify(found) + '#';
const dark = matchMedia('(prefers-color-scheme: dark)').matches;
const size = {wide: document.documentElement.scrollWidth, room: innerWidth, dark, found: []};
const short = result => result.violations.map(one => [one.impact, one.id, one.nodes[0].html.slice(0, 200)]);
window.axe ? axe.run().then(found => done({...size, found: short(found)})) : done(size);
"""


def in_browser(page: Path, folder: Path, width: int, dark: bool, script: str = "") -> dict[str, Any]:
    """Open a page in a frame of this width, run a script in it, and return what it says of the page."""
    text = page.read_text().replace("</body>", f"<script>{script}</script><script>{MEASURE}</script></body>")
    frame = (
        f'<!doctype html><body><iframe style="width: {width}px; height: 900px" srcdoc="{html.escape(text)}"></iframe>'
    )
    (folder / "frame.html").write_text(frame)
    command = [CHROMIUM, *QUIET, *["--force-dark-mode"] * dark, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, str(folder / "frame.html")], capture_output=True, text=True, timeout=120)
    found = re.search(r"<body>(\{.*\})#", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1200, True)])
def test_nothing_is_wider_than_the_screen(example: Experiment, tmp_path: Path, width: int, dark: bool) -> None:
    found = in_browser(example.report / "report.html", tmp_path, width, dark)
    assert found["wide"] <= found["room"] <= width and found["dark"] == dark


@pytest.mark.skipif(not CHROMIUM or not AXE.exists(), reason="needs Chromium, and axe-core: npm install axe-core")
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1200, True)])
def test_axe_finds_nothing_serious(example: Experiment, tmp_path: Path, width: int, dark: bool) -> None:
    found = in_browser(example.report / "report.html", tmp_path, width, dark, AXE.read_text())
    assert [one for one in found["found"] if one[0] in ("serious", "critical")] == []


@pytest.mark.skipif(not VNU.exists() or not shutil.which("java"), reason="needs Java, and vnu: npm install vnu-jar")
def test_the_page_is_valid_html(example: Experiment) -> None:
    command = ["java", "-jar", str(VNU), "--format", "json", str(example.report / "report.html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(done.stderr)["messages"] == []


def test_all_tables_have_headers_and_all_figures_a_text(example: Experiment) -> None:
    text = (example.report / "report.html").read_text()
    tables = re.findall(r"<table.*?</table>", text, re.DOTALL)
    assert tables and all('<th scope="col"' in table for table in tables)
    assert not re.search(r"<th(?! scope)[ >]", text)
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    alternatives = [re.search(r'role="img" aria-label="([^"]{40,})"', figure) for figure in figures]
    assert len(figures) == 5 and all(alternatives)
    assert all('<svg viewBox="' in figure and 'aria-hidden="true"' in figure for figure in figures)
    assert re.search(r"Last values, %: .*kd 9\d\.\d", text), "what the curves show"
    assert all(f"<{landmark}" in text for landmark in ("header", "main", 'nav aria-label="Sections"'))


def test_every_figure_names_the_runs_and_the_commit_it_was_made_from(example: Experiment) -> None:
    text = (example.report / "report.html").read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    made = [caption for caption in captions if re.search(r">Made from</a> \d+ runs? .*commit 3cbde1e6f0c1", caption)]
    assert len(captions) == 5 and len(made) == 4, "all but that of the study"
    assert ">Made from</a> the 24 trials of 1 study." in text
    runs = text[text.index('id="runs"') :]
    for job in example.trained:
        record = json.loads((job.folder / "run.json").read_text())
        row = next(line for line in runs.splitlines() if f"<code>{job.folder}</code>" in line)
        assert record["key"][:12] in row and record["model_sha256"][:12] in row and "3cbde1e6f0c1" in row
