"""Teachers of which nothing but the outputs is known, from the settings to the report."""

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iakd import files
from iakd.config import parse
from iakd.data.store import PreparedData
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.experiment.run_dir import read_history, read_model
from iakd.stages import distill, evaluate, import_teacher, prepare, report

SOURCE = """
import torch
from {helper} import width

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(width(), 10)
    def forward(self, images):
        return self.layer(images.flatten(1))

def large():
    return Linear()

def broken():
    raise RuntimeError("no such\\nfile")

def text():
    return "a network"

class Noisy(Linear):
    def forward(self, images):
        return super().forward(images) + torch.rand(len(images), 10)

class Centred(Linear):
    def forward(self, images):
        outputs = super().forward(images)
        return outputs - outputs.mean(0)

def leaving():
    raise SystemExit(3)

class Probable(Linear):
    def forward(self, images):
        return super().forward(images).softmax(1)

class Wide(Linear):
    def forward(self, images):
        return torch.cat([super().forward(images)] * 2, dim=1)
"""


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


def plan(teacher: dict[str, Any], **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "dataset": {"name": "own", "source": "digits"},
        "teachers": [teacher],
        "students": [{"arch": "resnet8", "width": 4, "name": "small"}],
        "methods": {"kd": {}, "kcd": {}},
        "distill": {"seeds": [0], "transfer": 100, "recipe": {"epochs": 1, "batch_size": 50}},
        "evaluate": {"latency_runs": 1},
        "compute": {"device": "cpu"},
        "tracking": {"enabled": False},
    }
    return plan_experiment(parse({**raw, **changes}, "test"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with prepared digits, and a linear classifier in three forms."""
    folder = tmp_path_factory.mktemp("black")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.run(plan({"arch": "resnet8"}))
        store = PreparedData.open(plan({"arch": "resnet8"}).data.folder)
        network = Linear().eval()
        pixels = torch.tensor(store.images("train")).flatten(1).double() / 255
        pixels = torch.cat([(pixels - store.mean[0]) / store.std[0], torch.ones(len(pixels), 1)], dim=1)
        targets = nn.functional.one_hot(torch.tensor(store.labels("train")), 10).double()
        solved = torch.linalg.solve(pixels.T @ pixels + torch.eye(65), pixels.T @ targets)
        with torch.no_grad():
            network.layer.weight.copy_(5 * solved[:-1].T)
            network.layer.bias.copy_(5 * solved[-1])
        torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, "weights.pth")
        images = torch.zeros(2, 1, 8, 8)
        for name, shapes in (("free", ({0: torch.export.Dim("batch", min=2, max=4096)},)), ("fixed", None)):
            torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), f"{name}.pt2")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, model in (("net", network), ("odds", nn.Sequential(network, nn.Softmax(1)))):
                torch.onnx.export(model, (images,), f"{name}.onnx", dynamo=False)
        (folder / "black_box_helper.py").write_text("def width():\n    return 64\n")
        (folder / "black_box_code.py").write_text(SOURCE.format(helper="black_box_helper"))
        yield folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


CODE = {"callable": "black_box_code:large", "checkpoint": "weights.pth"}
TEACHERS = {
    "code": CODE,
    "onnx": {"checkpoint": "net.onnx"},
    "probabilities": {"checkpoint": "odds.onnx", "outputs": "probabilities"},
    "free": {"checkpoint": "free.pt2"},
    "fixed": {"checkpoint": "fixed.pt2"},
}


def test_the_same_classifier_in_any_form_teaches_the_same(here: Path) -> None:
    """From the import to the report; what the student learns is that of plain PyTorch's outputs."""
    found = {}
    for name, settings in TEACHERS.items():
        experiment = plan({**settings, "name": name})
        (job,) = experiment.teachers
        folder = import_teacher.run(experiment, job)
        record = json.loads((folder / "run.json").read_text())
        assert record["inputs"]["checkpoint"] == files.sha256_file(here / settings["checkpoint"])
        before = (folder / "run.json").read_bytes()
        import_teacher.run(experiment, job)
        assert (folder / "run.json").read_bytes() == before, "nothing is done twice"
        students = {each.label: distill.run(experiment, each)[0] for each in experiment.students}
        history = read_history(students["kd"] / "history.csv")[-1]
        top1 = json.loads((folder / "metrics.json").read_text())["val_top1"]
        evaluate.run(experiment)
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert (evaluation["parameters"], evaluation["macs"]) == (650, 640), name
        assert (students["kcd"] / "model.safetensors").exists()
        found[name] = top1, evaluation["top1"], history
    assert found["code"][0] > 85
    for name, (top1, test, history) in found.items():
        assert (top1, test) == found["code"][:2], name
        for column in ("loss", "val_nll"):
            assert history[column] == pytest.approx(found["code"][2][column], rel=1e-3), name
    page = report.run(experiment).read_text()
    assert "imported" in page and "fixed.pt2" in page


def test_the_file_may_go_once_it_is_imported(here: Path) -> None:
    (here / "moved.onnx").write_bytes((here / "net.onnx").read_bytes())
    experiment = plan({"checkpoint": "moved.onnx"}, methods={"dkd": {}})
    assert [job.network.name for job in experiment.teachers] == ["moved"]
    import_teacher.run(experiment, experiment.teachers[0])
    (here / "moved.onnx").unlink()
    assert distill.run(experiment, experiment.students[0])[0].exists()
    with pytest.raises(UserError, match=r"checkpoint moved\.onnx is not a file"):
        import_teacher.run(experiment, experiment.teachers[0])


def test_changed_code_makes_results_stale(here: Path) -> None:
    """Of the function's module, and of a module beside it that it imports."""
    from iakd.experiment import provenance

    def keys(name: str) -> tuple[str, ...]:
        provenance.source_sha.cache_clear()
        provenance._read.cache_clear()
        experiment = plan({"callable": f"{name}:large"})
        return experiment.teachers[0].key, experiment.students[0].key

    (here / "changing_helper.py").write_text("def width():\n    return 64\n")
    (here / "changing_code.py").write_text(SOURCE.format(helper="changing_helper"))
    first = keys("changing_code")
    (here / "changing_helper.py").write_text("def width():\n    return 8 * 8\n")
    second = keys("changing_code")
    (here / "changing_code.py").write_text(SOURCE.format(helper="changing_helper") + "# changed\n")
    third = keys("changing_code")
    assert len({*first, *second, *third}) == 6
    (here / "a_package").mkdir()
    (here / "a_package" / "inner.py").write_text("from .depth import N\nlarge = object\n")
    (here / "a_package" / "depth.py").write_text("N = 1\n")
    one = keys("a_package.inner")
    (here / "a_package" / "depth.py").write_text("N = 2\n")
    assert keys("a_package.inner") != one


def test_other_weights_of_the_function_are_imported_again(here: Path) -> None:
    """A function that brings its own weights has no file whose hash would tell."""
    code = "import torch\nfrom black_box_code import Linear\n\ndef own():\n    network = Linear()\n"
    code += "    network.load_state_dict(torch.load('own.pth'))\n    return network\n"
    (here / "own_weights.py").write_text(code)
    state = {k.removeprefix("module."): v for k, v in torch.load("weights.pth")["state_dict"].items()}
    torch.save(state, "own.pth")
    experiment = plan({"callable": "own_weights:own"})
    folder = import_teacher.run(experiment, experiment.teachers[0])
    before = read_model(folder)[1]
    import_teacher.run(experiment, experiment.teachers[0])
    assert read_model(folder)[1] == before
    torch.save({**state, "layer.bias": state["layer.bias"] + 0.01}, "own.pth")
    import_teacher.run(experiment, experiment.teachers[0])
    after = read_model(folder)[1]
    assert after["key"] != before["key"] and after["model_sha256"] != before["model_sha256"]


@pytest.mark.parametrize(
    ("teacher", "methods", "words"),
    [
        (
            CODE,
            {"iakd": {}},
            r"pairs: large-small: methods.iakd: iakd needs blocks .* \(callable black_box",
        ),
        ({"checkpoint": "net.onnx"}, {"at+kd": {}}, r"methods\.at\+kd: at needs blocks or features"),
        (CODE, {"a": {"method": "kd", "init": "teacher"}}, "init: teacher needs blocks"),
        (CODE, {"a": {"method": "kd", "tune": {"init": ["random", "blockwise"]}}}, "init: blockwise needs blocks"),
        ({"checkpoint": "free.pt2"}, {"mutual": {}}, "mutual trains a copy of the teacher, and a program in a file"),
        ({"checkpoint": "weights.pth"}, {"kd": {}}, "arch: Field required, unless there is a callable"),
        ({**CODE, "arch": "resnet8"}, {"kd": {}}, "callable and arch exclude each other"),
        ({"checkpoint": "net.onnx", "arch": "resnet8"}, {"kd": {}}, "net.onnx is a program, .* leave arch out"),
        ({"arch": "resnet8", "outputs": "logits"}, {"kd": {}}, "outputs is a setting of a black box"),
        ({**CODE, "width": 8}, {"kd": {}}, "width is a setting of networks with an arch"),
        ({"callable": "no colon"}, {"kd": {}}, "callable: String should match pattern"),
    ],
)
def test_what_a_black_box_cannot_do_is_refused_before_anything_is_trained(
    teacher: dict[str, Any], methods: dict[str, Any], words: str, here: Path
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        plan(teacher, methods=methods)
    assert "\n" not in str(caught.value)


def test_mutual_learning_trains_a_copy_of_the_users_module(here: Path) -> None:
    experiment = plan({**CODE, "name": "copied"}, methods={"mutual": {}})
    import_teacher.run(experiment, experiment.teachers[0])
    assert (distill.run(experiment, experiment.students[0])[0] / "peer.safetensors").exists()


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"callable": "absent_code:large"}, "there is no module absent_code, neither in"),
        ({"callable": "a_folder.absent:large"}, "there is no module a_folder.absent in"),
        ({"callable": "black_box_code:absent"}, "black_box_code:absent cannot be loaded"),
        (
            {"callable": "black_box_code:broken"},
            r"failed \(RuntimeError: no such file\); it is called without arguments",
        ),
        ({"callable": "black_box_code:text"}, "returned a str, not a torch.nn.Module"),
        ({"callable": "black_box_code:Noisy"}, "returns other outputs for the same images when asked again"),
        ({"callable": "black_box_code:Centred"}, "returns other outputs for an image when others are in its batch"),
        ({"callable": "black_box_code:leaving"}, r"failed \(SystemExit: 3\); it is called without arguments"),
        ({"callable": "black_box_code:Probable"}, "returns probabilities, and should return logits: set outputs: prob"),
        ({"callable": "black_box_code:Wide"}, r"returns \(4, 20\) for 4 images, not logits \(4, 10\)"),
        ({**CODE, "outputs": "probabilities"}, "returns logits, and should return probabilities: set outputs: logits"),
        ({"callable": "black_box_code:large"}, "% on the validation images, where chance is"),
        ({"callable": "torch.nn:Linear"}, r"failed \(TypeError"),
        ({"callable": "json:loads", "checkpoint": "weights.pth"}, "the name json is that of an installed module"),
        ({"callable": "black_box_code:large", "checkpoint": "other.pth"}, "does not fit the module of the callable"),
        ({"checkpoint": "bad.onnx"}, "bad.onnx is not a usable ONNX file"),
        ({"checkpoint": "bad.pt2"}, "bad.pt2 is truncated or damaged"),
        ({"checkpoint": "weights.pt2"}, "is not a program of torch.export.save"),
    ],
)
def test_faults_of_a_black_box_are_one_line(teacher: dict[str, Any], words: str, here: Path) -> None:
    (here / "a_folder").mkdir(exist_ok=True)
    (here / "json.py").touch()
    torch.save({"layer.weight": torch.zeros(3, 3)}, "other.pth")
    (here / "bad.onnx").write_bytes((here / "net.onnx").read_bytes()[:500])
    (here / "bad.pt2").write_bytes(b"PK" + (here / "free.pt2").read_bytes()[2:3000])
    (here / "weights.pt2").write_bytes((here / "weights.pth").read_bytes())
    experiment = plan({**teacher, "name": "faulty"})
    with pytest.raises(UserError, match=words) as caught:
        import_teacher.run(experiment, experiment.teachers[0])
    (here / "json.py").unlink()
    assert "\n" not in str(caught.value) and "teacher faulty" in str(caught.value)
    assert not (experiment.teachers[0].folder / "run.json").exists()


@pytest.mark.parametrize(
    ("member", "change"),
    [
        ("model_weights_config.json", lambda text: text.replace('"use_pickle": false', '"use_pickle": true', 1)),
        ("models/model.json", lambda text: text.replace('"expr_str": "', '"expr_str": "__import__(1)', 1)),
    ],
)
def test_a_program_that_could_run_anything_is_not_opened(member: str, change: Any, here: Path) -> None:
    with zipfile.ZipFile(here / "free.pt2") as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in contents.items():
            changed = change(content.decode()).encode() if name.endswith(member) else content
            assert not name.endswith(member) or changed != content
            archive.writestr(name, changed)
    (here / "evil.pt2").write_bytes(out.getvalue())
    experiment = plan({"checkpoint": "evil.pt2"})
    with pytest.raises(UserError, match=r"pickled objects|not arithmetic"):
        import_teacher.run(experiment, experiment.teachers[0])
