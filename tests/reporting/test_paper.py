"""What the report writes for a paper: LaTeX that compiles, and a BibTeX entry for all that is cited."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fake_experiment
import pytest

from iakd.config import METHODS
from iakd.experiment.jobs import Experiment
from iakd.plugins import MethodSpec
from iakd.reporting import paper
from iakd.reporting.results import read_comparison, read_study
from iakd.stages import report

WITHOUT_A_SOURCE = {"scratch"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def paragraph(experiment: Experiment) -> str:
    comparison = read_comparison(experiment)
    studies = [read_study(job, 3, [], dict) for job in experiment.studies]
    manifest = json.loads((experiment.data.folder / "manifest.json").read_text())
    return paper.paragraph(comparison, studies, manifest)


def test_every_method_has_a_source_and_every_entry_is_used():
    known = paper.entries()
    cited = {name: spec.cites for name, spec in METHODS.items() if (spec.loss or "iakd.").startswith("iakd.")}
    assert {name for name, cites in cited.items() if not cites} == WITHOUT_A_SOURCE
    of_methods = {key for cites in cited.values() for key in cites}
    others = {"akiba2019optuna", "bergstra2011algorithms", "paszke2019pytorch"}
    assert of_methods | others | {"holm1979simple", "obuchowski1995hypothesis"} == set(known)
    for key, entry in known.items():
        for field in ("author", "title", "year"):
            assert re.search(rf"^\s+{field}\s+= \{{.+\}},?$", entry, re.MULTILINE), f"{key} has no {field}"
        assert re.search(r"(19|20)\d\d", key)[0] in entry.split("year")[1]


def test_what_is_cited_has_an_entry_and_nothing_else_has_one():
    experiment = fake_experiment.plan({"scratch": {}, "kd": {}, "iakd+dkd": {}, "hints": {}}, epochs=5)
    fake_experiment.write(experiment, lambda job: 90.0 + job.seed)
    text = paragraph(experiment)
    bibliography = paper.bibliography(read_comparison(experiment), text)
    keys = re.findall(r"@\w+\{(\w+),", bibliography)
    methods = ["hinton2015distilling", "fu2021interactive", "zhao2022decoupled", "keser2023pursuhint"]
    assert keys == [
        *(*methods, "kornblith2019similarity", "obuchowski1995hypothesis", "holm1979simple", "paszke2019pytorch")
    ]
    assert sorted(keys) == sorted(
        set(re.findall(r"\w+\d{4}\w+", " ".join(re.findall(r"\\cite\{([^}]*)\}", paper.as_latex(text, None)))))
    )
    shown = paper.as_text(read_comparison(experiment), text)
    assert "kd, the teacher's softened outputs as targets (Hinton et al. 2015)" in shown
    assert "(Keser et al. 2023; Kornblith et al. 2019)" in shown
    assert "10 classes; 650 training, 300 validation and 1\u202f000 test images" in shown
    assert "[[" not in shown and "No hyperparameter was tuned" in shown


def test_a_method_of_another_package_brings_its_own_entry(monkeypatch):
    entry = "@misc{me2030mine,\n  author = {Me, A.},\n  title = {Mine},\n  year = {2030}\n}"
    monkeypatch.setitem(
        METHODS, "kd", MethodSpec("mine", "logits", METHODS["kd"].loss, METHODS["kd"].options, cites=(entry,))
    )
    experiment = fake_experiment.plan({"kd": {}}, epochs=5)
    fake_experiment.write(experiment, lambda job: 90.0 + job.seed)
    text = paragraph(experiment)
    assert entry in paper.bibliography(read_comparison(experiment), text)
    assert "kd, mine (Me 2030)" in paper.as_text(read_comparison(experiment), text)


def test_the_table_has_mean_and_std_the_best_in_bold_and_significance_marked():
    """iakd+kd is a point better than kd with every seed, so significantly; scratch is as good as kd."""
    experiment = fake_experiment.plan({"scratch": {}, "kd": {}, "iakd+kd": {}}, epochs=5)
    scores = {"scratch": [90.1, 90.9, 90.5], "kd": [90.0, 91.0, 90.5], "iakd+kd": [91.0, 92.0, 91.5]}
    fake_experiment.write(experiment, scores)
    text = paper.latex(read_comparison(experiment))
    rows = [line.strip().removesuffix(r" \\").split(" & ") for line in text.splitlines() if " & " in line]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["Method"] == ["$n$", r"Test accuracy, \%", "Gain over scratch", "Gain over kd"]
    assert cells["Teacher (resnet20)"] == ["1", "97.2", "--", "--"]
    assert cells["iakd+kd"][:2] == ["3", r"\textbf{91.5} $\pm$ 0.5"]
    assert cells["iakd+kd"][3].startswith("+1.0$^*$ [+0.") and "$^*$" not in cells["kd"][2]
    assert cells["kd"][:2] == ["3", r"90.5 $\pm$ 0.5"] and r"\textbf" not in " ".join(cells["kd"])
    for rule in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\usepackage{booktabs}",
        r"\label{tab:digits-resnet20-resnet8}",
    ):
        assert rule in text
    assert r"78.0 k parameters" in text.split(r"\begin{tabular}")[0], "the size of the student, once"


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a_b & 5 % of $x", r"a\_b \& 5 \% of \$x"),
        ("−0.5 → 1 ± 2", r"$-$0.5 $\rightarrow$ 1 $\pm$ 2"),
        ("{~^\\}", r"\{\textasciitilde{}\textasciicircum{}\textbackslash{}\}"),
        ("Zoë 狗", "Zoë ?"),
    ],
)
def test_escape(text, latex):
    assert paper.escape(text) == latex


def balanced(text: str) -> bool:
    """Whether braces and environments are, and no special character is left outside of commands."""
    plain = re.sub(r"\\[\\{}&%$#_]", "", re.sub(r"(?m)(?<!\\)%.*$", "", text))
    names = [(kind, name) for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text)]
    opened: list[str] = []
    for kind, name in names:
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return False
    return plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0 and not opened


def test_the_files_are_balanced_latex():
    experiment = fake_experiment.many_methods_example()
    comparison = read_comparison(experiment)
    assert balanced(paper.latex(comparison)) and balanced(paper.as_latex(paragraph(experiment), "c0ffee"))


@pytest.mark.skipif(not shutil.which("pdflatex") or not shutil.which("bibtex"), reason="needs pdflatex and bibtex")
def test_the_files_compile_without_a_missing_citation_or_a_line_that_is_too_long(tmp_path):
    """In an article of one column, with labels full of special characters."""
    odd = {"scratch": {}, "kd": {}, "iakd_50.+x": {"method": "iakd"}, "iakd+crd": {}, "at_1": {"method": "at"}}
    experiment = fake_experiment.plan(
        odd, epochs=5, report={"title": "50 % of $x & {y}_z", "references": ["scratch", "kd"]}
    )
    fake_experiment.write(experiment, lambda job: 90.0 + 0.3 * job.seed + len(job.label) / 10)
    report.run(experiment)
    shutil.copytree(experiment.report, tmp_path / "paper", dirs_exist_ok=True)
    (tmp_path / "paper" / "paper.tex").write_text(
        r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage[T1]{fontenc}\usepackage{booktabs}"
        r"\begin{document}\input{methods}\input{tables}\bibliographystyle{plain}\bibliography{references}\end{document}"
    )
    for command in (["pdflatex", "-interaction=nonstopmode", "-halt-on-error"], ["bibtex"], ["pdflatex"], ["pdflatex"]):
        more = ["-interaction=nonstopmode", "-halt-on-error"] if command == ["pdflatex"] else []
        done = subprocess.run([*command, *more, "paper"], cwd=tmp_path / "paper", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "paper" / "paper.log").read_text(errors="replace")
    assert "undefined" not in log and "Warning--" not in done.stdout
    assert not [line for line in re.findall(r"Overfull \\hbox \((\d+)\.", log) if int(line) > 20]


def test_figures_are_vectors_with_their_fonts(example, real_pdfs):
    for path in sorted((example.report / "figures").glob("*.pdf")):
        data = path.read_bytes()
        assert b"/FontFile2" in data and b"/Type3" not in data, f"{path.name} embeds no TrueType font"
        assert b"/Subtype /Image" not in data
    drawn = (example.report / "figures" / "accuracy.svg").read_text()
    assert drawn.count("@font-face") == 1 and "src:url(data:font/woff;base64," in drawn and "<image" not in drawn
    assert "<text" in drawn, "text stays text"
    assert "Made from 16 runs" in drawn and "commit 3cbde1e6f0c1" in drawn


def test_the_colours_differ_for_every_kind_of_colour_vision():
    """Brightness and hue as seen without red, green or blue cones (Machado et al. 2009, severity 1)."""
    import numpy as np

    from iakd.reporting.figures import style

    seen = {
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "tritanopia": [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    }
    colours = [np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for c in (style.IAKD, style.OTHER)]
    for matrix in seen.values():
        one, other = (np.clip(np.array(matrix) @ colour, 0, 1) for colour in colours)
        assert np.linalg.norm(one - other) > 0.3
    assert len(set(style.MARKERS.values())) == 3


def test_importing_the_paper_imports_neither_torch_nor_optuna():
    code = "import sys, iakd.reporting.paper; print(*{'torch', 'optuna', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == ""
