"""A fork server: a process that has torch loaded forks itself for each command, which saves the start-up time.

Importing torch and what its optimizers need takes five seconds of CPU time, as long as the training of a small student.
A workflow starts one server (`python -m iakd.orchestration.fork_server SOCKET SETTINGS`); `iakd` sends its command line
to it, forwards signals and exits with the same code. If no server answers, the command runs in its own process.
"""

import contextlib
import importlib
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from iakd.processes import STOP_SIGNALS, WITH_PARENT, end_with_parent

VARIABLE = "IAKD_FORK_SERVER"  # the socket, a path relative to the working directory
COMMANDS = ("teach", "distill", "evaluate", "export")
STAGES = (*COMMANDS, "import_teacher")
PRELOAD = ("torch._dynamo", "iakd.cli", *(f"iakd.stages.{stage}" for stage in STAGES), "iakd.evaluation.measure")
KILLED = 128  # exit codes above it are those of workers that a signal has killed
CREDENTIALS = struct.Struct("3i")  # of a peer: process, user and group
SECONDS_TO_FORWARD = 1.0  # a signal, at most
NUMBER_BYTES = 4  # for the length of a message, a process id or an exit code


def run_in_server(arguments: list[str]) -> int | None:
    """Run `iakd ARGUMENTS` in the server, with this process's open files, folder and environment.

    Returns the exit code, or None if no server answers, if it or the worker is killed, or if the command would not gain
    from it; then the caller has to run the command itself.
    """
    path = os.environ.pop(VARIABLE, None)
    if path is None or not arguments or arguments[0] not in COMMANDS:
        return None
    stopped: list[int] = []  # the signals that were forwarded
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except OSError:
            return None
        if not _is_own(connection):
            return None
        if WITH_PARENT in os.environ:  # or this process would take the end of a killed workflow for that of the server
            end_with_parent()
        request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
        message = json.dumps(request).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it refuses this process, or has just ended
            socket.send_fds(connection, [_number(len(message))], [0, 1, 2])
            connection.sendall(message)
        worker = int.from_bytes(_receive(connection), "big")

        def forward(number: int, frame: Any) -> None:
            stopped.append(number)
            _forward(worker, number)

        before = {number: signal.signal(number, forward) for number in STOP_SIGNALS if worker}
        while not select.select([connection], [], [], SECONDS_TO_FORWARD)[0]:
            pass  # Python forwards a signal here that arrived just before this process began to wait
        answer = _receive(connection)
    code = int.from_bytes(answer, "big") if answer else None
    if stopped or (code is not None and code <= KILLED):
        return 1 if code is None else code
    for number, handler in before.items():
        signal.signal(number, handler)
    what = "the fork server has ended" if code is None else f"the worker was killed (signal {code - KILLED})"
    print(f"{what}; going on in a process of its own", file=sys.stderr)
    return None


def _is_own(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as the user of this one, as far as the system can tell (Linux)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return bool(CREDENTIALS.unpack(credentials)[1] == os.geteuid())


def _number(value: int) -> bytes:
    return value.to_bytes(NUMBER_BYTES, "big")


def _receive(connection: socket.socket, size: int = NUMBER_BYTES) -> bytes:
    """Receive `size` bytes, or fewer if the other side is gone."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(size, socket.MSG_WAITALL)
    return b""


def _forward(worker: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, number)


def start(path: Path, settings: Path) -> subprocess.Popen[bytes]:
    """Start a server that ends with this process and serves the commands that are started from it.

    Most of them will read the file `settings`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    # One thread, since a process with several cannot be forked safely. Trainings set their own number.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "iakd.orchestration.fork_server", str(path), str(settings)]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    os.environ[VARIABLE] = str(path)
    return server


def _preload() -> tuple[str, ...]:
    """Return the modules that commands need, including the losses of all methods."""
    from iakd.config import METHODS

    losses = {spec.loss.partition(":")[0] for spec in METHODS.values() if spec.loss}
    return (*PRELOAD, *sorted(losses))


def serve(path: Path, preload: tuple[str, ...], settings: Path | None = None) -> None:
    """Fork a worker for each incoming command, with these modules and settings loaded, until this process is stopped.

    Returns at once where the file system has no sockets; each command then runs in its own process.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # nobody else may connect: a command runs whatever it is sent
    try:
        listener.bind(str(path))
    except OSError as error:
        print(f"iakd: {path}: {error.strerror}; going on without a fork server, which takes longer", file=sys.stderr)
        return
    finally:
        os.umask(before)
    listener.listen()  # commands wait here while the modules are loaded
    for module in preload:
        importlib.import_module(module)
    _remember_sources(preload)
    if settings:
        from iakd.config import remember

        remember(settings)
    clients: dict[int, tuple[socket.socket, int]] = {}  # by the worker's pidfd
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ, "command")
        while True:
            for key, _ in selector.select():
                if key.data == "command":
                    client, _ = listener.accept()
                    others = [listener, *(other for other, _ in clients.values())]
                    worker = _fork(client, others) if _is_own(client) else None
                    if worker is None:
                        client.close()
                        continue
                    descriptor = os.pidfd_open(worker)
                    clients[descriptor] = (client, worker)
                    selector.register(descriptor, selectors.EVENT_READ, "ended")
                    selector.register(client, selectors.EVENT_READ, worker)
                elif key.data == "ended":
                    client, worker = clients.pop(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
                    with contextlib.suppress(KeyError):
                        selector.unregister(client)
                    with contextlib.suppress(OSError):
                        client.sendall(_number(status if status >= 0 else KILLED - status))
                    client.close()
                    selector.unregister(key.fd)
                    os.close(key.fd)
                else:  # the command was killed: stop its worker as well
                    selector.unregister(key.fileobj)
                    _forward(key.data, signal.SIGTERM)


def _remember_sources(modules: tuple[str, ...]) -> None:
    """Hash the sources of the loaded modules now, in case the files are edited while this server runs."""
    from iakd.experiment.provenance import provenance, source_sha

    for module in modules:
        if not module.startswith("torch"):
            source_sha(module)
    provenance()


def _fork(client: socket.socket, others: list[socket.socket]) -> int | None:
    """Fork a worker for the command that `client` sends. Returns its process id, or None if the client is gone."""
    size, descriptors, _, _ = socket.recv_fds(client, NUMBER_BYTES, 3)
    expected = int.from_bytes(size, "big")
    message = _receive(client, expected)
    worker = None
    if len(size) == NUMBER_BYTES and len(message) == expected:
        worker = os.fork()
        if worker == 0:
            for connection in (client, *others):
                connection.close()
            _work(json.loads(message), descriptors)
        with contextlib.suppress(OSError):
            client.sendall(_number(worker))
    for descriptor in descriptors:
        os.close(descriptor)
    return worker


def _work(request: dict[str, Any], descriptors: list[int]) -> None:
    """Run `iakd ARGUMENTS` in this process and exit; never returns."""
    code = 1
    try:
        end_with_parent()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["iakd", *request["arguments"]]
        from iakd.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    end_with_parent()
    serve(Path(sys.argv[1]), _preload(), Path(sys.argv[2]))
