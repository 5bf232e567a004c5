"""A network with a normalisation of its own sees the very images that it was trained on."""

import json

import pytest
import torch
from safetensors import safe_open

from iakd import config, models
from iakd.config import Normalisation
from iakd.errors import UserError
from iakd.models.flops import model_cost
from iakd.models.normalisation import Renormalise, adapt_input, input_conversion
from iakd.models.shapes import feature_shapes

DATA = Normalisation(mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.125])
OWN = Normalisation(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def normalised(images: torch.Tensor, by: Normalisation) -> torch.Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in by.of_channels(3))
    return (images.double() - mean) / std


def network() -> models.Network:
    return models.build(config.Network(arch="resnet8", width=4), 3, 5).eval()


def test_from_one_normalisation_to_another() -> None:
    images = torch.rand(2, 3, 8, 8)
    found = Renormalise(DATA, OWN, 3)(normalised(images, DATA).float())
    torch.testing.assert_close(found.double(), normalised(images, OWN), rtol=1e-5, atol=1e-6)
    raw = Renormalise(DATA, config.Teacher(arch="x", checkpoint="y", normalisation="none").own_normalisation, 3)
    torch.testing.assert_close(raw(normalised(images, DATA).float()), images, rtol=1e-5, atol=1e-6)


def test_the_network_does_it_before_its_stem_and_stays_a_plain_network() -> None:
    net, images = network(), torch.rand(2, 3, 16, 16)
    plain, names, costs = net(normalised(images, OWN).float()), set(net.state_dict()), model_cost(net, (3, 16, 16))
    adapt_input(net, OWN, DATA.mean, DATA.std)
    torch.testing.assert_close(net(normalised(images, DATA).float()), plain, rtol=1e-4, atol=1e-5)
    assert set(net.state_dict()) == names and model_cost(net, (3, 16, 16)) == costs
    assert len(feature_shapes(net, (3, 16, 16))) == 4
    assert net.input(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_data_sets_own_normalisation_costs_nothing() -> None:
    net = network()
    for own in (None, DATA):
        adapt_input(net, own, DATA.mean, DATA.std)
        assert isinstance(net.input, torch.nn.Identity)


def test_channels_that_differ_are_refused_and_one_number_holds_for_all() -> None:
    net = network()
    with pytest.raises(UserError, match="normalisation of the teacher: it has 3 channels, and the images have 1"):
        adapt_input(net, OWN, [0.1], [0.2])
    adapt_input(net, Normalisation(mean=[0.5], std=[0.5]), DATA.mean, DATA.std)
    assert net.input(torch.zeros(1, 3, 1, 1)).flatten().tolist() == pytest.approx([-0.8, -0.6, -0.4])


def test_weights_carry_the_normalisation_for_whoever_deploys_them(tmp_path) -> None:
    net = network()
    adapt_input(net, OWN, DATA.mean, DATA.std)
    content = models.save_weights(net)
    assert models.save_weights(net) == content
    (tmp_path / "model.safetensors").write_bytes(content)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["normalisation"]) == {"mean": OWN.mean, "std": OWN.std}
    other = network()
    models.load_weights(other, content, "")
    assert torch.equal(other.stem[0].weight, net.stem[0].weight)


def test_a_swapped_first_block_without_a_stem_sees_what_its_teacher_sees() -> None:
    """VGG's first block takes the image itself."""
    images = torch.rand(2, 3, 16, 16)
    student, teacher = (models.build(config.Network(arch="vgg8", width=4), 3, 5).eval() for _ in range(2))
    for own in (None, OWN):
        adapt_input(student, own, DATA.mean, DATA.std)
        adapt_input(teacher, OWN, DATA.mean, DATA.std)
        shown = normalised(images, DATA).float()
        swapped = torch.nn.Sequential(*input_conversion(student, teacher), teacher.blocks[0])
        expected = teacher.blocks[0](teacher.enter(shown))
        torch.testing.assert_close(swapped(student.enter(shown)), expected, rtol=1e-4, atol=1e-5)
    assert input_conversion(student, teacher) == [], "the student has the teacher's normalisation already"
    assert input_conversion(network(), teacher) == []
