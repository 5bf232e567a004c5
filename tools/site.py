"""Hooks of mkdocs.yml: what the pages link to in the repository is on the site, too.

Pages in docs/ are written to be read where the repository is, so they link to files outside docs/. Each such file gets
a page below `repository/`, and links between all pages are rewritten.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")  # in the navigation
LINK = re.compile(r"(\]\()([^()\s#]+)(#[^()\s]*)?(?=\))")
CODE = re.compile(r"^```.*?^```$|^    [^\n]*$|`[^`\n]+`(?!\])", re.MULTILINE | re.DOTALL)
LANGUAGES = {".yaml": "yaml", ".py": "python", ".json": "json", ".smk": "python", ".cff": "yaml", ".ipynb": "json"}


def on_config(config: Any) -> Any:
    """Give headings the anchors that code hosts give them, so that a link works in both places."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = anchor
    return config


def anchor(heading: str, separator: str = "-") -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file of the repository that a page links to, directly or not."""
    todo = [DOCS / file.src_uri for file in files.documentation_pages()] + [ROOT / name for name in ALWAYS]
    seen = set(todo)
    for path in todo:
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, source_uri(path), content=page(path)))
        if path.suffix != ".md":
            continue
        for target in targets(path):
            if target not in seen and not target.is_relative_to(DOCS):
                seen.add(target)
                todo.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links between files of the repository as links between pages of the site."""
    uri = page.file.src_uri
    path = DOCS / uri if page.file.generated_by is None else ROOT / repository_path(uri)

    def rewritten(found: re.Match[str]) -> str:
        target = resolved(path, found[2])
        if target is None:
            return found[0]
        return f"{found[1]}{os.path.relpath(source_uri(target), Path(uri).parent)}{found[3] or ''}"

    return outside_code(markdown, rewritten)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Let the keyboard reach tables that may be too wide, to scroll them. The theme does so for code."""
    return html.replace("<table>", '<table tabindex="0">')


def outside_code(markdown: str, rewritten: Any) -> str:
    """Apply `rewritten` to the links of a page, but not to what only looks like one in code."""
    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [LINK.sub(rewritten, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(rewritten, markdown[end:])])


def resolved(path: Path, link: str) -> Path | None:
    """Return the file of the repository to which a link in the file `path` leads; None for an address."""
    if "://" in link or link.startswith("mailto:"):
        return None
    target = Path(os.path.normpath(path.parent / link))
    if not target.exists():
        raise PluginError(f"{path.relative_to(ROOT)} links to {link}, which does not exist")
    if target.is_dir():
        target /= "README.md" if (target / "README.md").exists() else ""
    return target


def targets(path: Path) -> Iterator[Path]:
    """Return the files of the repository to which a page links."""
    found: list[Path] = []

    def noted(match: re.Match[str]) -> str:
        target = resolved(path, match[2])
        found.extend([target] if target else [])
        return match[0]

    outside_code(path.read_text(), noted)
    yield from found


def source_uri(path: Path) -> str:
    """Return where the site has a file of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return f"repository/{name}" if path.suffix == ".md" else f"repository/{name}.md"


def repository_path(uri: str) -> str:
    """Return the file of which a generated page is made: the reverse of `source_uri`."""
    name = uri.removeprefix("repository/")
    return name if (ROOT / name).exists() else name.removesuffix(".md")


def page(path: Path) -> str:
    """Return the page of a file: the file itself if it is one, else its text, or a folder's content."""
    if path.suffix == ".md":
        return path.read_text()
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        lines = [f"- [`{child.name}`]({child.name})" for child in sorted(path.iterdir()) if child.name[:1] not in "._"]
        return f"# {name}/\n\n" + "\n".join(lines) + "\n"
    return f"# {name}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}````\n"
