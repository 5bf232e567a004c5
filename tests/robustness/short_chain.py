"""A short chain from the images to the report, run in forks of a process that has imported everything already.

`python short_chain.py` is that process. It reads one JSON object a line (see `Chains.run`), runs the
stages in that folder with the fault, and answers {"code", "operations"}: the exit code (negative: a signal), and how
many operations of the fault's kind there were.

Faults: "crash" kills all processes of the chain right before the operation `at`, counted from 1, where an operation is
an fsync or a rename. "full" is a disk that is full from the operation `at` on, where an operation is whatever may need
space. With `at` 0, there is none.

Clocks stand still for what is recorded, so that two runs can be compared bit by bit.
"""

import builtins
import errno
import io
import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "teach", "tune", "distill", "evaluate", "report")
SETTINGS = ROOT / "tests/robustness/short.yaml"
NEVER_EQUAL = ("worker_id", "datetime_start", "datetime_complete")  # in Optuna's journal
LOG = "log.txt"


# Outside: what a test does.


class Chains:
    """`with Chains(folder) as chains:` — the process that runs chains, and where."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Chains":
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()

    def run(
        self,
        folder: Path,
        fault: str = "crash",
        at: int = 0,
        only: str = "",
        last: str = STAGES[-1],
        log: Path | None = None,
    ) -> tuple[int, int]:
        """Run `only` one stage, or all up to `last`; return the exit code and the number of operations.

        What is printed goes to `log`, by default log.txt in the folder.
        """
        assert self.process.stdin and self.process.stdout
        stages = [only] if only else STAGES[: STAGES.index(last) + 1]
        request = {"folder": str(folder), "fault": fault, "at": at, "stages": stages, "log": str(log or folder / LOG)}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["operations"]


def outcome(folder: Path) -> dict[str, bytes]:
    """Return the contents of all results, by their paths, without what differs from run to run."""
    return {
        str(path.relative_to(folder)): _comparable(path)
        for path in sorted(folder.glob("results/**/*"))
        if path.is_file()
    }


def _comparable(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "study.journal":
        entries = [json.loads(line) for line in content.splitlines()]
        return json.dumps([{k: v for k, v in e.items() if k not in NEVER_EQUAL} for e in entries]).encode()
    if path.name == "run.json":
        record = json.loads(content)
        if record["sha256"].pop("study.journal", None):
            del record["record_sha256"]
        return json.dumps(record).encode()
    return content


def state(folder: Path) -> set[str]:
    """Return the paths of all files that are not results."""
    files = {str(path.relative_to(folder)) for path in folder.glob("**/*") if path.is_file()}
    return {path for path in files if not path.startswith("results/") and path != LOG}


def log_of(folder: Path) -> str:
    """Return what the last chain in this folder printed."""
    return (folder / LOG).read_text()


@dataclass(frozen=True)
class Undisturbed:
    """A chain without faults: the folders `before STAGE`, and what there is in the end."""

    chains: Chains
    results: dict[str, bytes]
    state: set[str]
    points: list[tuple[str, int]]  # all stages and the numbers of their operations

    def copy(self, stage: str, name: str) -> Path:
        """Copy the state before a stage to a new folder."""
        folder = self.chains.folder / name
        shutil.copytree(self.chains.folder / f"before {stage}", folder)
        return folder

    def some(self, wanted: str) -> list[tuple[str, int]]:
        """Return `wanted` points, a number or all, which a seed draws, in their order."""
        chosen = self.points if wanted == "all" else random.Random(0).sample(self.points, int(wanted))
        return sorted(chosen, key=self.points.index)

    def differences(self, folder: Path, reported: bool = True) -> list[str]:
        """Return the paths of all files that differ, are missing or were left over; `reported`: the report, too."""
        wanted = {path: content for path, content in self.results.items() if reported or "/report/" not in path}
        found = outcome(folder)
        different = [path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path)]
        return sorted({*different, *(self.state ^ state(folder))})


@contextmanager
def undisturbed_chain(folder: Path, fault: str) -> Iterator[Undisturbed]:
    """Run the chain stage by stage, count the operations at which there might be a fault, and keep the process."""
    with Chains(folder) as chains:
        whole = folder / "whole"
        whole.mkdir()
        points: list[tuple[str, int]] = []
        for stage in STAGES:
            shutil.copytree(whole, folder / f"before {stage}")
            code, operations = chains.run(whole, fault, only=stage)
            assert code == 0, log_of(whole)
            points += [(stage, number) for number in range(1, operations + 1)]
        yield Undisturbed(chains, outcome(whole), state(whole), points)


# Inside: the process that runs chains.


def serve() -> None:
    """Run a chain for each line on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    import_everything()
    stop_clocks()
    for line in sys.stdin:
        request = json.loads(line)
        counter = mmap.mmap(-1, 8)  # shared with all forks
        child = os.fork()
        if child == 0:
            run_stages(request, FAULTS[request["fault"]](counter, request["at"]))
        _, status = os.waitpid(child, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "operations": struct.unpack("q", counter[:])[0]}
        print(json.dumps(answer), file=answers, flush=True)


