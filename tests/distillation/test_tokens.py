"""Feature methods between networks whose blocks return tokens: which work, and how the others refuse."""

import pytest
import torch
from digit_training import digit_images
from torch import Tensor, nn

from iakd import config
from iakd.config import METHODS
from iakd.distillation.loss import ForwardOutputs, LossContext
from iakd.distillation.registry import deploy, loss_class
from iakd.errors import UserError
from iakd.models import Network
from iakd.models.features import forward_features
from iakd.models.network import Block
from iakd.training.timeline import Timeline

NEED_MAPS = ["ft", "ab", "reviewkd", "simkd", "srrl"]
FROM_OUTSIDE = ["crd", "hints", "hint_points", "fcfd", "blockkd"]  # tested elsewhere
WORK = [
    name
    for name, entry in METHODS.items()
    if entry.group in ("features", "relations") and name not in NEED_MAPS + FROM_OUTSIDE
]


class Mixer(Block):
    """(B, N, C) → (B, N, C′), a stand-in for a transformer's block."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        self.linear = nn.Linear(before, after)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.linear(tokens) + tokens.mean(1, keepdim=True).mean(2, keepdim=True)).tanh()


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2)


class Mean(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


def transformer(depth: int, width: int) -> Network:
    blocks = [Mixer(width, width) for _ in range(depth)]
    return Network(
        Patches(width), [blocks[: depth // 2], blocks[depth // 2 :]], nn.Sequential(Mean(), nn.Linear(width, 10))
    )


def setting(name: str, widths: tuple[int, int]) -> LossContext:
    student, teacher = transformer(2, widths[0]), transformer(4, widths[1])
    timeline = Timeline.of(config.Recipe(), 10)
    return LossContext(
        config.Method(method=name).options(name), student, teacher.eval(), digit_images(0, 4), timeline, 0
    )


@pytest.mark.parametrize("name", WORK)
def test_tokens_are_positions(name: str) -> None:
    chosen = setting(name, (6, 6) if name == "fsp" else (6, 8))
    part = loss_class(name)(chosen)
    batch = next(digit_images(0, 4).plain(4))
    student = forward_features(chosen.student, batch.images, part.student_features)
    with torch.no_grad():
        teacher = forward_features(chosen.teacher, batch.images, part.teacher_features)
    terms = part(ForwardOutputs(0, batch, student, teacher, torch.zeros(4, 10), None))
    loss = torch.stack(list(terms.values())).sum()
    assert torch.isfinite(loss)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in chosen.student.parameters())


@pytest.mark.parametrize("name", NEED_MAPS)
def test_methods_that_need_maps_refuse_tokens(name: str) -> None:
    chosen = setting(name, (6, 8))
    with pytest.raises(UserError, match=rf"{name} .*maps.*tokens; choose") as caught:
        loss_class(name)(chosen)
        deploy(chosen.student, chosen.teacher, config.Method(method=name), (1, 8, 8))
    assert "\n" not in str(caught.value)
