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


@functools.cache
def source_sha(module: str) -> str:
    """SHA-256 over the files of this package that `module` imports, directly or not.

    Found by reading the import statements, so nothing is imported; a change elsewhere leaves the hash alone.
    """
    root = Path(__file__).parent.parent
    files: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        path = root.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        relative = str(path.relative_to(root))
        if relative in files or not path.exists():
            continue
        stat = path.stat()
        files[relative], imported = _read(path, stat.st_mtime_ns, stat.st_size)
        todo += [name.rpartition(".")[0]] if "." in name else []
        todo += imported
    return digest(files)


@functools.cache
def _read(path: Path, mtime: int, size: int) -> tuple[str, list[str]]:
    """A source file's SHA-256 and what of this package it imports; read once, the stages share most files."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("iakd")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("iakd"):
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
