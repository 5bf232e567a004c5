"""The Kubernetes profile with all but a cluster: its two plugins, an S3 server, and pods that are processes."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from iakd.files import read_object

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy, Project

pytestmark = [pytest.mark.services, pytest.mark.workflow]

PLUGINS = os.environ.get("IAKD_TEST_PLUGINS", "")
NEEDED = ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_s3", "moto")
KEYS = {"SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "test", "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "test"}
SETTINGS = """
dataset: {name: tiny, source: digits, val: 60, test: 200}
teachers: [{arch: resnet8, width: 4, name: big}]
students: [{arch: resnet8, width: 4, name: small}]
methods: {kd: {}}
teach: {seeds: [0], recipe: {epochs: 3, batch_size: 128}}
distill: {seeds: [0], transfer: 60, recipe: {epochs: 3, batch_size: 32}}
evaluate: {latency_runs: 2}
tracking: {enabled: true}
compute: {device: cpu}
"""
PIP = """#!/bin/sh
# In the image, pip finds this one package in a folder of the image.
[ "$*" = "install --target .snakemake/pip-deployments snakemake-storage-plugin-s3" ]
"""


class Cluster:
    """What the executor plugin asks of Kubernetes. A pod is a process in an empty folder, with the image's variables.

    The process of the pod number `evicted`, counted from 1, is killed as soon as it trains.
    """

    def __init__(self, folder: Path, sources: str, evicted: int) -> None:
        self.folder = folder
        self.sources = sources
        self.evicted = evicted
        self.secrets: dict[str, dict[str, str]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, subprocess.Popen[bytes]] = {}
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size) or b"{}")
                code, answer = cluster.answer(self.command, self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *arguments: Any) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, verb: str, address: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The status code and body of the answer to a request."""
        url = urlsplit(address)
        match verb, url.path.split("/")[-2:]:
            case "POST", [_, "secrets"]:
                self.secrets[body["metadata"]["name"]] = body["data"]
                return 201, body
            case "POST", [_, "jobs"]:
                name = body["metadata"]["name"]
                self.jobs[name] = body
                self.pods[name] = self.start(name, body["spec"]["template"]["spec"]["containers"][0])
                return 201, body
            case "GET", [name, "status"]:
                code = self.pods[name].poll()
                status = {} if code is None else {"failed": 1} if code else {"succeeded": 1}
                return 200, {**self.jobs[name], "status": status}
            case "GET", [_, "pods"]:
                name = parse_qs(url.query)["labelSelector"][0].removeprefix("job-name=")
                code = self.pods[name].poll()
                state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
                container = {"name": "snakemake", "state": state, "image": "", "imageID": "", "ready": True}
                container["restartCount"] = 0
                return 200, {"items": [{"metadata": {"name": name}, "status": {"containerStatuses": [container]}}]}
            case "GET", [name, "log"]:
                return 200, (self.folder / f"{name}.log").read_text()
            case "DELETE", _:
                return 200, {}
        return 404, {}

    def start(self, name: str, container: dict[str, Any]) -> "subprocess.Popen[bytes]":
        """Run the container's command. Kubernetes would refuse requests that are above the limits."""
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert set(requests) == set(limits) and container["workingDir"] == "/workdir"
        work = self.folder / name
        (work / "bin").mkdir(parents=True)
        (work / "bin" / "pip").write_text(PIP)
        (work / "bin" / "pip").chmod(0o755)
        environment = {
            "PATH": f"{work}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{work}/src:{self.sources}",
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
        }
        for variable in container["env"]:
            reference = variable["valueFrom"]["secretKeyRef"]
            environment[variable["name"]] = base64.b64decode(self.secrets[reference["name"]][reference["key"]]).decode()
        log = (self.folder / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [*container["command"], *container["args"]],
            cwd=work,
            env=environment,
            stdout=log,
            stderr=log,
            process_group=0,
        )
        if len(self.pods) + 1 == self.evicted:
            Thread(target=self.evict, args=(process, work), daemon=True).start()
        return process

    def evict(self, process: "subprocess.Popen[bytes]", work: Path) -> None:
        while process.poll() is None:
            if list(work.glob(".state/tiny/*/*/*/run.json")):
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill what runs, and answer no longer."""
        for process in self.pods.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.server.shutdown()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server without a bucket."""
    if not all(Path(PLUGINS or "/nowhere", name).exists() for name in NEEDED):
        pytest.skip(f"IAKD_TEST_PLUGINS is no folder with {', '.join(NEEDED)}: docs/kubernetes.md")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", address.rpartition(":")[2]]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PLUGINS}, stderr=subprocess.DEVNULL) as server:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.1)
        yield address
        server.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("pods"), PLUGINS, evicted=2)
    yield found
    found.stop()


