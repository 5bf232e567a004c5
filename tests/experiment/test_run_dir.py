"""A training's files: published whole, run.json last, one owner at a time."""

import errno
import json
import logging
import multiprocessing
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from iakd import files
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.run_dir import Run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(key: str = "key") -> Run:
    return Run("toy/students/a-b/kd/seed0", "distill", key, {"lr": 0.1}, 0, {"method": "kd"}, {"data": "abc"})


ROWS: list[run_dir.Row] = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "val_top1": 50.0}]


def test_a_finished_run_is_whole_and_leaves_only_its_lock() -> None:
    run = make()
    with run.open():
        run.log(ROWS[:1])
        assert (run.live / "run.json").exists() and (run.live / "history.csv").exists()
        assert not run.finished
        run.finish(ROWS, {"val_top1": 50.0}, b"weights")
    assert run.finished
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "history.csv",
        "metrics.json",
        "model.safetensors",
        "run.json",
    ]
    assert [p.name for p in run.live.iterdir()] == ["lock"]
    record = json.loads((run.folder / "run.json").read_text())
    contract = "key stage params seed git_commit data_sha256 lock_sha256 versions device started finished wall_seconds"
    assert set(contract.split()) <= set(record)
    assert run_dir.read_history(run.folder / "history.csv") == [{**ROWS[0], "val_top1": None}, ROWS[1]]


