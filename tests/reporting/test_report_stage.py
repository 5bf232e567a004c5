"""The report's files: complete, self-contained, reproducible, and consistent with the evaluations."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import fake_experiment
import pytest
import yaml

from iakd import files
from iakd.config import parse
from iakd.config.methods import GROUP_TITLES
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import plan_experiment
from iakd.reporting import key_table, tables
from iakd.reporting.figures import hints
from iakd.reporting.page import settings_text
from iakd.reporting.results import read_comparison, read_study
from iakd.stages import evaluate
from iakd.stages.report import run

FIGURES = {"accuracy", "added", "curves", "swaps", "hints", "tuning", "calibration", "confusion"}


VOID = {"meta", "br", "col", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags still open, addresses that a browser would load, and the ids and references of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.targets: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self._note(dict(attributes))

    def handle_startendtag(self, tag, attributes):
        self._note(dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _note(self, attributes):
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            value = attributes.get(name)
            if value and value.startswith("#"):
                self.targets.add(value[1:])
            elif value:
                self.loaded.append(value)
        for value in attributes.values():
            self.targets |= set(re.findall(r"url\(#([^)]+)\)", value or ""))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_complete_self_contained_and_repeatable(example, real_pdfs):
    first = files_below(example.report)
    assert run(example) == Path("results/digits/report/report.html")
    assert files_below(example.report) == first
    text = first["report.html"].decode()
    page = Page(text)
    assert page.open == []
    assert page.loaded == []
    assert not re.search(r"@import|url\((?!#)|<script|<link", text)
    assert len(page.ids) == len(set(page.ids))
    assert page.targets <= set(page.ids)
    assert len(text.encode()) < 2_000_000
    texts = {"report.html", "tables.csv", "tables.md", "verdict.txt", "made_from.json", "results.json"}
    texts |= {"tables.tex", "methods.tex", "references.bib"}
    drawn = {f"figures/{name}.{kind}" for name in FIGURES for kind in ("svg", "pdf")}
    assert set(first) == texts | {"figures/accuracy.png"} | drawn


def test_another_process_writes_the_same_bytes_without_torch(example, tmp_path):
    first = files_below(example.report)
    (tmp_path / "settings.yaml").write_text(settings_text(example.params))
    code = """
