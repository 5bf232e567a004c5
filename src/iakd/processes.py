"""Processes: with their parents, of a shared training, forked in the fork server; their signals and their number."""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

PR_SET_PDEATHSIG = 1
WITH_PARENT = "IAKD_WITH_PARENT"  # set in the environment of a process that ends with its parent
RENDEZVOUS = "IAKD_RENDEZVOUS"  # address where processes that share a training meet; default: torchrun's
UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"  # set in the environment of the processes of torchrun, even if there is only one
# The environment of such processes
SHARED_TRAINING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", RENDEZVOUS, UNDER_TORCHRUN)
FORK_SERVER = "IAKD_FORK_SERVER"  # in the environment: its socket, a path relative to the working directory
KILLED = 128  # exit codes above it, of the fork server's processes, are those that a signal has killed
CREDENTIALS = struct.Struct("3i")  # of a peer: process, user and group
NUMBER_BYTES = 4  # for the length of a message to the fork server, a process id or an exit code
POLL_SECONDS = 0.05
SECONDS_OF_SILENCE = 2.0
SECONDS_TO_END = 15.0  # after another process has failed, and again after a signal
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # USR1: Slurm's warning before the time limit


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent(number: signal.Signals = signal.SIGTERM, parent: int | None = None) -> None:
    """Receive the signal `number` when the parent process dies, in whatever way (Linux only).

    A killed workflow would otherwise leave its trainings running, in the way of the next start. `parent` is the
    parent's process id, where known: it may be dead already.
    """
    if sys.platform != "linux":
        return
    import ctypes

    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def saying_what_takes_long(what: str) -> Iterator[None]:
    """Say on stderr that `what` is going on, if the block has not ended after a while."""
    timer = threading.Timer(SECONDS_OF_SILENCE, print, [f"{what} …"], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Block stop signals while a helper is forked: in this process until the block ends, in the helper for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_parent(parent: int) -> None:
    """Make this process a helper of `parent`: it ends when the parent ends or sends SIGTERM, and at no other signal.

    Ctrl-C and a cluster's signals go to all processes of a group. The parent then finishes its step and saves its
    state, and needs its helpers until it has.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_at_signal_of, args=(parent,), daemon=True).start()
    end_with_parent(signal.SIGKILL, parent)


def _end_at_signal_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank among those that share a training, and their number, as torchrun sets them.

    (0, 1) for a process on its own.
    """
    rank, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(count)) if rank.isdigit() and count.isdigit() and int(count) > 1 else (0, 1)


def launch_processes(command: list[str], count: int) -> int:
    """Run `command` as `count` processes that share a training; return the exit code that one process would have.

    They get the environment that torchrun would set, but meet at a file. Signals are forwarded. When one process fails
    or is killed, the others are stopped. torchrun itself would turn every exit code into 1 and add lines of its own.
    """
    with tempfile.TemporaryDirectory(prefix="iakd-") as folder:
        shared = {WITH_PARENT: "1", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        shared[RENDEZVOUS] = f"file://{folder}/rendezvous"
        children: list[subprocess.Popen[bytes]] = []

        def forward(number: int, frame: Any) -> None:
            for child in children:
                child.send_signal(number)

        for number in STOP_SIGNALS:
            signal.signal(number, forward)
        for rank in range(count):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            # in a session of its own, or Ctrl-C would reach it twice
            child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            children.append(child)
        return _exit_code(children)


def _exit_code(children: list[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended; stop the others when one has failed."""
    stop = [signal.SIGTERM, signal.SIGKILL]
    deadline: float | None = None
    while [child for child in children if child.poll() is None]:
        failed = any(child.returncode for child in children)
        if failed and deadline is None:
            deadline = time.monotonic() + SECONDS_TO_END
        if deadline and time.monotonic() > deadline and stop:
            number, deadline = stop.pop(0), time.monotonic() + SECONDS_TO_END
            for child in children:
                child.send_signal(number)
        time.sleep(POLL_SECONDS)
    first = children[0].returncode
    if first < 0:  # otherwise it has printed its error
        name = signal.Signals(-first).name
        print(f"iakd: a process was killed by {name}; run the same command again to resume", file=sys.stderr)
    return first if first > 0 else int(any(child.returncode for child in children))


class Forked:
    """A process that the server has forked for this one, with the methods of multiprocessing's processes.

    `exitcode` is None while it runs, and the negative number of the signal if one has killed it. When this process
    ends, it receives SIGTERM.
    """

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.exitcode: int | None = None
        self._connection = connection

    def join(self, seconds: float | None = None) -> None:
        """Wait until it has ended, or so many seconds."""
        if self.exitcode is not None or not select.select([self._connection], [], [], seconds)[0]:
            return
        answer = receive(self._connection)
        code = int.from_bytes(answer, "big") if answer else KILLED + signal.SIGTERM  # by the end of the server
        self.exitcode = code if code <= KILLED else KILLED - code
        self._connection.close()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.exitcode is None:
            send_signal(self.pid, number)


def fork_in_server(function: str, arguments: list[str], files: Sequence[int] = (0, 1, 2)) -> Forked | None:
    """Call `function` ("module:name") in a fork of the server, with this process's folder and environment.

    It finds `arguments` in `sys.argv`, and `files` in place of standard input, output and error. Returns None if no
    server answers.
    """
    path = os.environ.get(FORK_SERVER)
    if path is None:
        return None
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            connection.connect(path)
        except OSError:
            return None
        if not is_own(connection):
            return None
        if WITH_PARENT in os.environ:  # or this process would take the end of a killed workflow for that of the server
            end_with_parent()
        environment = {name: value for name, value in os.environ.items() if name != FORK_SERVER}
        request = {"function": function, "arguments": arguments, "folder": str(Path.cwd()), "environment": environment}
        message = json.dumps(request).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it refuses this process, or has just ended
            socket.send_fds(connection, [number_bytes(len(message))], files)
            connection.sendall(message)
        pid = int.from_bytes(receive(connection), "big")
        if not pid:
            return None
        stack.pop_all()
    return Forked(pid, connection)


def is_own(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as the user of this one, as far as the system can tell (Linux)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return bool(CREDENTIALS.unpack(credentials)[1] == os.geteuid())


def number_bytes(value: int) -> bytes:
    """Return a number as it is sent to and from the fork server."""
    return value.to_bytes(NUMBER_BYTES, "big")


def receive(connection: socket.socket, size: int = NUMBER_BYTES) -> bytes:
    """Receive `size` bytes, or fewer if the other side is gone."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(size, socket.MSG_WAITALL)
    return b""


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Interrupt:
    """`with Interrupt() as interrupt:` — `interrupt.name` is empty until a stop signal arrives; another Ctrl-C raises.

    Other signals may come several times: a cluster sends them to each process, and to parents that pass them on.
    """

    def __init__(self) -> None:
        self.name = ""

    def __enter__(self) -> "Interrupt":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt(self.name)
        self.name = self.name or signal.Signals(number).name
