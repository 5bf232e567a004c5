"""The site, and the files that code hosts and their tools read."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))
BLOCKS = {"a", "blockquote", "code", "h1", "h2", "h3", "h4", "img", "li", "pre", "table", "td", "th", "tr"}
RENDERED_LATER = {Path("python.md")}  # of whose docstrings a code host shows nothing
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


class Page(HTMLParser):
    """What a page consists of: its elements inside <article>, its anchors, and what it refers to."""

    def __init__(self, text: str, whole: bool = False) -> None:
        super().__init__()
        self.blocks: Counter[str] = Counter()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.untold: list[str] = []  # pictures without a text
        self._inside = whole
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Count an element."""
        values = dict(attributes)
        self._inside |= tag == "article"
        self.anchors |= {value for name, value in attributes if name in ("id", "name") and value}
        href, src = values.get("href"), values.get("src")
        if tag == "a" and href and values.get("class") != "headerlink":
            self.links.append(href)
        if tag in ("link", "script", "img", "iframe", "source") and values.get("rel") not in (
            "canonical",
            "next",
            "prev",
        ):
            self.loaded += [address for address in (href, src) if address]
        if tag == "img" and not values.get("alt"):
            self.untold.append(src or "")
        if self._inside and tag in BLOCKS and values.get("class") != "headerlink":
            self.blocks[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        """Stop counting after the content."""
        if tag == "article":
            self._inside = False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly by a Python that can open no connection."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(
        "import socket\ndef refuse(*_): raise OSError('no network here')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
    )
    own = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT / 'src'}", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder / "site"]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All pages of the site."""
    return {path: Page(path.read_text()) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def where(site: Path, page: Path) -> Path:
    """Where the site has a page of docs/."""
    return site / (page.parent / "index.html" if page.name == "README.md" else page.with_suffix(".html"))


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.loaded:
            assert not urlsplit(address).netloc, f"{path.relative_to(site)} loads {address}"
    for path in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not re.search(r"""url\(\s*["']?(?:https?:)?//|@import\s+["']?http""", path.read_text()), path


def test_all_links_of_the_site_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            target = Path(os.path.normpath(target))
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.relative_to(site)}: {link}"


def test_every_page_is_in_the_navigation(site: Path, pages: dict[Path, Page]) -> None:
    home = {os.path.normpath(site / urlsplit(link).path) for link in pages[site / "index.html"].links}
    assert [page for page in PAGES if str(where(site, page)) not in home] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RENDERED_LATER], ids=str)
def test_the_site_shows_a_page_as_a_code_host_does(page: Path, site: Path, pages: dict[Path, Page]) -> None:
    """Their dialects of Markdown differ: a list that follows a paragraph at once is one for only one of them."""
    host = Page(MarkdownIt("commonmark").enable("table").render((DOCS / page).read_text()), whole=True)
    assert pages[where(site, page)].blocks == host.blocks


def test_pictures_have_a_text(site: Path, pages: dict[Path, Page]) -> None:
    assert {path.relative_to(site): page.untold for path, page in pages.items() if page.untold} == {}


def test_every_picture_is_shown_and_drawn_by_a_command() -> None:
    pictures = {path.name for pattern in ("*.png", "*.svg") for path in DOCS.glob(pattern)}
    shown = "".join((DOCS / page).read_text() for page in PAGES)
    assert [name for name in sorted(pictures) if f"]({name})" not in shown] == []
    drawn = (ROOT / "tools/pictures.py").read_text()
    assert [name for name in sorted(pictures) if f"docs/{name} " not in drawn and not name.startswith("report")] == []


def test_the_python_reference_has_all_that_the_package_offers(pages: dict[Path, Page], site: Path) -> None:
    import iakd

    text = (site / "python.html").read_text()
    assert [name for name in iakd.__all__ if f">{name}<" not in text and f">iakd.{name}<" not in text] == []


def test_the_reference_of_commands_is_up_to_date(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "typer", "iakd.cli", "utils", "docs", "--name", "iakd", "--title", "Commands"]
    subprocess.run([*command, "--output", tmp_path / "page.md"], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "page.md").read_text() == (DOCS / "commands.md").read_text(), "run `make reference`"


def steps(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_only_read_and_use_actions_of_a_fixed_commit(workflow: Path) -> None:
    text = workflow.read_text()
    assert re.findall(r"^permissions: (.*)$", text, re.MULTILINE) == ["{contents: read}"]
    assert "permissions" not in str(yaml.safe_load(text)["jobs"])
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", name) for name in used)
    assert len(re.findall(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", text, re.MULTILINE)) == len(used)
    assert "${{ github.event" not in text, "text that a stranger writes must not become a command"


def test_workflows_run_the_commands_of_the_makefile() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "docs", "release"]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {
        name for path in WORKFLOWS for step in steps(path) for name in re.findall(r"^make (\w+)", step.get("run", ""))
    }
    assert called == {"docs", "lint", "test", "wheel"} and called <= targets
    assert """make test ARGS='-m "not services"'""" in (ROOT / ".ci/run").read_text()


def test_what_code_hosts_and_editors_read_is_well_formed() -> None:
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.stem != "config":
            assert {"name", "description", "body"} <= set(form)
            ids = [part["id"] for part in form["body"]]
            assert len(set(ids)) == len(ids) and all(part["attributes"]["label"] for part in form["body"])
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert container["image"].startswith("python:3.")
    target = container["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_hooks_before_a_commit_run_what_make_lint_runs() -> None:
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    makefile = (ROOT / "Makefile").read_text()
    for hook in hooks:
        program, *arguments = hook["entry"].split()
        if program == "make":
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments)
        else:
            assert re.search(rf"^\t{Path(program).name} ", makefile, re.MULTILINE)
