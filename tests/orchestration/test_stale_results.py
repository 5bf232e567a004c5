"""Results that Snakemake did not see being made are taken for current only if their own record fits the settings."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from iakd import files
from iakd.config import Params, parse
from iakd.errors import UserError
from iakd.experiment.jobs import WORKFLOW_LOCK, Experiment, Job, plan_experiment
from iakd.files import with_hash
from iakd.orchestration import stale_results

SETTINGS: dict[str, Any] = {
    "dataset": {"name": "toy"},
    "teachers": [{"arch": "resnet14", "name": "big"}],
    "students": [{"arch": "resnet8", "name": "small"}],
    "methods": {"kd": {}, "iakd": {"iakd": {"schedule": "tuned"}}},
    "distill": {"seeds": [0]},
}


def plan_of(**changes: Any) -> Experiment:
    params: Params = parse({**SETTINGS, **changes}, "test")
    return plan_experiment(params)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """All results of SETTINGS, and no record of Snakemake's; not in a stage of DVC."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    experiment = plan_of()
    write(experiment.data.folder / "manifest.json", {"settings": experiment.data.settings, "splits": {}})
    for job in (*experiment.studies, *experiment.trained):
        write(job.folder / "run.json", {"params": {"method": "as found", **job.settings}})
    for job in experiment.trained:
        write(job.folder / "evaluation.json", {"top1": 90.0})
    write(experiment.evaluation / "metrics.json", {})
    write(experiment.report / "figures" / "accuracy.svg", {})
    for folder in (experiment.evaluation, experiment.report):
        write(folder / "made_from.json", {"sha256": {}})
    return experiment


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


class Recorded:
    """Snakemake's records of the parameters of files, and of those whose job it never saw end."""

    def __init__(self, params: dict[Path, list[str]] | None = None, incomplete: frozenset[Path] = frozenset()) -> None:
        self.recorded = params or {}
        self.incomplete = incomplete

    def params(self, path: Path) -> list[str] | None:
        return self.recorded.get(path)

    def is_incomplete(self, path: Path) -> bool:
        return path in self.incomplete

    def forget(self, path: Path) -> None:
        self.recorded.pop(path, None)


def made_for(*jobs: Job) -> Recorded:
    """The records of a Snakemake that has made the results of these jobs only."""
    return Recorded({job.folder / "run.json": [repr(text) for text in job.watched] + ["'--seed 0'"] for job in jobs})


OTHER = {"methods": {"kd": {"kd": {"temperature": 2.0}}, "iakd": {"iakd": {"schedule": "tuned"}}}}


def test_results_of_these_settings_are_accepted_without_a_record(made: Experiment) -> None:
    stale_results.check(made, Recorded())
    assert stale_results.other_settings(made) == []


@pytest.mark.parametrize(
    ("changes", "folder"),
    [
        (OTHER, "results/toy/students/big-small/kd/seed0"),
        (
            {"teach": {"recipe": {"lr": 0.2}}},
            r"results/toy/tune/big-small/iakd \(and 3 more\)",
        ),  # teacher, both students
        ({"dataset": {"name": "toy", "val": 10}}, r"results/toy/data \(and 4 more\)"),
    ],
)
def test_results_of_other_settings_are_refused(made: Experiment, changes: dict[str, Any], folder: str) -> None:
    with pytest.raises(UserError, match=f"^{folder}: made with other settings"):
        stale_results.check(plan_of(**changes), Recorded())


def test_data_on_which_nothing_was_trained_are_made_again(made: Experiment) -> None:
    other = plan_of(dataset={"name": "toy", "val": 10})
    for job in (*made.studies, *made.trained):
        (job.folder / "run.json").unlink()
    manifest = made.data.folder / "manifest.json"
    records = Recorded({manifest: [repr(text) for text in other.data.watched]})  # which wrongly say that it fits
    stale_results.check(other, records)
    assert records.params(manifest) is None and manifest.exists()  # so Snakemake decides by content
    foreign = Path("results/toy/teachers/another/seed0/run.json")  # of another settings file
    write(foreign, {"params": {"data": {**made.data.settings}}})
    with pytest.raises(UserError, match=r"^results/toy/data: made with other settings"):
        stale_results.check(other, Recorded())


