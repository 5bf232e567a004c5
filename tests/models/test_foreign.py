"""Foreign checkpoints: the very function of the network that they were saved from, or one clear line."""

import argparse
import json
import logging
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_networks as public
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from iakd import config, models
from iakd.errors import UserError
from iakd.models.checkpoint_matching import Ambiguous, match
from iakd.models.checkpoints import read_checkpoint
from iakd.models.external_weights import load_external

NETWORKS: dict[str, tuple[dict[str, Any], Callable[[], nn.Module]]] = {
    "downsample behind": ({"arch": "resnet14"}, lambda: public.ThreeStages(14, "plain")),
    "eighteen blocks": ({"arch": "resnet110", "width": 4}, lambda: public.ThreeStages(110, "plain", width=4)),
    "downsample in front": ({"arch": "resnet8"}, lambda: public.ThreeStages(8, "shortcut first")),
    "relu of the block before": ({"arch": "resnet20"}, lambda: public.ThreeStages(20, "late relu")),
    "option A": ({"arch": "resnet20", "shortcut": "A"}, lambda: public.ThreeStages(20, "option A", "linear")),
    "norms behind all": ({"arch": "resnet14"}, lambda: public.ThreeStages(14, "norms last")),
    "no names": ({"arch": "resnet14"}, lambda: public.ThreeStages(14, "nameless")),
    "ResNet18": ({"arch": "ResNet18", "width": 8}, lambda: public.FourStages((2, 2, 2, 2), False, 8)),
    "ResNet50": ({"arch": "ResNet50", "width": 8}, lambda: public.FourStages((3, 4, 6, 3), True, 8)),
    "WRN": ({"arch": "wrn_16_2"}, lambda: public.Wide(16, 2)),
    "VGG": ({"arch": "vgg11", "width": 8}, lambda: public.Vgg(8)),
    "MobileNetV2": ({"arch": "MobileNetV2"}, public.MobileV2),
    "ShuffleV2": ({"arch": "ShuffleV2"}, public.ShuffleTwo),
}
UNORDERED_TOO = set(NETWORKS) - {"no names"}  # safetensors does not keep the order of definition


def settings(**options: Any) -> config.Network:
    return config.Network(name="mine", **options)


