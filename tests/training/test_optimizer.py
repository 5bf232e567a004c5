"""Optimisers, their state in another memory layout, and the moving average of weights: against formulas in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from iakd.config import Recipe
from iakd.models.quantisation import quantise
from iakd.training.optimizer import WeightAverage, load_state, make_optimizer, set_lr

GRADIENTS = np.random.default_rng(0).normal(size=(4, 3))
START = np.array([1.0, -2.0, 0.5])


def stepped(recipe: Recipe, rates: list[float] | None = None) -> torch.Tensor:
    """A parameter after a step for each of GRADIENTS."""
    parameter = nn.Parameter(torch.tensor(START, dtype=torch.float32))
    optimizer = make_optimizer([parameter], recipe)
    for position, gradient in enumerate(GRADIENTS):
        if rates:
            set_lr(optimizer, rates[position])
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_sgd_is_its_formula(momentum: float, nesterov: bool) -> None:
    """v ← μ·v + g + λ·w; w ← w − η·(g + λ·w + μ·v) with Nesterov's momentum, else w − η·v."""
    recipe = Recipe(optimizer="sgd", lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.2)
    w, v = START.copy(), np.zeros(3)
    for gradient in GRADIENTS:
        g = gradient + 0.2 * w
        v = momentum * v + g
        w = w - 0.1 * (g + momentum * v if nesterov else v)
    assert stepped(recipe).numpy() == pytest.approx(w, abs=1e-5)


def test_adamw_is_its_formula() -> None:
    """Decay apart from the gradient's moments (Loshchilov & Hutter 2019, algorithm 2)."""
    w, m, v = START.copy(), np.zeros(3), np.zeros(3)
    for t, g in enumerate(GRADIENTS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * 0.2 * w
        w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert stepped(Recipe(optimizer="adamw", lr=0.1, weight_decay=0.2)).numpy() == pytest.approx(w, abs=1e-5)


def test_the_rate_can_be_set_for_every_step() -> None:
    recipe = Recipe(optimizer="sgd", lr=9.0, momentum=0.0, nesterov=False, weight_decay=0.0)
    rates = [0.1, 0.2, 0.4, 0.0]
    assert stepped(recipe, rates).numpy() == pytest.approx(START - np.array(rates) @ GRADIENTS, abs=1e-6)


def test_a_parameter_s_own_rate_is_a_multiple_of_the_recipe_s_in_every_step() -> None:
    recipe = Recipe(optimizer="sgd", lr=9.0, momentum=0.0, nesterov=False, weight_decay=0.0)
    plain, slow = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = make_optimizer([plain, slow], recipe, lr_factors={slow: 0.25})
    assert [group["lr"] for group in optimizer.param_groups] == [9.0, 2.25]
    rates = [0.1, 0.2, 0.4, 0.0]
    for rate, gradient in zip(rates, GRADIENTS, strict=True):
        set_lr(optimizer, rate)
        plain.grad, slow.grad = (torch.tensor(gradient, dtype=torch.float32) for _ in range(2))
        optimizer.step()
    assert plain.tolist() == pytest.approx(-np.array(rates) @ GRADIENTS, abs=1e-6)
    assert slow.tolist() == pytest.approx(-0.25 * np.array(rates) @ GRADIENTS, abs=1e-6)


def test_parameters_of_the_same_rate_are_one_group() -> None:
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    (group,) = make_optimizer(parameters, Recipe(), lr_factors={parameters[1]: 1.0}).param_groups
    assert all(a is b for a, b in zip(group["params"], parameters, strict=True))


def test_a_parameter_without_a_gradient_rests_and_joins_later() -> None:
    """A swapped-out block: its first step is that of a parameter whose momentum is zero."""
    early, late = (nn.Parameter(torch.ones(3)) for _ in range(2))
    recipe = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.1)
    optimizer = make_optimizer([early, late], recipe)
    early.grad = torch.ones(3)
    optimizer.step()
    assert late.tolist() == [1, 1, 1]
    late.grad = torch.ones(3)
    optimizer.step()
    assert late.tolist() == pytest.approx([1 - 0.1 * 1.1] * 3)
    assert early.tolist() == pytest.approx([1 - 0.11 - 0.1 * (0.9 * 1.1 + 1 + 0.1 * 0.89)] * 3)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_goes_on_in_another_memory_layout(name: str) -> None:
    """Two steps in one layout and one in the other are three steps, bit by bit, and the state takes the new layout."""
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, 4, 3, 2, 2, generator=generator)
    recipe = Recipe(optimizer=name, lr=0.1, weight_decay=0.1)

    def run(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, these: list[torch.Tensor]) -> None:
        for gradient in these:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()

    whole = nn.Parameter(start.clone())
    steps = make_optimizer([whole], recipe)
    run(whole, steps, gradients)
    first = nn.Parameter(start.clone())
    before = make_optimizer([first], recipe)
    run(first, before, gradients[:2])
    second = nn.Parameter(first.detach().clone().to(memory_format=torch.channels_last))
    after = make_optimizer([second], recipe)
    load_state(after, before.state_dict())
    tensors = [value for value in after.state[second].values() if value.dim()]
    assert tensors and all(value.stride() == second.stride() for value in tensors)
    run(second, after, gradients[2:])
    assert torch.equal(second, whole)


def test_the_average_follows_the_weights() -> None:
    """It is the network after the first update, then decay·average + (1 − decay)·network; counts are copied."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(network, decay=0.75)
    expected: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.fill_(step)
            now = tensor.clone()
            expected[name] = 0.75 * expected[name] + 0.25 * now if step and now.is_floating_point() else now
        average.update()
        for name, tensor in average.module.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_range_of_a_layer_that_has_seen_nothing_yet_is_averaged_from_its_first_batch_on() -> None:
    """A swapped-out block has infinite ranges, whose average would be NaN for good."""
    network = nn.Sequential(nn.Linear(3, 3))
    quantise(network, 4)
    average = WeightAverage(network, decay=0.75)
    ranges = network[0].quantiser.range, average.module[0].quantiser.range
    for _ in range(2):
        average.update()
    assert ranges[1].tolist() == [math.inf, -math.inf]
    for now, expected in (((-1.0, 3.0), (-1.0, 3.0)), ((-2.0, 3.0), (-1.25, 3.0))):
        ranges[0].copy_(torch.tensor(now))
        average.update()
        assert ranges[1].tolist() == list(expected)


def test_an_average_goes_on_from_its_state() -> None:
    network = nn.Linear(1, 1, bias=False)
    one = WeightAverage(network, decay=0.5)
    nn.init.constant_(network.weight, 4.0)
    assert WeightAverage(network, decay=0.5).state_dict()["started"] is False
    one.update()
    nn.init.constant_(network.weight, 8.0)
    other = WeightAverage(network, decay=0.5)
    other.load_state_dict(one.state_dict())
    other.update()
    assert other.module.weight.item() == pytest.approx(6.0)
    assert one.module.weight.item() == 4.0