def test_what_would_be_lost_is_said_and_consent_is_asked(made: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    other = plan_of(dataset={"name": "toy", "val": 10, "train_fraction": 0.5})
    for job in (*made.studies, *made.trained):
        path = job.folder / "run.json"
        write(path, {**json.loads(path.read_text()), "wall_seconds": 1800})
    with pytest.raises(UserError) as caught:
        stale_results.check(other, Recorded())
    assert str(caught.value) == (
        "results/toy/data (and 4 more): made with other settings (dataset.val 300 → 10, dataset.train_fraction not set "
        "→ 0.5); restore these settings, or give the data another dataset.name, to keep 4 trainings (2.0 h); to lose "
        "them and make all again, run with IAKD_REBUILD=1"
    )
    monkeypatch.setenv("IAKD_REBUILD", "1")
    stale_results.check(other, Recorded())
    with pytest.raises(UserError, match="restore these, or delete the folder"):
        stale_results.refuse(stale_results.other_settings(other))  # they must not be declared current, though


def test_a_change_that_snakemake_sees_is_left_to_it(made: Experiment) -> None:
    stale_results.check(plan_of(**OTHER), made_for(made.students[0]))


def test_results_exchanged_unseen_by_snakemake_are_refused(made: Experiment) -> None:
    other = plan_of(**OTHER)
    with pytest.raises(UserError, match="kd/seed0: made with other settings"):
        stale_results.check(other, made_for(other.students[0]))  # it takes the files on disk for these


def test_results_of_other_settings_whose_job_snakemake_never_saw_end_are_left_to_it(made: Experiment) -> None:
    """As after the workflow was killed while the job, on another machine, went on: it is run again in any case."""
    other = plan_of(**OTHER)
    started = frozenset({made.students[0].folder / "run.json"})
    stale_results.check(other, Recorded(incomplete=started))
    with pytest.raises(UserError, match="made with other settings"):
        stale_results.refuse(stale_results.other_settings(other))  # it must not be declared current, though


def test_in_a_stage_of_dvc_other_results_are_missing(made: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "distill")
    kd, tuned = made.students
    stale_results.check(plan_of(**OTHER), Recorded())
    assert not (kd.folder / "run.json").exists()
    assert (tuned.folder / "run.json").exists()


DAYS = 2 * 86400


def dates_of_results() -> dict[str, float]:
    """The dates of the records that Snakemake compares."""
    names = {"manifest", "run", "evaluation", "metrics", "exported", "latency", "report"}
    return {str(path): path.stat().st_mtime for path in Path("results").glob("**/*.*") if path.stem in names}


def with_hashes(experiment: Experiment) -> None:
    """Rewrite the records of all results, so that each names what it was made from."""
    data, teacher = experiment.data.folder, experiment.teachers[0]
    write(data / "manifest.json", {"settings": experiment.data.settings, "sha256": "d", "splits": {}})
    for job in (*experiment.studies, *experiment.trained):
        made_from = {"data": "d"} if job is teacher else {"data": "d", "teacher": "t"}
        record = {"inputs": made_from, "params": job.settings, "model_sha256": "t" if job is teacher else "s"}
        write(job.folder / "run.json", record)
        if job in experiment.trained:
            evaluation = {"data_sha256": "d", "model_sha256": record["model_sha256"], "top1": 90.0}
            write(job.folder / "evaluation.json", evaluation)


def report_and_exports(experiment: Experiment) -> None:
    (experiment.report / "report.html").write_text("")
    (export,) = experiment.exports
    write(export.folder / "exported.json", {"params": export.settings, "models": [{"folder": "kd"}]})
    write(export.folder / "kd" / "export.json", {"files": {}})
    write(experiment.export_folder / "latency.json", {"models": []})


def outdated() -> set[str]:
    """The results that are dated before all others, so that Snakemake makes them again."""
    dated = dates_of_results()
    return {path.removeprefix("results/toy/") for path, time in dated.items() if time == stale_results.LONG_AGO}


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("teachers/big/seed0/run.json", {"model_sha256": "t2"}, {"kd", "study", "evaluation of the teacher"}),
        ("data/manifest.json", {"sha256": "d2"}, {"kd", "iakd", "study", "teacher", "all evaluations"}),
        ("students/big-small/kd/seed0/run.json", {"model_sha256": "s2"}, {"evaluation of kd"}),
        ("students/big-small/kd/seed0/run.json", {"inputs": None}, set()),
    ],
)
def test_what_was_made_from_other_inputs_is_made_again_whatever_its_date(
    made: Experiment, file: str, change: dict[str, Any], expected: set[str]
) -> None:
    with_hashes(made)
    path = Path("results/toy", file)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    records = made_for(*made.teachers, *made.studies, *made.students)
    stale_results.check(made, records)
    kd, iakd = (f"students/big-small/{name}/seed0" for name in ("kd", "iakd"))
    files = {
        "kd": {f"{kd}/run.json"},
        "iakd": {f"{iakd}/run.json"},
        "study": {"tune/big-small/iakd/run.json"},
        "teacher": {"teachers/big/seed0/run.json"},
        "evaluation of the teacher": {"teachers/big/seed0/evaluation.json"},
        "evaluation of kd": {f"{kd}/evaluation.json"},
        "all evaluations": {f"{name}/evaluation.json" for name in (kd, iakd, "teachers/big/seed0")},
    }
    wanted = set().union(*(files[name] for name in expected))
    if "kd" in expected:
        wanted |= files["iakd"]  # iakd has the same teacher
    assert outdated() == wanted
    for name in wanted:
        assert records.params(Path("results/toy", name)) is None, "Snakemake would compare its own checksums"


