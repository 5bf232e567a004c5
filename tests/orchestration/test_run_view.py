"""What `make run` shows, with a workflow that only pretends."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pretend import SETTINGS, Pretend, ago, benchmark, epochs, metrics
from snakemake_interface_logger_plugins.common import LogEvent

from iakd.experiment.run_dir import REPORT, VERDICT
from iakd.orchestration import run_view
from iakd.orchestration.run_view import LogView
from iakd.orchestration.workload import Progress, Running, Workload, piece_of

HERE = Path(__file__)
KD = "tiny/students/big-small/kd"
STUDY = "tiny/tune/big-small/kd-tuned"


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pretend:
    monkeypatch.chdir(tmp_path)
    return Pretend()  # with the stderr that `capsys` reads


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr since the last call, without the time of day, and N for seconds."""
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in capsys.readouterr().err.splitlines()]
    return [re.sub(r"\b\d+ s\b", "N s", line) for line in lines]


def test_a_log_has_a_line_for_each_training_that_ends(pretend: Pretend, capsys: pytest.CaptureFixture[str]) -> None:
    pretend.start()
    assert said(capsys) == ["tiny: 17 jobs to run"]
    for rule, words in (("prepare", ""), ("teach", ""), ("distill", "kd/seed1"), ("evaluate", "teachers")):
        job = pretend.job(rule, words)
        pretend.begin(job)
        if rule == "distill":
            metrics(f"{KD}/seed1", val_top1=91.26)
        pretend.finish(job)
    lines = [line.partition(";")[0] for line in said(capsys)]
    assert lines == ["[1/17] data: N s", "[2/17] teacher big seed 0: N s", "[3/17] student kd seed 1: val 91.3 %, N s"]
    pretend.handler.close()
    assert said(capsys) == ["Stopped after N s: 4 of 17 jobs are done."]


def test_a_failure_is_shown_once_with_the_end_of_its_log(pretend: Pretend, capsys: pytest.CaptureFixture[str]) -> None:
    pretend.start()
    job = pretend.job("distill", "kd/seed2")
    pretend.begin(job)
    log = "".join(f"epoch {n}/20\n" for n in range(1, 20)) + "iakd: the loss of step 3 is nan\n"
    pretend.fail(job, log)
    pretend.log(None, "Exiting because a job execution failed. Look above for error messages", logging.ERROR)
    lines = said(capsys)
    assert lines[1] == f"✗ student kd seed 2 failed; the end of logs/{KD}/seed2.log:"
    assert lines[2:] == [*(f"    epoch {n}/20" for n in range(6, 20)), "    iakd: the loss of step 3 is nan"]
    for name in pretend.jobs.values():
        if name.number < 12 and name is not job:
            pretend.begin(name)
            pretend.finish(name)
    said(capsys)
    pretend.handler.close()
    assert said(capsys) == ["1 job failed after N s; 10 of 17 are done, 6 did not run because of that."]


def test_a_warning_is_shown_once_and_chatter_never(pretend: Pretend, capsys: pytest.CaptureFixture[str]) -> None:
    pretend.log(None, "Building DAG of jobs...")
    pretend.start()
    said(capsys)
    for _ in range(3):
        pretend.log(None, "a file is very large", logging.WARNING)
        pretend.log(None, "Select jobs to execute...")
    assert said(capsys) == ["a file is very large"]


def test_ctrl_c_is_no_failure(pretend: Pretend, capsys: pytest.CaptureFixture[str]) -> None:
    pretend.start()
    job = pretend.job("teach")
    pretend.begin(job)
    pretend.log(None, "Terminating processes on user request, this might take some time.")
    pretend.fail(job, "iakd: interrupted; run the same command again to resume\n")
    pretend.handler.close()
    assert said(capsys)[1:] == [
        "stopping: trainings save their state …",
        "Interrupted after N s; 0 of 17 jobs are done. Run again to resume.",
    ]