def import_everything() -> None:
    """Import what the stages and the losses of the settings import."""
    import importlib

    for stage in STAGES:
        importlib.import_module(f"iakd.stages.{stage}")
    for name in ("cli", "tuning.study", "distillation.losses.iakd", "distillation.losses.kd", "evaluation.measure"):
        importlib.import_module(f"iakd.{name}")
    for name in ("torch._dynamo", "matplotlib.pyplot", "matplotlib.backends.backend_agg"):
        importlib.import_module(name)


def stop_clocks() -> None:
    """Have all recorded times equal, and workers of studies forked instead of started."""
    from iakd.evaluation import measure
    from iakd.experiment import run_dir
    from iakd.training import trainer
    from iakd.tuning import workers

    ticks = iter(range(1 << 62))

    def monotonic() -> float:
        return next(ticks) * 1e-12  # so that a checkpoint is always due, but no time passes

    clock: Any = SimpleNamespace(monotonic=monotonic, process_time=lambda: 0.0)
    trainer.time = run_dir.time = clock
    run_dir.now = lambda: "2026-01-01T00:00:00.000+00:00"
    measure.measure_speed = lambda network, images, runs: {"latency_ms": 1.0, "images_per_s": 1000.0}
    forking: Any = multiprocessing.get_context("fork")
    quick: Any = SimpleNamespace(**{**vars(multiprocessing), "get_context": lambda kind: forking})
    workers.multiprocessing = quick
    workers.resource_tracker.ensure_running = lambda: None


def run_stages(request: dict[str, Any], fault: Callable[[], Any]) -> NoReturn:
    """Run `iakd STAGE` for each stage, like a shell script that ends at the first error; never returns."""
    from iakd import cli

    os.setsid()
    os.chdir(request["folder"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    code = 1
    try:
        with fault():
            for stage in request["stages"]:
                sys.argv = ["iakd", stage, "--params", str(SETTINGS)]
                try:
                    cli.main()
                except SystemExit as end:
                    if end.code:
                        raise
        code = 0
    except SystemExit as end:
        code = int(str(end.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Fault:
    """Something that happens at the operation `at`, counted over all processes."""

    def __init__(self, counter: mmap.mmap, at: int) -> None:
        self.counter = counter
        self.at = at

    def count(self) -> bool:
        """Count an operation; return whether the fault has come by now."""
        (operations,) = struct.unpack("q", self.counter[:])
        self.counter[:] = struct.pack("q", operations + 1)
        return 0 < self.at <= operations + 1

    @contextmanager
    def replaced(self, module: Any, names: tuple[str, ...], before: Callable[..., None]) -> Iterator[None]:
        """Call `before`, with the name and the arguments, before each of these functions."""
        originals = {name: getattr(module, name) for name in names}
        for name, original in originals.items():

            def call(*arguments: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
                before(_name, *arguments, **options)
                return _original(*arguments, **options)

            setattr(module, name, call)
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(module, name, original)


class Crash(Fault):
    """All processes of the chain die."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        def before(name: str, *arguments: Any, **options: Any) -> None:
            if self.count():
                os.killpg(0, signal.SIGKILL)

        with self.replaced(os, ("fsync", "rename", "replace"), before):
            yield


class FullDisk(Fault):
    """Nothing more can be written, created or renamed, except for logs and pipes."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        fault = self

        def fail(name: Any) -> None:
            if fault.count():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(name))

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                fail(self.name)
                return super().write(content)

        real_open = io.open

        def open_file(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+") or str(file).startswith(("/dev", "/proc")):
                return real_open(file, mode, buffering, *arguments, **options)
            binary = mode.replace("b", "").replace("t", "")
            if not Path(file).exists():
                fail(file)
            raw = File(os.fspath(file), binary)
            if buffering == 0:
                return raw
            buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *arguments, **options)

        def before(name: str, *arguments: Any, **options: Any) -> None:
            if name == "open":
                path, flags = arguments[:2]
                if not flags & os.O_CREAT or Path(path).exists():
                    return
            if name == "mkdir" and Path(arguments[0]).exists():
                return
            fail(arguments[0])

        names = ("open", "mkdir", "rename", "replace", "fsync", "pwrite", "ftruncate")
        with self.replaced(os, names, before):
            io.open = builtins.open = open_file  # type: ignore[assignment]
            try:
                yield
            finally:
                io.open = builtins.open = real_open


FAULTS = {"crash": Crash, "full": FullDisk}

if __name__ == "__main__":
    serve()
