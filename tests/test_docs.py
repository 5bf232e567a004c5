"""The documentation agrees with the code, and its guides work as they are written."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_group as click_command

from iakd import cli
from iakd.config import METHODS
from iakd.config.methods import BUILT_IN
from iakd.config.schedule import KINDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "config/README.md", *sorted(DOCS.rglob("*.md"))]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(line.lstrip("#")) for line in page.read_text().splitlines() if line.startswith("#")}


def prose(page: Path) -> str:
    """Return the text of a page without code blocks and names of new files."""
    return re.sub(r"^```.*?^```$|^New file[^\n]*$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_reference_of_settings_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "tools/settings_reference.py"))["page"]()
    assert page == (DOCS / "settings.md").read_text(), "run `make reference`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if fragment and file.suffix == ".md":
            assert fragment in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    text = prose(page)
    for name in re.findall(r"`((?:src|tests|bench|tools|workflow|experiments|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    package = "|".join(p.name for p in (ROOT / "src/iakd").iterdir() if p.is_dir())
    for name in re.findall(rf"`((?:{package})/[\w./-]+\.py)`", text):
        assert (ROOT / "src/iakd" / name).exists(), name


COMMAND = re.compile(r"^(?: {4,}|)(?:\$ )?(iakd|make) ([a-z-]+)(?: ([a-z]+))?", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_pages_show_exist(page: Path) -> None:
    """In blocks of code: `make TARGET`, `iakd COMMAND`, `iakd GROUP COMMAND`."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = click_command(cli.app).commands
    blocks = re.findall(r"^```\w*\n(.*?)^```$|((?:^    [^\n]*\n)+)", page.read_text(), re.MULTILINE | re.DOTALL)
    for program, name, second in COMMAND.findall("\n".join(map("".join, blocks))):
        if program == "make":
            assert name in targets, name
        elif name in ("track", "push"):
            assert second in {"", *commands[name].commands}, f"{name} {second}"
        else:
            assert name in commands, name


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_method_has_a_page_that_names_its_code_and_options(name: str) -> None:
    if name == "iakd":
        return
    page = (DOCS / "methods" / ("lskd.md" if name == "standardize" else f"{name}.md")).read_text()
    spec = METHODS[name]
    if spec.loss:
        module, _, cls = spec.loss.partition(":")
        assert f"`src/{module.replace('.', '/')}.py`" in page
        assert f"`{cls}`" in page
    if spec.options:
        assert f"`{spec.options.__name__}`" in page
        for field in spec.options.model_fields:
            assert f"`{field}`" in page


def test_the_page_on_iakd_explains_each_kind_of_schedule() -> None:
    page = (DOCS / "method.md").read_text()
    assert [kind for kind in KINDS if f"\n| `{kind}` |" not in page] == []


def test_contributing_maps_every_module() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    modules = [path for path in (ROOT / "src/iakd").iterdir() if not path.name.startswith("_")]
    names = [f"`{path.name}/`" if path.is_dir() else f"`{path.name}`" for path in modules]
    assert [name for name in sorted(names) if name not in page] == []


STEP = re.compile(  # of a guide: a line that says what to do with the code block below it
    r"^(?:New file `(?P<new>[^`]+)`|In `(?P<old>[^`]+)`, (?:at the (?P<end>end)|"
    r"after the line that starts with (?P<tick>`{1,2})(?P<anchor>.+?)(?P=tick))|(?P<run>Run)):\n\n"
    r"```\w+\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
COPIED = ("docs", "params.yaml", "pyproject.toml", "src", "tests", "tools", "workflow")


def guides() -> dict[str, str]:
    """The introduction of docs/extending.md, which all guides share, and each guide by its heading."""
    common, *sections = re.split(r"^## ", (DOCS / "extending.md").read_text(), flags=re.MULTILINE)
    return {section.partition("\n")[0]: common + section for section in sections}


@pytest.mark.workflow  # as slow as those that run a workflow
@pytest.mark.parametrize("guide", guides())
def test_a_guide_works_as_it_is_written(guide: str, tmp_path: Path) -> None:
    """Apply its files to a copy of the sources, and run its commands there."""
    text = guides()[guide]
    assert len(STEP.findall(text)) == text.count("\n```") // 2, "each code block needs a line that says what to do"
    project = tmp_path / "project"
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        project.mkdir(exist_ok=True)
        copy(source, project / name)
    for step in STEP.finditer(text):
        if step["run"]:
            for line in step["code"].splitlines():
                run(line, project)
        elif step["new"]:
            path = project / step["new"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step["code"])
        else:
            insert(project / step["old"], step["anchor"], "\n\n" * bool(step["end"]) + step["code"])
    assert any((project / "results").rglob("run.json"))


def insert(path: Path, anchor: str | None, code: str) -> None:
    """Insert code after the one line that starts with `anchor`, or at the end."""
    lines = path.read_text().splitlines(keepends=True)
    places = [i + 1 for i, line in enumerate(lines) if anchor and line.strip().startswith(anchor)] or [len(lines)]
    assert len(places) == 1 and (anchor is None or places != [len(lines)]), f"{path}: {anchor}"
    path.write_text("".join([*lines[: places[0]], code, *lines[places[0] :]]))


def run(line: str, project: Path) -> None:
    """Run a line of a guide with the sources of the copy; packages are installed there, not in this environment."""
    installed = project / "installed"
    if line.startswith("uv pip install"):
        line += f" --quiet --offline --no-cache --python {sys.executable} --target {installed}"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{project / 'src'}{os.pathsep}{installed}",
    }
    line = re.sub(r"^(iakd|pytest) ", lambda match: f"{shlex.quote(sys.executable)} -m {match[1]} ", line)
    done = subprocess.run(
        ["bash", "-c", line], cwd=project, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_contributing_names_the_files_that_things_travel_through() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## How things travel")[2].partition("\n## ")[0]
    most = {"A batch": 14, "A trial": 7, "A run": 7}
    for heading, limit in most.items():
        block = section.partition(f"**{heading}")[2].partition("```text\n")[2].partition("```")[0]
        files = re.findall(r"^ *([\w/]+\.py)", block, re.MULTILINE)
        assert 1 < len(files) <= limit
        assert [name for name in files if not (ROOT / "src/iakd" / name).exists()] == []