def test_an_export_of_another_model_is_made_again(made: Experiment) -> None:
    with_hashes(made)
    export = made.exports[0]
    student = export.students[0]
    write(student.folder / "run.json", {"params": student.settings, "model_sha256": "s1"})
    models = [{"method": student.label, "seed": student.seed, "model_sha256": "s1", "folder": "kd"}]
    write(export.folder / "kd" / "export.json", {"files": {}})
    write(export.folder / "exported.json", {"params": export.settings, "models": models})
    stale_results.check(made, made_for(export))
    assert "export/big-small/exported.json" not in outdated()
    write(student.folder / "run.json", {"params": student.settings, "model_sha256": "s2"})
    stale_results.check(made, made_for(export))
    assert "export/big-small/exported.json" in outdated()


@pytest.mark.parametrize(
    ("file", "record", "result"),
    [
        ("data/train.images.npy", "data/manifest.json", "data/manifest.json"),
        ("teachers/big/seed0/model.safetensors", "teachers/big/seed0/run.json", "teachers/big/seed0/run.json"),
        ("tune/big-small/iakd/trials.csv", "tune/big-small/iakd/run.json", "tune/big-small/iakd/run.json"),
        ("students/big-small/kd/seed0/history.csv",) + ("students/big-small/kd/seed0/run.json",) * 2,
        ("export/big-small/kd/model.onnx", "export/big-small/kd/export.json", "export/big-small/exported.json"),
        ("evaluation/summary.csv", "evaluation/made_from.json", "evaluation/metrics.json"),
        ("report/results.json", "report/made_from.json", "report/report.html"),
    ],
)
def test_what_was_damaged_since_is_made_again(
    made: Experiment, caplog: pytest.LogCaptureFixture, file: str, record: str, result: str
) -> None:
    """Whatever its date, which a flipped bit does not change; except for arrays, whose date is trusted."""
    with_hashes(made)
    root = Path("results/toy")
    report_and_exports(made)
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"whole")
    sha256 = files.sha256_file(path)
    known = json.loads((root / record).read_text()) if (root / record).exists() else {}
    known |= {"sha256": {path.name: sha256}, "files": {path.name: sha256}}
    if "data" in file:
        known |= {"sha256": "d", "splits": {"train": {"files": {path.name: sha256}}}}
    if "model.safetensors" in file:
        known |= {"sha256": {}, "model_sha256": sha256}
        for job in (*made.studies, *made.students):
            write(job.folder / "run.json", {"params": job.settings, "inputs": {"data": "d", "teacher": sha256}})
        write(path.parent / "evaluation.json", {"data_sha256": "d", "model_sha256": sha256, "top1": 90.0})
    write(root / record, known)
    stale_results.check(made, Recorded())
    assert outdated() == set() and not caplog.messages
    date = path.stat().st_mtime_ns
    path.write_bytes(b"whose")
    if "data" not in file:
        os.utime(path, ns=(date, date))
    records = Recorded({root / result: []})
    stale_results.check(made, records)
    assert caplog.messages == [f"{path}: missing or damaged, made again"]
    assert outdated() == {result} and records.params(root / result) is None


