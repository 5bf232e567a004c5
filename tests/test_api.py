"""What `import iakd` offers."""

import doctest
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import iakd
from iakd import api, config, models
from iakd.config import parse
from iakd.data.dataset_loader import dataset_loader
from iakd.data.loader import BatchFormat
from iakd.data.store import PreparedData
from iakd.devices import set_memory_format
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.models.external import partition
from iakd.models.network import are_probabilities, initialise
from iakd.seeding import derive
from iakd.stages import distill as distill_stage
from iakd.stages import prepare, teach
from iakd.training.trainer import Trainer
from test_classifier import export, write_photos

ROOT = Path(__file__).parent.parent
RECIPE: dict[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 0.05, "validate_every": 1}


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, iakd; dir(iakd); sys.exit('torch' in sys.modules or len(sys.modules) > 200)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_its_names_are_those_of_the_module_and_have_types() -> None:
    assert iakd.__all__ == api.__all__
    stub = (ROOT / "src/iakd/__init__.pyi").read_text()
    assert sorted(re.findall(r"import (\w+) as \1\n", stub)) == sorted(iakd.__all__)
    assert {*iakd.__all__, "__version__"} <= set(dir(iakd))
    assert iakd.load is api.load
    with pytest.raises(AttributeError, match="module 'iakd' has no attribute 'nothing'"):
        _ = iakd.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["iakd.api", "docs/api.md"])
