"""`iakd compare`: differences, settings that differ, and one line where two reports cannot be compared."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fake_experiment
import pytest
import yaml
from typer.testing import CliRunner

from iakd.cli import app
from iakd.errors import UserError
from iakd.experiment.run_dir import RESULTS_FILE
from iakd.files import write_json
from iakd.reporting import record
from iakd.reporting.compare import compare
from iakd.reporting.page import settings_text
from iakd.reporting.results import read_comparison

SCORES = {"scratch": [88.0, 88.5, 89.0], "kd": [90.0, 91.0, 92.0]}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(name: str, scores: Mapping[str, Sequence[float]] = SCORES, **settings: Any) -> Path:
    """The data of a report in the folder NAME, as `iakd report` writes them."""
    methods = {label: {} if label in ("scratch", "kd", "dkd") else {"method": "iakd"} for label in scores}
    experiment = fake_experiment.plan(methods, epochs=settings.pop("epochs", 5), **settings)
    fake_experiment.write(experiment, scores)
    manifest = json.loads((experiment.data.folder / "manifest.json").read_text())
    content = record.content(read_comparison(experiment), manifest, settings_text(experiment.params))
    folder = Path(name) / "report"
    folder.mkdir(parents=True)
    write_json(folder / RESULTS_FILE, content)
    shutil.rmtree("results")
    return Path(name)


def rows(text: str) -> dict[str, list[str]]:
    """Cells of a text's lines by method or setting; a pair's name is taken off."""
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    named = [line[line[0] in ("resnet20", "resnet20-resnet8") :] for line in cells if line]
    return {line[0]: line for line in named}


def change(place: Path, **values: Any) -> None:
    """Change entries of a record's data; those of each model with `models`."""
    path = place / "report" / RESULTS_FILE
    content = json.loads(path.read_text())
    for model in content["models"]:
        model |= values.get("models", {})
    content["data"] |= values.get("data", {})
    path.write_text(json.dumps(content))


def test_differences_are_paired_and_judged_and_settings_that_differ_are_listed():
    a = written("a")
    b = written("b", {**SCORES, "kd": [92.0, 93.0, 94.0]}, epochs=20, tune={"trials": 7})
    text = compare(a, b)
    found = rows(text)
    assert found["kd"][1:4] == ["91.0 ± 1.0 (3)", "93.0 ± 1.0 (3)", "+2.0 ✓"]
    low, high = (float(bound) for bound in found["kd"][4].split(" to "))
    assert 1 < low < 2 < high < 3 and found["kd"][5] == "3"
    assert found["distill.recipe.epochs"] == ["distill.recipe.epochs", "5", "20"]
    assert found["tune.trials"] == ["tune.trials", "24", "7"]
    assert "report.title" not in found and "teach.recipe.epochs" not in found
    assert text.splitlines()[0].startswith("A: a/report, trained until 2025-01-02 03:04 UTC, commit 3cbde1e6f0c1")
    assert "1\u202f000 test images of digits, the same in both" in text
    reverse = rows(compare(b, a))
    assert reverse["kd"][3] == "−2.0 ✓"


def test_a_report_and_itself():
    a = written("a")
    text = compare(a, a)
    assert rows(text)["kd"][3:6] == ["0", "the same weights", "3"]
    assert "All models that both have are the same, to the bit." in text and "The settings are the same." in text
    assert "✓" not in text


def test_methods_that_only_one_has_are_named():
    a = written("a")
    b = written("b", {"kd": SCORES["kd"], "dkd": [91.0, 91.0, 91.0], "iakd-x": [93.0, 93.1, 93.2]})
    found = rows(compare(a, b))
    assert found["scratch"][1:] == ["88.5 ± 0.5 (3)", "–", "only in A"]
    assert found["dkd"][1:] == ["–", "91.0 ± 0.0 (3)", "only in B"]
    assert found["methods.dkd"][1] == "–" and found["methods.dkd"][2].startswith("{method: dkd, init: random,")


def test_without_a_common_seed_there_is_a_difference_but_no_interval():
    a, b = written("a"), written("b", seeds=(5, 6, 7))
    found = rows(compare(a, b))
    assert found["kd"][3:6] == ["0.0", "no seed in common", "0"]
    assert found["distill.seeds"] == ["distill.seeds", "[0, 1, 2]", "[5, 6, 7]"]


def test_other_sizes_devices_and_training_images_are_told():
    a, b = written("a"), written("b")
    change(
        b, models={"device": "NVIDIA H100", "parameters": 100_000, "model_sha256": "0" * 64}, data={"sha256": "0" * 64}
    )
    text = compare(a, b)
    assert "Parameters of resnet20-resnet8 kd: 78.0 k → 100 k." in text
    assert "A was trained on cpu, B on NVIDIA H100; training times are not comparable." in text
    assert "Training or validation images differ; the test images do not." in text


def refusal(a: Path, b: Path) -> str:
    with pytest.raises(UserError) as error:
        compare(a, b)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_compared_is_refused_in_a_line():
    a, b = written("a"), written("b")
    change(b, data={"test_sha256": "0" * 64, "name": "photos"})
    assert (
        "cannot be compared: they have different test images (1\u202f000 of digits, 1\u202f000 of photos)"
        in refusal(a, b)
    )
    c = written("c", pairs=(("resnet56", "resnet14"),))
    assert "they have no pair and method, and no teacher, in common" in refusal(a, c)


def test_reports_are_found_and_missing_ones_named():
    a = written("home/results/digits")
    for place in (a, a / "report", a / "report" / RESULTS_FILE, Path("home/results"), Path("home")):
        assert record.find(place) == a / "report"
    written("more/digits"), written("more/photos")
    assert "has several reports; name one of more/digits/report, more/photos/report" in refusal(Path("more"), a)
    assert "nowhere does not exist" in refusal(Path("nowhere"), a)
    Path("empty").mkdir()
    assert "empty has no report: run `iakd report`" in refusal(a, Path("empty"))
    Path("old").mkdir()
    Path("old/report.html").write_text("")
    assert "old has no results.json, since an earlier version wrote this report: run `iakd report` there" in refusal(
        a, Path("old")
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", ""), ("[]", ""), ('{"data": {}}', "Field required"), ('{"models": "x"}', "")],
)
def test_damaged_records_are_one_line(text, reason):
    a, b = written("a"), written("b")
    (b / "report" / RESULTS_FILE).write_text(text)
    message = refusal(a, b)
    assert message.startswith(f"b/report/{RESULTS_FILE} is damaged") and reason in message


def test_a_changed_accuracy_is_noticed():
    a, b = written("a"), written("b")
    change(b, models={"top1": 99.9})
    assert "images are correct, but top1 is 99.90 %" in refusal(a, b)


def test_the_command_prints_the_table_and_ends_with_2_where_it_refuses():
    a, b = written("a"), written("b")
    done = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert done.exit_code == 0 and "B − A" in done.stdout
    done = CliRunner().invoke(app, ["compare", str(a), "nowhere"])
    assert isinstance(done.exception, UserError)


def test_no_password_is_in_the_record():
    a = written("a", tracking={"uri": "https://user:s3cret@host/path"})
    content = (a / "report" / RESULTS_FILE).read_text()
    assert (
        "s3cret" not in content and yaml.safe_load(content)["settings"]["tracking"]["uri"] == "https://user:…@host/path"
    )