def test_what_a_workflow_is_writing_is_left_alone(made: Experiment) -> None:
    """`iakd status` looks while another process works."""
    path = made.students[0].folder / "evaluation.json"
    write(path, {**with_hash({"top1": 90.0}), "top1": 91.0})
    WORKFLOW_LOCK.parent.mkdir()
    with files.lock(WORKFLOW_LOCK):
        stale_results.check(made, Recorded())
        assert outdated() == set()
    stale_results.check(made, Recorded())
    assert outdated() == {str(path.relative_to("results/toy"))}


RECORDS = {  # and what is made again if they are damaged
    "data/manifest.json": "data/manifest.json",
    "teachers/big/seed0/run.json": "teachers/big/seed0/run.json",
    "tune/big-small/iakd/run.json": "tune/big-small/iakd/run.json",
    "students/big-small/kd/seed0/run.json": "students/big-small/kd/seed0/run.json",
    "students/big-small/kd/seed0/evaluation.json": "students/big-small/kd/seed0/evaluation.json",
    "export/big-small/exported.json": "export/big-small/exported.json",
    "export/big-small/kd/export.json": "export/big-small/exported.json",
    "export/latency.json": "export/latency.json",
    "evaluation/made_from.json": "evaluation/metrics.json",
    "report/made_from.json": "report/report.html",
}