def test_the_examples_work_as_they_are_written(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if module == "iakd.api":
        result = doctest.testmod(api)
    else:
        write_photos(tmp_path / "photos")
        export(tmp_path / "results/photos/export/resnet56-resnet20/iakd")
        result = doctest.testfile(str(ROOT / module), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed


# --- distill ---


class Images(Dataset[tuple[Any, int]]):
    """Images uint8 (N, C, H, W) as a Dataset, in one of several forms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, form: str = "uint8") -> None:
        self.images, self.labels, self.form = images, labels, form

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = torch.from_numpy(np.array(self.images[i]))
        if self.form == "pillow":
            return Image.fromarray(image[0].numpy()), int(self.labels[i])
        if self.form == "float":
            return image.float() / 255, torch.tensor(self.labels[i])  # type: ignore[return-value]  # as TensorDataset
        return image, int(self.labels[i])


SETTINGS = """
dataset: {name: toy, source: digits, val: 100, test: 1297}
teachers: [{arch: resnet14, width: 4}]
students: [{arch: resnet8, width: 4}]
methods: {}
teach: {recipe: {epochs: 4, lr: 0.1}}
distill: {seeds: [5]}
tracking: {enabled: false}
compute: {device: cpu}
"""
METHODS: dict[str, dict[str, Any]] = {
    "kd": {},
    "iakd_kd": {"method": "iakd+kd", "iakd": {"schedule": {"kind": "cosine"}}},
    "two_path": {"method": "iakd", "iakd": {"form": "two_path"}, "init": "blockwise", "blockwise": {"epochs": 1}},
    "simkd": {},
}


class Taught:
    """The digits, prepared, and a trained teacher, in a folder that tests run in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        import yaml

        settings = yaml.safe_load(SETTINGS)
        settings["methods"] = METHODS
        settings["distill"]["recipe"] = {**RECIPE, "augment": {"pad": 1, "flip": True}, "label_smoothing": 0.1}
        self.experiment: Experiment = plan_experiment(parse(settings, "test"))
        torch.set_num_threads(1)
        prepare.run(self.experiment)
        teach.run(self.experiment, self.experiment.teachers[0])
        self.store = PreparedData.open(self.experiment.data.folder)

    def data(self, split: str, form: str = "uint8") -> Images:
        return Images(self.store.images(split), self.store.labels(split), form)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        return self.store.mean, self.store.std

    def teacher(self) -> models.Network:
        network = models.build(config.Network(arch="resnet14", width=4), 1, 10)
        content, _ = run_dir.read_model(self.experiment.teachers[0].folder)
        models.load_weights(network, content, "")
        return network

    def student(self, seed: int = 5) -> models.Network:
        network = models.build(config.Network(arch="resnet8", width=4), 1, 10)
        initialise(network, torch.Generator().manual_seed(derive("initialise", seed)))
        return network


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as inside:
        folder = tmp_path_factory.mktemp("api")
        inside.chdir(folder)
        yield Taught(folder)


@pytest.mark.parametrize("label", METHODS)
def test_it_gives_bit_for_bit_what_the_pipeline_gives(taught: Taught, label: str) -> None:
    job = next(job for job in taught.experiment.students if job.label == label)
    (folder,) = distill_stage.run(taught.experiment, job)
    content, _ = run_dir.read_model(folder)
    teacher, student = taught.teacher(), taught.student()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    found = iakd.distill(
        teacher,
        student,
        taught.data("train", "pillow" if label == "kd" else "uint8"),
        taught.data("val"),
        method={"method": label, **METHODS[label]},
        recipe=taught.experiment.params.distill.recipe,
        normalisation=taught.normalisation,
        seed=5,
        device="cpu",
    )
    expected = models.load_tensors(content)
    state = found.student.state_dict()
    assert list(state) and set(state) == set(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert found.student is student
    history = run_dir.read_history(folder / run_dir.HISTORY)
    for row, same in zip(found.history, history, strict=True):
        for name in ("loss", "val_top1", "val_nll", "train_top1"):
            assert row[name] == same[name]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in [*student.stages.parameters(), *teacher.parameters()])
    assert not found.student.training


def test_float_images_are_taken_as_they_are(taught: Taught) -> None:
    """With the same values, a Dataset of floats gives what one of uint8 images gives, up to rounding."""
    results = [
        iakd.distill(
            taught.teacher(),
            taught.student(),
            taught.data("train", form),
            method="kd",
            recipe={**RECIPE, "epochs": 1},
            normalisation=normalisation,
            device="cpu",
            workers=workers,
        )
        for form, normalisation, workers in (("uint8", ([0.0], [1.0]), 0), ("float", None, 1))
    ]
    loss, same = (result.history[0]["loss"] for result in results)
    assert loss == pytest.approx(same, rel=1e-3)
    assert "val_top1" not in results[0].history[0] and "val_top1" not in results[0].metrics


class Plain(nn.Module):
    """A network of somebody else, whose `forward` flattens by a function."""

    def __init__(self, width: int, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.entry = nn.Conv2d(1, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(blocks)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.entry(images)
        for block in self.body:
            features = block(features)
        return self.classify(self.pool(features).flatten(1))


PARTS = iakd.Partition(stem=("entry",), blocks=("body.*",), head=("pool", lambda model: nn.Flatten(1), "classify"))


OWN: dict[str, Any] = {"teacher_parts": None}  # the teacher is one of iakd's networks


def test_a_class_of_ones_own_is_described_by_its_parts(taught: Taught) -> None:
    torch.manual_seed(0)
    teacher, student = Plain(8, 4), Plain(6, 2)
    common: dict[str, Any] = {
        "recipe": {**RECIPE, "epochs": 1},
        "normalisation": taught.normalisation,
        "student_parts": PARTS,
        "teacher_parts": PARTS,
        "device": "cpu",
    }
    before = student.body[0][0].weight.clone()
    with pytest.warns(UserWarning, match="the teacher is right for only .* near chance"):
        found = iakd.distill(teacher, student, taught.data("train"), taught.data("val"), method="iakd", **common)
    assert found.student is student and not torch.equal(student.body[0][0].weight, before)
    assert "p_drawn_1" in found.history[0]
    head = student.classify.weight.clone()
    deployed = iakd.distill(
        taught.teacher(), student, taught.data("train"), method="simkd", **{**common, **OWN}
    ).student
    assert deployed is not student, "simkd puts the teacher's head on another network"
    assert torch.equal(student.classify.weight, head)
    assert deployed(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_without_parts_it_learns_by_outputs_alone(taught: Taught) -> None:
    torch.manual_seed(0)
    student = Plain(6, 2)
    common: dict[str, Any] = {"recipe": {**RECIPE, "epochs": 1}, "normalisation": taught.normalisation, "device": "cpu"}
    before = student.classify.weight.clone()
    found = iakd.distill(taught.teacher(), student, taught.data("train"), method="dkd", **common)
    assert found.student is student and not torch.equal(student.classify.weight, before)
    with pytest.raises(iakd.UserError, match=r"^iakd needs the blocks of the student, a Plain, .*student_parts="):
        iakd.distill(taught.teacher(), student, taught.data("train"), method="iakd+kd", **common)
    with pytest.raises(
        iakd.UserError, match=r"the student cannot be computed part by part \(RuntimeError: .* such as a flattening"
    ):
        parts = iakd.Partition(stem=("entry",), blocks=("body.0", "body.1"), head=("pool", "classify"))
        iakd.distill(taught.teacher(), student, taught.data("train"), method="iakd", student_parts=parts, **common)


def test_models_of_torchvision_are_divided_by_their_family() -> None:
    from torchvision.models import mobilenet_v3_small, resnet18

    torch.manual_seed(0)
    teacher, student = resnet18(num_classes=3), mobilenet_v3_small(num_classes=3)
    network = iakd.hybrid(teacher, student, steps=4, image=(3, 64, 64))
    student.eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.eval()(images), student(images))
    assert len(network.keep_probabilities(0)) == len(network.hybrid.pairs) >= 4


class Interruption:
    """Ends trainings by Ctrl-C in their step number `at`, and notes the steps that are taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Trainer.train_step
        self.at, self.steps = -1, list[int]()

        def train_step(trainer: Trainer, batch: Any) -> None:
            original(trainer, batch)
            self.steps.append(trainer.step)
            if trainer.step == self.at:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Trainer, "train_step", train_step)

    def stop(self, at: int, train: Callable[[], Any]) -> None:
        self.at = at
        with pytest.raises(KeyboardInterrupt):
            train()
        self.at = -1
        self.steps.clear()


def test_an_interrupted_call_continues(taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle and called again, it ends with the same weights, and removes its checkpoint.

    With other validation images or another normalisation it is another training, and begins anew.
    """

    def train(checkpoints: Path | None, **changes: Any) -> dict[str, Tensor]:
        given: dict[str, Any] = {
            "val_data": taught.data("val"),
            "method": "iakd+kd",
            "recipe": RECIPE,
            "normalisation": taught.normalisation,
            "device": "cpu",
            "checkpoints": checkpoints,
            **changes,
        }
        return iakd.distill(taught.teacher(), taught.student(), taught.data("train"), **given).student.state_dict()

    whole = train(None)
    interruption = Interruption(monkeypatch)
    interruption.stop(4, lambda: train(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    for number, changes in enumerate(({"val_data": taught.data("test")}, {"normalisation": ([0.4], [0.3])})):
        shutil.copytree(tmp_path, tmp_path / "copy")
        train(tmp_path / "copy", **changes)
        assert interruption.steps[0] == 0, f"change {number} goes on with the training of something else"
        shutil.rmtree(tmp_path / "copy")
        interruption.steps.clear()
    resumed = train(tmp_path)
    assert interruption.steps[0] == 5, "the second call began where the first one ended"
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert not list(tmp_path.iterdir())


def test_each_epoch_is_reported(taught: Taught) -> None:
    rows: list[Any] = []
    iakd.distill(
        None,
        taught.student(),
        taught.data("train"),
        method="scratch",
        recipe=RECIPE,
        normalisation=taught.normalisation,
        device="cpu",
        on_epoch=rows.append,
    )
    assert [row["epoch"] for row in rows] == [1, 2]


class Broken(Images):
    """A Dataset that returns something else for one item."""

    def __init__(self, base: Images, item: Any) -> None:
        super().__init__(base.images, base.labels, base.form)
        self.item = item

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i != 3:
            return super().__getitem__(i)
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


UINT8 = torch.zeros(1, 8, 8, dtype=torch.uint8)


class NotANumber(nn.Flatten):
    """A teacher whose training has diverged."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, :10] * float("nan")


class Overflowing(nn.Flatten):
    """A teacher that can compute black images only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, :10] / (images.std() == images.new_zeros(()))


class WithoutGradients(Plain):
    """A student that runs as if it were in use."""

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)


class Streamed(IterableDataset[tuple[Tensor, int]]):
    """A Dataset that has a length, but no items by their number."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield from [(UINT8, 0), (UINT8, 1)]

    def __len__(self) -> int:
        return 2


def cached(module: nn.Module) -> nn.Module:
    """A module that has stored an output, which torch cannot copy."""
    module.stored = module(torch.zeros(2, 1, 8, 8))
    return module


class Unlike(nn.Module):
    """A network of two layers that does something besides what its parts do."""

    parts = iakd.Partition(stem=("conv",), blocks=("block",), head=("flatten", "fc"))

    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv, self.block = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.flatten, self.fc = nn.Flatten(), nn.Linear(128, 10)
        self.what = what
        if what == "parameter":
            self.shift = nn.Parameter(torch.zeros(10))

    def forward(self, images: Tensor) -> Any:
        features = self.block(self.conv(images))
        if self.what == "dropout":
            features = nn.functional.dropout(features, training=self.training)
        logits = self.fc(self.flatten(features))
        if self.what == "parameter":
            return logits + self.shift
        return (logits, features) if self.what == "auxiliary" and self.training else logits


def unlike(what: str, divided: bool = True) -> dict[str, Any]:
    """Arguments with which a network is distilled from one that has the same parts."""
    parts = {"teacher": Unlike(""), "teacher_parts": Unlike.parts, "student_parts": Unlike.parts} if divided else {}
    return {"student": Unlike(what), "method": "iakd" if divided else "kd", **parts}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1.5}, "seed is 1.5; give a whole number"),
        ({"checkpoints": 3}, "checkpoints is 3; give the path of a folder"),
        (
            unlike("") | {"student_parts": iakd.Partition(("conv", "block"), ("flatten.*",), ("flatten", "fc"))},
            r"student_parts: its blocks \('flatten\.\*',\) are no modules of the student",
        ),
        ({"seed": -1}, "seed is -1; give a whole number, at least 0"),
        ({"workers": -1}, "workers is -1"),
        ({"device": "cuda:0"}, "device 'cuda:0': unknown; known: auto, cpu, cuda"),
        ({"recipe": "fast"}, "recipe is 'fast'; give a dictionary"),
        ({"student": Unlike}, "the student is the class Unlike; give a network"),
        ({"student": Plain(2, 1).double()}, r"entry.weight of the student is float64; .* with student.float\(\)"),
        (
            {"student": nn.Linear(2, 2, dtype=torch.complex64)},
            "weight of the student is complex, and only dense tensors",
        ),
        ({"teacher": nn.Linear(2, 2, device="meta")}, "weight of the teacher is on the meta device"),
        ({"student": nn.Sequential(nn.Flatten(), nn.LazyLinear(10))}, "1.weight of the student has no shape yet"),
        ({"student": Plain(2, 1).requires_grad_(False)}, "the student has no parameter that needs a gradient"),
        ({"student_parts": {"stem": ("conv",)}}, "student_parts is a dict; give an iakd.Partition"),
        (
            unlike("") | {"student_parts": iakd.Partition(("conv",), ("block",), (lambda model: 1 / 0,))},  # type: ignore[arg-type,return-value]
            r"the student cannot be computed part by part \(ZeroDivisionError: division by zero\)",
        ),
        ({"on_epoch": 3}, "on_epoch is .*int; give a function of a row"),
        ({"checkpoints": __file__}, "checkpoints: .*test_api.py: File exists; give a folder"),
        ({"normalisation": (0.5, 0.25)}, r"give \(mean, std\), each a list"),
        ({"normalisation": ([128], [64])}, "in 0–1 units, .* divide those of values up to 255 by 255"),
        ({"normalisation": ([0.5], [float("inf")])}, "each std above 0"),
        ({"train": "float", "normalisation": None, "item": (torch.full((1, 8, 8), np.nan), 1)}, "item 3 .* not finite"),
        ({"item": LookupError("it is gone")}, r"train_data: item 3 fails \(LookupError: it is gone\)"),
        ({"val_data": [(UINT8, 1), (UINT8, 11)]}, "the student has 10 classes, and a label in val_data is 11"),
        ({"teacher": cached(Unlike("")), "method": "kd"}, r"the teacher cannot be copied \(Only Tensors created"),
        (dict.fromkeys(("teacher", "student"), Unlike("")) | {"method": "kd"}, r"share parameters \(conv.weight\)"),
        (unlike("parameter"), "student_parts: 'shift', a parameter of the student, is in none of its parts"),
        (unlike("dropout"), "in training mode the student does not compute what its parts compute"),
        (unlike("auxiliary"), "in training mode the student does not compute what its parts compute"),
        (unlike("auxiliary", divided=False), "the student returns a tuple in training mode instead of logits"),
        (
            unlike("") | {"student_parts": iakd.Partition(("cnov",), ("block",), ("fc",))},
            "the student has no module 'cnov'",
        ),
        ({"method": "iakd+kdd"}, r"^method: unknown method 'kdd' \(did you mean 'kd'\?\)"),
        ({"method": {"method": "kd", "kd": {"temprature": 2}}}, r"method: kd\.temprature: unknown key"),
        ({"method": {"method": "iakd", "iakd": {"schedule": "tuned"}}}, "a study needs the pipeline"),
        ({"recipe": {"epoch": 3}}, r"recipe: epoch: unknown key \(did you mean 'epochs'\?\)"),
        ({"teacher": None}, "iakd\\+kd needs a teacher"),
        ({"normalisation": None}, r"train_data returns images of 0 to 255: say with `normalisation=\(mean, std\)`"),
        ({"normalisation": ([0.5] * 3, [0.2] * 3)}, "give mean and std of 1 channel"),
        ({"train": "float"}, "train_data returns float tensors, .*: leave out `normalisation`"),
        ({"train": "float", "normalisation": None, "recipe": {"augment": {"pad": 1}}}, "let the Dataset augment"),
        ({"train": "float", "normalisation": None, "method": "mlkd"}, "shows each image twice, and float tensors are"),
        ({"item": (UINT8[:, :4], 1)}, r"item 3 is an image of 1×4×8 \(uint8\), and the first one was of 1×8×8"),
        ({"item": (UINT8, -1)}, "item 3 has the label -1"),
        ({"item": (UINT8, 10)}, "the student has 10 classes, and a label is 10"),
        ({"item": UINT8}, r"item 3 is a Tensor, not \(image, label\)"),
        ({"item": ("photo.png", 1)}, "item 3 has a str as its image"),
        ({"student": models.build(config.Network(arch="resnet8"), 3, 10)}, "the student takes images of 3 channels"),
        ({"teacher": models.build(config.Network(arch="resnet8"), 1, 7)}, "the teacher has 7 classes"),
        (
            {"teacher": models.build(config.Network(arch="resnet8"), 1, 12)},
            r"the teacher has 12 classes, the student 10, and iakd\+kd compares their outputs",
        ),
        (
            {"teacher": nn.Sequential(Plain(2, 1), nn.Softmax(1)), "method": "kd"},
            "the teacher returns probabilities instead of logits: leave out its softmax",
        ),
        (
            {"student": nn.Sequential(Plain(2, 1), nn.Softmax(1)), "method": "kd"},
            "the student returns probabilities instead of logits",
        ),
        ({"train_data": Streamed(), "method": "kd"}, "train_data is an iterable Dataset, which cannot be shuffled"),
        ({"teacher": NotANumber(), "method": "kd"}, "the teacher returns logits that are not finite numbers"),
        ({"teacher": Overflowing(), "method": "kd"}, "not finite numbers for some of the images"),
        ({"student": WithoutGradients(2, 1), "method": "kd"}, "the outputs of the student have no gradient"),
        ({"item": (UINT8, 2**63)}, "item 3 has the label 9223372036854775808"),
        ({"student": nn.Flatten(), "method": "kd"}, "the student has no parameter that needs a gradient"),
        (
            {"student": nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)), "method": "kd"},
            r"the student returns \(2,\) instead of logits",
        ),
        ({"student": nn.Linear(3, 10), "method": "kd"}, r"the student cannot compute images of \(1, 8, 8\)"),
        ({"method": {"method": "kd", "init": "blockwise"}}, "init: blockwise needs val_data"),
        ({"student": models.build(config.Network(arch="resnet20"), 1, 10)}, "impossible pair"),
    ],
)
def test_mistakes_are_one_line(taught: Taught, changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "teacher": taught.teacher(),
        "student": taught.student(),
        "normalisation": taught.normalisation,
        "recipe": RECIPE,
        "device": "cpu",
        **{name: value for name, value in changes.items() if name not in ("train", "item")},
    }
    data = taught.data("train", changes.get("train", "uint8"))
    given.setdefault("train_data", Broken(data, changes["item"]) if "item" in changes else data)
    with pytest.raises(iakd.UserError, match=words) as error:
        iakd.distill(**given)
    assert "\n" not in str(error.value)


class Small(nn.Module):
    """A network of somebody else's: two classes, blocks after one another, with dropout."""

    def __init__(self, blocks: int = 2, classes: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(blocks))
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.fc = nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.pool(self.layers(self.conv(images))))


PARTS_OF_SMALL = iakd.Partition(stem=("conv",), blocks=("layers.*",), head=("pool", "fc"))


def small(seed: int, *arguments: Any) -> Small:
    torch.manual_seed(seed)
    return Small(*arguments)


def distil_small(student: Small, method: Any, teacher: Small | None = None, **changes: Any) -> iakd.Distilled:
    """Train on 40 random images of two classes, for 3 epochs of 5 steps."""
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    data = Images(images, np.arange(40) % 2, changes.pop("form", "uint8"))
    given: dict[str, Any] = {
        "recipe": {"epochs": 3, "batch_size": 8},
        "normalisation": ([0.5], [0.3]) if data.form == "uint8" else None,
        "device": "cpu",
        "student_parts": PARTS_OF_SMALL,
        "teacher_parts": PARTS_OF_SMALL,
        **changes,
    }
    return iakd.distill(teacher or small(1, 4), student, given.pop("train_data", data), method=method, **given)


def weights(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_the_callers_random_numbers_and_gradients_are_left_alone() -> None:
    """Networks made after calls with the same seed are not all the same; gradients may be off where a call is made."""
    after = []
    for seed in (0, 1):
        teacher, one = small(2, 4), small(1)
        torch.manual_seed(seed)
        with torch.no_grad():
            distil_small(one, "kd", teacher)
        after.append(Small())
        assert not same(weights(one), weights(small(1)))
    assert not same(*map(weights, after))


def test_the_recipe_of_a_method_overrides_the_other_one() -> None:
    found = distil_small(small(0), {"method": "kd", "recipe": {"epochs": 1}})
    assert found.metrics["epochs"] == 1
    with pytest.raises(iakd.UserError, match=r"method.recipe: epoch: unknown key"):
        distil_small(small(0), {"method": "kd", "recipe": {"epoch": 1}})


@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        ({"method": "iakd+hints", "iakd": {"stem": "teacher", "unit": "stage"}, "hints": {"points": 2}}, {}),
        ({"method": "kd", "init": "teacher"}, {"class_weights": {"cat": 2.0}}),
    ],
)
def test_a_call_that_fails_leaves_the_student_as_it_was(method: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Both start with weights of the teacher, and the first one freezes the stem."""
    student = small(0, 4)
    before = weights(student)
    with pytest.raises(iakd.UserError):
        distil_small(student, method, recipe={"epochs": 1, "batch_size": 8, **recipe})
    assert same(weights(student), before)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(("of_teacher", "of_student"), [(5, 2), (2, 5)])
def test_outputs_of_other_classes_are_not_compared(of_teacher: int, of_student: int) -> None:
    """Of two classes, dkd's other class would be compared with each of the others."""
    with pytest.raises(iakd.UserError, match=r"classes, the student \d, and dkd compares their outputs"):
        distil_small(small(0, 2, of_student), "dkd", small(1, 4, of_teacher))


def test_a_student_of_which_nothing_is_trained_in_a_step_is_refused() -> None:
    student = small(0)
    student.conv.requires_grad_(False)
    student.fc.requires_grad_(False)
    schedule = {"kind": "uniform", "p0": 0.05, "student_only": 0.0}
    method = {"method": "iakd", "iakd": {"schedule": schedule}}
    distil_small(student, method)  # each step keeps a block
    student.layers[0].requires_grad_(False)
    with pytest.raises(iakd.UserError, match="nothing is trained in the student's stem, head and block slot 1"):
        distil_small(student, method)


def test_shared_buffers_are_refused() -> None:
    teacher, student = small(1, 4), small(0)
    student.layers[0][1].running_mean = teacher.layers[0][1].running_mean
    with pytest.raises(iakd.UserError, match=r"share buffers \(layers.0.1.running_mean\)"):
        distil_small(student, "kd", teacher)


@pytest.mark.parametrize("form", ["uint8", "float"])
def test_the_same_student_continues_in_the_middle_of_an_epoch(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, whose draws nothing may disturb; the interrupted student is as it was, and can be given again."""
    whole = weights(distil_small(small(0, 2, 2, 0.5), "kd", form=form).student)
    interruption = Interruption(monkeypatch)
    student = small(0, 2, 2, 0.5)
    before = weights(student)
    interruption.stop(7, lambda: distil_small(student, "kd", form=form, checkpoints=tmp_path))
    assert same(weights(student), before)
    assert same(weights(distil_small(student, "kd", form=form, checkpoints=tmp_path).student), whole)
    assert interruption.steps[0] == 8


@pytest.mark.parametrize("change", ["images", "dropout", "frozen"])
def test_another_training_begins_anew(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interruption = Interruption(monkeypatch)
    interruption.stop(7, lambda: distil_small(small(0), "kd", form="float", checkpoints=tmp_path))
    student, changes = small(0), {"form": "float"}
    if change == "images":
        changes["train_data"] = Images(np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 2, "float")
    elif change == "dropout":
        student = small(0, 2, 2, 0.9)
    else:
        student.conv.requires_grad_(False)
    distil_small(student, "kd", checkpoints=tmp_path, **changes)
    assert interruption.steps[0] == 0


def test_images_drawn_at_random_differ_in_each_epoch_of_workers() -> None:
    class Noise(Images):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            return torch.rand(1, 8, 8), int(self.labels[i])

    data = dataset_loader(Noise(np.zeros((8, 1, 8, 8), np.uint8), np.arange(8) % 2), None, "cpu", 1, "data")
    form = BatchFormat(8)
    first, second = (next(iter(data.epoch(0, epoch, form))).images for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, next(iter(data.epoch(0, 0, form))).images)
    assert data.fingerprint() is None


class Remembering(nn.BatchNorm2d):
    """A layer whose state is more than tensors."""

    def get_extra_state(self) -> dict[str, list[int]]:
        return {"seen": [1, 2]}

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        assert state == {"seen": [1, 2]}


def test_layers_may_have_a_state_of_their_own(tmp_path: Path) -> None:
    networks = [small(seed) for seed in (0, 1)]
    for network in networks:
        network.layers[0][1] = Remembering(4)  # type: ignore[index,operator]
    with torch.inference_mode(), pytest.raises(iakd.UserError, match=r"call iakd\.distill outside"):
        distil_small(networks[0], "kd", networks[1])
    distil_small(networks[0], "kd", networks[1], checkpoints=tmp_path)


class Shifted(nn.Module):
    """Changes the images that it gets, or leaves them."""

    def __init__(self, network: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.network, self.in_place = network, in_place

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.neg_() if self.in_place else -images)


class Activated(nn.Module):
    """Blocks that begin with an activation, and so does the head."""

    def __init__(self, width: int, in_place: bool) -> None:
        super().__init__()

        def block(stride: int) -> nn.Module:
            convolution = nn.Conv2d(width, width, 3, stride, padding=1)
            return nn.Sequential(nn.ReLU(in_place), convolution, nn.BatchNorm2d(width))

        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(block(1), block(2))
        self.head = nn.Sequential(nn.ReLU(in_place), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)))


PARTS_OF_ACTIVATED = iakd.Partition(stem=("stem",), blocks=("blocks.*",), head=("head",))


@pytest.mark.parametrize("changes", ["teacher", "student"])
def test_a_network_that_changes_its_images_in_place_changes_nobody_elses(changes: str) -> None:
    trained = []
    for in_place in (False, True):
        teacher, student = (
            Shifted(small(seed), in_place and name == changes) for seed, name in enumerate(["teacher", "student"])
        )
        distil_small(
            student, {"method": "kd", "kd": {"ce_weight": 0.0}}, teacher, student_parts=None, teacher_parts=None
        )
        trained.append(weights(student))
    assert same(*trained)


@pytest.mark.parametrize(
    "method", ["at", "iakd", "reviewkd", "blockkd", {"method": "kd", "init": "blockwise"}], ids=str
)
def test_blocks_that_change_their_input_in_place_are_distilled_like_others(method: Any) -> None:
    trained = []
    for in_place in (False, True):
        torch.manual_seed(0)
        teacher, student = Activated(6, in_place), Activated(4, in_place)
        parts = {"student_parts": PARTS_OF_ACTIVATED, "teacher_parts": PARTS_OF_ACTIVATED}
        images = np.random.default_rng(1).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
        distil_small(student, method, teacher, val_data=Images(images, np.arange(40) % 2), **parts)
        trained.append(weights(student))
    assert same(*trained)


class Repeated(nn.Module):
    """Applies one block twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(block, block)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)))


def test_a_block_may_occur_twice() -> None:
    trained = []
    for parts in (None, PARTS_OF_ACTIVATED):
        torch.manual_seed(0)
        teacher, student = Repeated(6), Repeated(4)
        distil_small(student, "kd", teacher, student_parts=parts, teacher_parts=parts)
        trained.append(weights(student))
    assert same(*trained)
    distil_small(student, "iakd", teacher, student_parts=parts, teacher_parts=parts)
    assert not same(trained[-1], weights(student)) and student.blocks[0] is student.blocks[1]


class Careful(nn.Identity):
    """Looks at its input's values and draws a random number, as layers do that skip blocks now and then."""

    def forward(self, features: Tensor) -> Tensor:
        return features if float(features.abs().max()) >= 0 and torch.rand(1) >= 0 else -features


@pytest.mark.parametrize("method", ["at", "iakd", "rcn"])
def test_blocks_that_need_values_are_distilled_like_others(method: str) -> None:
    """Shapes are found without values where that is possible."""
    trained = []
    for layer in (nn.Identity(), Careful()):
        torch.manual_seed(0)
        teacher, student = Activated(4, False), Activated(4, False)
        teacher.blocks[1].append(layer)
        student.blocks[1].append(layer)
        parts = {"student_parts": PARTS_OF_ACTIVATED, "teacher_parts": PARTS_OF_ACTIVATED}
        before, state = weights(teacher), torch.get_rng_state()
        partition.split_model(student, PARTS_OF_ACTIVATED, (1, 8, 8))
        assert torch.equal(state, torch.get_rng_state())
        distil_small(student, method, teacher, **parts)
        trained.append(weights(student))
        assert same(before, weights(teacher))
    assert same(*trained)


def test_logits_that_are_nearly_probabilities_are_logits() -> None:
    assert are_probabilities(torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert not are_probabilities(torch.tensor([[0.25, 0.7501], [0.5, 0.5]]))
    assert not are_probabilities(torch.tensor([[1.5, -0.5]]))
    assert are_probabilities(torch.randn(8, 1000, generator=torch.Generator().manual_seed(0)).softmax(1))


def test_labels_drawn_at_random_are_refused() -> None:
    class Drawn(Images):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            return super().__getitem__(int(torch.randint(len(self), ())))

    data = Drawn(np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 2, "float")
    with pytest.raises(iakd.UserError, match="each item must keep its label"):
        distil_small(small(0), "kd", form="float", train_data=data)


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (LookupError("it is gone"), r"fails during the training \(LookupError: it is gone\)"),
        (StopIteration(), "fails during the training .StopIteration"),
        ((UINT8, 1), "not all images are float tensors, as they were at first"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_fails_later(later: Any, words: str, workers: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    data = Broken(Images(images, np.arange(40) % 2, "float"), (torch.zeros(1, 8, 8), 1))

    def on_epoch(row: dict[str, Any]) -> None:
        data.item = later

    with pytest.raises(iakd.UserError, match=words) as error:
        distil_small(small(0), "kd", form="float", train_data=data, on_epoch=on_epoch, workers=workers)
    assert "\n" not in str(error.value)


# --- hybrid ---


def test_a_step_swaps_what_the_pipeline_would_swap(taught: Taught) -> None:
    """Logits and gradients are those of the hybrid network with the blocks drawn for that step."""
    network = iakd.hybrid(taught.teacher(), taught.student(), steps=50, image=(1, 8, 8), schedule=0.5, seed=3)
    images = torch.randn(6, 1, 8, 8)
    seen = set()
    for step in range(50):
        kept = network.sampler.masks(step, 6)
        seen.add(tuple(kept))
        if step < 3:
            assert torch.equal(network(images, step), network.hybrid(images, kept))
    assert len(seen) > 3, "different steps swap different blocks"
    again = iakd.hybrid(taught.teacher(), taught.student(), steps=50, image=(1, 8, 8), schedule=0.5, seed=3)
    assert [tuple(again.sampler.masks(step, 6)) for step in (7, 0, 7)] == [
        tuple(network.sampler.masks(step, 6)) for step in (7, 0, 7)
    ]


def test_the_schedule_runs_over_the_steps(taught: Taught) -> None:
    schedule = {"kind": "linear", "p0": 0.0, "p1": 1.0, "t_end": 1.0, "student_only": 0.0}
    network = iakd.hybrid(taught.teacher(), taught.student(), steps=10, image=(1, 8, 8), schedule=schedule)
    assert [network.keep_probabilities(step)[0] for step in range(10)] == pytest.approx([i / 10 for i in range(10)])
    plain = iakd.hybrid(taught.teacher(), taught.student(), steps=10, image=(1, 8, 8))
    assert plain.keep_probabilities(0)[0] == 0.5 and plain.keep_probabilities(9) == [1.0] * 3


def test_a_students_channels_and_samples(taught: Taught) -> None:
    for options in ({"granularity": "sample", "batch_size": 6}, {"granularity": "channel"}, {"unit": "stage"}):
        network = iakd.hybrid(taught.teacher(), taught.student(), 5, (1, 8, 8), schedule=0.5, **options)
        assert network(torch.randn(6, 1, 8, 8), 2).shape == (6, 10)


def test_the_layout_of_one_network_is_not_forced_on_a_narrow_one() -> None:
    """Maps of a teacher in channels_last would lead the student's convolutions to the kernel that leaves its buffer."""
    wide, narrow = (models.build(config.Network(arch="resnet8", width=width), 1, 10) for width in (16, 4))
    data = Images(np.random.default_rng(0).integers(0, 256, (32, 1, 8, 8), dtype=np.uint8), np.arange(32) % 10)
    recipe = {"epochs": 1, "batch_size": 16}
    given = {"method": "scratch", "recipe": recipe, "normalisation": ([0.5], [0.3])}
    iakd.distill(None, wide, data, **given)
    assert all(weight.is_contiguous() for weight in wide.parameters()), "as it was before"

    def stop(row: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        iakd.distill(None, wide, data, on_epoch=stop, **given)
    assert all(weight.is_contiguous() for weight in wide.parameters()), "after an interruption, too"
    set_memory_format(wide, channels_last=True)
    network = iakd.hybrid(wide, narrow, 5, (1, 8, 8), schedule=0.5)
    assert all(weight.is_contiguous() for weight in network.parameters())
    alone = models.build(config.Network(arch="resnet8", width=16), 1, 10)
    network = iakd.hybrid(wide, alone, 5, (1, 8, 8), schedule=0.5)
    assert not all(weight.is_contiguous() for weight in network.parameters()), "the user's choice, where it is safe"


def test_an_image_alone_with_the_teacher_goes_to_the_student_where_batchnorm_would_refuse_it() -> None:
    """Adapters between vgg's last blocks, of other widths, have maps of one pixel for images of 8×8."""
    teacher, student = (
        models.build(config.Network(arch=arch, width=w), 1, 10) for arch, w in (("vgg13", 4), ("vgg8", 2))
    )
    network = iakd.hybrid(teacher, student, 40, (1, 8, 8), schedule=0.5, granularity="sample", batch_size=3)
    images = torch.randn(3, 1, 8, 8)
    for step in range(network.steps):
        assert torch.isfinite(network(images, step)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"form": "two_path"}, "need the pipeline's own loop"),
        ({"granularity": "sample"}, "needs batch_size"),
        ({"granularty": "sample"}, r"hybrid: granularty: unknown key \(did you mean 'granularity'\?\)"),
        ({"schedule": 1.5}, r"hybrid: schedule.*p0"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": "3"}, "hybrid: steps is '3'; give a whole number"),
        ({"granularity": "sample", "batch_size": 0}, "hybrid: batch_size is 0"),
        ({"image": (8, 8)}, r"hybrid: image is \(8, 8\); give \(channels, height, width\)"),
        ({"teacher": None}, "the teacher is a NoneType"),
        ({"student": Plain(2, 1).requires_grad_(False)}, "the student has no parameter that needs a gradient"),
    ],
)
def test_mistakes_in_a_hybrid(taught: Taught, changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"steps": 5, "image": (1, 8, 8), **changes}
    with pytest.raises(iakd.UserError, match=words):
        iakd.hybrid(**{"teacher": taught.teacher(), "student": taught.student(), **given})
    network = iakd.hybrid(taught.teacher(), taught.student(), 5, (1, 8, 8))
    for step in (None, 5, -1, 1.5):
        with pytest.raises(iakd.UserError, match=f"step {step}: in training mode, give the number of the step"):
            network(torch.randn(2, 1, 8, 8), step)  # type: ignore[arg-type]
    with pytest.raises(iakd.UserError, match="step 5"):
        network.keep_probabilities(5)


def test_a_compiled_network_is_refused(taught: Taught) -> None:
    with pytest.raises(iakd.UserError, match=r"the student comes from torch\.compile; give the network that was"):
        iakd.hybrid(taught.teacher(), torch.compile(taught.student()), 5, (1, 8, 8))


def test_no_image_of_a_batch_is_dropped(taught: Taught) -> None:
    """Draws for each image are made for `batch_size` images: fewer get the first of them, more are refused."""
    network = iakd.hybrid(
        taught.teacher(), taught.student(), 5, (1, 8, 8), schedule=0.5, granularity="sample", batch_size=4
    )
    assert len(network(torch.randn(3, 1, 8, 8), 0)) == 3
    with pytest.raises(iakd.UserError, match="a batch of 5 images, and batch_size is 4"):
        network(torch.randn(5, 1, 8, 8), 0)


def test_batchnorm_without_a_momentum_can_be_swapped() -> None:
    from torchvision.models import resnet18

    teacher, student = resnet18(num_classes=10), resnet18(num_classes=10)
    for module in (*teacher.modules(), *student.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    hybrid = iakd.hybrid(teacher, student, steps=2, image=(3, 32, 32), schedule=0.5)
    assert hybrid(torch.randn(2, 3, 32, 32), 0).isfinite().all()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.:DeprecationWarning")
def test_a_teacher_of_torchscript_teaches(taught: Taught) -> None:
    layer = nn.Linear(64, 10)
    nn.init.zeros_(layer.weight)
    teacher = torch.jit.script(nn.Sequential(nn.Flatten(), layer))
    given = {"method": "kd", "recipe": RECIPE, "normalisation": taught.normalisation, "device": "cpu"}
    with pytest.warns(UserWarning, match="near chance"):
        assert iakd.distill(teacher, taught.student(), taught.data("train"), **given).history


def test_a_model_is_left_as_it_is_when_it_is_tried(taught: Taught) -> None:
    """Neither the running statistics of its BatchNorms, nor the modes of its layers, nor anybody's random numbers."""
    network = models.build(config.Network(arch="resnet8"), 1, 10)
    network.stages[0].eval()
    before, modes = {**network.state_dict()}, [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in before.items()}
    torch.manual_seed(0)
    expected = torch.rand(1), np.random.RandomState(0).rand()
    torch.manual_seed(0)
    np.random.seed(0)
    with partition.trial(network, training=True):
        network(torch.randn(4, 1, 8, 8))
        np.random.rand()
    assert (torch.rand(1), np.random.rand()) == expected
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in before.items())


# --- run ---


def check_what_it_exported(root: Path) -> None:
    """All files of the chosen model give exactly the accuracy that its evaluation has, on files of the test images."""
    (folder,) = (path.parent for path in (root / "results").glob("toy/export/*/*/preprocessing.json"))
    store = PreparedData.open(root / "results/toy/data")
    paths = [root / "digits" / f"{number:04}.png" for number in range(len(store.labels("test")))]
    paths[0].parent.mkdir()
    for path, image in zip(paths, store.images("test"), strict=True):
        Image.fromarray(image[0]).save(path)
    label, *_ = folder.relative_to(root / "results/toy/export").parts[1:]
    evaluation = json.loads(next((root / "results/toy/students").glob(f"*/{label}/seed0/evaluation.json")).read_text())
    for model in (folder, folder / "model.onnx"):
        found = iakd.load(model, device="cpu").predict(paths, batch_size=256)
        right = [prediction.label == str(truth) for prediction, truth in zip(found, store.labels("test"), strict=True)]
        assert 100 * np.mean(right) == pytest.approx(evaluation["top1"])


def test_an_experiment_runs_from_images_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    monkeypatch.chdir(tmp_path)
    settings = {
        **yaml.safe_load(SETTINGS),
        "methods": {"scratch": {}, "iakd": {}},
        "distill": {"seeds": [0], "recipe": {"epochs": 1}},
        "teach": {"recipe": {"epochs": 1}},
    }
    report = iakd.run(settings)
    assert report.name == "report.html" and report.is_file()
    check_what_it_exported(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    before = report.stat().st_mtime_ns, (path := next(Path("results").rglob("iakd/seed0/run.json"))).read_bytes()
    assert iakd.run("params.yaml", ["report.title=Again"]) == report
    assert report.stat().st_mtime_ns > before[0] and path.read_bytes() == before[1]
    with pytest.raises(iakd.UserError, match=r"iakd\.run trains in this process alone"):
        iakd.run({**settings, "compute": {"processes": 2}})
    with pytest.raises(iakd.UserError, match="changes belong to a settings file"):
        iakd.run(settings, ["report.title=x"])
    with pytest.raises(iakd.UserError, match="changes is a text; give a list of texts"):
        iakd.run("params.yaml", "report.title=x")
