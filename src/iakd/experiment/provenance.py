"""What a result was made from: the source files that matter to it, the commit, the lock, the versions."""

import ast
import functools
import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any

from iakd.files import digest, sha256_file

PACKAGES = ("torch", "torchvision", "numpy", "snakemake", "dvc", "mlflow", "optuna", "iakd")


PACKAGE_ROOT = Path(__file__).parents[2]  # where the package `iakd` lies


@functools.cache
def source_sha(*modules: str) -> str:
    """SHA-256 over the source files that `modules` are and import, directly or not, as far as they are of this project.

    Found by reading the import statements, so nothing is imported; a change elsewhere leaves the hash alone. Of a
    module of another package, such as a method that is a plugin, the files of that package count, too.

    Raises ValueError where one of `modules` does not exist.
    """
    files: dict[str, str] = {}
    todo = list(modules)
    for name in modules:
        if _source_file(name) is None:
            raise ValueError(f"no module {name}")
    while todo:
        name = todo.pop()
        path = _source_file(name)
        if path is None or name in files:
            continue
        files[name], imported = _read(path, name)
        todo += [name.rpartition(".")[0]] if "." in name else []
        todo += imported
    return digest(files)


def _source_file(module: str) -> Path | None:
    """The file of a module, whether or not it was imported; None where the name is not that of a module."""
    top, _, rest = module.partition(".")
    root = PACKAGE_ROOT
    if top != "iakd":
        found = importlib.util.find_spec(top)
        if found is None or found.origin is None:
            return None
        root = Path(found.origin).parents[1] if found.submodule_search_locations else Path(found.origin).parent
    path = root.joinpath(top, *rest.split(".")) if rest else root / top
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@functools.cache
def _read(path: Path, module: str) -> tuple[str, list[str]]:
    """A source file's SHA-256 and what it imports of its own package and of iakd. Read once by a process."""
    names: list[str] = []
    packages = {"iakd", module.partition(".")[0]}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.partition(".")[0] in packages]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in packages:
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sha256_file(path), names


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def provenance() -> dict[str, Any]:
    """`git_commit` ('-dirty' behind it where tracked files differ), `lock_sha256` and `versions`; null if unknown."""
    commit = _git("rev-parse", "HEAD")
    if commit and _git("status", "--porcelain", "--untracked-files=no"):
        commit += "-dirty"
    lock = Path("requirements.lock")
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "git_commit": commit,
        "lock_sha256": sha256_file(lock) if lock.exists() else None,
        "versions": versions,
    }