@pytest.mark.parametrize(("seconds", "written"), [(0.001, [0, 1, 2, 3, 4, 5]), (0.05, [0, 2, 5]), (10, [0])])
def test_the_live_history_is_written_once_a_second_and_seldom_on_a_slow_disk(
    seconds: float, written: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of a second passes between two epochs, and `seconds` with each write."""

    def write(path: Path, text: str) -> None:
        moments.append(int(clock))
        pass_time(seconds)

    def pass_time(more: float) -> None:
        nonlocal clock
        clock += more

    clock, moments, run = 0.0, list[int](), make()
    monkeypatch.setattr(files, "write_text", write)
    monkeypatch.setattr(run_dir, "time", SimpleNamespace(monotonic=lambda: clock))
    while clock < 6:
        run.log(ROWS)
        pass_time(0.1)
    assert moments == written


def test_a_peer_is_kept_beside_the_model_until_a_run_without_one_follows() -> None:
    run = make()
    with run.open():
        run.publish(ROWS, {}, b"weights", b"the peer's")
    assert (run.folder / "peer.safetensors").read_bytes() == b"the peer's"
    assert json.loads((run.folder / "run.json").read_text())["peer_sha256"] == files.sha256_bytes(b"the peer's")
    other = make("other")
    with other.open():
        other.publish(ROWS, {}, b"weights")
    assert not (run.folder / "peer.safetensors").exists()
    assert "peer_sha256" not in json.loads((run.folder / "run.json").read_text())


def test_another_key_is_another_run() -> None:
    run = make()
    with run.open():
        run.finish(ROWS, {}, b"weights")
    assert make().finished and not make("other").finished


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_killed_while_publishing_it_is_not_finished(monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    """Even where an older run's products lie in the same folder."""
    old = make("old")
    with old.open():
        old.finish(ROWS, {}, b"old weights")
    writes = 0
    original = files.write_bytes

    def write(path: Path, content: bytes) -> None:
        nonlocal writes
        if path.parent == old.folder:
            writes += 1
            if writes == fails_at:
                raise OSError("killed")
        original(path, content)

    monkeypatch.setattr(files, "write_bytes", write)
    new = make("new")
    with pytest.raises(OSError, match="killed"), new.open():
        new.finish(ROWS, {}, b"new weights")
    monkeypatch.undo()
    os.chdir(Path.cwd())
    assert not new.finished and not old.finished


def _hold(folder: str, ready: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    os.chdir(folder)
    with make().open():
        ready.set()
        done.wait(30)


def test_a_run_waits_for_the_job_of_a_killed_workflow_to_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It saves a checkpoint first, which takes a while on a busy machine."""
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    run = make()
    run.live.mkdir(parents=True)
    orphan = files.lock(run.live / "lock")
    threading.Timer(0.5, orphan.close).start()
    with caplog.at_level(logging.INFO), run.open():
        assert orphan.closed
    assert "another process is working on this run; wait for it to end (trying for 60 s)" in caplog.text


def test_two_processes_cannot_be_at_the_same_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "SECONDS_FOR_ORPHANS", 0.1)
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    child = context.Process(target=_hold, args=(str(folder), ready, done))
    child.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match="another process is working on this run"), make().open():
        pass
    child.kill()
    child.join()
    with make().open():  # the kernel took the lock from the dead
        pass


def test_what_a_killed_writer_left_in_the_results_is_cleared_away() -> None:
    run = make()
    run.folder.mkdir(parents=True)
    leftover, another = run.folder / f".{run_dir.MODEL}.k2j_x8ab", run.folder / ".evaluation.json.k2j_x8ab"
    leftover.touch(), another.touch()
    with run.open():
        assert not leftover.exists()
    assert another.exists()  # somebody else may be writing that


def test_an_error_is_noted_for_whoever_watches() -> None:
    run = make()
    with pytest.raises(ValueError, match="no"), run.open():
        raise ValueError("no")
    assert json.loads((run.live / "run.json").read_text())["error"] == "ValueError: no"


def test_a_damaged_model_is_refused() -> None:
    run = make()
    with run.open():
        run.finish(ROWS, {}, b"weights")
    assert run_dir.read_model(run.folder)[0] == b"weights"
    (run.folder / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        run_dir.read_model(run.folder)
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        run_dir.read_model(run.folder)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "a.json"
    files.write_json(path, {"old": 1})

    def fail(descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in folder.iterdir()] == ["a.json"]


def test_json_that_no_other_reader_could_parse_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(folder / "a.json", {"loss": float("nan")})
    (folder / "b.json").write_text('{"half": ')
    with pytest.raises(UserError, match=r"b\.json is damaged .*: make it again"):
        files.read_json(folder / "b.json", "make it again")


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "metrics.json"])
def test_a_damaged_or_missing_product_makes_a_run_unfinished(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise the advice to train it again would do nothing."""
    run = make()
    with run.open():
        run.finish(ROWS, {"val_top1": 50.0}, b"weights")
    path = run.folder / name
    whole = path.read_bytes()
    assert run.finished and not caplog.messages
    path.write_bytes(whole[:-1] + b"x")
    assert not run.finished
    path.unlink()
    assert not run.finished
    assert caplog.messages == [f"{path}: missing or damaged, made again"] * 2
    path.write_bytes(whole)
    assert run.finished


def test_a_run_without_hashes_of_its_products_is_still_a_run() -> None:
    """Records did not always have them."""
    run = make()
    with run.open():
        run.finish(ROWS, {}, b"weights")
    record = files.read_json(run.folder / "run.json", "")
    del record["sha256"]
    files.write_record(run.folder / "run.json", record)
    assert run.finished


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"epoch,loss\n1,0.5,7\n",
        b"epoch,loss\n1\n",
        b"epoch,loss\n1,half\n",
        b"epoch,loss\n1,\xff\n",
        b'epoch,loss\n1,"0.5\n',
        b"\x00\x00\x00",
    ],
)
def test_a_damaged_history_is_one_line(folder: Path, content: bytes) -> None:
    path = folder / "history.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"history\.csv is damaged \(.+\): run the stage that makes it again") as error:
        print(run_dir.read_history(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_a_record_that_is_none_is_one_line(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    run = make()
    with run.open():
        run.finish(ROWS, {}, b"weights")
    path = run.folder / "run.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json is damaged \(.+\): train it again"):
        run_dir.read_model(run.folder)
    assert not run.finished
    assert content == b"{}" or re.search(r"run\.json is damaged \(.+\): made again$", "".join(caplog.messages))


@pytest.mark.parametrize("where", ["a folder", "a link to a folder", "a link to nothing", "a link to itself"])
@pytest.mark.parametrize("name", ["run.json", "model.safetensors", "history.csv"])
def test_something_else_where_a_product_has_to_be(folder: Path, where: str, name: str) -> None:
    """A link is replaced; a folder, which may have the user's files in it, is the user's to move."""
    run = make()
    path = run.folder / name
    path.parent.mkdir(parents=True)
    match where:
        case "a folder":
            path.mkdir()
        case "a link to a folder":
            path.symlink_to(folder)
        case "a link to nothing":
            path.symlink_to(folder / "nothing")
        case "a link to itself":
            path.symlink_to(path)
    try:
        assert not run.finished
        with run.open():
            run.finish(ROWS, {}, b"weights")
    except OSError as error:
        assert where in ("a folder", "a link to a folder")
        assert error.errno == errno.EISDIR  # the command line has a remedy for it
        assert error.filename == str(path), "not the temporary file"
        path.unlink() if path.is_symlink() else path.rmdir()
        with run.open():
            run.finish(ROWS, {}, b"weights")
    assert run.finished
    assert not path.is_symlink()
    assert (folder / "nothing").exists() is False
