"""A shared MLflow server: PostgreSQL behind it, artifacts in S3, users with passwords."""

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stack import ADMIN, BUCKET, PASSWORD, S3_KEYS, Stack, missing

pytestmark = [pytest.mark.services, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/workflow/tiny.yaml"
FAKE_RUNS = ROOT / "tests/tracking"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The server, in a folder that PostgreSQL's user may enter."""
    with tempfile.TemporaryDirectory(prefix="iakd-stack-") as folder:
        stack = Stack(Path(folder))
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()


@pytest.fixture
def as_admin(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's client, as the administrator."""
    from mlflow import MlflowClient

    for name, value in stack.client().items():
        monkeypatch.setenv(name, value)
    return MlflowClient(stack.uri)


@pytest.fixture
def objects(stack: Stack) -> Callable[[str], dict[str, bytes]]:
    """Read the objects in S3 below a prefix, by the rest of their names; not through MLflow."""

    def read(prefix: str) -> dict[str, bytes]:
        found = stack.bucket.objects.filter(Prefix=prefix)
        return {item.key.removeprefix(prefix).lstrip("/"): item.get()["Body"].read() for item in found}

    return read


def environment(stack: Stack, name: str = ADMIN, password: str = PASSWORD) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "AWS"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **kept,
        **stack.client(name, password),
        "PATH": path,
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}" + kept.get("PYTHONPATH", ""),
    }


def runs_of(client: Any, experiment: str) -> dict[str, Any]:
    """Return the runs of an experiment by key; a key that two of them have is an error."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    runs = {run.data.tags["iakd.key"]: run for run in found}
    assert len(runs) == len(found)
    return runs


def in_bucket(run: Any) -> str:
    """Return where the artifacts of a run are in the bucket, which the server does not tell its clients."""
    return str(run.info.artifact_uri).removeprefix("mlflow-artifacts:/")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_is_killed_in_the_middle_of_a_sync_has_each_run_once(
    stack: Stack, as_admin: Any, objects: Callable[[str], dict[str, bytes]], tmp_path: Path, monkeypatch: Any
) -> None:
    checkout(tmp_path, "killed", monkeypatch)
    import fake_runs

    for seed in range(8, 20):
        fake_runs.train(fake_runs.student(seed))
    command = [sys.executable, "-m", "iakd", "track", "sync"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(stack), text=True, **pipes) as first:
        wait_for(lambda: as_admin.get_experiment_by_name("killed") and len(runs_of(as_admin, "killed")) > 2)
        stack.mlflow.end(signal.SIGKILL)
        _, said = first.communicate(timeout=300)
    assert first.returncode == 1 and said.splitlines()[-1].startswith(f"iakd: MLflow {stack.uri}: "), said
    stack.mlflow.start()
    stack.mlflow.wait()
    assert 2 < len(runs_of(as_admin, "killed")) < 13, "it was not killed in the middle"
    assert ": 13 runs, " in sync(environment(stack)).stdout
    everything_is_there(runs_of(as_admin, "killed"), as_admin, objects, tmp_path / "results/toy")


def everything_is_there(
    runs: dict[str, Any], client: Any, objects: Callable[[str], dict[str, bytes]], results: Path
) -> dict[str, Path]:
    """Check that there is one finished run for each record in `results`, with its files and each epoch once."""
    trained = {json.loads(path.read_text())["key"]: path.parent for path in results.glob("**/run.json")}
    assert set(trained) <= set(runs)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for key, folder in trained.items():
        stored = objects(in_bucket(runs[key]))
        for name in ("run.json", "history.csv", "metrics.json", "model.safetensors", "evaluation.json"):
            if (folder / name).exists():
                assert stored[name] == (folder / name).read_bytes()
        epochs = [value.step for value in client.get_metric_history(runs[key].info.run_id, "seconds")]
        assert len(epochs) == len(set(epochs))
    return trained


@pytest.mark.slow
def test_a_workflow_ends_complete_though_the_server_is_killed_twice(
    stack: Stack, as_admin: Any, objects: Callable[[str], dict[str, bytes]], tmp_path: Path
) -> None:
    """Exactly one finished run for each training and trial; the artifacts in S3 are the files in results/."""
    settings = yaml.safe_load(TINY.read_text())
    settings["tracking"] = {"experiment": "killed twice"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    command = ["snakemake", "--cores", "2", "--nolock", "--quiet", "all"]
    command += ["--snakefile", str(ROOT / "workflow/Snakefile"), "--configfile", "params.yaml"]
    results = tmp_path / "results/tiny"
    with (tmp_path / "log").open("w") as log:
        workflow = subprocess.Popen(
            command, cwd=tmp_path, env=environment(stack), stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(lambda: as_admin.get_experiment_by_name("killed twice") and runs_of(as_admin, "killed twice"))
            for moment in ("tune/*/*/trials/*/run.json", "students/*/*/seed*/run.json"):
                wait_for(lambda at=moment: list(results.glob(at)))
                stack.mlflow.wait()
                stack.mlflow.end(signal.SIGKILL)
                stack.mlflow.start()
            assert workflow.wait(timeout=300) == 0, (tmp_path / "log").read_text()
        finally:
            if workflow.poll() is None:
                os.killpg(workflow.pid, signal.SIGKILL)
    stack.mlflow.wait()
    command = [sys.executable, "-m", "iakd", "track", "sync"]  # the workflow waits for MLflow, but not for long
    subprocess.run(command, cwd=tmp_path, env=environment(stack), check=True, capture_output=True)
    trained = everything_is_there(runs_of(as_admin, "killed twice"), as_admin, objects, results)
    names = [str(path.relative_to(results)).partition("/")[0] for path in trained.values()]
    assert (names.count("teachers"), names.count("students")) == (1, 4) and names.count("tune") > 6


AT_ONCE = """
import multiprocessing, os, sys
sys.path.insert(0, {fake_runs!r})
import mlflow
from iakd.config import parse
from iakd.tracking import mirror

