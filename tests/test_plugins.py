"""Methods, data sources and networks of another package, found through its entry points."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from iakd.experiment.run_dir import HISTORY, RUN

SRC = Path(__file__).parent.parent / "src"
GUIDE = Path(__file__).parent.parent / "docs" / "extending.md"
FILES = {
    "acme/__init__.py": "",
    "acme/plugin.py": """
from pydantic import Field
from iakd.plugins import MethodSpec, Strict


class GapOptions(Strict):
    weight: float = Field(1.0, ge=0)


GAP = MethodSpec("squared gap between logits", "logits", "acme.gap:GapLoss", GapOptions)
""",
    "acme/gap.py": """
import torch.nn.functional as F
from iakd.distillation.loss import DistillationLoss
from iakd.models.features import LOGITS


class GapLoss(DistillationLoss):
    teacher_features = LOGITS

    def __init__(self, context):
        super().__init__(context)
        self.weight = context.options.weight

    def forward(self, outputs):
        return {"gap": self.weight * F.mse_loss(outputs.student_logits, outputs.teacher_logits)}
""",
    "acme-0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: acme\nVersion: 0.1\n",
    "acme-0.1.dist-info/entry_points.txt": "[iakd.methods]\ngap = acme.plugin:GAP\n",
}


def guide() -> dict[str, str]:
    """The packages of the guide's sections on data sets and networks, as one, with its entry points."""
    text = GUIDE.read_text()
    sections = "".join(text.split(f"\n## {title}\n")[1].split("\n## ")[0] for title in ("A data set", "A network"))
    files, entries = {}, ""
    for name, block in re.findall(
        r"^New file `iakd-\w+/(\S+)`:\n\n```\w+\n(.*?)^```$", sections, re.DOTALL | re.MULTILINE
    ):
        if name == "pyproject.toml":
            for group, declared in tomllib.loads(block)["project"]["entry-points"].items():
                entries += "".join([f"[{group}]\n", *(f"{entry} = {value}\n" for entry, value in declared.items())])
        else:
            files[name] = block
    return {**files, "acme-0.1.dist-info/entry_points.txt": entries}


SETTINGS = {
    "dataset": {"source": "stripes", "val": 30, "test": 30},
    "teachers": [{"arch": "tiny/net6", "name": "big"}],
    "students": [{"arch": "tiny/net4", "width": 4, "name": "small"}],
    "methods": {"scratch": {}, "gap": {"gap": {"weight": 0.5}}, "iakd+gap": {}},
    "teach": {"recipe": {"epochs": 1}},
    "distill": {"seeds": [0], "recipe": {"epochs": 1, "batch_size": 30}},
    "tracking": {"enabled": False},
    "compute": {"device": "cpu"},
}
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder in which the package is installed: importlib.metadata asks for no more than its .dist-info."""
    for files in (FILES, guide()):
        for name, text in files.items():
            path = tmp_path / "site" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(text)
    return tmp_path / "site"


@pytest.fixture
def python(package: Path, tmp_path: Path) -> Run:
    """Run Python with the package installed, where params.yaml is."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    environment = {**os.environ, "PYTHONPATH": f"{package}:{SRC}"}

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


@pytest.fixture
def iakd(python: Run) -> Run:
    """Run a command with the package installed."""
    return lambda *arguments: python("-m", "iakd", *arguments)


def register(package: Path, group: str, entry: str) -> None:
    """Add an entry point to the package."""
    path = package / "acme-0.1.dist-info" / "entry_points.txt"
    path.write_text(path.read_text().replace(f"[{group}]", f"[{group}]\n{entry}"))


def test_all_three_kinds_of_plugin_are_used_by_name(iakd: Run, tmp_path: Path) -> None:
    for stage in ("prepare", "teach", "distill"):
        done = iakd(stage)
        assert done.returncode == 0, done.stderr
    results = tmp_path / "results" / "stripes"
    manifest = json.loads((results / "data" / "manifest.json").read_text())
    assert manifest["classes"] == ["noise", "row", "column"]
    students = results / "students" / "big-small"
    assert "gap" in (students / "gap" / "seed0" / HISTORY).read_text().splitlines()[0]
    for label in SETTINGS["methods"]:
        assert json.loads((students / label / "seed0" / RUN).read_text())["method"] == label
    assert "squared gap between logits" in iakd("methods").stdout
    schema = json.loads(iakd("schema").stdout)
    assert schema["$defs"]["GapOptions"]["properties"].keys() == {"weight"}
    assert "stripes" in schema["$defs"]["Dataset"]["properties"]["source"]["enum"]


KEYS = """
import json, pathlib, sys
from iakd.config import load
from iakd.experiment.jobs import plan_experiment
jobs = plan_experiment(load(pathlib.Path("params.yaml")))
print(json.dumps({job.path: job.key for job in [jobs.data, *jobs.teachers, *jobs.students]}))
assert "torch" not in sys.modules
"""


