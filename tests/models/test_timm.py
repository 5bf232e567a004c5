"""timm's classifiers, where the package is installed; and what is said where it is not."""

import sys

import pytest
import torch

from iakd import config, models
from iakd.errors import UserError


def network(name: str, channels: int = 3) -> models.Network:
    return models.build(config.Network(arch=f"timm/{name}"), channels, classes=5)


def test_without_timm_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm/resnet18: timm is not installed; pip install timm"):
        network("resnet18")


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenetv3_small_050", "efficientnet_b0", "convnext_atto", "regnety_002", "vit_tiny_patch16_224"],
)
def test_the_parts_compute_what_the_model_computes(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = network(name).eval()
    model = timm.create_model(name, num_classes=5).eval()
    model.load_state_dict({theirs: net.state_dict()[ours] for theirs, ours in net.original_names.items()})
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(net(images), model(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet999", "timm has no such model"),
        ("ghostnet_100", "no description of this family"),
        ("deit_tiny_distilled_patch16_224", "no description of this family"),
    ],
)
def test_what_cannot_be_cut_is_refused(name: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=message):
        network(name)
