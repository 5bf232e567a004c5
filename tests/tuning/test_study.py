"""Studies from start to end, with worker processes."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy_study
import yaml
from toy_study import BASE, ToyStudy, ToyTrainer

from iakd import files
from iakd.config import Method, Tune, merged, parse
from iakd.config.search_space import KIND
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import plan_experiment
from iakd.tuning.results import finished_trials, importances, load_study, read_best, settings_in
from iakd.tuning.workers import TrialResult, run_trial, trial_seed


def test_the_published_files_agree(finished_study: ToyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished_study.folder)
    rows = finished_trials(finished_study.results)
    assert [row["number"] for row in rows] == list(range(10))
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: row["value"])
    metrics = files.read_json(finished_study.results / "metrics.json", "")
    states = [row["state"] for row in rows]
    assert metrics == {
        "best_value": best["value"],
        "best_trial": best["number"],
        "trials": 10,
        "complete": states.count("complete"),
        "pruned": states.count("pruned"),
        "failed": 0,
    }
    assert best["value"] >= max(row["value"] for row in rows[:3])
    schedule = {name.removeprefix("iakd.schedule."): best[name] for name in settings_in(rows) if best[name] is not None}
    assert read_best(finished_study.results) == Method.model_validate(
        {"method": "iakd", "iakd": {"schedule": schedule}}
    )
    record = files.read_json(finished_study.results / "run.json", "")
    assert record["stage"] == "tune" and record["finished"] and record["inputs"] == {"data": "d", "teacher": "t"}
    for row in rows:
        folder = finished_study.results / f"trials/{row['number']:04d}"
        about = files.read_json(folder / "run.json", "")
        assert (about["trial"], about["study"], about["stage"]) == (row["number"], record["key"], "trial")
        ended = files.read_json(folder / "metrics.json", "")
        assert (ended["state"], ended["value"]) == (row["state"], row["value"])
        seeds = [files.read_json(path, "") for path in sorted(folder.glob("seed*/metrics.json"))]
        if row["state"] == "complete":
            assert [seed["state"] for seed in seeds] == ["complete"] * 2 and ended["seeds"] == 2
            assert row["value"] == sum(seed["val_top1"] for seed in seeds) / 2
            assert row["epochs"] == 2 * 8
        else:
            assert len(seeds) == 1 and row["epochs"] <= 8, "pruned in its first seed, or after it"
        seconds = [files.read_json(path, "")["wall_seconds"] for path in folder.glob("seed*/run.json")]
        assert row["seconds"] == pytest.approx(sum(seconds), abs=0.01)
    assert finished_study.trained() == list(range(10))
    assert [path.name for path in finished_study.state.iterdir() if path.is_file()] == ["lock"]


def test_a_finished_study_is_left_alone_without_heavy_imports(finished_study: ToyStudy) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_study.folder.rglob("*") if path.is_file()}
    code = (
        "import sys, yaml, iakd.experiment.jobs; from iakd.config import parse\n"
        "iakd.experiment.jobs.source_sha = lambda *modules: 'source'\n"
        "from iakd.experiment.jobs import plan_experiment; from iakd.stages import tune\n"
        "experiment = plan_experiment(parse(yaml.safe_load(sys.argv[1]), 'test'))\n"
        "print(tune.run(experiment, experiment.studies[0]))\n"
        "assert not {'torch', 'optuna', 'mlflow'} & set(sys.modules)"
    )
    text = finished_study.text(workers=1)
    done = subprocess.run([sys.executable, "-c", code, text], cwd=finished_study.folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "results/toy/tune/big-small/iakd-tuned/best.yaml\n"), done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished_study.folder.rglob("*") if path.is_file()}


def test_trials_can_be_added_and_removed(study: ToyStudy, expected: dict[str, Any]) -> None:
    study.run(trials=6, workers=1)
    six = study.outcome()
    assert six["rows"] == expected["rows"][:6]
    study.run(trials=10, workers=2)
    assert study.outcome() == expected
    assert sorted(study.trained()) == list(range(10))
    study.run(trials=6)
    assert sorted(study.trained()) == list(range(10))
    again = study.outcome()
    for name in ("rows", "best", "metrics.json", "history.csv"):
        assert again[name] == six[name]


def test_a_clone_of_the_results_resumes(copied: ToyStudy, expected: dict[str, Any]) -> None:
    for product in ("run.json", "best.yaml", "trials.csv", "history.csv", "metrics.json"):  # as Snakemake does
        (copied.results / product).unlink()
    copied.run(trials=12)
    twelve = copied.outcome()
    assert twelve["rows"][:10] == expected["rows"]
    assert sorted(copied.trained()) == [10, 11]
    (copied.results / "study.journal").unlink()
    copied.run(trials=12)  # from the trials' own files
    assert copied.outcome() == twelve
    assert sorted(copied.trained()) == [10, 11]


def test_changed_settings_restart_the_study(copied: ToyStudy, expected: dict[str, Any]) -> None:
    copied.run(trials=3, seed=1)
    keys = copied.outcome()["keys"]
    assert not set(keys) & set(expected["keys"])
    assert len(keys) == 1 + 3 + 6, "trials of the earlier study are left"
    assert sorted(copied.trained()) == list(range(3))


def test_a_study_continues_when_its_settings_come_back(
    copied: ToyStudy, expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Each space has a study of its own; only one at a time is in the results."""
    with caplog.at_level(logging.INFO):
        copied.run(trials=3, seed=1)
    (line,) = [line for line in caplog.messages if "settings" in line]
    assert line.endswith(": a new study begins; the earlier one is kept, and continues with its settings")
    other = copied.outcome()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        copied.run()
    assert ": their study continues; the earlier one is kept" in "\n".join(caplog.messages)
    assert copied.outcome() == expected
    copied.run(trials=3, seed=1)
    assert copied.outcome() == other
    copied.run(trials=5, seed=1)
    assert sorted(copied.trained()) == [0, 1, 2, 3, 4], "each of the other study once"
    copied.run()
    assert copied.outcome() == expected
    assert sorted(copied.trained()) == [0, 1, 2, 3, 4]


