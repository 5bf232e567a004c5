"""A training shared by several processes equals that of one up to rounding; and what happens when one fails."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import shared
import torch
from shared import CASES, outcome
from torch import Tensor

from iakd import cli
from iakd.config import METHODS, Augment
from iakd.data.loader import UNSHARDED, BatchFormat, DeviceLoader, EpochData, EpochSubset, Shard
from iakd.errors import RunFailed
from iakd.training import distributed

STOPPED = {"stopped": "whole", "stopped sample": "whole sample"}
BY_TWO = [name for name in CASES if name != "few"]
BY_THREE = ["few", "iakd", "sample", "mixed"]
# other than 1e-5: rounding grows in untrained networks with many normalisation layers
TOLERANCE = {"mobilenet": 1e-3, "sizes": 1e-3, "sample": 1e-4}
SEVERAL = (
    "import sys; from iakd.processes import launch_processes as run; sys.exit(run(sys.argv[2:], int(sys.argv[1])))"
)
SETTINGS = """
dataset: {name: toy, source: digits, val: 100, test: 1000}
teachers: [{arch: resnet8, width: 4}]
students: [{arch: resnet8, width: 4}]
methods: {kd: {}}
teach: {recipe: {epochs: 1, batch_size: 256}}
tracking: {enabled: false}
compute: {device: cpu, processes: 2}
"""


def several(count: int, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-c", SEVERAL, str(count), sys.executable, *command]
    return subprocess.run(launcher, capture_output=True, text=True, timeout=300, check=False, **options)


def outcomes(count: int, names: list[str], folder: Path) -> dict[str, Any]:
    """The outcomes of the cases, each run by `count` processes."""
    done = several(count, shared.__file__, "outcomes.pt", *names, cwd=folder)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = torch.load(folder / "outcomes.pt")
    return result


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcomes(2, BY_TWO, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def by_three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcomes(3, BY_THREE, tmp_path_factory.mktemp("three"))


@pytest.fixture
def by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return lambda name: outcome(dataclasses.replace(CASES[name], stop=None), name)


def check(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Compare weights, statistics, metrics and the parameters that moved in each step."""
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(got["objective"], expected["objective"], **close)
    for row, expected_row in zip(got["history"], expected["history"], strict=True):
        assert row == pytest.approx(expected_row, rel=1e-3, abs=1e-3)
    numbers, wanted = ({k: v for k, v in some["metrics"].items() if isinstance(v, float)} for some in (got, expected))
    assert numbers == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert got["moved"] == expected["moved"]


@pytest.mark.parametrize("name", [name for name in BY_TWO if name not in STOPPED])
def test_two_processes_equal_one(by_two: dict[str, Any], by_one: Callable[[str], dict[str, Any]], name: str) -> None:
    assert set(METHODS) <= set(by_two)
    check(by_two[name], by_one(name), TOLERANCE.get(name, 1e-5))


@pytest.mark.parametrize("name", BY_THREE)
def test_so_do_three(by_three: dict[str, Any], by_one: Callable[[str], dict[str, Any]], name: str) -> None:
    """With batches that cannot be divided evenly, or at all."""
    check(by_three[name], by_one(name), TOLERANCE.get(name, 1e-5))


def test_swapped_out_blocks_rest(by_two: dict[str, Any]) -> None:
    """Otherwise the tests above would say nothing about missing gradients."""
    moved = by_two["iakd"]["moved"]
    assert len({len(names) for names in moved}) > 1


@pytest.mark.parametrize("name", STOPPED)
def test_interrupted_equals_uninterrupted(by_two: dict[str, Any], name: str) -> None:
    """Bit for bit, though only the last process got the signal."""
    part, whole = by_two[name], by_two[STOPPED[name]]
    assert part["metrics"].pop("stopped") == CASES[name].stop
    assert (part["history"], part["metrics"]) == (whole["history"], whole["metrics"])
    torch.testing.assert_close(part["objective"], whole["objective"], rtol=0, atol=0)


