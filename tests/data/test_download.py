"""Downloads from a server that cuts, corrupts, stalls and redirects."""

import contextlib
import hashlib
import http.server
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path

import kinds
import numpy as np
import pytest

from iakd import files
from iakd.config import Dataset
from iakd.data import sources
from iakd.data.sources import cifar, download, fashion_mnist, stl10, svhn
from iakd.data.sources.download import CACHE, Published, locate
from iakd.errors import RunFailed, UserError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT as /x.bin; `faults` says what goes wrong with which request, one after the other."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.faults: list[str] = []
        self.always = ""
        self.seen: list[tuple[str, str | None]] = []  # path and Range of each request
        self.over = threading.Event()

    def url(self, name: str = "x.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, self.headers["Range"]))
        fault = server.faults.pop(0) if server.faults else server.always
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere/x.bin")
            self.end_headers()
            return
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if self.headers["Range"] else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content if fault == "no ranges" else server.content[start:]
        self.send_response(206 if len(body) < len(server.content) else 200)
        if len(body) < len(server.content):
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "corrupt":
            body = b"\xff" + body[1:] if body[0] != 255 else b"\0" + body[1:]
        if fault in ("cut", "stall"):
            body = body[: len(body) // 2]
        with contextlib.suppress(OSError):
            self.wfile.write(body)
            self.wfile.flush()
            if fault == "stall":
                server.over.wait(20)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked in server.seen]


def fetch(server: Server, folder: Path, *urls: str, md5: str = MD5) -> Path:
    return download.fetch(urls or [server.url()], md5, folder)


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path / "a/b") == tmp_path / "a/b/x.bin"
    assert (tmp_path / "a/b/x.bin").read_bytes() == CONTENT and only(tmp_path / "a/b") == ["x.bin"]
    fetch(server, tmp_path / "a/b")
    assert ranges(server) == [None]
    (tmp_path / "a/b/x.bin").write_bytes(CONTENT[:-1])  # damaged since
    fetch(server, tmp_path / "a/b")
    assert (tmp_path / "a/b/x.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_what_a_cut_left_is_continued(fault: str, server: Server, tmp_path: Path) -> None:
    server.faults = [fault, fault]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-", "bytes=225000-"]


def test_a_killed_download_goes_on_in_the_next_run(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".x.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000-"] and only(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("left", [b"of another file", CONTENT + b"more", CONTENT])
def test_leftovers_of_any_kind_do_no_harm(left: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / ".x.bin.part").write_bytes(left)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_restarts_the_download(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut", "no ranges"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_redirects_are_followed_and_keep_the_range(server: Server, tmp_path: Path) -> None:
    server.faults = ["redirect", "cut", "redirect"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.seen[-1] == ("/elsewhere/x.bin", "bytes=150000-")


def test_passing_trouble_is_waited_out(server: Server, tmp_path: Path) -> None:
    server.faults = ["503", "500", "429", "cut", "502"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_file_is_never_kept(server: Server, tmp_path: Path) -> None:
    server.always = "corrupt"
    with pytest.raises(RunFailed, match=r"^x\.bin could not be downloaded .*its MD5 differs[^\n]*dataset\.path$"):
        fetch(server, tmp_path)
    assert only(tmp_path) == [] and len(server.seen) == 1


def test_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    for fault, requests in (("404", 2), ("corrupt", 2), ("503", download.ATTEMPTS + 1)):
        server.seen.clear()
        server.faults = [fault] * (requests - 1)
        folder = tmp_path / fault
        assert fetch(server, folder, server.url("mirror/x.bin"), server.url()).read_bytes() == CONTENT
        assert [path for path, _ in server.seen] == ["/mirror/x.bin"] * (requests - 1) + ["/x.bin"]


def test_a_lasting_failure_is_one_line_and_gives_up(server: Server, tmp_path: Path) -> None:
    server.always = "503"
    with pytest.raises(RunFailed, match=r"^[^\n]*503[^\n]*$"):
        fetch(server, tmp_path)
    assert len(server.seen) == download.ATTEMPTS
    closed = "http://127.0.0.1:1/x.bin"
    with pytest.raises(RunFailed, match=r"^[^\n]*refused[^\n]*$"):
        fetch(server, tmp_path, closed)
    server.always = "404"
    server.seen.clear()
    with pytest.raises(RunFailed, match="404"):
        fetch(server, tmp_path)
    assert len(server.seen) == 1


def test_a_server_that_sends_a_little_each_time_is_not_given_up(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut"] * 12
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
    with files.exclusive(tmp_path / ".x.bin.lock", "busy"), pytest.raises(UserError, match="another process is"):
        fetch(server, tmp_path)
    assert server.seen == []


def test_a_source_downloads_into_the_cache_from_the_mirror_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = kinds.cifar10()
    archive = kinds.tar(tmp_path / "made.tar.gz", kinds.cifar10_files(data, "python"))
    server.content = archive.read_bytes()
    published = Published(server.url("publisher"), {"cifar-10-python.tar.gz": hashlib.md5(server.content).hexdigest()})
    monkeypatch.setattr(cifar, "CIFAR10_FILES", published)
    server.faults = ["404", "cut"]
    raw = cifar.read_cifar10(Dataset(source="cifar10", mirror=server.url("mirror/")))
    assert (raw.train_images == data.train).all()
    name = "cifar-10-python.tar.gz"
    assert [path for path, _ in server.seen] == [f"/mirror/{name}", f"/publisher/{name}", f"/publisher/{name}"]
    assert (CACHE / "cifar10" / name).exists()
    assert locate(Dataset(source="cifar10"), published) == CACHE / "cifar10"
    assert len(server.seen) == 3


def test_hashes_are_those_that_torchvision_knows() -> None:
    from torchvision import datasets

    assert cifar.CIFAR10_FILES.files == {datasets.CIFAR10.filename: datasets.CIFAR10.tgz_md5}
    assert cifar.CIFAR100_FILES.files == {datasets.CIFAR100.filename: datasets.CIFAR100.tgz_md5}
    assert stl10.PUBLISHED.files == {datasets.STL10.filename: datasets.STL10.tgz_md5}
    assert fashion_mnist.PUBLISHED.files == dict(datasets.FashionMNIST.resources)
    split = datasets.SVHN.split_list
    assert svhn.PUBLISHED.files == {split[part][1]: split[part][2] for part in ("train", "test")}


def test_every_source_that_can_do_without_a_path_has_something_to_download() -> None:
    from iakd.config import SOURCES

    for name, spec in SOURCES.items():
        module = inspect.getmodule(sources.reader_of(name))
        downloads = any(isinstance(value, Published) for value in vars(module).values())
        assert downloads == ("mirror" in spec.settings), name
