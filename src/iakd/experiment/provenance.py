"""What a result was made from: its source files, the commit, the lock file, the versions."""

import ast
import functools
import importlib.metadata
import importlib.util
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iakd.files import digest, sha256_file
from iakd.processes import cores

PACKAGES = ("torch", "torchvision", "numpy", "snakemake", "dvc", "mlflow", "optuna", "iakd")
PACKAGE_ROOT = Path(__file__).parents[2]  # the folder that contains the package `iakd`


@functools.cache
def source_sha(*modules: str) -> str:
    """Return a SHA-256 of the `source_files` of `modules`; a change in any other file does not affect it.

    Raises ValueError where one of `modules` does not exist.
    """
    return digest({name: _read(path, name)[0] for name, path in source_files(*modules).items()})


def source_files(*modules: str) -> dict[str, Path]:
    """Return the source files of `modules`, by module, and of all that they import from this project, directly or not.

    Import statements are read, so nothing is imported. For a module of another package, such as a plugin's method, the
    files of that package count as well.

    Raises ValueError where one of `modules` does not exist.
    """
    files: dict[str, Path] = {}
    todo, seen = list(modules), set[str]()
    for name in modules:
        if _source_file(name) is None:
            raise ValueError(f"no module {name}")
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _source_file(name)
        if path is None:
            continue
        files[name] = path
        todo += [name.rpartition(".")[0]] if "." in name else []
        todo += _read(path, name)[1]
    return files


def _source_file(module: str) -> Path | None:
    """Return the file of a module without importing it; None if there is no such module."""
    top, _, rest = module.partition(".")
    root = PACKAGE_ROOT
    if top != "iakd":
        found = importlib.util.find_spec(top)
        places = list(found.submodule_search_locations or []) if found else []
        if found is None or not (places or found.origin):
            return None
        root = Path(places[0] if places else str(found.origin)).parent
    path = root.joinpath(top, *rest.split(".")) if rest else root / top
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@functools.cache
def _read(path: Path, module: str) -> tuple[str, list[str]]:
    """Return a source file's SHA-256 and its imports from its own package and from iakd. Each file is read once.

    Of a module in the working folder, the user's own, the imports of others in that folder count as well.
    """
    names: list[str] = []
    own = path.resolve().parents[module.count(".") + (path.name == "__init__.py")] == Path.cwd().resolve()

    def counts(imported: str) -> bool:
        top = imported.partition(".")[0]
        return top in ("iakd", module.partition(".")[0]) or (own and _in_working_folder(top))

    for node in _statements(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if counts(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            inside = module if path.name == "__init__.py" else module.rpartition(".")[0]
            above = inside.split(".")[: max(0, inside.count(".") + 2 - node.level)] if node.level else []
            origin = ".".join([*filter(None, above), *([node.module] if node.module else [])])
            if counts(origin):
                names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return sha256_file(path), names


def _in_working_folder(top: str) -> bool:
    """Whether `import top` reads a file or a folder there, with or without __init__.py."""
    folder = Path.cwd() / top
    if folder.with_suffix(".py").is_file():
        return True
    found = importlib.util.find_spec(top) if top and folder.is_dir() else None
    places = (found.submodule_search_locations or []) if found else []
    return any(Path(place).resolve() == folder.resolve() for place in places)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield all statements, also those within others. Unlike `ast.walk`, it skips expressions, the most by far."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            todo += getattr(node, block, [])


def repository_of_experiment() -> Path | None:
    """Return the user's repository if this folder is one that `dvc exp run --temp` or `--queue` deletes afterwards."""
    parts, inside = Path.cwd().parts, (".dvc", "tmp", "exps")
    starts = [i for i in range(len(parts) - len(inside)) if parts[i : i + len(inside)] == inside]
    return Path(*parts[: starts[0]]) if starts else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def machine() -> dict[str, Any]:
    """Return the `processor`, the number of `cores` that may be used, and the operating `system`."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache
def provenance() -> dict[str, Any]:
    """Return `git_commit` (with '-dirty' if tracked files differ), `lock_sha256` and `versions`; null if unknown."""
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
