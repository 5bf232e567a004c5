"""The files of an export that say what it is: written, read again, the same every time."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from iakd import config, models
from iakd.config import Method, Normalisation
from iakd.distillation.registry import deploy
from iakd.errors import UserError
from iakd.export.folder import Model, labels_text, read_labels, read_network, weights_file

OWN = Normalisation(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
STUDENT = config.Network(arch="resnet8", width=4)


def model_file(path: Path, model: Model) -> models.Network:
    network = model.build().eval()
    network.normalisation = OWN
    path.write_bytes(weights_file(network, model))
    return network


def test_the_weights_build_their_network_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    network = model_file(path, Model(STUDENT, (3, 16, 24), 7))
    again = read_network(path)
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(again(images), network(images))
    assert again.normalisation == OWN and not again.training
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["architecture"])["arch"] == "resnet8"
    assert json.loads(metadata["image_size"]) == [16, 24]
    assert json.loads(metadata["normalisation"]) == OWN.model_dump()
    assert (metadata["format"], metadata["channels"], metadata["classes"]) == ("iakd-export-1", "3", "7")


def test_a_network_that_its_method_has_changed_is_built_as_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    method, teacher = Method(method="simkd"), config.Network(arch="resnet8", width=8)
    network = model_file(path, Model(STUDENT, (3, 32, 32), 7, method, teacher))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(read_network(path)(images), network(images))
    plain = models.build(STUDENT, 3, 7)
    deploy(plain, models.build(teacher, 3, 7), method, (3, 32, 32))
    assert set(plain.state_dict()) == set(network.state_dict()) != set(models.build(STUDENT, 3, 7).state_dict())


def test_a_network_of_several_bit_widths_keeps_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    network = model_file(path, Model(config.Network(arch="resnet8", width=4, bits=[2, 8]), (3, 16, 16), 5))
    assert set(read_network(path).state_dict()) == set(network.state_dict())


def test_the_weights_are_the_same_bytes_every_time() -> None:
    model = Model(STUDENT, (3, 16, 16), 5)
    network = model.build()
    network.normalisation = OWN
    assert len({weights_file(network, model) for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"\x10\0\0\0\0\0\0\0{}", "is damaged"),
        (models.save_weights(models.build(STUDENT, 3, 5)), "does not say how its network is built"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}.* {message}.*give the model.safetensors of an exported model$"):
        read_network(path)


def test_metadata_that_builds_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = Model(STUDENT, (3, 16, 16), 5)
    network = model.build()
    network.normalisation = OWN
    whole = weights_file(network, model)
    for old, new in ((b"resnet8", b"resnet9"), (b'\\"arch\\"', b'\\"arhc\\"'), (b"[16, 16]", b"[16. 16]")):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match=str(path) if old != b"resnet8" else "unknown arch"):
            read_network(path)


def test_labels_keep_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(labels_text(["cat", "two words", "Käfer", ""]))
    assert read_labels(path) == ["cat", "two words", "Käfer", ""]
    assert labels_text(["a\nb"]) == "a\\nb\n"