import sys, yaml
from iakd import files
from iakd.config import parse
from iakd.experiment.jobs import plan_experiment
from iakd.stages.report import run
run(plan_experiment(parse(yaml.safe_load(open("settings.yaml")), "test")))
print(*{"torch", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    assert files_below(example.report) == first


def test_tables_match_the_evaluations(example):
    summary = run_dir.history_text(tables.summary(read_comparison(example)))  # as the evaluation stage writes it
    assert (example.report / "tables.csv").read_text() == summary
    with (example.report / "tables.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"teacher", *example.params.methods}
    top1 = {
        label: [
            json.loads((job.folder / "evaluation.json").read_text())["top1"]
            for job in example.students
            if job.label == label
        ]
        for label in example.params.methods
    }
    for label, values in top1.items():
        assert float(rows[label]["top1_mean"]) == pytest.approx(sum(values) / 3, abs=1e-4)
    gain = sum(a - b for a, b in zip(top1["iakd-tuned"], top1["kd"], strict=True)) / 3
    assert float(rows["iakd-tuned"]["gain_kd"]) == pytest.approx(gain, abs=1e-4)
    assert rows["kd"]["gain_kd"] == ""
    order = [float(row["top1_mean"]) for label, row in rows.items() if label != "teacher"]
    assert order == sorted(order, reverse=True)
    markdown = (example.report / "tables.md").read_text()
    assert f"{sum(top1['kd']) / 3:.1f} ± " in markdown


def test_page_shows_the_outcome_and_its_origin(example):
    text = (example.report / "report.html").read_text()
    record = json.loads((example.students[0].folder / "run.json").read_text())
    for wanted in (
        "Interactive knowledge distillation",
        "No clear winner: scratch-init leads iakd+kd by",
        record["git_commit"],
        record["lock_sha256"],
        "torch 2.13.0",
        "2 of 847 test images are exact copies of train images",
        "Students are trained on 100 of the training images",
    ):
        assert wanted in text, wanted


def test_the_same_network_has_one_speed_and_another_one_its_own(tmp_path, monkeypatch):
    """The median over all its models; simkd adds layers to the student. Each model's own measurement stays in its
    evaluation.json."""
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.plan({"kd": {}, "iakd": {}, "simkd": {}})
    fake_experiment.write(experiment, lambda job: 90.0 + job.seed)
    measured: dict[str, list[float]] = {"kd": [], "iakd": [], "simkd": []}
    for job in experiment.students:
        path = job.folder / "evaluation.json"
        evaluation = json.loads(path.read_text())
        measured[job.label].append(evaluation["latency_ms"])
        evaluation["parameters"] += 1000 * (job.label == "simkd")
        path.write_text(json.dumps(evaluation))
    (pair,) = read_comparison(experiment).pairs
    expected = {"resnet8 of kd, iakd": median(measured["kd"] + measured["iakd"])}
    expected["resnet8 of simkd"] = median(measured["simkd"])
    rows = key_table.network_table(pair)[1:]
    assert {row["label"]: row["costs"]["latency_ms"] for row in rows} == {
        name: f"{ms:#.3g}" for name, ms in expected.items()
    }
    summary = {row["method"]: row["latency_ms"] for row in tables.summary(read_comparison(experiment))}
    assert summary["kd"] == summary["iakd"] == pytest.approx(expected["resnet8 of kd, iakd"], abs=1e-4)
    assert [row["latency_ms"] for row in tables.runs(read_comparison(experiment))][1:4] == pytest.approx(
        measured["kd"], abs=1e-4
    )


def test_page_shows_sizes_in_megabytes_folders_and_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.plan({"kd": {}}, seeds=(0,))
    fake_experiment.write(experiment, lambda _: 90.0)
    for job in experiment.trained:
        record = json.loads((job.folder / "run.json").read_text())
        record["machine"] = {"processor": "Abacus 9", "cores": 3, "system": "Plan 9"}
        (job.folder / "run.json").write_text(json.dumps(record))
    run(experiment)
    text = (experiment.report / "report.html").read_text()
    assert "<dt>Device</dt><dd>Abacus 9 (3 cores), Plan 9</dd>" in text
    assert "in PyTorch on Abacus 9 (3 cores), Plan 9: medians" in text
    assert ">0.312<" in text and ">1.09<" in text, "78,042 and 272,474 weights"
    assert "<code>results/digits/students/resnet20-resnet8/kd</code>" in text


def test_page_and_tables_show_what_swapping_added(tmp_path, monkeypatch):
    """iakd+kd is 1 point better than kd, and 0.5 better than kd that was trained for longer; nothing is random."""
    monkeypatch.chdir(tmp_path)
    methods = {"kd": {}, "kd-longer": {"method": "kd", "recipe": {"epochs": 15}}, "iakd+kd": {}, "iakd+dkd": {}}
    experiment = fake_experiment.plan(methods, epochs=10)
    level = {"kd": 90.0, "kd-longer": 90.5, "iakd+kd": 91.0, "iakd+dkd": 89.0}
    scores = {label: [value, value + 1, value + 0.1] for label, value in level.items()}
    fake_experiment.write(experiment, scores, slow={"iakd+kd": 1.4, "iakd+dkd": 1.4})
    text = run(experiment).read_text()
    section = re.search(r'<h2 id="added">.*?<h2', text, flags=re.DOTALL)[0]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr class.*?</tr>", section, re.DOTALL)]
    assert rows == [
        ["iakd+kd", "kd", "0.71×", "equal epochs", "3"],
        ["", "kd-longer", "1.07×", "equal training time", "3"],
    ]
    assert re.findall(r'class="value">([^<]*)', section) == ["+1.0 ✓", "+0.5 ✓"]
    assert "for iakd+dkd. Add the same loss without swaps: <code>dkd: {}</code>" in section
    assert 'href="#added"' in text
    markdown = (experiment.report / "tables.md").read_text()
    assert "| iakd+kd | kd-longer | 1.07× | equal training time | **+0.5 [+0.2 to +0.8]** | 3 |" in markdown
    figure = (experiment.report / "figures" / "added.svg").read_text()
    assert "over kd: equal epochs, 0.71× its time" in figure
    assert "over kd-longer: equal training time, 1.07× its time" in figure
    found = {(row["method"], row["condition"]): row for row in tables.swap_effects(read_comparison(experiment))}
    row = found["iakd+kd", "equal_time"]
    assert (row["counterpart"], row["difference"], row["n"], row["certain"]) == ("kd-longer", 0.5, 3, True)
    assert 0 < row["low"] < 0.3 and 0.7 < row["high"] < 1 and row["p"] < row["p_adjusted"] < 0.05
    assert row["time_ratio"] == pytest.approx(15 / 14, abs=1e-4)
    row = found["iakd+dkd", "equal_epochs"]
    assert (row["counterpart"], row["difference"], row["certain"], row["n"]) == (None, None, None, 0)


def test_time_of_an_epoch_is_the_median_over_the_seeds_of_cpu_time(tmp_path, monkeypatch):
    """So that neither a seed in which something else happened nor other jobs on the machine decide anything."""
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.plan({"kd": {}, "iakd+kd": {}}, epochs=10)
    fake_experiment.write(experiment, {"kd": [90.0, 91.0, 92.0], "iakd+kd": [90.0, 91.0, 92.0]})
    path = experiment.students[0].folder / "history.csv"
    path.write_text(path.read_text().replace(",0.1\n", ",7.5\n"))
    for job in experiment.students[3:]:
        path = job.folder / "history.csv"
        first, *rows = path.read_text().splitlines()
        path.write_text("\n".join([f"{first},cpu_seconds", *(f"{row},0.04" for row in rows), ""]))
    kd, iakd = read_comparison(experiment).pairs[0].methods
    assert (kd.epoch_seconds, iakd.epoch_seconds) == ([0.1] * 10, [0.04] * 10)


def test_settings_on_the_page_give_the_same_plan(example):
    text = settings_text(example.params)
    again = plan_experiment(parse(yaml.safe_load(text), "page"))
    assert again == example
    fewer = fake_experiment.plan({"scratch": {"seeds": 2}, "kd": {}})
    assert plan_experiment(parse(yaml.safe_load(settings_text(fewer.params)), "page")) == fewer


def test_passwords_do_not_reach_the_page(example):
    params = parse(
        {
            **example.params.model_dump(mode="json", exclude={"methods", "tracking"}),
            "methods": {"scratch": {}},
            "tracking": {"uri": "https://user:s3cret@host/path"},
        },
        "test",
    )
    text = settings_text(params)
    assert "s3cret" not in text and "https://user:…@host/path" in text


def test_figures_are_well_formed_and_themeable(example):
    text = (example.report / "report.html").read_text()
    for name in FIGURES:
        ElementTree.parse(example.report / "figures" / f"{name}.svg")  # raises where it is not XML
    inline = re.findall(r"<figure.*?</figure>", text, flags=re.DOTALL)
    assert len(inline) == 5
    for figure in inline:
        assert "var(--ink)" in figure
        assert not re.search(r"#(1b2330|ffffff|646e7b|0a69ab)", figure)


def test_without_a_study_and_without_swaps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.plan({"scratch": {}, "kd": {}}, seeds=[0], epochs=5)
    fake_experiment.write(experiment, {"scratch": [80.0], "kd": [90.0]})
    text = run(experiment).read_text()
    assert "kd leads scratch by 10.0 points, but with one seed this may be chance" in text
    assert "What swapping itself added" not in text
    assert "No method that swaps blocks" in (experiment.report / "figures" / "added.svg").read_text()
    assert "Search for a swap-probability schedule" not in text
    assert "No study in this experiment" in (experiment.report / "figures" / "tuning.svg").read_text()
    assert "No method of this experiment swaps blocks" in (experiment.report / "figures" / "swaps.svg").read_text()


def test_methods_with_the_same_hint_points_share_a_panel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.plan(
        {"scratch": {}, "hints": {}, "hints+kd": {}, "at+hint_points": {}}, epochs=5, pairs=[("resnet110", "resnet8")]
    )
    levels = {"scratch": [80.0] * 3, "hints": [90.0] * 3, "hints+kd": [91.0] * 3, "at+hint_points": [89.0] * 3}
    fake_experiment.write(experiment, levels)
    text = run(experiment).read_text()
    figure = next(part for part in re.findall(r"<figure.*?</figure>", text, re.DOTALL) if "CKA" in part)
    drawn = figure[: figure.index("<figcaption>")]
    assert drawn.count("hints+kd, hints") == drawn.count("at+hint_points") == 1
    assert "3 by their mean silhouette of 0.52" in figure
    assert "teacher block → student block: 10 → 1, 28 → 2, 45 → 3" in figure
    assert 'href="#hints"' in text and len(figure) < 100_000


def test_a_peer_is_drawn_among_the_learning_curves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.plan({"scratch": {}, "mutual": {}}, epochs=5)
    fake_experiment.write(experiment, {"scratch": [80.0] * 3, "mutual": [90.0] * 3})
    text = run(experiment).read_text()
    figure = next(part for part in re.findall(r"<figure.*?</figure>", text, re.DOTALL) if "over epochs" in part)
    assert figure.count("thin: its peer, ends at 98.2") == 1


def test_without_hints_the_page_does_not_mention_them(example):
    assert 'id="hints"' not in (example.report / "report.html").read_text()
    assert "No method of this experiment uses hints" in (example.report / "figures" / "hints.svg").read_text()


def test_a_student_of_several_bit_widths_has_a_table_with_a_column_for_each(tmp_path, monkeypatch, example):
    assert "8 bits" not in (example.report / "report.html").read_text()
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.plan(
        {"kd": {}, "scratch": {}}, students=[{"arch": "resnet8", "name": "resnet8", "bits": [2, 8]}]
    )
    fake_experiment.write(experiment, {"kd": [90, 91, 92], "scratch": [80, 80, 80]})
    run(experiment)
    text = (experiment.report / "report.html").read_text()
    assert Page(text).open == []
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", text[text.index(">8 bits") - 80 :])
    assert cells[:12] == [
        *("Test accuracy, %", "8 bits", "2 bits"),
        *("kd", "91.0 ± 1.0", "85.0 ± 1.0"),
        *("scratch", "80.0 ± 0.0", "74.0 ± 0.0"),
        *("Weights, MB", "0.0780", "0.0195"),
    ]


def test_levels_of_the_heat_map_cover_each_cell_once():
    cka = [[1.0, 0.99, 0.0], [0.99, 1.0, 0.5], [0.0, 0.5, 1.0]]
    rectangles = hints.level_rectangles(cka)
    areas = [sum((c[1][0] - c[0][0]) * (c[2][1] - c[1][1]) for c in squares) for squares in rectangles]
    assert sum(areas) == 9
    assert (areas[-1], areas[8], areas[0]) == (5, 2, 2)
    assert len(rectangles[-1]) == 3  # neighbours are joined


def test_twenty_five_methods_are_grouped_and_the_significant_gains_marked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.many_methods_example()
    text = run(experiment).read_text()
    comparison = read_comparison(experiment)
    pair = comparison.pairs[0]
    table = re.search(r'<table class="key">.*?</table>', text, flags=re.DOTALL)[0]
    titles = re.findall(r'<tr class="group"><th [^>]*>([^<]*)', table)
    assert sorted(titles) == sorted({GROUP_TITLES[method.group] for method in experiment.params.methods.values()})
    assert titles[0] == GROUP_TITLES[pair.ranked[0].method.group]
    rows = re.findall(r'<div class="method">([^<]*?) <span class="rank">(\d+)', table)
    ranks = {results.label: position for position, results in enumerate(pair.ranked, 1)}
    assert {label: int(rank) for label, rank in rows} == ranks and len(rows) == 25
    for part in table.split('class="group"')[1:]:
        inside = [int(rank) for rank in re.findall(r'class="rank">(\d+)', part)]
        assert inside == sorted(inside)
    marked = table.count(" ✓</span>")
    gains = [gain for results in pair.methods for gain in results.gains.values() if gain.significant]
    assert 0 < marked == len(gains)
    assert f"{sum(one.significant for one in comparison.counted)} have a ✓" in text
    curves = (experiment.report / "figures" / "curves.svg").read_text()
    places = [curves.index(f">{label}<") for label, _ in rows]
    assert places == sorted(places)  # in the order of the table
    assert len(text.encode()) < 1_000_000


def test_a_few_methods_are_one_group_without_a_title(example):
    table = re.search(r'<table class="key">.*?</table>', (example.report / "report.html").read_text(), re.DOTALL)[0]
    assert 'class="group"' not in table and 'class="rank"' not in table


def test_failed_method_does_not_flatten_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = ["scratch", "kd", "a", "b", "c", "iakd"]
    experiment = fake_experiment.plan(
        {label: {} if label in ("scratch", "kd", "iakd") else {"method": "kd"} for label in labels}, epochs=5
    )
    fake_experiment.write(
        experiment,
        {**{label: [90 + i, 90.5 + i, 91 + i] for i, label in enumerate(labels)}, "iakd": [10.0, 11.0, 10.5]},
    )
    text = run(experiment).read_text()
    assert "◂" in re.search(r'<table class="key">.*?</table>', text, flags=re.DOTALL)[0]
    assert "◂ 10.5" in (experiment.report / "figures" / "accuracy.svg").read_text()


def test_many_classes(example):
    """With a hundred classes the matrix gives way to a list, and the data table to totals."""
    names = [f"class {i} of a long name" for i in range(100)]
    path = example.data.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["classes"] = names
    for split in manifest["splits"].values():
        split["per_class"] = [1] * 100
    path.write_text(json.dumps(manifest))
    for job in example.trained:
        path = job.folder / "evaluation.json"
        evaluation = json.loads(path.read_text())
        evaluation["confusion"] = [[9 * (i == j) + (j == (i + 1) % 100) for j in range(100)] for i in range(100)]
        evaluation["per_class_top1"] = [None if i == 3 else 90.0 for i in range(100)]
        path.write_text(json.dumps(evaluation))
    text = run(example).read_text()
    assert "most frequent mistakes, test images (% of the true class)" in text
    assert '<td>all</td><td class="r">650</td><td class="r">300</td>' in text
    assert "<summary>Images of each class</summary>" in text


def test_markup_in_names_is_only_text(example):
    path = example.data.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["classes"][0] = manifest["problems"][0] = "<script>alert(1)</script>"
    manifest["classes"][1] = "$5 and $x"
    path.write_text(json.dumps(manifest))
    text = run(example).read_text()
    assert "<script" not in text
    assert text.count(">$5 and $x</text>") == 3  # both axes of the matrix, and the accuracy per class


def test_a_method_may_be_called_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = {"kd": {}, "teacher": {"method": "scratch"}}
    experiment = fake_experiment.plan(methods, epochs=5)
    fake_experiment.write(experiment, {"kd": [90.0, 91.0, 92.0], "teacher": [80.0, 81.0, 82.0]}, teacher=97.0)
    comparison = read_comparison(experiment)
    assert tables.metrics(comparison) == {
        "teachers": {"resnet20": {"top1": 97.0, "n": 1}},
        "resnet20-resnet8": {
            "kd": {"top1": 91.0, "std": 1.0, "n": 3},
            "teacher": {"top1": 81.0, "std": 1.0, "n": 3},
        },
    }
    dots = {(row["name"], row["method"], row["top1"]) for row in tables.accuracy(comparison)}
    assert {("teacher resnet20", None, 97.0), ("teacher", "teacher", 81.0)} < dots
    rows = [(row["method"], row["student"], row["top1_mean"]) for row in tables.summary(comparison)]
    assert rows == [("teacher", None, 97.0), ("kd", "resnet8", 91.0), ("teacher", "resnet8", 81.0)]
    lines = tables.markdown(comparison).splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["teacher (resnet20)", "kd", "teacher"]


def test_dvc_gets_a_row_per_method_and_a_headline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = {"kd": {}, "iakd": {"method": "iakd"}}
    scores = {"kd": [90.0, 91.0, 92.0], "iakd": [92.0, 92.5, 93.0]}
    experiment = fake_experiment.plan(methods, epochs=5)
    fake_experiment.write(experiment, scores, teacher=97.0)
    comparison = read_comparison(experiment)
    assert tables.metric_files(comparison) == {
        "teachers/resnet20.json": {"top1": 97.0, "n": 1},
        "resnet20-resnet8/kd.json": {"top1": 91.0, "std": 1.0, "n": 3},
        "resnet20-resnet8/iakd.json": {"top1": 92.5, "std": 0.5, "n": 3},
    }
    assert tables.headline(comparison) == {"best": "iakd", "best_top1": 92.5, "lead": 1.5}

    pairs = [("resnet20", "resnet8"), ("resnet56", "resnet8")]
    experiment = fake_experiment.plan(methods, pairs=pairs, epochs=5)
    fake_experiment.write(experiment, scores)
    rows = tables.headline(read_comparison(experiment))
    assert {pair: row["best"] for pair, row in rows.items()} == {"resnet20-resnet8": "iakd", "resnet56-resnet8": "iakd"}


def test_a_peer_has_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.plan({"scratch": {}, "mutual": {}}, epochs=5)
    fake_experiment.write(experiment, {"scratch": [80.0, 81.0, 82.0], "mutual": [90.0, 91.0, 92.0]})
    for seed, job in enumerate(job for job in experiment.students if job.label == "mutual"):
        change(job.folder / "evaluation.json", peer={"top1": 97.0 + seed, "top5": 100.0, "nll": 0.1, "ece": 0.01})
    comparison = read_comparison(experiment)
    (row,) = [row for row in tables.summary(comparison) if row["method"] == "mutual"]
    assert (row["peer_top1_mean"], row["peer_top1_std"]) == (98.0, 1.0)
    assert [row.get("peer_top1") for row in tables.runs(comparison)][-3:] == [97.0, 98.0, 99.0]
    assert "| mutual: its peer | 98.0 ± 1.0 | 3 |  |" in tables.markdown(comparison)
    shown = key_table.key_table(comparison, comparison.pairs[0])["groups"][1]["rows"]
    assert [(row["label"], row["peer"]) for row in shown] == [("mutual", "98.0 ± 1.0"), ("scratch", None)]
    assert re.search(r'class="peer">.*its peer.*98\.0 ± 1\.0', run(experiment).read_text())


def change(path: Path, **values: object) -> None:
    """Change or add keys of a JSON file; a key whose value is ... is removed."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"macs": ...}, "macs: Field required"),
        ({"correct": ...}, "correct: Field required"),
        ({"top1": "high"}, "top1: Input should be a valid number, got 'high'"),
        ({"nll": float("nan")}, "nll: "),
        ({"n": 0}, "n: Input should be greater than 0, got 0"),
        ({"correct": "AAAA"}, "correct: 3 bytes for 1000 images"),
        ({"correct": "?"}, "correct: Only base64"),
        ({"top1": 12.0}, "images, but top1 is 12.00 %"),
        ({"confusion": [[1]]}, "confusion: not 10 rows and columns"),
        ({"calibration": {}}, "calibration.n: Field required"),
        ({"calibration": {"n": [1], "confidence": [], "top1": []}}, "its lists have different lengths"),
    ],
)
def test_odd_keys_of_an_evaluation(example, values, reason):
    path = example.students[3].folder / "evaluation.json"
    change(path, **values)
    with pytest.raises(UserError) as error:
        read_comparison(example)
    message = str(error.value)
    assert message.startswith(f"{path} is damaged or of an earlier version (") and "\n" not in message
    assert reason in message and message.endswith("): run `iakd evaluate`")


@pytest.mark.parametrize("text", [b"[]", b"null", b"{", b"\xff"])
@pytest.mark.parametrize("name", ["evaluation.json", "run.json", "metrics.json"])
def test_damaged_json(example, name, text):
    path = example.students[3].folder / name
    path.write_bytes(text)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} is damaged.*run `iakd [^`]*`.*$"):
        read_comparison(example)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("run.json", {"device": ...}),
        ("run.json", {"wall_seconds": None}),
        ("run.json", {"versions": ["torch"]}),
        ("run.json", {"inputs": ...}),
        ("metrics.json", {"val_top1": ...}),
        ("metrics.json", {"val_top1": "high"}),
    ],
)
def test_odd_keys_of_a_training(example, name, values):
    job = example.students[3]
    change(job.folder / name, **values)
    command = f"iakd distill --pair resnet20-resnet8 --method {job.label} --seed 0"
    remedy = f"delete {job.folder}, then run `{command}` and `iakd evaluate`"
    with pytest.raises(UserError, match=f"{name} is damaged .*{re.escape(remedy)}$"):
        read_comparison(example)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text.replace(",0.1\n", ",fast\n", 1), "could not convert"),
        (lambda text: text.replace(",0.1\n", "\n", 1), ""),  # a cell is missing
        (lambda text: text.replace(",0.1\n", ",0.1,7\n", 1), ""),
        (lambda text: text.replace("seconds", "hours"), "seconds: Field required"),
        (lambda text: text.replace("\n2,", "\n3,", 1), "row 2 is of epoch 3"),
        (lambda text: "\n".join(text.splitlines()[:31]) + "\n", "lacks what other seeds have"),
        (lambda text: "\n".join(text.splitlines()[:33]) + "\n", "its last epoch has no val_top1"),
        (lambda text: text.splitlines()[0], "its last epoch has no val_top1"),
        (lambda text: "", ""),
        (lambda text: text.replace("loss", "lo\0ss"), ""),
        (lambda text: text.replace("0.1", "nan"), ""),
    ],
)
def test_damaged_history(example, damage, reason):
    job = example.students[3]
    path = job.folder / "history.csv"
    path.write_text(damage(path.read_text()))
    comparison = read_comparison(example)
    with pytest.raises(UserError) as error:
        _ = comparison.pairs[0].methods[1].histories
    message = str(error.value)
    assert message.startswith(f"{path} is damaged (") and reason in message and "\n" not in message
    assert "`iakd distill" in message


def test_missing_history_and_metrics(example):
    job = example.students[3]
    for name in ("history.csv", "metrics.json"):
        (job.folder / name).unlink()
        with pytest.raises(UserError, match=f"{name} does not exist: .*`iakd distill"):
            tables.curves(read_comparison(example))


def test_evaluations_of_other_data(example):
    """Pairing by image would compare different images."""
    change(example.students[3].folder / "evaluation.json", data_sha256="0" * 64)
    with pytest.raises(UserError, match=r"evaluation.json is of other data than .*: run `iakd evaluate`"):
        read_comparison(example)


@pytest.mark.parametrize("values", [{"classes": ...}, {"splits": []}, {"source": {"name": "digits"}}])
def test_damaged_manifest(example, values):
    change(example.data.folder / "manifest.json", **values)
    with pytest.raises(UserError, match=r"manifest.json is damaged \(.*\): run `iakd prepare`"):
        run(example)


def test_damaged_files_of_a_study(example):
    study = example.studies[0]
    trials = [{"number": 0, "state": "complete", "value": 90.0}]
    path = study.folder / "trials" / "0000" / "seed0" / "history.csv"
    assert list(read_study(study, 3, trials, dict).curves) == [0]
    path.write_text("epoch,p_planned_0\n1,x\n")
    with pytest.raises(UserError, match=r"history.csv is damaged .*`iakd tune`"):
        read_study(study, 3, trials, dict)
    path.unlink()
    change(study.folder / "metrics.json", pareto_front=[99])
    with pytest.raises(UserError, match=r"metrics.json is damaged: delete it, then run `iakd tune`"):
        read_study(study, 3, trials, dict)


@pytest.mark.parametrize("name", ["evaluation.json", "run.json"])
def test_missing_evaluation(example, name):
    path = example.students[3].folder / name
    path.unlink()
    with pytest.raises(UserError, match=re.escape(f"{path} does not exist: run `iakd evaluate`")):
        run(example)


def test_evaluation_of_an_older_model(example):
    change(example.students[3].folder / "run.json", model_sha256="0" * 64)
    with pytest.raises(UserError, match="belongs to an older model: run `iakd evaluate`"):
        run(example)


def test_evaluate_stage_asks_for_data_first(example):
    with pytest.raises(UserError, match="prepare"):
        evaluate.run(example)


def test_a_teacher_of_unknown_cost_leaves_its_ratios_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The multiply-accumulates of a module that runs kernels of its own are unknown, and so is a ratio to them."""
    monkeypatch.chdir(tmp_path)
    experiment = fake_experiment.plan({"kd": {}}, epochs=5)
    fake_experiment.write(experiment, {"kd": [92.0, 92.4, 91.7]})
    path = experiment.teachers[0].folder / run_dir.EVALUATION
    record = json.loads(path.read_text())
    files.write_record(path, record | {"macs": 0, "parameters": 0})
    comparison = read_comparison(experiment)
    student = tables.summary(comparison)[1]
    assert student["macs_ratio"] is None and student["parameters_ratio"] is None and student["macs"]
    run(experiment)
    assert "unknown" in (experiment.report / run_dir.REPORT).read_text()