def test_a_plugins_source_is_part_of_the_identity_of_the_jobs_that_use_it(package: Path, python: Run) -> None:
    def keys() -> dict[str, str]:
        done = python("-c", KEYS)
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        return found

    def changed_by(file: str) -> set[str]:
        before = keys()
        with (package / file).open("a") as opened:
            opened.write("# changed\n")
        return {path.removeprefix("stripes/") for path, key in keys().items() if key != before[path]}

    students = {f"students/big-small/{label}/seed0" for label in ("scratch", "gap", "iakd+gap")}
    assert changed_by("iakd_stripes/reader.py") == {"data"}
    assert changed_by("iakd_tiny/network.py") == {"teachers/big/seed0", *students}
    assert changed_by("acme/gap.py") == students - {"students/big-small/scratch/seed0"}


@pytest.mark.parametrize(
    ("group", "change", "words"),
    [
        ("iakd.methods", "methods={oops: {}}", "method 'oops': acme.nowhere:X cannot be loaded (ModuleNotFoundError"),
        ("iakd.sources", "dataset.source=oops", "source 'oops': acme.nowhere:X cannot be loaded (ModuleNotFoundError"),
        ("iakd.networks", "students.0.arch=oops/x", "unknown arch 'oops/x': acme.nowhere:X cannot be loaded"),
        ("iakd.networks", "students.0.arch=tiny/net5", "unknown arch 'tiny/net5' (did you mean 'net"),
        ("iakd.networks", "students.0.arch=tinny/net4", "unknown arch 'tinny/net4' (did you mean 'tiny'?)"),
    ],
)
def test_a_broken_plugin_stops_only_those_who_ask_for_it(
    package: Path, iakd: Run, group: str, change: str, words: str
) -> None:
    register(package, group, "oops = acme.nowhere:X")
    done = iakd("prepare", "--set", change)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = iakd("prepare")
    assert done.returncode == 0 and "oops" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("nn.Linear(2 * width, classes), nn.Softmax(1)", "network tiny_net6 returns probabilities instead of logits"),
        (
            "nn.Linear(2 * width, 7)",
            "network tiny_net6 returns (2, 7) for two images of 100 classes, not logits (2, 100)",
        ),
        ("nn.Linear(width, classes)", "network tiny_net6 cannot compute images of (3, 8, 8) (mat1 and mat2 shapes"),
    ],
)
def test_a_network_that_returns_something_else_is_refused(package: Path, iakd: Run, head: str, words: str) -> None:
    path = package / "iakd_tiny" / "network.py"
    path.write_text(path.read_text().replace("nn.Linear(2 * width, classes)", head))
    done = iakd("pairs", "tiny/net6", "tiny/net4", "--size", "8")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


LOSS = "from iakd.distillation.registry import loss_class; loss_class('oops')"
NEEDY = "class Needy(Strict):\n    x: int\n\n\n"


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ("OOPS = 1", "acme.plugin:OOPS is not a MethodSpec"),
        (f"{NEEDY}OOPS = MethodSpec('', 'logits', None, Needy)", "acme.plugin:OOPS cannot be loaded (ValidationError"),
    ],
)
def test_a_declaration_that_is_wrong_is_named_in_one_line(
    package: Path, iakd: Run, declaration: str, words: str
) -> None:
    register(package, "iakd.methods", "oops = acme.plugin:OOPS")
    with (package / "acme" / "plugin.py").open("a") as opened:
        opened.write(f"\n\n{declaration}\n")
    changes = [
        "dataset.source=digits",
        "teachers.0={arch: resnet8}",
        "students.0={arch: resnet8}",
        "methods={oops: {}}",
    ]
    done = iakd("prepare", *(part for change in changes for part in ("--set", change)))
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("acme.nowhere:Loss", "acme.nowhere:Loss cannot be loaded"),
        ("iakd_stripes.reader:read", "is not a DistillationLoss"),
    ],
)
def test_a_reference_that_is_wrong_is_named_in_one_line(package: Path, python: Run, reference: str, words: str) -> None:
    register(package, "iakd.methods", "oops = acme.plugin:OOPS")
    with (package / "acme" / "plugin.py").open("a") as opened:
        opened.write(f"\n\nOOPS = MethodSpec('', 'logits', {reference!r})\n")
    assert words in python("-c", LOSS).stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("group", "entry"),
    [
        ("iakd.methods", "kd = acme.plugin:GAP"),
        ("iakd.methods", "recipe = acme.plugin:GAP"),  # a key of every method
        ("iakd.sources", "digits = iakd_stripes:SPEC"),
        ("iakd.networks", "torchvision = iakd_tiny:SPEC"),
    ],
)
def test_a_name_that_is_taken_keeps_its_meaning(package: Path, iakd: Run, group: str, entry: str) -> None:
    register(package, group, entry)
    done = iakd("methods")
    name, _, value = entry.partition(" = ")
    assert done.returncode == 0 and "(Hinton et al. 2015)" in done.stdout
    assert done.stderr == f"{group}: {value} is ignored, because the name {name!r} is taken\n"
    changes = (
        "dataset.source=digits",
        "teachers.0.arch=torchvision/resnet18",
        "teachers.0.width=null",
        "methods.kd={}",
    )
    done = iakd("prepare", *(part for change in changes for part in ("--set", change)))
    assert done.returncode == 0, done.stderr


def test_a_declaration_can_be_imported_before_this_project(python: Run) -> None:
    done = python("-c", "import acme.plugin, iakd.config; print('gap' in iakd.config.METHODS)")
    assert done.stdout == "True\n", done.stderr