def test_nothing_to_do_ends_with_the_outcome(pretend: Pretend, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pretend.experiment.report
    folder.mkdir(parents=True)
    (folder / REPORT).touch()
    (folder / VERDICT).write_text("kd-tuned beat kd by 1.0 points\n95 % interval +0.5 to +1.5 points\n")
    pretend.log(LogEvent.WORKFLOW_STARTED)
    pretend.log(None, "Nothing to be done (all requested files are present and up to date).")
    pretend.handler.close()
    assert said(capsys) == [
        "Nothing to do: everything is up to date.",
        "kd-tuned beat kd by 1.0 points",
        "95 % interval +0.5 to +1.5 points",
        "The report: results/tiny/report/report.html",
    ]


def test_a_view_that_fails_gives_way_to_snakemake_s_words(
    pretend: Pretend, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend.start()
    said(capsys)

    def breaks(view: LogView, job: Running) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(LogView, "finished", breaks)
    pretend.begin(pretend.job("prepare"))
    pretend.log(LogEvent.JOB_FINISHED, "Finished jobid: 1 (Rule: prepare)", job_id=1)
    pretend.log(LogEvent.PROGRESS, done=2, total=17)
    lines = said(capsys)
    assert "the view of this run failed (ZeroDivisionError: oh); Snakemake's own follows" in lines
    assert lines[-2:] == ["Finished jobid: 1 (Rule: prepare)", "2 of 17 steps (12%) done"]


def test_who_asks_for_more_words_gets_snakemake_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    talkative = Pretend(verbose=True)
    talkative.log(LogEvent.PROGRESS, done=2, total=17)
    assert said(capsys) == ["2 of 17 steps (12%) done"]


def test_what_comes_without_a_run_is_snakemake_s(pretend: Pretend, capsys: pytest.CaptureFixture[str]) -> None:
    pretend.log(None, "Report created: report.html.")
    pretend.handler.close()
    assert said(capsys) == ["Report created: report.html."]


@pytest.fixture
def work(pretend: Pretend) -> Workload:
    return run_view.workload(pretend.workflow, pretend.experiment)


def test_the_time_left_is_what_like_jobs_took_shared_by_the_cores(work: Workload) -> None:
    students = [piece for piece in work.pieces if piece.rule == "distill" and "kd/" in piece.paths[0]]
    assert work.left(students, []) is None  # nothing is known yet
    work.learn(students[0], 8.0)
    assert work.left(students[1:], []) == 2 * 8 / 2  # two of them on two cores
    assert work.left(students[2:], []) == 8  # one needs its time, whatever the number of cores


def test_the_time_of_another_training_is_scaled_by_its_images(work: Workload) -> None:
    student = next(piece for piece in work.pieces if piece.rule == "distill")
    study = next(piece for piece in work.pieces if piece.rule == "tune")
    work.learn(student, 8.0)  # 20 epochs of 100 images
    assert work.expected(study) == 8 * (4 * 2 * 5) / 20


def test_benchmarks_of_results_that_stay_are_read_and_others_not(pretend: Pretend) -> None:
    benchmark(f"{KD}/seed0", 30.0)
    benchmark("tiny/students/big-small/kd-tuned/seed0", 50.0)
    kept = [job for job in pretend.needed if "big-small/kd/seed0" not in job.output[0]]
    pretend.needed[:] = kept
    work = run_view.workload(pretend.workflow, pretend.experiment)
    assert work.expected(piece_of("distill", [f"results/{KD}/seed1/x"])) == 30
    tuned = piece_of("distill", ["results/tiny/students/big-small/kd-tuned/seed1/x"])
    assert work.expected(tuned) == 30  # as many images, and not what the outdated result took


def test_a_running_training_is_as_far_as_its_last_epoch(pretend: Pretend, work: Workload) -> None:
    piece = piece_of("distill", [f"results/{KD}/seed0/model.safetensors"])
    pretend.live(f"{KD}/seed0", [])
    assert work.progress(piece).fraction == 0
    pretend.live(f"{KD}/seed0", epochs(12, validated=10, val=87.5))
    progress = work.progress(piece)
    assert (progress.fraction, progress.text, progress.accuracy) == (12 / 20, "epoch 12/20", "val 87.5 %")
    running = Running(piece, 6.0, progress)
    assert work.rest(running) == pytest.approx(4.0)


def test_the_start_up_of_a_training_is_not_its_pace(work: Workload) -> None:
    """Two seconds after its start, a training that takes ten as a rule has done a hundredth."""
    piece = piece_of("distill", [f"results/{KD}/seed0/model.safetensors"])
    work.learn(piece, 10.0)
    rests = [work.rest(Running(piece, 2.0, Progress(done))) for done in (0.0, 0.01, 0.2)]
    assert rests[0] == 8 and rests[2] == pytest.approx(8)
    assert rests[1] is not None and 10 < rests[1] < 20  # not the 198 s of its pace


def test_files_of_an_earlier_attempt_do_not_count(pretend: Pretend, work: Workload) -> None:
    piece = piece_of("distill", [f"results/{KD}/seed0/model.safetensors"])
    pretend.live(f"{KD}/seed0", epochs(12))
    ago(Path(f".state/{KD}/seed0/history.csv"), 60)
    assert work.progress(piece).fraction == 0


def test_a_study_counts_trials_their_seeds_and_their_epochs(pretend: Pretend, work: Workload) -> None:
    study = piece_of("tune", [f"results/{STUDY}/best.yaml"])
    pretend.live(STUDY, [{"trial": 0, "value": 90.0, "best_value": 90.0}])
    pretend.live(f"{STUDY}/trials/0001", [])
    pretend.live(f"{STUDY}/trials/0001/seed1", epochs(2))
    (Path("results") / STUDY / "trials/0001/seed0").mkdir(parents=True)
    (Path("results") / STUDY / "trials/0001/seed0/run.json").touch()
    progress = work.progress(study)
    assert progress.fraction == pytest.approx((1 + (1 + 2 / 5) / 2) / 4)
    assert (progress.text, progress.accuracy) == ("trial 2/4", "best 90.0 %")


def on_a_terminal(tmp_path: Path, code: str, **more: str) -> str:
    """What a process writes to a terminal of 80 columns."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **more}
    environment = {name: value for name, value in environment.items() if value != "unset"}
    done = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=follower)
    os.close(follower)
    written = b""
    while True:
        try:
            written += os.read(leader, 65536)
        except OSError:  # the process has ended
            break
    assert done.wait() == 0, written.decode()
    os.close(leader)
    return written.decode()


RUN = f"""
import sys, time
sys.path.insert(0, {str(HERE.parent)!r})
from pretend import Pretend, epochs
p = Pretend()
p.start()
for words in ("seed0", "seed1"):
    p.begin(p.job("distill", f"kd/{{words}}"))
    p.live(f"tiny/students/big-small/kd/{{words}}", epochs(12, 10, 87.5))
time.sleep(1.2)
p.fail(p.job("distill", "kd/seed0"), "iakd: " + "a long line " * 20)
p.handler.close()
"""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_a_terminal_shows_one_view_of_80_columns(tmp_path: Path) -> None:
    written = on_a_terminal(tmp_path, RUN, CI="unset", NO_COLOR="unset")
    lines = [ESCAPE.sub("", line) for line in re.split(r"[\r\n]+", written)]
    assert "tiny: 17 jobs to run" in lines
    assert any(re.match(r"data · teachers · studies · students 0/6 · evaluations 0/7 · report *$", x) for x in lines)
    assert any(re.match(r"student  kd seed 1  epoch 12/20  val 87\.5 %", line) for line in lines)
    assert any(re.search(r"━ +\d+ %  0/17 jobs  about \d+ s left", line) for line in lines)
    long = [line for line in lines if len(line) > 80]
    assert all("a long line" in line or "✗" in line for line in long)  # what a terminal wraps by itself
    assert "✗ student kd seed 0 failed" in written
    assert "\x1b[?25l" not in written, "a hidden cursor would stay hidden after a kill"
    assert "\x1b[31m" in written


def test_colours_can_be_switched_off(tmp_path: Path) -> None:
    written = on_a_terminal(tmp_path, RUN, CI="unset", NO_COLOR="1")
    colours = {int(n) for codes in re.findall(r"\x1b\[([0-9;]*)m", written) for n in codes.split(";") if n}
    assert not {n for n in colours if n >= 30}
    assert "epoch 12/20" in written


def test_a_ci_system_gets_lines_though_it_has_a_terminal(tmp_path: Path) -> None:
    written = on_a_terminal(tmp_path, RUN, CI="true")
    assert "\x1b" not in written
    assert re.search(r"^\d\d:\d\d:\d\d tiny: 17 jobs to run\r$", written, re.MULTILINE)


def test_snakemake_finds_the_plugin_and_imports_little_for_it() -> None:
    code = (
        "import sys; from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry as R;"
        "print('iakd' in R().plugins, any(name.split('.')[0] in ('iakd', 'rich') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_dry_run_shows_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from snakemake.jobs import Reason
    from snakemake.persistence import ParamsChange

    pretend = Pretend({**SETTINGS, "methods": {"kd": {}}}, dryrun=True)
    for job in pretend.jobs.values():
        path = Path(job.output[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for seed in range(3):
        job = pretend.job("distill", f"kd/seed{seed}")
        job.reason = Reason()
        job.reason.params_changed = ParamsChange({"'recipe.lr=0.05'"}, {"'recipe.lr=0.02'"}, set(job.output))
    pretend.job("report").reason = Reason()
    pretend.job("report").reason.input_changed = True
    Path(pretend.job("evaluate", "kd/seed2").output[0]).unlink()
    pretend.needed[:] = [pretend.job("distill", f"kd/seed{n}") for n in range(3)]
    pretend.needed += [pretend.job("evaluate", "kd/seed2"), pretend.job("report")]
    for seed, error in ((0, "KeyboardInterrupt: SIGINT"), (1, "RunFailed: the loss is nan")):
        pretend.live(f"{KD}/seed{seed}", [])
        Path(f".state/{KD}/seed{seed}/run.json").write_text(json.dumps({"error": error}))
    benchmark("tiny/teachers/big/seed0", 20.0)  # 10 epochs of what is taken for 1,000 images
    pretend.log(LogEvent.WORKFLOW_STARTED)
    pretend.log(None, "Building DAG of jobs...")
    pretend.handler.close()
    pretend.handler.close()  # as Python does when it exits
    assert capsys.readouterr().out.splitlines() == [
        "                  done   running  outdated   missing",
        "data                 1                              ",
        "teachers             1                              ",
        "students                                 3          ",
        "evaluations          3                             1",
        "report                                   1          ",
        "",
        "Failed:",
        "  student kd seed 1: the loss is nan",
        "",
        "Outdated:",
        "  recipe.lr: 0.05 → 0.02: student kd seed 0 and 2 more",
        "  made from other files: report",
        "",
        "The rest takes about 9 s.",
    ]