SETTINGS = {{"dataset": {{"name": "toy"}}, "teachers": [{{"arch": "resnet20"}}], "students": [{{"arch": "resnet8"}}],
            "methods": {{"kd": {{}}}}, "tracking": {{"experiment": {experiment!r}}}}}

def sync(number):
    os.chdir(f"checkout{{number}}")
    barrier.wait()
    print(mirror.sync(parse(SETTINGS, "test")))

barrier = multiprocessing.get_context("fork").Barrier({checkouts})
children = [multiprocessing.get_context("fork").Process(target=sync, args=[number]) for number in range({checkouts})]
for child in children: child.start()
for child in children: child.join()
sys.exit(any(child.exitcode for child in children))
"""


@pytest.mark.parametrize("checkouts", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_checkouts_write_at_once(
    checkouts: int, stack: Stack, as_admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has two runs of its own, and one that all have, as after `dvc pull`; the experiment does not exist yet."""
    monkeypatch.syspath_prepend(FAKE_RUNS)
    import fake_runs

    for number in range(checkouts):
        (tmp_path / f"checkout{number}").mkdir()
        monkeypatch.chdir(tmp_path / f"checkout{number}")
        for seed in (2 * number, 2 * number + 1):
            fake_runs.train(fake_runs.student(seed))
        if number:
            shutil.copytree("../checkout0/results/toy/teachers", "results/toy/teachers")
        else:
            fake_runs.train(fake_runs.teacher())
    experiment = f"{checkouts} at once"
    code = AT_ONCE.format(fake_runs=str(FAKE_RUNS), experiment=experiment, checkouts=checkouts)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(stack), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = runs_of(as_admin, experiment)
    assert len(runs) == checkouts * 2 + 1
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for run in runs.values():
        assert [value.step for value in as_admin.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]
        assert {file.path for file in as_admin.list_artifacts(run.info.run_id)} >= {"run.json", "model.safetensors"}


