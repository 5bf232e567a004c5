"""From photos in all kinds of files and somebody's own teacher to a model in use where this project is not installed.

The second case, with networks and images of usual sizes, takes minutes: `pytest -m slow tests/workflow/test_photos.py`.
"""

import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from iakd import config, models
from iakd.data.decoding import decode, from_file
from iakd.data.geometry import centre_crop
from iakd.models.network import initialise

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy, Project

pytestmark = pytest.mark.workflow
CLASSES = ("ant", "bee", "cat hair")
COLOURS = ((200, 120, 60), (70, 180, 120), (110, 90, 200))
PACKAGES = ("onnxruntime", "numpy", "pillow")  # all that the model card asks for
SETTINGS = """
dataset: {{name: photos, source: image_folder, path: photos, size: {size}, crop_pct: 0.9, val: 0.2}}
teachers: [{{arch: {teacher}, name: mine, checkpoint: bought.pth, normalisation: half}}]
students: [{{arch: {student}, name: small}}]
methods: {methods}
distill: {{seeds: [0], recipe: {{epochs: {epochs}, batch_size: 16, lr: {lr}}}}}
evaluate: {{latency_runs: 2}}
export: {{int8: "on"}}
report: {{references: [kd]}}
tracking: {{enabled: false}}
compute: {{device: cpu}}
"""
SMALL: dict[str, Any] = {"teacher": "resnet8", "student": "resnet8, width: 4", "size": 24}
SMALL |= {"epochs": 6, "lr": 0.05, "methods": "{kd: {}, iakd: {}}"}
USUAL: dict[str, Any] = {"teacher": "torchvision/resnet18", "student": "torchvision/resnet18", "size": 224}
USUAL |= {
    "epochs": 1,
    "lr": 0.0001,
    "methods": "{kd: {init: teacher}}",
}  # so few steps teach nothing: it keeps what the teacher knows


def photo(path: Path, colour: tuple[int, int, int], rng: np.random.Generator) -> None:
    """Write a noisy picture, as the kind of file that its name says."""
    height, width = rng.integers(40, 120, 2)
    coarse = rng.normal(np.array(colour), 60, (5, 7, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    holes = Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).resize(image.size)
    options: dict[str, Any] = {}
    kind = path.stem.rpartition("_")[2]
    match kind:
        case "large":
            image = image.resize((width * 9, height * 9))
        case "turned":
            options["exif"] = Image.Exif()
            options["exif"][274] = int(rng.integers(2, 9))
        case "cmyk":
            image = image.convert("CMYK")
        case "grey":
            image = image.convert("L")
        case "palette":
            image, options["transparency"] = image.quantize(16), 3
        case "clear":
            image.putalpha(holes)
        case "greyclear":
            image = image.convert("L")
            image.putalpha(holes)
        case "deep":  # 16 bits
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        case "moving":
            options |= {"save_all": True, "append_images": [Image.new("RGB", image.size, colour)]}
    image.save(path, **options)


KINDS = (
    *("plain.jpg", "large.jpeg", "turned.jpg", "cmyk.jpg", "grey.JPG", "plain.png", "palette.png", "clear.png"),
    *("greyclear.png", "deep.png", "turned.png", "plain.webp", "clear.webp", "turned.webp", "moving.webp", "plain.tif"),
    *("deep.tiff", "turned.tif", "cmyk.tiff", "plain.bmp", "grey.bmp", "palette.gif", "moving.gif", "plain.ppm"),
)


def photos(folder: Path, each: int) -> None:
    """Write folders of photos: `each` files of all kinds for training, and as many for the test, per class."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, colour in zip(CLASSES, COLOURS, strict=True):
            (folder / part / name).mkdir(parents=True)
            for i in range(each):
                for kind in KINDS:
                    photo(folder / part / name / f"{i}_{kind}", colour, rng)


def bought_teacher(folder: Path, arch: str, path: Path, size: int) -> None:
    """Write a checkpoint of a teacher as another project would have trained it, on images from −1 to 1.

    Only its last layer is trained; below it are random features, which tell colours apart.
    """
    files = sorted((folder / "train").glob("*/*"))
    crop = centre_crop((size, size), 0.9)
    pixels = np.stack([decode(from_file(file), 3, (size, size), crop)[0] for file in files])
    images = torch.from_numpy(pixels).float() / 127.5 - 1
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    network = models.build(config.Network(arch=arch), 3, len(CLASSES))
    initialise(network, torch.Generator().manual_seed(0))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all steps: there are few
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    features: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        for some in torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).split(24):
            network(images[some])
        features.clear()
        network.eval()(images)
    optimizer = torch.optim.Adam(last.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(features[0], last.weight, last.bias), labels).backward()
        optimizer.step()
    torch.save({"epoch": 8, "state_dict": network.state_dict()}, path)


def bare_python(folder: Path) -> Path:
    """Make a virtual environment with PACKAGES, what these depend on, and nothing else; return its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    todo, done = list(PACKAGES), set[str]()
    while todo:
        name = todo.pop()
        if name in done:
            continue
        done.add(name)
        package = metadata.distribution(name)
        todo += [re.split(r"[^\w.-]", need)[0] for need in package.requires or [] if "extra ==" not in need]
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))))
    python = folder / "bin/python"
    for missing in ("torch", "iakd", "scipy", "onnx", "pip"):
        assert subprocess.run([python, "-I", "-c", f"import {missing}"], capture_output=True).returncode, missing
    return python