def assert_same_function(original: nn.Module, imported: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = original(images), imported.eval()(images)
    assert expected.std() > 1e-3, "a network whose outputs are all alike would prove nothing"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_public_network_loads_unaided_and_computes_the_same(name: str, tmp_path: Path) -> None:
    options, make = NETWORKS[name]
    original = public.randomise(make())
    state = original.state_dict()
    torch.save(state, tmp_path / "model.pth")
    assert_same_function(original, load_external(settings(**options), 3, 10, tmp_path / "model.pth", "the checkpoint"))
    torch.save(dict(sorted(state.items())), tmp_path / "sorted.pth")  # layer1.10 before layer1.2
    assert_same_function(original, load_external(settings(**options), 3, 10, tmp_path / "sorted.pth", "the checkpoint"))
    save_file(dict(state), tmp_path / "model.safetensors")
    if name in UNORDERED_TOO:
        assert_same_function(
            original, load_external(settings(**options), 3, 10, tmp_path / "model.safetensors", "the checkpoint")
        )
    else:
        with pytest.raises(UserError, match="nothing shows which comes first"):
            load_external(settings(**options), 3, 10, tmp_path / "model.safetensors", "the checkpoint")


def test_a_network_of_our_own_and_one_of_torchvision(tmp_path: Path) -> None:
    from torchvision.models import get_model

    for arch, original in (
        ("wrn_10_1", models.build(settings(arch="wrn_10_1"), 3, 10)),
        ("torchvision/resnet18", get_model("resnet18", weights=None, num_classes=10)),
    ):
        public.randomise(original)
        torch.save({"model": {f"module.{k}": v for k, v in original.state_dict().items()}}, tmp_path / "model.pth")
        imported = load_external(settings(arch=arch), 3, 10, tmp_path / "model.pth", "the checkpoint").eval()
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(imported(images), original(images))


STATE = public.randomise(public.ThreeStages(8, "plain")).state_dict()
SHIFTED = {name: tensor + 1 for name, tensor in STATE.items()}
CHECKPOINTS: dict[str, Any] = {
    "parallel": {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in STATE.items()}, "best_acc": np.float64(9.3)},
    "compiled": {"net": {f"_orig_mod.module.{k}": v for k, v in STATE.items()}, "args": argparse.Namespace(lr=0.1)},
    "lightning": {"state_dict": {f"model.backbone.{k}": v for k, v in STATE.items()}, "hyper_parameters": {"lr": 1}},
    "nested": {
        "checkpoint": {"model": {"state_dict": STATE}},
        "optimizer": torch.optim.SGD([torch.ones(3)]).state_dict(),
    },
    "profiled": {**STATE, "total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)},
    "old": {k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")},
    "averaged": {"n_averaged": torch.tensor(4), **{f"module.{k}": v for k, v in STATE.items()}},
    "moving average beside": {"model_ema": SHIFTED, "model": STATE},
    "teacher and student": {"student": public.ThreeStages(8, "plain", width=4).state_dict(), "teacher": STATE},
    "half precision": {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
    "sorted": dict(sorted(STATE.items())),
    "parameters": nn.ParameterDict({k.replace(".", "/"): nn.Parameter(v.float()) for k, v in STATE.items()}),
}
CHECKPOINTS["parameters"] = {k.replace("/", "."): v for k, v in CHECKPOINTS["parameters"].items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_many_forms(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which of several networks was taken is said, as they may fit alike."""
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(CHECKPOINTS[name], path)
    with caplog.at_level(logging.INFO):
        found = load_external(settings(arch="resnet8"), 3, 10, path, "the checkpoint").state_dict()
    assert caplog.messages == {
        "moving average beside": ["the checkpoint: the weights, in model, not those in model_ema"],
        "teacher and student": ["the checkpoint: the weights, in teacher, not those in student"],
    }.get(name, [])
    assert torch.allclose(found["stem.0.weight"], STATE["conv1.weight"], rtol=1e-3)
    assert torch.allclose(
        found["stages.2.0.shortcut.1.bias"], STATE["layer3.0.downsample.1.bias"], rtol=1e-3, atol=1e-3
    )
    assert found["stem.1.num_batches_tracked"] == (0 if name == "old" else 17)


def test_old_pickles_and_exported_programs(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_external(settings(arch="resnet8"), 3, 10, tmp_path / "old.pth", "the checkpoint")
    original = public.randomise(public.ThreeStages(8, "plain"))
    program = torch.export.export(original, (torch.randn(2, 3, 32, 32),))
    torch.export.save(program, tmp_path / "model.pt2")
    assert_same_function(
        original, load_external(settings(arch="resnet8"), 3, 10, tmp_path / "model.pt2", "the checkpoint")
    )


@pytest.mark.parametrize("name", ["model.pt2", "new.pth"])
def test_a_checkpoint_that_was_compressed_is_not_unpacked(name: str, tmp_path: Path) -> None:
    """A few kilobytes could be any number of gigabytes."""
    path = tmp_path / name
    if name == "new.pth":
        torch.save({"fc.weight": torch.zeros(1000, 100)}, path)
    else:
        torch.export.save(torch.export.export(torch.nn.Linear(1000, 100), (torch.zeros(1, 1000),)), path)
    with zipfile.ZipFile(path) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    read_checkpoint(path, "the checkpoint")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in contents.items():
            archive.writestr(member, content + bytes(10_000_000 if member.endswith("/0") else 0))
    with pytest.raises(UserError, match=r"^the checkpoint is compressed, from \d+ MiB, which torch never does"):
        read_checkpoint(path, "the checkpoint")


def test_a_tensor_that_claims_to_be_larger_than_its_content_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),)), path)
    with zipfile.ZipFile(path) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in contents.items():
            if member.endswith("model_weights_config.json"):
                config = json.loads(content)
                about = config["config"]["weight"]["tensor_meta"]
                about["sizes"], about["strides"] = [{"as_int": 10**12}, {"as_int": 4}], [{"as_int": 0}, {"as_int": 1}]
                content = json.dumps(config).encode()
            archive.writestr(member, content)
    with pytest.raises(UserError, match=r"damaged \(a tensor is larger than its content\); copy it again"):
        read_checkpoint(path, "the checkpoint")


# --- what does not fit ---


def refusal(tmp_path: Path, content: Any, classes: int = 10, channels: int = 3, **options: Any) -> str:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    with pytest.raises(UserError) as caught:
        load_external(settings(**options), channels, classes, path, "the checkpoint")
    message = str(caught.value)
    assert message.startswith("the checkpoint") and "\n" not in message
    return message


def test_a_setting_that_would_fit_is_named(tmp_path: Path) -> None:
    option_a = public.ThreeStages(8, "option A", "linear").state_dict()
    message = refusal(tmp_path, option_a, arch="resnet8")
    assert "has no convolutions in its shortcuts; it fits a teacher with shortcut: A" in message
    message = refusal(tmp_path, STATE, arch="resnet8", shortcut="A")
    assert "has convolutions in its shortcuts; it fits a teacher with shortcut: B" in message
    assert "it fits a teacher without width" in refusal(tmp_path, STATE, arch="resnet8", width=8)
    narrow = public.ThreeStages(8, "plain", width=4).state_dict()
    assert "it fits a teacher with width: 4" in refusal(tmp_path, narrow, arch="resnet8")
    assert "it fits a teacher with arch: MobileNetV2" in refusal(tmp_path, public.MobileV2().state_dict(), arch="vgg8")


def test_another_number_of_classes_or_channels(tmp_path: Path) -> None:
    message = refusal(tmp_path, STATE, classes=100, arch="resnet8")
    assert message.endswith("it tells 10 classes apart, and the data set has 100")
    assert "images of 3 channels, and the data set's have 1" in refusal(tmp_path, STATE, channels=1, arch="resnet8")
    both = refusal(tmp_path, STATE, classes=7, arch="resnet20")
    assert "it fits a teacher with arch: resnet8" in both and "10 classes" in both


def test_another_architecture_is_shown_as_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = public.ThreeStages(8, "plain").state_dict()
    other["layer1.0.attention.weight"] = torch.zeros(16, 2)
    with caplog.at_level(logging.ERROR):
        assert "does not fit resnet8, 1 tensor differs" in refusal(tmp_path, other, arch="resnet8")
    assert caplog.messages[-1].splitlines() == [
        "here  shape  in the file                shape",
        "–            layer1.0.attention.weight  16×2",
    ]
    ours = models.build(settings(arch="resnet8"), 3, 10).state_dict()
    ours["stem.0.weight"] = torch.zeros(16, 3, 5, 5)
    del ours["head.2.bias"]
    with caplog.at_level(logging.ERROR):
        refusal(tmp_path, ours, arch="resnet8")
    rows = [line.split() for line in caplog.messages[-1].splitlines()[1:]]
    assert rows == [["stem.0.weight", "16×3×3×3", "stem.0.weight", "16×3×5×5"], ["head.2.bias", "10", "–"]]
    with caplog.at_level(logging.ERROR):
        refusal(tmp_path, nn.Sequential(*(nn.Linear(5, 5) for _ in range(50))).state_dict(), arch="resnet8")
    lines = caplog.messages[-1].splitlines()
    assert len(lines) == 14
    assert [line.startswith("–") for line in lines[1:7]] == [False, True] * 3, "the first rows show both sides"


class PreActivation(nn.Module):
    """The same shapes in the same order as in an ordinary ResNet, shifted by one normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = public.conv(3, 16, 3)
        for stage, (a, b) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            block = nn.Module()
            block.bn1, block.conv1 = nn.BatchNorm2d(a), public.conv(a, b, 3)
            block.bn2, block.conv2 = nn.BatchNorm2d(b), public.conv(b, b, 3)
            setattr(self, f"layer{stage}", nn.Sequential(block))
        self.bn1 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 10)


def test_layers_of_the_right_shapes_in_blocks_of_another_kind_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, PreActivation().state_dict(), arch="resnet8", shortcut="A")
    assert "has the layers of resnet8, but its blocks are composed differently; nothing was loaded" in message


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    broken = {**STATE, "fc.weight": STATE["fc.weight"] * torch.nan}
    assert "fc.weight has values that are not finite" in refusal(tmp_path, broken, arch="resnet8")


def test_an_ambiguous_order_is_refused() -> None:
    """Two modules with the same layers, and names that do not tell their order."""
    network = {"stem.0.weight": (4, 3, 3, 3), "stages.0.0.a.weight": (4, 4, 1, 1), "stages.1.0.a.weight": (4, 4, 1, 1)}
    checkpoint = {"in.weight": (4, 3, 3, 3), "left.weight": (4, 4, 1, 1), "right.weight": (4, 4, 1, 1)}
    with pytest.raises(Ambiguous, match="several orders"):
        match(network, checkpoint, {}, ordered=False)
    assert match(network, checkpoint, {}, ordered=True) == dict(zip(network, checkpoint, strict=True))


# --- files without usable weights ---


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("it ran",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Evil(), r"other objects than tensors \(print\) and is not opened.*state_dict"),
        (nn.Linear(2, 2), r"other objects than tensors \(torch.nn.modules.linear.Linear\)"),
        ({"epoch": 3, "loss": 0.5}, "holds no weights of a network"),
        ({"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}}, "holds no weights of a network"),
        ([STATE], "holds no weights of a network"),
    ],
)
def test_a_file_with_other_things(content: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=words):
        load_external(settings(arch="resnet8"), 3, 10, tmp_path / "odd.pth", "the checkpoint")
    assert capsys.readouterr().out == ""


def test_damaged_files_and_files_of_other_kinds(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "whole.pth")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(dict(STATE), tmp_path / "whole.safetensors")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "whole.pt2")
    path = tmp_path / "odd"
    for whole in ("whole.pth", "old.pth", "whole.safetensors", "whole.pt2"):
        content = (tmp_path / whole).read_bytes()
        for end in (20_000, len(content) // 2):  # PyTorch says an OSError of the one, a RuntimeError of the other
            path.write_bytes(content[: min(end, len(content) // 2)])
            with pytest.raises(UserError, match=r"the checkpoint is truncated or damaged \(.+\); copy it again"):
                load_external(settings(arch="resnet8"), 3, 10, path, "the checkpoint")
    for content in (b"", b"<!DOCTYPE html><html>", b"hello"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="the checkpoint is not a checkpoint"):
            load_external(settings(arch="resnet8"), 3, 10, path, "the checkpoint")
    for missing in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="is not a file"):
            load_external(settings(arch="resnet8"), 3, 10, missing, "the checkpoint")


def test_a_scripted_program_is_named_so(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "script.pt")
    with pytest.raises(UserError, match="a TorchScript program and is not opened"):
        load_external(settings(arch="resnet8"), 3, 10, tmp_path / "script.pt", "the checkpoint")