def checkout(folder: Path, experiment: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one finished run, and its settings."""
    monkeypatch.syspath_prepend(FAKE_RUNS)
    import fake_runs

    settings = yaml.safe_load(TINY.read_text()) | {"tracking": {"experiment": experiment}}
    settings["dataset"]["name"] = "toy"
    monkeypatch.chdir(folder)
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    return fake_runs.train(fake_runs.student(7))


def sync(variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "iakd", "track", "sync"]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def test_a_user_who_may_read_sees_and_cannot_change(
    stack: Stack, as_admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient

    AuthServiceClient(stack.uri).create_user("reader", "not-a-secret-2")
    checkout(tmp_path, "guarded", monkeypatch)
    assert sync(environment(stack)).stdout.endswith("1 run, 1 new\n")
    before = runs_of(as_admin, "guarded")
    shutil.rmtree(".state")
    shutil.copytree("results/toy/students/T-S/iakd-linear/seed7", "results/toy/students/T-S/iakd-linear/seed8")
    record = Path("results/toy/students/T-S/iakd-linear/seed8/run.json")
    record.write_text(record.read_text().replace('"key": "', '"key": "other '))
    for password, reason in (("not-a-secret-2", "Permission denied"), ("wrong", "401")):
        done = sync(environment(stack, "reader", password))
        assert done.returncode == 1 and "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"iakd: MLflow {stack.uri}: ") and reason in last, done.stderr
        assert password not in done.stderr
    for name, value in stack.client("reader", "not-a-secret-2").items():
        monkeypatch.setenv(name, value)
    reader = MlflowClient(stack.uri)
    (run,) = runs_of(reader, "guarded").values()
    assert reader.get_metric_history(run.info.run_id, "loss")
    with pytest.raises(MlflowException):
        reader.set_tag(run.info.run_id, "iakd.key", "changed")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    after = runs_of(as_admin, "guarded")
    assert {key: run.data.tags for key, run in after.items()} == {key: run.data.tags for key, run in before.items()}


class TokenProxy(http.server.BaseHTTPRequestHandler):
    """Lets through to the server who has the token, as proxies of companies do; MLflow itself knows no tokens."""

    server_uri, token = "", "not-a-secret-3"

    def _forward(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            self.send_error(401)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        basic = b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode()
        headers = {name: value for name, value in self.headers.items() if name in ("Content-Type", "Accept")}
        request = urllib.request.Request(
            self.server_uri + self.path, body, {**headers, "Authorization": f"Basic {basic}"}, method=self.command
        )
        try:
            with urllib.request.urlopen(request) as answer:
                status, content, kind = answer.status, answer.read(), answer.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            status, content, kind = error.code, error.read(), error.headers.get("Content-Type", "")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def log_message(self, *_: Any) -> None:
        """Be silent."""


def test_a_token_opens_a_server_behind_a_proxy(
    stack: Stack, as_admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path, "behind a proxy", monkeypatch)
    monkeypatch.setattr(TokenProxy, "server_uri", stack.uri)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), TokenProxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        variables = environment(stack)
        del variables["MLFLOW_TRACKING_USERNAME"], variables["MLFLOW_TRACKING_PASSWORD"]
        variables["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{server.server_address[1]}"
        done = sync({**variables, "MLFLOW_TRACKING_TOKEN": "another"})
        assert done.returncode == 1 and "401" in done.stderr.splitlines()[-1], done.stderr
        done = sync({**variables, "MLFLOW_TRACKING_TOKEN": TokenProxy.token})
        assert done.stdout.endswith("1 run, 1 new\n"), done.stderr
    finally:
        server.shutdown()
    (run,) = runs_of(as_admin, "behind a proxy").values()
    assert {file.path for file in as_admin.list_artifacts(run.info.run_id)} >= {"run.json", "model.safetensors"}


def test_without_a_server_artifacts_go_to_s3_directly(
    stack: Stack, objects: Callable[[str], dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkout(tmp_path, "direct", monkeypatch)
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["tracking"] |= {"uri": "sqlite:///mlflow.db", "artifacts": f"s3://{BUCKET}/direct"}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    variables = {key: value for key, value in environment(stack).items() if not key.startswith("MLFLOW")}
    done = sync({**variables, **S3_KEYS, "MLFLOW_S3_ENDPOINT_URL": stack.s3_address})
    assert done.stdout.endswith("1 run, 1 new\n"), done.stderr
    (model,) = [content for name, content in objects("direct").items() if name.endswith("model.safetensors")]
    assert hashlib.sha256(model).digest() == hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
