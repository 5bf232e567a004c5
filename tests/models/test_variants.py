"""Networks of plain PyTorch that compute something else with the same tensors: an import is as accurate as they are."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from iakd import config, models
from iakd.config import parse
from iakd.data.store import PreparedData
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.models.external_weights import fold_biases, load_external
from iakd.stages import import_teacher, prepare

# --- other people's code ---


def conv(a: int, b: int, size: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, stride, padding=size // 2, bias=bias)


class Basic(nn.Module):
    def __init__(self, a: int, b: int, stride: int, form: dict[str, Any]) -> None:
        super().__init__()
        self.form, self.stride = form, stride
        strides = (1, stride) if form.get("late") else (stride, 1)
        bias = form.get("bias", False)
        self.conv1, self.bn1 = conv(a, b, 3, strides[0], bias), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = conv(b, b, 3, strides[1], bias), nn.BatchNorm2d(b)
        self.changes = stride > 1 or a != b
        if self.changes and not form.get("pad"):
            kept = 1 if form.get("averaged") else stride
            self.downsample = nn.Sequential(conv(a, b, 1, kept, bias), nn.BatchNorm2d(b))

    def shortcut(self, x: Tensor) -> Tensor:
        if not self.changes:
            return x
        if self.form.get("averaged"):
            x = F.avg_pool2d(x, self.stride)
        if not self.form.get("pad"):
            return self.downsample(x)
        if not self.form.get("averaged"):
            x = x[:, :, :: self.stride, :: self.stride]
        new = self.bn2.num_features - x.shape[1]
        if self.form["pad"] == "half":
            return F.pad(x, (0, 0, 0, 0, new // 2, new - new // 2))
        return torch.cat([x, torch.zeros(len(x), new, *x.shape[2:])], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        act = self.form.get("act", F.relu)
        y = self.bn2(self.conv2(act(self.bn1(self.conv1(x)))))
        if self.form.get("relu") == "before":
            return act(y) + self.shortcut(x)
        y = y + self.shortcut(x)
        return y if self.form.get("relu") == "none" else act(y)


class ThreeStages(nn.Module):
    def __init__(self, depth: int = 8, **form: Any) -> None:
        super().__init__()
        self.act = form.get("act", F.relu)
        self.conv1, self.bn1 = conv(1, 16, 3, bias=form.get("bias", False)), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        n = (depth - 2) // 6
        for stage in (1, 2, 3):
            blocks = [
                Basic(widths[stage - (not i)], widths[stage], 2 if stage > 1 and not i else 1, form) for i in range(n)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(self.act(self.bn1(self.conv1(x)))))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


class Wide(nn.Module):
    """A popular WRN: biased convolutions, the stride on the second, shortcuts that start before the normalisation."""

    class Block(nn.Module):
        def __init__(self, a: int, b: int, stride: int, late: bool, raw: bool) -> None:
            super().__init__()
            self.raw = raw
            self.bn1, self.conv1 = nn.BatchNorm2d(a), conv(a, b, 3, 1 if late else stride, bias=True)
            self.bn2, self.conv2 = nn.BatchNorm2d(b), conv(b, b, 3, stride if late else 1, bias=True)
            self.shortcut = conv(a, b, 1, stride, bias=True) if a != b else None

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.bn1(x))
            out = self.conv2(F.relu(self.bn2(self.conv1(y))))
            return out + (self.shortcut(x if self.raw else y) if self.shortcut else x)

    def __init__(self, late: bool, raw: bool) -> None:
        super().__init__()
        self.conv1 = conv(1, 16, 3, bias=True)
        for stage, (a, b) in enumerate(((16, 32), (32, 64), (64, 128)), 1):
            blocks = [self.Block(b if i else a, b, 2 if stage > 1 and not i else 1, late, raw) for i in range(2)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn1, self.linear = nn.BatchNorm2d(128), nn.Linear(128, 10)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.layer3(self.layer2(self.layer1(self.conv1(x)))))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


class Vgg(nn.Module):
    """VGG-8, `every`: pooling after every group; `bias`: of convolutions."""

    def __init__(self, pool: Callable[..., Tensor] = F.max_pool2d, every: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.pool, self.every = pool, every
        widths = (1, 8, 16, 32, 64, 64)
        for i in range(5):
            setattr(self, f"conv{i}", conv(widths[i], widths[i + 1], 3, bias=bias))
            setattr(self, f"bn{i}", nn.BatchNorm2d(widths[i + 1]))
        self.classifier = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        for i in range(5):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
            if (i < 3 or self.every) and min(x.shape[2:]) > 1:
                x = self.pool(x, 2)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


RESNET, WRN, VGG = {"arch": "resnet8"}, {"arch": "wrn_16_2"}, {"arch": "vgg8", "width": 8}
FORMS: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {  # code, settings, what is to be set
    "shortcut A": (lambda: ThreeStages(14, pad="half"), {"arch": "resnet14", "shortcut": "A"}, {}),
    "shortcut A_end": (
        lambda: ThreeStages(14, pad="end"),
        {"arch": "resnet14", "shortcut": "A"},
        {"shortcut": "A_end"},
    ),
    "A of averages": (
        lambda: ThreeStages(14, pad="half", averaged=True),
        {"arch": "resnet14", "shortcut": "A"},
        {"variant": ["averaged_shortcut"]},
    ),
    "B of averages": (lambda: ThreeStages(averaged=True), RESNET, {"variant": ["averaged_shortcut"]}),
    "stride": (lambda: ThreeStages(late=True), RESNET, {"variant": ["other_stride"]}),
    "relu before": (
        lambda: ThreeStages(14, relu="before"),
        {"arch": "resnet14"},
        {"variant": ["relu_before_addition"]},
    ),
    "no relu": (lambda: ThreeStages(14, relu="none"), {"arch": "resnet14"}, {"variant": ["no_last_relu"]}),
    "silu": (lambda: ThreeStages(14, act=F.silu), {"arch": "resnet14"}, {"variant": ["silu"]}),
    "biased": (lambda: ThreeStages(14, bias=True), {"arch": "resnet14"}, {}),
    "biased WRN": (lambda: Wide(late=False, raw=False), WRN, {}),
    "another WRN": (lambda: Wide(late=True, raw=True), WRN, {"variant": ["other_stride", "raw_shortcut"]}),
    "VGG": (Vgg, VGG, {}),
    "VGG without biases": (lambda: Vgg(bias=False), VGG, {}),
    "VGG of averages": (lambda: Vgg(F.avg_pool2d), VGG, {"variant": ["average_pooling"]}),
}


def plan(**teacher: Any) -> Experiment:
    raw = {
        "dataset": {"name": "own", "source": "digits"},
        "teachers": [{"name": "mine", "checkpoint": "mine.pth", **teacher}],
        "students": [{"arch": "resnet8", "width": 8, "name": "small"}],
        "methods": {"kd": {}},
        "compute": {"device": "cpu"},
        "tracking": {"enabled": False},
    }
    return plan_experiment(parse(raw, "test"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with prepared digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("digits"))
        prepare.run(plan(arch="resnet8"))
        yield PreparedData.open(plan(arch="resnet8").data.folder)


def images(store: PreparedData, part: str) -> Tensor:
    pixels = torch.tensor(store.images(part)).float() / 255
    return (pixels - store.mean[0]) / store.std[0]


@torch.no_grad()
def fit(network: Any, store: PreparedData) -> float:
    """Random features with the statistics of the digits, and a linear layer fitted to them: as accurate as needed.

    Returns its accuracy on the validation images, in percent.
    """
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias)
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.5)
    inputs, labels = images(store, "train"), torch.tensor(store.labels("train"))
    network.train()
    network.features(inputs)
    network.eval()
    found = network.features(inputs).double()
    one = torch.cat([found, torch.ones(len(found), 1)], dim=1)
    solved = torch.linalg.solve(one.T @ one + 1e-3 * torch.eye(one.shape[1]), one.T @ F.one_hot(labels, 10).double())
    linear = next(layer for layer in network.modules() if isinstance(layer, nn.Linear))
    linear.weight.copy_(solved[:-1].T)
    linear.bias.copy_(solved[-1])
    truth = torch.tensor(store.labels("val"))
    return float((network(images(store, "val")).argmax(1) == truth).double().mean()) * 100


@pytest.mark.parametrize("name", FORMS)
def test_an_import_says_which_form_fits_and_is_then_as_accurate_as_plain_pytorch(name: str, here: PreparedData) -> None:
    make, settings, wanted = FORMS[name]
    network = make()
    accuracy = fit(network, here)
    assert accuracy > 65, "a useless network would prove nothing"
    shutil.rmtree(plan(**settings).teachers[0].folder, ignore_errors=True)
    torch.save(network.state_dict(), "mine.pth")
    if wanted:
        experiment = plan(**settings)
        with pytest.raises(UserError) as caught:
            import_teacher.run(experiment, experiment.teachers[0])
        ((setting, value),) = wanted.items()
        said = f"[{', '.join(value)}]" if isinstance(value, list) else value
        match = re.search(rf"with {re.escape(f'{setting}: {said}')}[, ].*would be ([\d.]+) %", str(caught.value))
        assert match, caught.value
        assert float(match[1]) == pytest.approx(accuracy, abs=0.06)
        assert not (experiment.teachers[0].folder / "run.json").exists()
    experiment = plan(**{**settings, **wanted})
    folder = import_teacher.run(experiment, experiment.teachers[0])
    assert json.loads((folder / "metrics.json").read_text())["val_top1"] == pytest.approx(accuracy, abs=1e-6)
    imported = load_external(experiment.teachers[0].network, 1, 10, Path("mine.pth"), "it").eval()
    with torch.no_grad():
        sample = images(here, "val")[:50]
        torch.testing.assert_close(imported(sample), network(sample), rtol=1e-3, atol=1e-4)


def test_vgg_with_pooling_after_every_group(tmp_path: Path) -> None:
    """Small digits do not show the difference."""
    network = Vgg(every=True).eval()
    path = tmp_path / "every.pth"
    torch.save(network.state_dict(), path)
    torch.manual_seed(0)
    sample = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        settings = {**VGG, "variant": ["pool_every_group"]}
        imported = load_external(config.Network.model_validate(settings), 1, 10, path, "it").eval()
        torch.testing.assert_close(imported(sample), network(sample), rtol=1e-4, atol=1e-6)
        usual = load_external(config.Network.model_validate(VGG), 1, 10, path, "it").eval()
        assert not torch.allclose(usual(sample), network(sample), rtol=1e-2)


def test_a_form_is_built_and_trained_like_any_other() -> None:
    torch.manual_seed(0)
    for settings in ({"variant": ["relu_before_addition", "averaged_shortcut"]}, {"shortcut": "A_end"}):
        network = models.build(config.Network.model_validate({"arch": "resnet8", **settings}), 3, 10)
        network(torch.randn(2, 3, 16, 16)).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        for block in network.blocks:
            features = torch.randn(2, block.in_channels, 8, 8)
            assert torch.equal(block.eval()(features), block.activate(block.preactivation(features)))
    usual = config.Network.model_validate({"arch": "resnet8"})
    assert "variant" not in usual.model_dump() and usual == config.Network.model_validate({**usual.model_dump()})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arch": "resnet8", "variant": ["silu", "gelu"]}, "silu and gelu exclude each other"),
        ({"arch": "resnet8", "variant": ["no_last_relu"] * 2}, "names 'no_last_relu' twice"),
        ({"arch": "resnet8", "variant": ["raw_shortcut"]}, "raw_shortcut changes nothing in resnet8; leave it out"),
        ({"arch": "resnet8", "variant": ["pool_every_group"]}, "pool_every_group is a form of VGG; leave it out"),
        ({"arch": "ShuffleV2", "variant": ["silu"]}, "ShuffleV2 comes with one variant only; leave it out"),
    ],
)
def test_forms_that_do_not_exist(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ValidationError, UserError), match=words):
        models.build(config.Network.model_validate(settings), 3, 10)


def test_a_bias_that_nothing_normalises_is_refused(tmp_path: Path) -> None:
    """In front of an addition it would reach the sum, which only a network like WRN normalises later."""
    network = models.build(config.Network(arch="resnet8", shortcut="B"), 3, 10)
    state = network.state_dict()
    assert fold_biases(network, {"stages.1.0.conv1": torch.ones(32)}) == []
    network.stages[1][0].bn2 = nn.Identity()  # type: ignore[index,union-attr]
    assert fold_biases(network, {"stages.1.0.conv2": torch.ones(32)}) == ["stages.1.0.conv2"]
    torch.save({**state, "stages.1.0.conv1.bias": torch.full((32,), torch.nan)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"stages\.1\.0\.conv1\.bias has values that are not finite"):
        load_external(config.Network(arch="resnet8"), 3, 10, tmp_path / "bad.pth", "it")


def test_a_file_that_lacks_some_biases_is_not_filled_with_zeros(tmp_path: Path) -> None:
    state = Vgg().state_dict()
    del state["conv2.bias"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(UserError, match="does not fit vgg8"):
        load_external(config.Network.model_validate(VGG), 1, 10, tmp_path / "partial.pth", "it")
