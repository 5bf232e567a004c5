"""Cost and speed of networks whose cost is known."""

import pytest
import torch
from torch import nn

from iakd import models
from iakd.config import Network
from iakd.evaluation.measure import measure_speed
from iakd.models.flops import model_cost


def test_cost_of_a_small_network_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),  # 8×8 → 4×4
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    found = model_cost(network, (3, 8, 8))
    assert found["parameters"] == 4 * 3 * 9 + 2 * 4 + 64 * 5 + 5
    assert found["macs"] == 4 * 4 * 4 * 3 * 9 + 64 * 5


def test_resnet20_is_the_published_size():
    network = models.build(Network(arch="resnet20", shortcut="A"), channels=3, classes=10)
    found = model_cost(network, (3, 32, 32))
    assert found["parameters"] == 269_722  # He et al. 2016, table 6: 0.27 M
    assert found["macs"] == pytest.approx(40.55e6, rel=0.001)
    option_b = model_cost(models.build(Network(arch="resnet20"), 3, 10), (3, 32, 32))
    assert option_b["parameters"] == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert option_b["macs"] - found["macs"] == 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64


def test_measuring_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model_cost(network, (1, 8, 8))
    found = measure_speed(network, torch.rand(4, 1, 8, 8), latency_runs=3)
    assert network.training and network[1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert found["latency_ms"] > 0 and found["images_per_s"] > 0


@pytest.mark.parametrize(
    ("batch", "images_per_s"),
    [
        pytest.param([0.009, 0.008, 0.007, 0.009], 500, id="fast: three runs after the warm-up"),
        pytest.param([2.0], 2, id="slow: a single run"),
    ],
)
def test_speed_is_the_median(batch, images_per_s, monkeypatch):
    """A clock on which runs of one image take 9 (warm-up), 1, 5 and 2 ms, and those of a batch of four `batch` s."""
    gaps = iter([0.009, 0.001, 0.005, 0.002, *batch])
    now = [0.0]
    ticks = [0]

    def clock() -> float:
        ticks[0] += 1
        if ticks[0] % 2 == 0:
            now[0] += next(gaps)
        return now[0]

    monkeypatch.setattr("iakd.evaluation.measure.time.perf_counter", clock)
    found = measure_speed(nn.Flatten(), torch.rand(4, 1, 2, 2), latency_runs=3)
    assert found["latency_ms"] == pytest.approx(2.0)
    assert found["images_per_s"] == pytest.approx(images_per_s)
    assert next(gaps, None) is None
