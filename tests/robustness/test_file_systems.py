"""What writers that were killed leave behind, and file systems that lack locks or permissions."""

import errno
import fcntl
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import typer

from iakd import cli, files
from iakd.config import parse
from iakd.errors import of_file_system
from iakd.experiment import gpus
from iakd.experiment.run_dir import Run
from iakd.tracking import follower


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def killed_writer(path: Path) -> None:
    """Write `path` in a process that is killed before the new file is in place."""
    child = os.fork()
    if child == 0:
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_next_write_clears_what_a_killed_one_left(folder: Path) -> None:
    path = folder / "report/tables.csv"
    killed_writer(path)
    killed_writer(path.with_name("tables.md"))
    left = sorted(p.name for p in path.parent.iterdir())
    assert [name.split(".")[1] for name in left] == ["tables", "tables"], "so there is something to clear"
    files.write_text(path, "whole")
    assert sorted(p.name for p in path.parent.iterdir()) == [left[1], "tables.csv"], "the other file is not its own"


def test_the_file_of_a_living_writer_stays(folder: Path) -> None:
    path = folder / "a.json"
    with files.atomic_path(path) as first:
        first.write_text("first")
        files.write_text(path, "second")
        assert path.read_text() == "second"
        assert first.exists()
    assert path.read_text() == "first"
    assert [p.name for p in folder.iterdir()] == ["a.json"]


def test_permissions_are_the_user_s_and_need_no_chmod(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems refuse it."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("chmod", "fchmod", "lchmod"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    before = os.umask(0o027)
    try:
        files.write_text(folder / "private", "x")
        os.umask(0o022)
        files.write_text(folder / "public", "x")
    finally:
        os.umask(before)
    assert [(folder / name).stat().st_mode & 0o777 for name in ("private", "public")] == [0o640, 0o644]


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses locks."""

    def refuse(file: Any, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "_warned", [])


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_run_is_made_after_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    run = Run("toy/students/a-b/kd/seed0", "distill", "key", {}, 0, {}, {"data": "abc"})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with run.open():
                run.finish([{"epoch": 1, "loss": 0.5}], {}, b"weights")
    assert run.finished
    (line,) = caplog.messages
    assert "seed0/lock: this file system has no locks (" in line
    assert "start no second command here meanwhile" in line


@pytest.mark.usefixtures("without_locks")
def test_without_locks_nobody_is_taken_for_a_holder(folder: Path) -> None:
    path = folder / "lock"
    with files.exclusive(path, "busy"), files.lock(path, shared=True), files.exclusive(path, "busy"):
        assert not files.held(path)
        assert not files.in_use(path)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_gpu_is_claimed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(folder))
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    with gpus.claim(parse(SETTINGS, "test").compute) as name:
        assert name == "0"


SETTINGS: dict[str, Any] = {
    "dataset": {"name": "toy"},
    "teachers": [{"arch": "resnet14"}],
    "students": [{"arch": "resnet8"}],
    "methods": {"kd": {}},
    "tracking": {"uri": "sqlite:///mlflow.db"},
}


@pytest.mark.usefixtures("without_locks")
def test_without_locks_no_follower_is_started_and_the_command_to_use_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Several would write to MLflow at the same time."""
    Run("toy/students/a-b/kd/seed0", "distill", "key", {}, 0, {}, {}).finish([{"epoch": 1}], {}, b"weights")
    before = list(follower._followers)  # of other tests
    with caplog.at_level(logging.WARNING):
        follower.ensure_follower(parse(SETTINGS, "test"))
        follower.wait_for_follower(parse(SETTINGS, "test"), timeout=5)
    assert (
        caplog.messages
        == [
            "MLflow is not up to date (this file system has no locks, which following needs); "
            "run `iakd track sync` at any time to update it"
        ]
        * 2
    )
    assert follower._followers == before


def test_a_folder_that_cannot_be_flushed_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = os.fsync

    def refuse_folders(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    files.write_text(folder / "a", "whole")
    assert (folder / "a").read_text() == "whole"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EISDIR, "move the folder that is where a file should be, then run again"),
        (errno.ELOOP, "remove the symbolic link that leads to itself, then run again"),
        (errno.EIO, "check the disk, then run again"),
    ],
)
def test_errors_of_the_file_system_are_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, remedy: str
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "results/x")

    broken = typer.Typer()
    broken.command()(fail)
    monkeypatch.setattr(cli, "app", lambda: broken(args=[], standalone_mode=False))
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == f"iakd: results/x: {os.strerror(number)}; {remedy}\n"


def test_a_full_disk_is_that_of_the_file(folder: Path) -> None:
    with pytest.raises(OSError) as error, files.atomic_path(folder / "large"), Path("/dev/full").open("w") as full:
        full.write("x")
    line = f"{folder / 'large'}: No space left on device; free some disk space, then run again"
    assert of_file_system(error.value) == line


def test_a_power_cut_finds_the_old_file_or_the_new_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on disk before it gets its name, and then the name."""
    calls: list[str] = []
    flush, rename = os.fsync, os.replace

    def note_flush(handle: int) -> None:
        calls.append(f"flush {os.fstat(handle).st_size if Path(f'/proc/self/fd/{handle}').is_file() else 'folder'}")
        flush(handle)

    def note_rename(source: Path, target: Path) -> None:
        calls.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(os, "replace", note_rename)
    files.write_bytes(folder / "a", b"whole")
    assert calls == ["flush 5", "rename to a", "flush folder"]


def test_a_training_whose_results_cannot_be_written_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run("toy/students/a-b/kd/seed0", "distill", "key", {}, 0, {}, {})
    writable = os.access
    locked = {"results/toy/students/a-b"}
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in locked and writable(path, mode))
    with run.open():  # where there is no such folder yet, the one above counts
        pass
    Path("results/toy/students/a-b").mkdir(parents=True)
    with pytest.raises(PermissionError) as raised, run.open():
        pytest.fail("it has started")
    assert raised.value.filename == "results/toy/students/a-b"