def test_a_mistake_in_changed_settings_leaves_earlier_results_alone(copied: ToyStudy, expected: dict[str, Any]) -> None:
    for number in range(3):
        Path(f"mistake-{number}").touch()
    with pytest.raises(UserError, match="no such thing"):
        copied.run(trials=3, seed=1)
    assert copied.outcome() == expected


def test_a_worker_that_dies_is_replaced(study: ToyStudy, expected: dict[str, Any]) -> None:
    for number in (2, 8):
        Path(f"die-{number}").touch()
    study.run(workers=2)
    assert study.outcome() == expected
    assert sorted(study.trained()) == sorted([*range(10), 2, 8])


def test_a_trial_that_keeps_killing_its_process_ends_the_study(study: ToyStudy, expected: dict[str, Any]) -> None:
    Path("die-always-2").touch()
    with pytest.raises(RunFailed, match="trial 2: its process died 3 times"):
        study.run(workers=1)
    assert study.trained().count(2) == 3
    assert "RunFailed" in files.read_json(study.state / "run.json", "")["error"]
    Path("die-always-2").unlink()
    study.run(workers=1)
    assert study.outcome() == expected


def test_a_diverging_trial_fails_and_the_study_continues(study: ToyStudy, expected: dict[str, Any]) -> None:
    Path("diverge-8").touch()
    study.run(trials=10)
    rows = study.outcome()["rows"]
    assert rows[:8] == expected["rows"][:8]
    assert (rows[8]["state"], rows[8]["value"], rows[8]["reason"]) == (
        "failed",
        None,
        "the loss is no longer finite",
    )
    assert rows[9]["state"] != "failed"
    assert files.read_json(study.results / "metrics.json", "")["failed"] == 1
    assert files.read_json(study.results / "trials/0008/metrics.json", "")["state"] == "failed"


