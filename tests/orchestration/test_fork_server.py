"""The fork server: a command behaves as in its own process, and no process is left behind."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iakd.orchestration import fork_server
from iakd.processes import FORK_SERVER, WITH_PARENT

# A stand-in for the real command line, imported by the workers in its place.
COMMAND_LINE = """
import os, signal, sys, time
from pathlib import Path
def main():
    action = sys.argv[2]
    if action == "tell":
        print("out", os.getcwd(), os.environ["TOLD"], sys.argv)
        print("err", file=sys.stderr)
        sys.exit(int(sys.argv[3]))
    if action == "wait":
        def stop(number, frame):
            Path("stopped").write_text(signal.Signals(number).name)
            sys.exit(1)
        signal.signal(signal.SIGTERM, stop)
        Path("working").write_text("")  # an open file that nobody closes would swallow what `stop` raises
        end = time.monotonic() + 60
        while time.monotonic() < end:  # in one long sleep, a signal that arrives as it begins would be lost
            time.sleep(0.05)
    if action == "crash":
        raise ValueError("a defect")
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
"""
SERVER = f"""
import sys, types
import iakd
from pathlib import Path
from iakd.orchestration import fork_server
from iakd.processes import WITH_PARENT
iakd.cli = sys.modules["iakd.cli"] = types.ModuleType("iakd.cli")
exec({COMMAND_LINE!r}, iakd.cli.__dict__)
fork_server.serve(Path("socket"), preload=())
"""


@pytest.fixture
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is started with the widest umask; a parameter is code that it runs first."""
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", getattr(request, "param", "") + SERVER], umask=0)
    wait_for(Path("socket"))
    yield process
    process.kill()
    process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


ITSELF = 77  # the exit code of a command that would now run in its own process
COMMAND = (
    sys.executable,
    "-c",
    f"""
import sys
from iakd.orchestration.fork_server import run_in_server
code = run_in_server(sys.argv[1:])
if "IAKD_WITH_PARENT" in __import__("os").environ:
    print("exit code", code, file=sys.stderr)
sys.exit({ITSELF} if code is None else code)
""",
)


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env={**os.environ, FORK_SERVER: "socket", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_command_keeps_its_files_folder_environment_and_exit_code(server: subprocess.Popen[bytes]) -> None:
    for code in (0, 1, 2):
        process = command("teach", "tell", str(code), TOLD="x" * 100_000)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code
        assert out == f"out {Path.cwd()} {'x' * 100_000} ['iakd', 'teach', 'tell', '{code}']\n"
        assert err == "err\n"


def test_commands_run_side_by_side(server: subprocess.Popen[bytes]) -> None:
    waiting = command("teach", "wait")
    wait_for(Path("working"))
    quick = command("teach", "tell", "0", TOLD="")
    assert quick.communicate(timeout=30)[0] and quick.returncode == 0
    assert waiting.poll() is None
    waiting.terminate()
    waiting.wait(30)


def test_signals_reach_the_work(server: subprocess.Popen[bytes]) -> None:
    process = command("teach", "wait")
    wait_for(Path("working"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 1
    assert Path("stopped").read_text() == "SIGTERM"


def test_a_killed_command_ends_its_work(server: subprocess.Popen[bytes]) -> None:
    process = command("teach", "wait")
    wait_for(Path("working"))
    process.kill()
    wait_for(Path("stopped"))


def test_a_killed_server_ends_all_work_and_the_command_goes_on_by_itself(server: subprocess.Popen[bytes]) -> None:
    process = command("teach", "wait")
    wait_for(Path("working"))
    server.kill()
    _, err = process.communicate(timeout=30)
    assert (
        process.returncode == ITSELF
        and err == "killed in the fork server (signal 15); going on in a process of its own\n"
    )
    wait_for(Path("stopped"))


WORKFLOW = f"""
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, "-c", "from iakd.processes import end_with_parent; end_with_parent()" + {SERVER!r}])
while not Path("socket").exists():
    time.sleep(0.02)
subprocess.run({(*COMMAND, "teach", "wait")!r})
"""


def test_a_killed_workflow_ends_its_commands_with_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like the server, they are children of the workflow, and must not go on without it."""
    monkeypatch.chdir(tmp_path)
    with Path("err").open("w") as err:
        workflow = subprocess.Popen(
            [sys.executable, "-c", WORKFLOW], env={**os.environ, FORK_SERVER: "socket", WITH_PARENT: "1"}, stderr=err
        )
    wait_for(Path("working"))
    workflow.kill()
    workflow.wait()
    wait_for(Path("stopped"))
    deadline = time.monotonic() + 20
    while Path("err").read_text() == "" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert Path("err").read_text() == "exit code 1\n"


def test_nobody_else_can_connect(server: subprocess.Popen[bytes]) -> None:
    assert stat.S_IMODE(Path("socket").stat().st_mode) == 0o600


@pytest.mark.parametrize("server", ["import os; os.geteuid = lambda: 4242\n"], indirect=True)
def test_a_command_of_another_user_is_not_run(server: subprocess.Popen[bytes]) -> None:
    # short, and too long for the server to have it all before it ends the connection
    for told in ("", "x" * 100_000):
        process = command("teach", "tell", "0", TOLD=told)
        out, err = process.communicate(timeout=30)
        assert process.returncode == ITSELF and out == "", err


def test_nothing_is_sent_to_a_server_of_another_user(
    server: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setenv(FORK_SERVER, "socket")
    monkeypatch.setenv("TOLD", "")
    assert fork_server.run_in_server(["teach", "tell", "0"]) is None


def test_a_defect_in_one_command_harms_no_other(server: subprocess.Popen[bytes]) -> None:
    crashed = command("teach", "crash")
    assert "ValueError: a defect" in crashed.communicate(timeout=30)[1] and crashed.returncode == 1
    died = command("teach", "die")
    _, err = died.communicate(timeout=30)
    assert died.returncode == ITSELF and "killed in the fork server (signal 9)" in err
    fine = command("teach", "tell", "0", TOLD="")
    fine.communicate(timeout=30)
    assert fine.returncode == 0


def test_without_a_server_the_command_runs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fork_server.run_in_server(["teach"]) is None
    monkeypatch.setenv(FORK_SERVER, "absent")
    assert fork_server.run_in_server(["teach"]) is None
    Path("stale").touch()
    monkeypatch.setenv(FORK_SERVER, "stale")
    assert fork_server.run_in_server(["teach"]) is None


def test_where_no_socket_can_be_the_server_says_so_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some network file systems have none."""
    path = tmp_path / "absent" / "socket"
    fork_server.serve(path, ())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"iakd: {path}: ") and line.endswith("going on without a fork server, which takes longer")


def test_quick_commands_run_in_their_own_process(
    server: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in ([], ["prepare"], ["--help"], ["track", "sync"]):
        monkeypatch.setenv(FORK_SERVER, "socket")
        assert fork_server.run_in_server(arguments) is None
