"""One training on two hosts with torchrun: two network namespaces with names and addresses of their own."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from iakd.experiment.run_dir import read_history

pytestmark = pytest.mark.services

HOSTS = {"iakd-1": "10.77.0.1", "iakd-2": "10.77.0.2"}
SETTINGS = """
dataset: {name: toy, source: digits, val: 100, test: 1000}
teachers: [{arch: resnet8, width: 4}]
students: [{arch: resnet8, width: 4}]
methods: {kd: {}}
teach: {recipe: {epochs: 8, batch_size: 128, validate_every: 4}}
tracking: {enabled: false}
compute: {device: cpu, checkpoint_seconds: 0}
"""
FOLDER = Path("results/toy/teachers/resnet8w4/seed0")
CHECKPOINT = Path(".state/toy/teachers/resnet8w4/seed0/checkpoint.pt")
SECONDS = 300


class Host:
    """Namespaces of a network and a host name, which live as long as a sleeping process."""

    def __init__(self, name: str, hosts: Path) -> None:
        self.name = name
        setup = f"mount --bind '{hosts}' /etc/hosts && hostname {name} && echo ready && exec sleep infinity"
        command = ["unshare", "--net", "--uts", "--mount", "sh", "-c", setup]
        self.holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout and self.holder.stdout.readline() == "ready\n"

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` on this host."""
        enter = ["nsenter", "--target", str(self.holder.pid), "--net", "--uts", "--mount"]
        return [*enter, "env", f"--chdir={Path.cwd()}", *command]

    def torchrun(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start torchrun as on a cluster, with one process; the first host has the rendezvous."""
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "iakd-1:29500", "--rdzv-id", "test"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *rendezvous]
        command = self.inside(*launcher, *arguments, "-m", "iakd", "teach")
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=Path(f"{self.name}.log").open("ab"))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Two hosts that reach each other and nothing else."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        pytest.skip("network namespaces need root, iproute2 and util-linux")
    if subprocess.run(["unshare", "--net", "--uts", "--mount", "true"]).returncode:
        pytest.skip("this machine, perhaps a container, allows no network namespaces")
    file = tmp_path / "hosts"
    file.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in HOSTS.items()))
    with contextlib.ExitStack() as stack:
        pair = []
        for name in HOSTS:
            pair.append(Host(name, file))
            stack.callback(pair[-1].holder.wait)
            stack.callback(pair[-1].holder.kill)
        first, second = pair
        wire = ["ip", "link", "add", "wire", "netns", str(first.holder.pid), "type", "veth", "peer", "name", "wire"]
        subprocess.run([*wire, "netns", str(second.holder.pid)], check=True)
        for host in pair:
            link = f"ip address add {HOSTS[host.name]}/24 dev wire && ip link set wire up && ip link set lo up"
            subprocess.run(host.inside("sh", "-c", link), check=True)
        yield pair


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that both hosts see, with prepared data."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.chdir(shared)
    (shared / "params.yaml").write_text(SETTINGS)
    iakd("prepare")
    return shared


def iakd(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "iakd", *arguments], check=True, capture_output=True)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "\n".join(log.read_text() for log in Path().glob("*.log"))
        time.sleep(0.02)


def workers(rank: int) -> list[int]:
    """The process ids of the training processes with this rank in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment, command = ((process / name).read_bytes().split(b"\0") for name in ("environ", "cmdline"))
            mine = f"RANK={rank}".encode() in environment and b"iakd" in command
            if mine and Path(process, "cwd").readlink() == Path.cwd():
                found.append(int(process.name))
    return found


def weights() -> bytes:
    content = (FOLDER / "model.safetensors").read_bytes()
    return hashlib.sha256(content).digest()


def columns(*names: str) -> list[list[float | int | None]]:
    return [[row[name] for name in names] for row in read_history(FOLDER / "history.csv")]


def test_a_training_on_two_hosts_survives_a_killed_process(project: Path, hosts: list[Host]) -> None:
    """It goes on from the checkpoint, to the same bits as two processes on one host without a kill."""
    iakd("teach", "--set", "compute.processes=2")
    expected, history = weights(), columns("epoch", "loss", "val_top1")
    shutil.move(FOLDER, "one-host")
    running = [host.torchrun("--nnodes", "2", "--max-restarts", "2") for host in hosts]
    wait_for(CHECKPOINT.exists)
    (killed,) = workers(rank=1)
    os.kill(killed, signal.SIGKILL)
    for torchrun in running:
        assert torchrun.wait(SECONDS) == 0, Path("iakd-1.log").read_text() + Path("iakd-2.log").read_text()
    assert "resuming at step" in "".join(log.read_text() for log in Path().glob("*.log"))
    assert columns("epoch", "loss", "val_top1") == history
    assert weights() == expected
    iakd("teach")  # the same run: nothing is trained again
    assert weights() == expected


def test_a_host_that_is_lost_is_not_needed(project: Path, hosts: list[Host]) -> None:
    """With --nnodes 1:2 the other one finishes the training alone; no process of the lost host's torchrun stays."""
    iakd("teach")
    expected = load_file(FOLDER / "model.safetensors")
    shutil.move(FOLDER, "one-host")
    first, second = [host.torchrun("--nnodes", "1:2", "--max-restarts", "2") for host in hosts]
    wait_for(CHECKPOINT.exists)
    (orphan,) = workers(rank=1)
    second.kill()
    wait_for(lambda: orphan not in workers(rank=1))
    assert first.wait(SECONDS) == 0, Path("iakd-1.log").read_text()
    assert "resuming at step" in Path("iakd-1.log").read_text(), "what is left of the other host has finished it"
    assert_close(load_file(FOLDER / "model.safetensors"), expected, rtol=1e-2, atol=1e-2)