def test_a_study_whose_trials_all_fail_fails(study: ToyStudy) -> None:
    for number in range(2):
        Path(f"diverge-{number}").touch()
    with pytest.raises(RunFailed, match="all 2 trials failed; the first one: the loss is no longer finite"):
        study.run(trials=2)
    assert not (study.results / "best.yaml").exists()


def fail(error: str) -> TrialResult:
    """Run trial 1, whose training raises `error`."""
    Path("raise-1").write_text(error)
    experiment = plan_experiment(toy_study.settings())
    job = experiment.studies[0]
    return run_trial(ToyTrainer(experiment, job, "key"), job, 1, {KIND: "sigmoid"}, 2, never)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("Diverged: the loss is no longer finite", "the loss is no longer finite"),
        ("UnsuitableSettings: hints.points is 9", "hints.points is 9"),
        ("OverflowError: math range error", "the arithmetic of the training failed: OverflowError: math range error"),
        ("ZeroDivisionError: by zero", "the arithmetic of the training failed: ZeroDivisionError: by zero"),
    ],
)
def test_what_a_trial_s_settings_cause_is_a_failed_trial(study: ToyStudy, error: str, reason: str) -> None:
    result = fail(error)
    assert (result.state, result.value, result.reason) == ("failed", None, reason)
    published = files.read_json(study.results / "trials/0001/seed0/metrics.json", "")
    assert (published["state"], published["reason"]) == ("failed", reason)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("UserError: model.safetensors is damaged", UserError),
        ("RunFailed: a process that decodes images died", RunFailed),
        ("OSError: no space left", OSError),
        ("MemoryError: 3 GiB", MemoryError),
        ("RuntimeError: CUDA out of memory", RuntimeError),
        ("TypeError: a bug", TypeError),
        ("ValueError: a bug", ValueError),
    ],
)
def test_what_they_cannot_cause_is_no_result(study: ToyStudy, error: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=error.partition(": ")[2]):
        fail(error)
    assert not (study.results / "trials/0001/seed0").exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            "RuntimeError: CUDA out of memory.\nTried 9 GiB",
            r"not enough memory .*memory\. Tried 9.* tune.workers .*resumes",
        ),
        ("TypeError: a bug", "TypeError: a bug; that should not happen.*traceback.txt"),
        ("Unpicklable: a bug", "RuntimeError: Unpicklable: a bug; that should not happen.*traceback.txt"),
    ],
)
def test_a_machine_without_memory_or_a_bug_ends_the_study_with_a_line(study: ToyStudy, error: str, line: str) -> None:
    Path("raise-1").write_text(error)
    with pytest.raises(RunFailed, match=f"iakd-tuned: trial 1: {line}") as raised:
        study.run(trials=2, workers=1)
    assert "\n" not in str(raised.value)
    traceback = study.state / "traceback.txt"
    assert traceback.exists() == error.endswith("a bug")
    if traceback.exists():
        assert "in mishaps" in traceback.read_text()
    Path("raise-1").unlink()
    study.run(trials=2, workers=1)
    assert [row["state"] for row in study.outcome()["rows"]] == ["complete"] * 2 and not traceback.exists()