@pytest.mark.parametrize("whole", [1, 2, 3, 7, 8, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_make_up_the_batch(whole: int, count: int) -> None:
    shards = [Shard(rank, count).of(whole) for rank in range(count)]
    images = [list(range(whole))[shard.part] for shard in shards]
    assert [len(own) for own in images] == shards[0].sizes
    assert sum(shard.weight for shard in shards) == pytest.approx(1)
    if whole < count:
        assert all(own == list(range(whole)) for own in images)
    else:
        assert [image for own in images for image in own] == list(range(whole))
        assert max(shards[0].sizes) - min(shards[0].sizes) <= 1


MIXING = Augment.model_validate({"pad": 1, "mixup": {"alpha": 1.0}, "cutmix": {"alpha": 1.0}, "erase": {}})


class CountingLoader(DeviceLoader):
    """Notes how many images each pass over an epoch fetches."""

    def _fetch(self, wanted: Any, parts: list[slice]) -> Iterator[list[Tensor]]:
        fetched.append(sum(part.stop - part.start for part in parts))
        return super()._fetch(wanted, parts)


fetched: list[int] = []


@pytest.mark.parametrize("augment", [Augment(pad=1, flip=True), MIXING])
def test_shards_of_batches_are_parts_of_the_batches(augment: Augment) -> None:
    fetched.clear()
    data = shared.images(21, 8, 3, CountingLoader)
    choice = EpochSubset(torch.arange(21), torch.arange(21).flip(0), torch.linspace(0.3, 1, 21))
    wanted = EpochData(choice, Augment(pad=1, policy="trivialaugment"))
    expected, *shards = (
        list(data.epoch(0, 2, BatchFormat(8, augment, shard=shard), start=1, data=wanted))
        for shard in (UNSHARDED, *(Shard(r, 3) for r in range(3)))
    )
    for batch, *parts in zip(expected, *shards, strict=True):
        starts = [batch.position.start + part.shard.part.start for part in parts]
        assert [part.position.start for part in parts] == starts
        for name, value in batch.tensors().items():
            assert torch.equal(torch.cat([part.tensors()[name] for part in parts]), value)
    assert fetched == [13, 13, 13, 13] if augment.mixes else sum(fetched[1:]) == fetched[0]


TELL = "import os, sys, time; rank = int(os.environ['RANK'])\n"


def test_the_exit_code_is_that_of_one_process() -> None:
    assert several(3, "-c", TELL).returncode == 0
    assert several(2, "-c", TELL + "sys.exit(2)").returncode == 2
    assert several(2, "-c", TELL + "sys.exit(rank)").returncode == 1
    line = "' '.join(os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'))"
    places = several(2, "-c", TELL + f"os.write(1, ({line} + chr(10)).encode())")  # at once, or lines would mix
    assert sorted(places.stdout.splitlines()) == ["0 2 0", "1 2 1"]


def test_a_killed_process_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = SEVERAL.replace("sys.exit", "iakd.processes.SECONDS_TO_END = 0.5; sys.exit", 1)
    script = TELL + "os.kill(os.getpid(), 9) if rank == 0 else time.sleep(60)"
    command = [sys.executable, "-c", f"import iakd.processes; {impatient}", "2", sys.executable, "-c", script]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and time.monotonic() - began < 30
    assert done.stderr == "iakd: a process was killed by SIGKILL; run the same command again to resume\n"


def test_restarted_processes_see_nothing_of_those_before() -> None:
    """torchrun gives all attempts one store; whoever is back first must wait for the others, not for their ghosts."""
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(3) as threads:
        for late in range(3):  # the rank that is back last
            ranks = [rank for rank in range(3) if rank != late]
            early = [threads.submit(distributed.meet, store, rank, 3) for rank in ranks]
            time.sleep(0.3)
            assert not any(one.done() for one in early), "they have met a process that is gone"
            stores = [distributed.meet(store, late, 3), *(one.result(timeout=30) for one in early)]
            assert not stores[0].check(["address"])
            stores[0].set("address", str(late))
            assert {one.get("address") for one in stores} == {str(late).encode()}


def test_processes_that_do_not_come_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "SECONDS_TO_MEET", 0.1)
    with pytest.raises(RunFailed, match="not all 2 processes of this training came"):
        distributed.meet(torch.distributed.HashStore(), 0, 2)


def test_signals_are_passed_on() -> None:
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nos.write(1, b'ready\\n')\ntime.sleep(60)"  # at once
    )
    command = [sys.executable, "-c", SEVERAL, "2", sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout
        assert [launcher.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(30) == 7


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(SETTINGS)
    assert iakd("prepare") == 0
    capfd.readouterr()
    return tmp_path


def iakd(*arguments: str) -> int:
    """In this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["iakd", *arguments])
        cli.main()
    return int(end.value.code or 0)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=False)


def test_from_the_command_line(project: Path) -> None:
    """With the setting: an error that only the processes find. With torchrun: a teacher that can be evaluated."""
    missing = run("-m", "iakd", "distill")
    assert missing.returncode == 2 and not missing.stdout
    assert len(missing.stderr.splitlines()) == 1 and "run.json does not exist" in missing.stderr
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "iakd")
    taught = run(*torchrun, "teach")
    assert taught.returncode == 0, taught.stderr
    folder = "results/toy/teachers/resnet8w4/seed0"
    assert taught.stdout == f"{folder}\n"
    assert taught.stderr.count("epoch 1/1") == 1
    assert "find_unused_parameters" not in taught.stderr  # torch's advice against what is needed here
    products = sorted(path.name for path in (project / folder).iterdir())
    assert products == ["history.csv", "metrics.json", "model.safetensors", "run.json"]
    assert [path.name for path in (project / ".state/toy/teachers/resnet8w4/seed0").iterdir()] == ["lock"]
    assert iakd("evaluate", "--run", folder) == 0


def test_other_commands_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("iakd.training.distributed.join_processes", contextlib.nullcontext)
    assert iakd("evaluate") == 2
    line = "iakd: several processes can only teach or distill together; run `iakd evaluate` in one process"
    assert capfd.readouterr().err.splitlines() == [line]


def test_half_of_torchruns_environment_is_a_mistake(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert iakd("teach") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("iakd: WORLD_SIZE is 2 in the environment, but not all that torchrun sets with it (")
    assert "MASTER_ADDR" in line
