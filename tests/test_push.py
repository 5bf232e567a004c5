"""`iakd push hub`, against a stand-in for the Hugging Face Hub that listens on this machine."""

import base64
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import iakd
from iakd.errors import RunFailed, UserError
from iakd.stages.push import push_hub
from test_classifier import export

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """What the Hub keeps: repositories with their files, and what was asked of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, Any] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """The requests of an upload: create the repository, ask how each file is sent, send large ones, commit."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def answer(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.server.large[self.path.rpartition("/")[2]] = content
        self.answer({})

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/api/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid token"}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            known = name in hub.repositories
            hub.repositories.setdefault(name, {})
            hub.private.setdefault(name, asked.get("private") or asked.get("visibility"))
            self.answer({"url": f"{hub.address}/{name}", "name": name}, 409 if known else 200)
        elif "/preupload/" in self.path:
            self.answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".onnx")) else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{hub.address}/large/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self.commit(self.path.split("/commit/")[0].removeprefix("/api/models/"), body)
        else:
            self.answer({"error": f"unexpected {self.path}"}, 404)

    def commit(self, name: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.large[value["oid"]]
        self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.address}/{name}/commit/0"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    for name, value in (
        *(("HF_HUB_DISABLE_XET", "1"), ("HF_HUB_DISABLE_PROGRESS_BARS", "1"), ("HF_HUB_DISABLE_TELEMETRY", "1")),
        *(("HF_TOKEN", TOKEN), ("HF_HOME", str(tmp_path / "home"))),
    ):
        monkeypatch.setenv(name, value)
    pytest.importorskip("huggingface_hub")
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("results/photos/export/big-small/iakd")
    export(folder)
    (folder / "README.md").write_text("# A model of photos\n")
    (folder / ".model.onnx.leftover").write_bytes(b"of a killed export")
    return folder


def test_all_files_arrive_in_one_commit_and_can_be_loaded(hub: Hub, exported: Path, tmp_path: Path) -> None:
    address = push_hub("somebody/photos-small", exported)
    assert address == f"{hub.address}/somebody/photos-small/commit/0"
    assert hub.commits == ["Export of big-small, iakd"]
    files = hub.repositories["somebody/photos-small"]
    names = {"model.safetensors", "labels.txt", "preprocessing.json", "README.md"}
    assert set(files) == names
    for name in names - {"README.md"}:
        assert files[name] == (exported / name).read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: iakd\n") and card.endswith("---\n\n# A model of photos\n")
    assert (exported / "README.md").read_text() == "# A model of photos\n", "the folder stays as it is"
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in files.items():
        (copy / name).write_bytes(content)
    assert iakd.load(copy).labels == iakd.load(exported).labels


def test_the_only_export_needs_no_name_and_a_repository_is_used_again(hub: Hub, exported: Path) -> None:
    push_hub("somebody/photos-small", private=True)
    assert hub.private["somebody/photos-small"] in (True, "private")
    (exported / "README.md").write_text("---\nlicense: mit\n---\n# Another\n")
    push_hub("somebody/photos-small")
    assert hub.repositories["somebody/photos-small"]["README.md"] == b"---\nlicense: mit\n---\n# Another\n"
    assert len(hub.commits) == 2


def test_what_the_server_refuses_is_one_line(hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not a name of a repository"):
        push_hub("some body/photos", exported)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"it refuses the token \(401\); log in with `hf auth login`"):
        push_hub("somebody/photos", exported)
    assert not hub.repositories
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunFailed, match=r"somebody/photos on http://127\.0\.0\.1:9: ") as error:
        push_hub("somebody/photos", exported)
    assert "\n" not in str(error.value)


def test_what_is_no_export_is_not_published(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(exported, exported.parent / "kd")
    with pytest.raises(UserError, match=r"name the folder to publish: results/.*/iakd, results/.*/kd"):
        push_hub("somebody/photos")
    with pytest.raises(UserError, match=r"preprocessing\.json does not exist"):
        push_hub("somebody/photos", exported.parent)
    (exported / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        push_hub("somebody/photos", exported)
    shutil.rmtree("results")
    with pytest.raises(UserError, match="results has no exported model: run `iakd export`"):
        push_hub("somebody/photos")


def test_without_the_package_one_line_says_how_to_get_it(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"huggingface_hub is not installed; pip install 'iakd\[hub\]'"):
        push_hub("somebody/photos", exported)