@pytest.mark.parametrize("damage", ["another number", "half of it", "another kind", "of another", "no such file"])
@pytest.mark.parametrize("file", RECORDS)
def test_what_has_a_damaged_record_is_made_again(
    made: Experiment, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    root = Path("results/toy")
    report_and_exports(made)
    for name in RECORDS:
        record = json.loads((root / name).read_text())
        write(root / name, with_hash({**record, "seconds": 1.5}))
    stale_results.check(made, Recorded())
    assert outdated() == set() and not caplog.messages
    path = root / file
    if damage == "no such file":
        path.unlink()
        if RECORDS[file] == file:
            return  # Snakemake sees it
    else:
        text = path.read_text()
        changed = {"another number": text.replace("1.5", "1.6"), "half of it": text[:-9], "another kind": "[]"}
        changed["of another"] = '{"a": 1}'
        path.write_text(changed[damage])
    stale_results.check(made, Recorded())
    assert caplog.messages == [f"{path}: missing or damaged, made again"]
    assert outdated() == {RECORDS[file]}


@pytest.mark.parametrize("models", [None, 3, [7], [{"method": []}], [{"seed": {}}], {}])
def test_a_damaged_list_of_exports_is_left_to_the_command_that_reads_it(made: Experiment, models: object) -> None:
    write(made.exports[0].folder / "exported.json", {"params": made.exports[0].settings, "models": models})
    stale_results.check(made, made_for(made.exports[0]))


def test_a_record_that_cannot_be_read_may_be_whole(made: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's file, or a disk that fails for a moment, is no reason to train again."""
    read = files.read_object

    def refuse(path: Path, *arguments: str) -> dict[str, Any]:
        if path.name in ("run.json", "evaluation.json", "manifest.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments)

    student = made.students[0].folder / "run.json"
    assert stale_results.OnDisk(made).knows([student])
    monkeypatch.setattr(files, "read_object", refuse)
    stale_results.check(made, Recorded())
    assert outdated() == set()
    assert not stale_results.OnDisk(made).knows([student])


def test_results_of_another_found_schedule_are_made_again(made: Experiment) -> None:
    with_hashes(made)
    tuned = made.students[1]
    found = {"iakd": {"method": "iakd", "iakd": {"schedule": {"kind": "uniform", "p0": 0.3}}}}
    (made.studies[0].folder / "best.yaml").write_text(json.dumps(found))
    job = stale_results.with_found_settings(tuned)
    used = {"method": job.method.settings(), "recipe": job.recipe.model_dump(mode="json")}
    record = json.loads((tuned.folder / "run.json").read_text())
    record["params"] |= used
    write(tuned.folder / "run.json", record)
    stale_results.check(made, Recorded())
    assert outdated() == set()
    found["iakd"]["iakd"] = {"schedule": {"kind": "uniform", "p0": 0.4}}
    (made.studies[0].folder / "best.yaml").write_text(json.dumps(found))
    stale_results.check(made, Recorded())
    assert outdated() == {"students/big-small/iakd/seed0/run.json"}


def test_a_changed_checkpoint_of_a_teacher_is_noticed_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("big.pt").write_bytes(b"weights")
    imported = plan_of(teachers=[{"arch": "resnet14", "name": "big", "checkpoint": "big.pt"}], methods={"kd": {}})
    inputs = {"checkpoint": stale_results.files.sha256_file(Path("big.pt"))}
    write(imported.teachers[0].folder / "run.json", {"inputs": inputs, "params": imported.teachers[0].settings})
    os.utime("big.pt", (time.time() + DAYS,) * 2)  # unpacked, with a date of its own
    stale_results.check(imported, Recorded())
    assert outdated() == set()
    Path("big.pt").write_bytes(b"other weights")
    os.utime("big.pt", (1000, 1000))
    stale_results.check(imported, Recorded())
    assert outdated() == {"teachers/big/seed0/run.json"}


def test_results_from_the_future_are_dated_in_the_order_of_the_chain(made: Experiment) -> None:
    """All but one were made while the clock was two days ahead, the teacher last: it was made again."""
    with_hashes(made)
    future = time.time() + DAYS
    for position, path in enumerate(sorted(Path("results").glob("**/*"), reverse=True)):
        os.utime(path, (future, future + position))
    logs = Path("logs/toy/students/big-small/kd/seed0.tsv")
    write(logs, "seconds")
    os.utime(logs, (1000, 1000))
    stale_results.check(made, Recorded())
    dates = dates_of_results()
    assert max(dates.values()) <= time.time()
    order = ["data/manifest.json", "teachers/big/seed0/run.json", "tune/big-small/iakd/run.json"]
    order += ["students/big-small/kd/seed0/run.json", "students/big-small/kd/seed0/evaluation.json"]
    times = [dates[f"results/toy/{name}"] for name in order]
    assert times == sorted(set(times))
    assert outdated() == set()
    assert logs.stat().st_mtime == dates["results/toy/students/big-small/kd/seed0/run.json"]  # one of its outputs


def test_dates_of_the_past_are_left_alone(made: Experiment) -> None:
    with_hashes(made)
    before = dates_of_results()
    stale_results.check(made, Recorded())
    assert dates_of_results() == before


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"params": [], "inputs": 7}', b"\xff\x00", b"[" * 100_000])
def test_a_record_of_any_content_stops_no_other_jobs(made: Experiment, content: bytes) -> None:
    paths = [job.folder / name for job in made.students for name in ("run.json", "evaluation.json")]
    paths.append(made.data.folder / "manifest.json")
    for path in paths:
        path.write_bytes(content)
    stale_results.check(made, Recorded())
    made_again = {str(path.relative_to("results/toy")) for path in paths}
    assert outdated() == made_again
