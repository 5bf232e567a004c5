"""`dvc push` and `dvc pull` to S3 and to a folder bring the same results, byte for byte."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stack import BUCKET, S3_KEYS, Stack, missing

REASON = missing(("moto", "boto3", "dvc_s3"), ())
pytestmark = [pytest.mark.services, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_results_come_back(kind: str, tmp_path: Path) -> None:
    def run(*command: str) -> None:
        subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **S3_KEYS, "PATH": path, "HOME": str(tmp_path), "DVC_NO_ANALYTICS": "1"}
    environment["DVC_SITE_CACHE_DIR"] = str(tmp_path / "site")
    tree, results = tmp_path / "tree", tmp_path / "tree" / "results" / "toy"
    contents = {"students/kd/seed0/model.safetensors": os.urandom(50_000), "report/report.html": b"<html>"}
    for name, content in contents.items():
        (results / name).parent.mkdir(parents=True)
        (results / name).write_bytes(content)
    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    run("dvc", "add", "--quiet", "results/toy")
    stack = Stack(tmp_path)
    try:
        remote = f"s3://{BUCKET}/iakd" if kind == "s3" else str(tmp_path / "store")
        run("dvc", "remote", "add", "--default", "store", remote)
        if kind == "s3":
            stack.s3.start()
            stack.s3.wait()
            stack.bucket.create()
            run("dvc", "remote", "modify", "store", "endpointurl", stack.s3_address)
        run("dvc", "push", "--quiet")
        for lost in (results, tree / ".dvc/cache", tmp_path / "site"):
            shutil.rmtree(lost)
        run("dvc", "pull", "--quiet")
    finally:
        stack.s3.end()
    found = {str(path.relative_to(results)): path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert found == contents