def classified(python: Path, folder: Path, images: list[Path], model: str = "model.onnx") -> list[str]:
    """Run the code of a model card on images, as it stands there, and return the classes that it names."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code
    script = folder / "classify.py"
    script.write_text(code[1].replace('"model.onnx"', f'"{model}"'))
    command = [python, "-I", script.name, *images]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split("\t")[1] for line in done.stdout.splitlines()]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((SMALL, 2), id="24 pixels"),
        pytest.param((USUAL, 1), id="224 pixels", marks=pytest.mark.slow),
    ],
)
def project(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, copy_project: "Copy"
) -> Iterator["Project"]:
    settings, each = request.param
    project = copy_project(tmp_path_factory.mktemp("photos") / "project")
    photos(project.path / "photos", each)
    bought_teacher(project.path / "photos", settings["teacher"], project.path / "bought.pth", settings["size"])
    (project.path / "photos.yaml").write_text(SETTINGS.format(**settings))
    project.run("snakemake", "--cores", "2", "--configfile", "photos.yaml")
    yield project
    shutil.rmtree(project.path.parent)


def test_the_code_of_the_card_has_exactly_the_accuracy_of_the_evaluation(project: "Project") -> None:
    """In an environment without this project and torch; so have `iakd predict` and `iakd evaluate --model`."""
    index = json.loads((project.path / "results/photos/export/mine-small/exported.json").read_text())
    model = index["models"][0]
    exported = project.path / "results/photos/export/mine-small" / model["folder"]
    trained = project.path / f"results/photos/students/mine-small/{model['method']}/seed{model['seed']}"
    evaluation = json.loads((trained / "evaluation.json").read_text())
    record = json.loads((exported / "export.json").read_text())
    taken = project.path.parent / "taken"
    shutil.copytree(exported, taken)
    images = sorted((project.path / "photos/test").glob("*/*"))
    assert len(images) == evaluation["n"] and 30 < evaluation["top1"] < 100

    python = bare_python(project.path.parent / "bare")
    named = classified(python, taken, images)
    assert set(named) == set(CLASSES), "it has learnt something"
    assert accuracy(named, images) == pytest.approx(evaluation["top1"], abs=1e-9)
    integers = classified(python, taken, images, "model-int8.onnx")
    assert accuracy(integers, images) == pytest.approx(record["int8"]["evaluation"]["top1"], abs=1e-9)

    printed = project.run(sys.executable, "-m", "iakd", "predict", str(taken), *map(str, images))
    assert [line.rsplit(",", 2)[1] for line in printed.splitlines()[1:]] == named
    command = ("iakd", "evaluate", "--data", "photos/test", "--model", str(taken), "--output", "measured.json")
    project.run(sys.executable, "-m", *command)
    measured = json.loads((project.path / "measured.json").read_text())
    assert measured["top1"] == pytest.approx(evaluation["top1"], abs=1e-9)
    assert (measured["n"], measured["classes"]) == (len(images), list(CLASSES))


def accuracy(named: list[str], images: list[Path]) -> float:
    """Percent of the images that are called like their folder."""
    return 100 * float(np.mean([name == image.parent.name for name, image in zip(named, images, strict=True)]))