class Submitter:
    """A checkout from which the workflow is started."""

    def __init__(self, project: "Project", cluster: Cluster, s3: str) -> None:
        self.project = project
        (project.path / "small.yaml").write_text(SETTINGS)
        project.run("git", "init", "--quiet")
        project.run("git", "add", "--all")
        user = {"name": "test", "user": {"token": "test"}}
        server = f"http://127.0.0.1:{cluster.server.server_port}"
        kubeconfig = {
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [user],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        self.file = project.path.parent / f"{project.path.name}-kubeconfig"
        self.file.write_text(yaml.safe_dump(kubeconfig))
        self.variables = {**KEYS, "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": s3, "KUBECONFIG": str(self.file)}

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run the workflow with the profile, and return what it printed."""
        snakemake = ["snakemake", "--profile", "workflow/profiles/kubernetes", "--configfile", "small.yaml"]
        environment = [f"{name}={value}" for name, value in self.variables.items()]
        environment.append(f"PYTHONPATH={self.project.path}/src:{PLUGINS}")
        quick = ["--seconds-between-status-checks", "1", "--max-status-checks-per-second", "10"]
        return self.project.run("env", *environment, *snakemake, *quick, *arguments, code=code)


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory, copy_project: "Copy", cluster: Cluster, s3: str
) -> Iterator[Submitter]:
    """The checkout that has run the workflow, up to the comparison of all models."""
    project = copy_project(tmp_path_factory.mktemp("kubernetes") / "first")
    submitter = Submitter(project, cluster, s3)
    (project.path.parent / "first.log").write_text(submitter.run("--", "evaluation"))
    yield submitter
    shutil.rmtree(project.path.parent)


def test_pods_make_what_one_machine_makes(first: Submitter, cluster: Cluster, tmp_path: Path) -> None:
    """Though one is killed: from the sources and the inputs that Snakemake gives each of them, and nothing else."""
    codes = [pod.returncode for pod in cluster.pods.values()]
    assert sorted(codes) == [-signal.SIGKILL, 0, 0, 0, 0, 0]
    path, here = first.project.path, tmp_path / "here"
    here.mkdir()
    (here / "params.yaml").write_text(SETTINGS)
    for command in (
        ("prepare",),
        ("teach", "--set", "tracking.enabled=false"),
        ("distill", "--set", "tracking.enabled=false"),
    ):
        subprocess.run([sys.executable, "-m", "iakd", *command], cwd=here, check=True, capture_output=True)
    for folder in ("teachers/big/seed0", "students/big-small/kd/seed0"):
        made, expected = (read_object(root / "results/tiny" / folder / "run.json", "") for root in (path, here))
        assert made["model_sha256"] == expected["model_sha256"]
        assert read_object(path / "results/tiny" / folder / "evaluation.json", "")["n"] == 200
    assert (path / "results").is_symlink()
    assert (path / "results/tiny/evaluation/summary.csv").exists()
    assert not list(cluster.folder.glob("*/mlflow.db")), "a pod has nobody to show its runs to"


def test_pods_ask_for_what_a_training_needs(first: Submitter, cluster: Cluster) -> None:
    for job in cluster.jobs.values():
        spec = job["spec"]["template"]["spec"]
        limits = spec["containers"][0]["resources"]["limits"]
        assert spec["containers"][0]["image"] == "iakd"
        assert limits["memory"] == "4000M" and limits.get("nvidia.com/gpu", "0") == "0"  # prepare knows no GPUs


def test_nothing_is_left_to_do(first: Submitter) -> None:
    assert "Nothing to be done" in first.run("-n", "--", "evaluation")


def test_results_of_another_folder_are_not_taken_for_current(
    first: Submitter, copy_project: "Copy", cluster: Cluster, s3: str
) -> None:
    other = Submitter(copy_project(first.project.path.parent / "other"), cluster, s3)
    said = other.run("--config", "distill={recipe: {epochs: 4}}", "--", "evaluation", code=2)
    assert [line for line in said.splitlines() if line.startswith("iakd: s3://iakd/experiment/results/tiny/")]
    assert "made from another folder" in said and len(cluster.pods) == 6


def test_a_folder_with_results_is_not_hidden(first: Submitter, copy_project: "Copy", cluster: Cluster, s3: str) -> None:
    other = Submitter(copy_project(first.project.path.parent / "with-results"), cluster, s3)
    (other.project.path / "results").mkdir()
    line = (
        "iakd: results/ has results of this machine, not of s3://iakd/experiment; rename it, or run in another folder"
    )
    assert line in other.run("-n", code=2).splitlines()
