"""`iakd doctor`: whether this machine and folder have what an experiment needs, and how to get what is missing."""

import importlib.metadata
import os
import platform
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from iakd import __version__, files
from iakd.config import Params, load
from iakd.errors import RunFailed, UserError, one_line
from iakd.experiment import gpus
from iakd.experiment.jobs import STATE, WORKFLOW_LOCK
from iakd.processes import cores
from iakd.tracking.address import MlflowAddress, tracking_address

GIB = 1 << 30
ENOUGH_DISK = 5 * GIB
FOR_DEVELOPERS = ("dev", "docs")
DEFAULT = Path("params.yaml")
REINSTALL = "pip install --force-reinstall torch torchvision"
SHOWN = ("torch", "torchvision", "snakemake", "dvc", "mlflow", "optuna")
TOOLS = {"git": "records the commit of each run", "make": "runs the targets of the Makefile"}
EXTRAS = {  # what they are for, where their name does not say it
    "hub": "iakd push hub",
    "postgres": "studies in PostgreSQL",
    "timm": "networks called timm/…",
}


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what to do about it. `state`: good, note (optional or worth knowing), bad."""

    name: str
    state: str
    text: str
    remedy: str = ""


def examine(params: Path, changes: list[str]) -> bool:
    """Print what is there and what is missing; return whether all that is needed is there."""
    good = True
    for finding in _findings(params, changes):
        good = good and finding.state != "bad"
        mark = {"good": "✓", "note": "·", "bad": "✗"}[finding.state]
        print(f"{mark} {finding.name:<10} {finding.text}", flush=True)
        if finding.remedy:
            print(f"  {'':<10} → {finding.remedy}", flush=True)
    print("\nEverything that is needed is there." if good else "\nSomething is missing: see ✗.")
    return good


def _findings(params: Path, changes: list[str]) -> Iterator[Finding]:
    yield Finding("iakd", "good", f"{__version__}, in {Path(__file__).parents[1]}")
    yield Finding("Python", "good", f"{platform.python_version()}, {sys.executable}")
    yield from _packages()
    yield from _tools()
    yield from _machine()
    yield _disk()
    yield _locks()
    if params == DEFAULT and not params.exists() and not changes:
        yield Finding("settings", "note", f"no {params} in this folder", "`iakd init FOLDER` makes an experiment")
        return
    try:
        settings = load(params, changes)
    except UserError as error:
        yield Finding("settings", "bad", one_line(str(error)), "`iakd schema` and docs/settings.md have all settings")
        return
    yield Finding("settings", "good", f"{params}: {settings.dataset.name}, {len(settings.methods)} methods")
    yield from _services(settings)
    if files.held(WORKFLOW_LOCK):
        yield Finding("workflow", "note", "one is running in this folder", "`iakd status` shows how far it is")


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what iakd's own metadata ask for."""
    missing: dict[str, list[str]] = {}
    for text in importlib.metadata.requires("iakd") or []:
        requirement = Requirement(text)
        extra = next((name for name in _extras() if _asked_by(requirement, name)), "")
        if not _asked_by(requirement, extra) or _installed(requirement):
            continue
        missing.setdefault(extra, []).append(f"{requirement.name}{requirement.specifier}")
    versions = ", ".join(f"{name} {v}" for name in SHOWN if (v := _version(name)))
    wanted = missing.pop("", [])
    if wanted:
        remedy = " ".join(["pip install", *map(shlex.quote, wanted)])
        yield Finding("packages", "bad", f"missing or too old: {', '.join(wanted)}", remedy)
    else:
        yield Finding("packages", "good", versions)
    for extra, names in missing.items():
        if extra not in FOR_DEVELOPERS:
            about = f"{', '.join(names)} not installed; for {EXTRAS.get(extra, extra)}"
            yield Finding("optional", "note", about, f"pip install 'iakd[{extra}]'")


def _extras() -> list[str]:
    return importlib.metadata.metadata("iakd").get_all("Provides-Extra") or []


def _asked_by(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement is one of `extra`; of iakd itself, if this is empty."""
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return not extra
    return marker.evaluate({"extra": extra})


def _version(name: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _installed(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _tools() -> Iterator[Finding]:
    for name, purpose in TOOLS.items():
        if not shutil.which(name):
            yield Finding(name, "note", f"not found; it {purpose}", f"install {name} with your system's packages")


def _machine() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("machine", "good", f"{platform.system()}, {cores()} cores, {memory / GIB:.0f} GiB of memory")
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "bad", f"cannot be imported: {one_line(str(error))}", REINSTALL)
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(found):
        about = torch.cuda.get_device_properties(index)
        memory_text = f"{about.total_memory / GIB:.0f} GiB"
        yield Finding("GPU", "good", f"{about.name}, {memory_text}, CUDA {torch.version.cuda}")
    if not found and gpus.installed():
        build = f"torch {torch.__version__}"
        yield Finding(
            "GPU",
            "bad",
            f"there is one, but {build} cannot use it",
            "install a build of torch for your driver: https://pytorch.org/get-started; or set compute.device to cpu",
        )
    elif not found:
        yield Finding("GPU", "note", "none; everything runs on the CPU")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / GIB:.0f} GiB free in {Path.cwd()}"
    if free < ENOUGH_DISK:
        return Finding("disk", "note", text, "free some: weights, checkpoints and MLflow's artifacts need space")
    return Finding("disk", "good", text)


def _locks() -> Finding:
    """Try what the fork server and the locks of runs need of the file system of this folder."""
    try:
        STATE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=STATE) as folder:
            if not files.can_lock(Path(folder) / "lock"):
                remedy = "start no second command here while one runs (docs/reliability.md)"
                return Finding("locks", "note", "this file system has none", remedy)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                server.bind(os.path.relpath(Path(folder) / "s"))
    except OSError as error:
        if isinstance(error, PermissionError) or not os.access(Path.cwd(), os.W_OK):
            return Finding("locks", "bad", f"{Path.cwd()} is not writable", "choose a folder that you may write to")
        text = f"this file system has no sockets ({error})"
        return Finding("locks", "note", text, "each job loads torch by itself, which takes longer")
    return Finding("locks", "good", "this file system has locks and sockets")


def _services(params: Params) -> Iterator[Finding]:
    address = tracking_address(params)
    if address is None:
        yield Finding("MLflow", "note", "switched off (tracking.enabled)")
    else:
        yield _service("MLflow", address, "start it, or change tracking.uri")
    if params.tune.storage:
        database = MlflowAddress(params.tune.storage, "", "", "")
        yield _service("studies", database, "start the database, or change tune.storage")
    if shutil.which("sbatch"):
        yield Finding("Slurm", "good", "sbatch is there")


def _service(name: str, address: MlflowAddress, remedy: str) -> Finding:
    try:
        address.check_reachable()
    except RunFailed as error:
        return Finding(name, "bad", one_line(str(error)).removeprefix("MLflow "), remedy)
    return Finding(name, "good", address.display)
