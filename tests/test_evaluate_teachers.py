"""Teachers alone: measured on a folder of images, without a training set, students or methods."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from iakd import cli, models
from iakd.config import Network
from iakd.errors import RunFailed, UserError, try_each
from iakd.experiment.run_dir import RUN

ONLY = """
dataset: {source: image_folder, path: nowhere, size: 8}
teachers:
  - {name: good, arch: resnet8, width: 4, checkpoint: good.pth, normalisation: half}
  - {name: lost, arch: resnet8, width: 4, checkpoint: lost.pth, normalisation: half}
  - {name: code, callable: "measured_code:Mean", normalisation: none}
  - {name: unsaid, callable: "measured_code:Mean"}
"""
CODE = """
import torch

class Mean(torch.nn.Module):  # dark, middle, bright
    def forward(self, images):
        level = images.mean((1, 2, 3))
        return -(level[:, None] - torch.tensor([0.2, 0.5, 0.8])).square()
"""


class AsPlainPyTorch(nn.Module):
    """The network of the checkpoint on images from 0 to 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - 0.5) / 0.5)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for label, level in (("a_dark", 51), ("b_middle", 128), ("c_bright", 204)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(6):
            pixels = generator.integers(level - 40, level + 40, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    torch.manual_seed(0)
    torch.save(models.build(Network(arch="resnet8", width=4), 3, 3).state_dict(), "good.pth")
    module = "code_" + re.sub(r"\W", "_", tmp_path.name)  # Python keeps modules that it has imported
    Path(f"{module}.py").write_text(CODE)
    Path("only.yaml").write_text(ONLY.replace("measured_code", module))
    return tmp_path


def iakd(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def test_a_teacher_and_a_test_set_only(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    done = iakd("evaluate", "--params", "only.yaml", "--teacher", "good", "--data", "photos")
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout)
    network = models.build(Network(arch="resnet8", width=4), 3, 3)
    network.load_state_dict(torch.load("good.pth"))
    paths = sorted((here / "photos").rglob("*.png"))
    images = torch.stack([torch.tensor(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]) / 255
    with torch.no_grad():
        right = AsPlainPyTorch(network)(images).argmax(1) == torch.arange(3).repeat_interleave(6)
    assert measured["top1"] == pytest.approx(100 * right.double().mean().item())
    assert measured["model"] == "good" and measured["n"] == 18
    assert f"good: {measured['top1']:.2f} % top-1, 100.00 % top-5, 18 images" in caplog.messages


def test_one_teacher_that_fails_does_not_stop_the_others(here: Path) -> None:
    arguments = [text for name in ("lost", "good", "code") for text in ("--teacher", name)]
    done = iakd("evaluate", "--params", "only.yaml", *arguments, "--data", "photos", "--output", "all.json")
    assert isinstance(done.exception, UserError) and "lost.pth is not a file" in str(done.exception)
    found = {one["model"]: one for one in json.loads(Path("all.json").read_text())}
    assert list(found) == ["good", "code"] and found["code"]["top1"] == 100 and found["code"]["parameters"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--teacher", "cod"], r"--teacher cod: no such teacher in the settings \(did you mean 'code'\?\)"),
        (["--teacher", "unsaid"], "teacher unsaid: say how its images were normalised"),
        (["--teacher", "code", "--set", "dataset.size=null"], "say how large its images are, as dataset.size or by"),
        (["--teacher", "code", "--run", "x"], "leave out --run and --arch"),
    ],
)
def test_mistakes(here: Path, arguments: list[str], words: str) -> None:
    done = iakd("evaluate", "--params", "only.yaml", "--data", "photos", *arguments)
    with pytest.raises(UserError, match=words):
        raise done.exception or AssertionError(done.output)


def test_evaluate_prints_accuracies_and_teach_goes_on_after_a_failure(here: Path) -> None:
    settings: dict[str, Any] = {
        "dataset": {"name": "toy", "source": "digits"},
        "teachers": [
            {"name": "lost", "arch": "resnet8", "width": 4, "checkpoint": "lost.pth"},
            {"name": "own", "arch": "resnet8", "width": 4},
        ],
        "students": [{"arch": "resnet8", "width": 2}],
        "pairs": [["own", "resnet8w2"]],
        "methods": {"scratch": {}},
        "teach": {"recipe": {"epochs": 1}},
        "distill": {"seeds": [0], "transfer": 50, "recipe": {"epochs": 1}},
        "evaluate": {"latency_runs": 1},
        "tracking": {"enabled": False},
        "compute": {"device": "cpu"},
    }
    Path("params.yaml").write_text(json.dumps(settings))
    assert iakd("prepare").exit_code == 0
    done = iakd("teach")
    assert isinstance(done.exception, UserError) and "lost.pth is not a file" in str(done.exception)
    own = Path("results/toy/teachers/own/seed0")
    assert (own / RUN).exists()
    done = iakd("evaluate", "--teacher", "own")
    evaluation = json.loads((own / "evaluation.json").read_text())
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{own}: {evaluation['top1']:.2f} % top-1") and lines[-1] == f"{own}/evaluation.json"
    done = iakd("evaluate")
    assert isinstance(done.exception, UserError) and str(done.exception).endswith("(and 1 more)")
    assert "run `iakd teach --teacher lost --seed 0`" in str(done.exception)
    del settings["teachers"][0]
    Path("params.yaml").write_text(json.dumps(settings))
    assert iakd("distill").exit_code == 0
    (Path("results/toy/evaluation/metrics")).mkdir(parents=True)
    (Path("results/toy/evaluation/metrics/.snakemake_timestamp")).touch()
    lines = iakd("evaluate").stdout.splitlines()
    assert len(lines) == 3 and lines[-1] == "results/toy/evaluation"
    assert lines[1].startswith("results/toy/students/own-resnet8w2/scratch/seed0: ") and "847 test images" in lines[1]


def test_errors_of_several(caplog: pytest.LogCaptureFixture) -> None:
    def work(number: int) -> int:
        if number in (1, 3):
            raise (UserError if number == 3 else RunFailed)(f"number {number}")
        return number

    with pytest.raises(RunFailed, match=r"^number 1 \(and 1 more\)$"):
        try_each(5, work)
    assert caplog.messages == ["number 3"]
    assert try_each(1, work) == [0]
