"""Command lines that nobody would type: each ends in one line with exit code 2 and leaves all results alone, or works.

`IAKD_FUZZ=1000 pytest tests/robustness -m robustness` is the long form; docs/testing.md has its figures.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from fuzzing import ODD_TEXTS, SCALE, examples, limited
from hypothesis import given

from iakd import cli
from iakd.experiment.run_dir import EVALUATION

pytestmark = pytest.mark.robustness

SETTINGS = """
dataset: {name: toy, source: digits, val: 60, test: 1600}
teachers: [{arch: resnet8, width: 4, name: big}]
students: [{arch: resnet8, width: 4, name: small}]
methods: {scratch: {}, kd: {}, iakd: {}}
teach: {recipe: {epochs: 1, batch_size: 64}}
tune: {trials: 1, seeds: 1, workers: 1, pruner: {kind: none}}
distill: {seeds: [0], transfer: 40, recipe: {epochs: 1, batch_size: 20}}
evaluate: {latency_runs: 1}
tracking: {enabled: false}
compute: {device: cpu}
"""
COUNTS: Counter[int] = Counter()  # exit codes
ANYTHING = st.sampled_from([text for text in ODD_TEXTS if "\0" not in text]) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10
)
SETTINGS_CHANGED = """
dataset dataset.val dataset.name dataset.source dataset.path dataset.classes teachers teachers.0 teachers.0.arch
teachers.0.width teachers.0.checkpoint teachers.1 students.0.arch students.-1 pairs methods methods.kd methods.kd.tune
methods.kd.kd.temperature methods.iakd.iakd.schedule.kind teach.seeds teach.recipe.epochs teach.recipe.lr tune.trials
tune.storage distill.seeds.0 distill.seeds.0.x distill.transfer distill.recipe evaluate.batch_size report.confidence
tracking.uri compute.device compute.threads compute.processes compute.seeds_together a . a..b
"""
KEYS = st.sampled_from(SETTINGS_CHANGED.split())
VALUES = ANYTHING | st.sampled_from(
    ["0", "1", "2", "[0, 1]", "[0, 0]", "{}", "[]", "0.5", "1e-3", "-1", "9" * 5000, "[" * 2000]
)
CHANGES = st.builds("{}={}".format, KEYS, VALUES) | ANYTHING
NAMES = st.sampled_from(
    ["big", "small", "big-small", "kd", "scratch", "iakd", "0", "1", "results/toy/teachers/big/seed0"]
)
FILES = st.sampled_from(
    ["params.yaml", "absent.yaml", ".", "binary", "list.yaml", "deep.yaml", "twice.yaml", "/dev/null", ""]
)
OPTIONS = st.one_of(
    st.tuples(st.just("--params"), FILES | ANYTHING),
    st.tuples(st.just("--set"), CHANGES),
    st.tuples(st.just("--set"), CHANGES),
    st.sampled_from([("--teacher", "big"), ("--method", "kd"), ("--seed", "0"), ("--pair", "big-small")]),
    st.tuples(st.sampled_from(["--teacher", "--seed", "--pair", "--method", "--run"]), NAMES | ANYTHING),
    st.tuples(ANYTHING),
)
STAGES = ["prepare", "teach", "tune", "distill", "evaluate", "report"]
STAGE = st.builds(
    lambda command, options: [command, *(part for option in options for part in option)],
    st.sampled_from(STAGES),
    st.lists(OPTIONS, max_size=2),
)
PAIRS = st.builds(
    lambda networks, options: ["pairs", *networks, *(part for option in options for part in option)],
    st.lists(st.sampled_from(["resnet8", "resnet14", "vgg8", "ShuffleV1", "big"]) | ANYTHING, max_size=3),
    st.lists(
        st.tuples(st.sampled_from(["--size", "--channels", "--classes"]), st.integers(-1, 10**12).map(str) | ANYTHING)
        | st.tuples(st.just("--params"), FILES),
        max_size=3,
    ),
)
TRACK = st.builds(
    lambda command, change: ["track", command, "--set", change], st.sampled_from(["sync", "flush", "x", "--x"]), CHANGES
)
RIGHT = ["prepare", "teach --teacher big", "distill --method kd", "distill --pair big-small", "evaluate", "report"]
USUAL = st.builds(
    lambda command, change: [*command.split(), *(["--set", change] if change else [])],
    st.sampled_from(RIGHT),
    st.sampled_from(
        ["", "", "report.title=x", "compute.threads=2", "distill.recipe.lr=0.2", "methods.kd.kd.temperature=2"]
    ),
)
OTHER = st.lists(st.sampled_from(["methods", "schema", "track", "--help", "prepare"]) | ANYTHING, max_size=3)
COMMAND_LINES = st.one_of(STAGE, STAGE, STAGE, USUAL, USUAL, PAIRS, TRACK, OTHER)


def iakd(arguments: list[str], folder: Path) -> int:
    """Run a command in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch, limited():
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["iakd", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings, other files that are none, data, a teacher and some of the students."""
    folder = tmp_path_factory.mktemp("template") / "project"
    folder.mkdir()
    (folder / "params.yaml").write_text(SETTINGS)
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "deep.yaml").write_text("a: " + "[" * 3000)
    (folder / "twice.yaml").write_text(SETTINGS + "evaluate: {}\n")
    for command in (["prepare"], ["teach"], ["distill", "--method", "kd", "--method", "scratch"]):
        assert iakd(command, folder) == 0
    return folder


@contextlib.contextmanager
def copied(template: Path) -> Iterator[Path]:
    """A copy for one command, so that no example depends on those before."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(template, Path(folder) / "project", symlinks=True))


def files(folder: Path) -> dict[Path, int]:
    """All files but locks, which stay for the next command, with the times of their last change."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("lock"))
    return {path: path.stat().st_mtime_ns for path in found}


def check(code: int, out: str, err: str, before: dict[Path, int], after: dict[Path, int]) -> None:
    COUNTS[code] += 1
    assert "Traceback" not in err and "Traceback" not in out
    assert code in (0, 1, 2)
    if code == 0:
        return
    lines = err.strip().splitlines()
    assert lines and (lines[-1].startswith("iakd: ") or "Error: " in err or "Usage: " in err), err
    assert sum(line.startswith("iakd: ") for line in lines) <= 1, err
    if code == 2:  # `evaluate` may have evaluated models before it met one of other settings
        assert {path: time for path, time in after.items() if path in before or path.name != EVALUATION} == before


@given(arguments=COMMAND_LINES)
@examples(short=40, share=0.3)
def test_a_command_line_is_refused_in_one_line_or_works(
    arguments: list[str], template: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with copied(template) as folder:
        before = files(folder)
        code = iakd(arguments, folder)
        check(code, *capfd.readouterr(), before, files(folder))


@given(arguments=COMMAND_LINES)
@examples(short=2, share=0.02)
def test_so_it_is_in_a_process_of_its_own(arguments: list[str], template: Path) -> None:
    command = [sys.executable, "-m", "iakd", *map(os.fsencode, arguments)]
    with copied(template) as folder:
        before = files(folder)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=600)
        check(done.returncode, done.stdout, done.stderr, before, files(folder))


def test_the_fuzzer_reaches_both_ends() -> None:
    """Last, after the search."""
    print(dict(COUNTS))
    assert COUNTS[2] > 4 and COUNTS[0] > (10 if SCALE else 0)