def test_schedules_outside_the_space_are_named(study: ToyStudy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        study.run(trials=2, space={"p1": [0.6, 0.9]})
    assert [row["origin"] for row in study.outcome()["rows"]] == ["first", "sampler"]
    excluded = [line for line in caplog.messages if "excludes" in line]
    assert len(excluded) == 2 and "linear" in excluded[0] and "review" in excluded[1]


def test_progress_is_a_line_per_trial(study: ToyStudy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        study.run(trials=4, workers=1)
    lines = [line for line in caplog.messages if ": trial " in line]
    assert len(lines) == 4
    assert "trial 0 78.83 % complete: iakd.schedule.kind=uniform iakd.schedule.p0=0.5" in lines[0]
    assert "best 82.78 % (trial 2); 4/4, 0 s left" in lines[3]


@pytest.mark.parametrize("address", ["sqlite:///study.db", "mysql://host/db", "postgresql://host/db"])
def test_unsuitable_storages_are_refused(study: ToyStudy, address: str) -> None:
    with pytest.raises(UserError, match=r"tune\.storage: .*postgresql\+psycopg://"):
        study.run(storage=address)


@pytest.mark.parametrize(
    ("path", "stage"), [("data/manifest.json", "prepare"), ("teachers/big/seed0/run.json", "teach")]
)
def test_what_is_missing_is_named(study: ToyStudy, path: str, stage: str) -> None:
    (Path("results/toy") / path).unlink()
    with pytest.raises(UserError, match=f"{path} does not exist.*iakd {stage}"):
        study.run()


def test_a_seed_that_diverges_fails_its_trial(study: ToyStudy, expected: dict[str, Any]) -> None:
    Path("diverge-1-seed1").touch()
    study.run(trials=4)
    row = study.outcome()["rows"][1]
    assert (row["state"], row["value"], row["reason"]) == ("failed", None, "the loss is no longer finite")
    ended = files.read_json(study.results / "trials/0001/metrics.json", "")
    assert (ended["state"], ended["seeds"]) == ("failed", 1), "its first seed was finished"


def test_settings_that_contradict_each_other_fail_their_trial(study: ToyStudy) -> None:
    """Reading the settings finds most of them, but cannot try all values."""
    experiment = plan_experiment(toy_study.settings())
    job = experiment.studies[0]
    trainer = ToyTrainer(experiment, job, "key")
    assert run_trial(trainer, job, 0, {KIND: "sigmoid"}, 2, never).state == "complete"
    result = run_trial(trainer, job, 1, {KIND: "sigmoid", "iakd.schedule.p0": 7.0}, 2, never)
    assert result.state == "failed" and "p0" in str(result.reason)


def never(step: int, value: float) -> bool:
    """Prune nothing."""
    return False


def test_compromises_are_published(study: ToyStudy) -> None:
    study.run(trials=6, workers=2, objective="accuracy_and_macs", pruner={"kind": "none"})
    rows = finished_trials(study.results)
    assert [row["macs"] for row in rows] == [ToyTrainer.cost(row["iakd.schedule.p0"]) for row in rows]
    metrics = files.read_json(study.results / "metrics.json", "")
    complete = {row["number"]: (row["value"], -row["macs"]) for row in rows}
    surpassed = [
        number
        for number, (value, cheap) in complete.items()
        if any(v >= value and c >= cheap and (v, c) != (value, cheap) for v, c in complete.values())
    ]
    assert metrics["pareto_front"] == [number for number in complete if number not in surpassed]
    assert metrics["best_value"] == max(value for value, _ in complete.values())
    assert len(load_study(study.results).directions) == 2
    study.run(trials=8, workers=1, objective="accuracy_and_macs", pruner={"kind": "none"})
    assert finished_trials(study.results)[:6] == rows and importances(study.results)


def test_best_yaml_can_be_put_into_the_settings(finished_study: ToyStudy) -> None:
    """It then gives the method that the study found, which needs no study."""
    text = (finished_study.results / "best.yaml").read_text()
    assert text.startswith("# Best trial of the study toy/big-small/iakd-tuned: trial ")
    assert "% on validation, mean of 2 seeds." in text.splitlines()[0]
    params = parse(merged(BASE, {"methods": yaml.safe_load(text)}), "test")
    assert plan_experiment(params).studies == []
    assert params.methods["iakd-tuned"] == read_best(finished_study.results)


def test_no_student_shares_its_seed_with_a_trial() -> None:
    """Nor do trials of studies with different seeds."""
    tunes = [Tune(seed=seed, seeds=5) for seed in (0, 1, 2**31 - 1)]
    seeds = [trial_seed(tune, position) for tune in tunes for position in range(5)]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        with pytest.raises(UserError, match="seeds"):
            parse(merged(BASE, {"distill": {"seeds": [seed]}}), "test")
