"""A fork server: a process that has torch loaded forks itself for each command, which saves the start-up time.

Importing torch and what its optimizers need takes five seconds of CPU time, as long as the training of a small student.
A workflow starts one server (`python -m iakd.orchestration.fork_server SOCKET SETTINGS`); `iakd` sends its command line
to it, forwards signals and exits with the same code. If no server answers, the command runs in its own process. The
processes that train the trials of a study are forked here, too.
"""

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from iakd.processes import (
    FORK_SERVER,
    KILLED,
    NUMBER_BYTES,
    STOP_SIGNALS,
    end_with_parent,
    fork_in_server,
    is_own,
    number_bytes,
    receive,
    send_signal,
)

COMMANDS = ("teach", "distill", "evaluate", "export")
STAGES = (*COMMANDS, "import_teacher")
PRELOAD = ("torch._dynamo", "iakd.cli", *(f"iakd.stages.{stage}" for stage in STAGES), "iakd.evaluation.measure")
PRELOAD += ("iakd.tuning.workers",)
SECONDS_TO_FORWARD = 1.0  # a signal, at most


def run_in_server(arguments: list[str]) -> int | None:
    """Run `iakd ARGUMENTS` in the server, with this process's open files, folder and environment.

    Returns the exit code, or None if no server answers, if it or the worker is killed, or if the command would not gain
    from it; then the caller has to run the command itself.
    """
    if not arguments or arguments[0] not in COMMANDS:
        return None
    worker = fork_in_server("iakd.cli:main", arguments)
    os.environ.pop(FORK_SERVER, None)
    if worker is None:
        return None
    stopped: list[int] = []  # the signals that were forwarded

    def forward(number: int, frame: Any) -> None:
        stopped.append(number)
        worker.send_signal(number)

    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    while worker.exitcode is None:
        worker.join(SECONDS_TO_FORWARD)  # Python forwards a signal here that arrived just before this process waited
    if stopped or worker.exitcode >= 0:
        return 1 if worker.exitcode < 0 else worker.exitcode
    for number, handler in before.items():
        signal.signal(number, handler)
    print(f"killed in the fork server (signal {-worker.exitcode}); going on in a process of its own", file=sys.stderr)
    return None


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
    os.environ[FORK_SERVER] = str(path)
    return server


def _preload() -> tuple[str, ...]:
    """Return the modules that commands need, including the losses of all methods."""
    from iakd.config import METHODS

    losses = {spec.loss.partition(":")[0] for spec in METHODS.values() if spec.loss}
    return (*PRELOAD, *sorted(losses))


def serve(path: Path, preload: tuple[str, ...], settings: Path | None = None) -> None:
    """Fork a worker for each request, with these modules and settings loaded, until this process is stopped.

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
                    worker = _fork(client, others) if is_own(client) else None
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
                        client.sendall(number_bytes(status if status >= 0 else KILLED - status))
                    client.close()
                    selector.unregister(key.fd)
                    os.close(key.fd)
                else:  # the command was killed: stop its worker as well
                    selector.unregister(key.fileobj)
                    send_signal(key.data, signal.SIGTERM)


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
    message = receive(client, expected)
    worker = None
    if len(size) == NUMBER_BYTES and len(message) == expected:
        server = os.getpid()
        worker = os.fork()
        if worker == 0:
            for connection in (client, *others):
                connection.close()
            _work(server, json.loads(message), descriptors)
        with contextlib.suppress(OSError):
            client.sendall(number_bytes(worker))
    for descriptor in descriptors:
        os.close(descriptor)
    return worker


def _work(server: int, request: dict[str, Any], descriptors: list[int]) -> None:
    """Call the requested function in this process and exit; never returns."""
    code = 1
    try:
        end_with_parent(parent=server)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["iakd", *request["arguments"]]
        module, _, name = request["function"].partition(":")
        getattr(importlib.import_module(module), name)()
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
