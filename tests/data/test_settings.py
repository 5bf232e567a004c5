"""The settings of a data set: what belongs to which source, amounts, and what is part of an identity."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iakd.config import SOURCES, Dataset, parse
from iakd.data.source_data import SourceData
from iakd.data.splits import count_of, split_source
from iakd.errors import UserError


def dataset(**settings: Any) -> Dataset:
    raw = {"teachers": [{"arch": "resnet8"}], "students": [{"arch": "resnet8"}], "methods": {"kd": {}}}
    return parse({**raw, "dataset": settings}, "here").dataset


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "cifar"}, "dataset.source: unknown source 'cifar' (did you mean 'cifar10'?)"),
        (
            {"source": "cifar10", "labels": "coarse"},
            "labels is not a setting of source cifar10, which has: mirror, only_test, path, size",
        ),
        ({"path": "x"}, "path is not a setting of source digits, which has: no optional settings"),
        ({"source": "image_folder"}, "source image_folder needs `path`"),
        ({"source": "tiny_imagenet"}, "source tiny_imagenet needs `path`"),
        ({"source": "svhn", "path": ""}, "dataset.path: String should have at least 1 character"),
        ({"source": "svhn", "mirror": "file:///etc"}, "dataset.mirror: String should match pattern"),
        ({"source": "image_folder", "path": "x", "size": 0}, "dataset.size: expected one number of pixels"),
        ({"source": "image_folder", "path": "x", "size": [3, 4, 5]}, "dataset.size: expected one number of pixels"),
        ({"source": "image_folder", "path": "x", "size": 5000}, "dataset.size: expected one number of pixels"),
        ({"source": "image_folder", "path": "x", "sice": 8}, "dataset.sice: unknown key (did you mean 'size'?)"),
        ({"val": 1.5}, "dataset.val: must be a whole number of images, or a share below 1"),
        ({"val": 0.0}, "dataset.val: Input should be greater than 0, got 0.0"),
        ({"test": True}, "dataset: test: got true, which is neither a number nor a text"),
        ({"train_fraction": 0}, "dataset.train_fraction: Input should be greater than 0"),
        ({"train_fraction": 1.5}, "dataset.train_fraction: Input should be less than or equal to 1"),
        ({"images_per_class": 0}, "dataset.images_per_class: Input should be greater than 0"),
        ({"train_fraction": 0.5, "images_per_class": 5}, "train_fraction and images_per_class exclude each other"),
        ({"classes": 1}, "dataset.classes: expected a number of classes, or a list of names; at least two"),
        ({"classes": ["3"]}, "dataset.classes: expected a number of classes, or a list of names; at least two"),
        ({"classes": "3"}, "dataset.classes: expected a number of classes, or a list of names; at least two"),
        ({"classes": [3, 5]}, "dataset.classes: expected a number of classes, or a list of names; at least two"),
        ({"classes": ["3", "5", "3"]}, "dataset.classes: '3' is named twice"),
        ({"source": "cifar100", "labels": "course"}, "dataset.labels: Input should be 'fine' or 'coarse'"),
    ],
)
def test_a_mistake_is_one_clear_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        dataset(**settings)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_defaults_are_those_of_the_source() -> None:
    assert dataset().model_dump(mode="json") == {
        "name": "digits",
        "source": "digits",
        "val": 300,
        "test": 847,
        "split_seed": 0,
    }
    assert dataset(classes=["3", "5"]).model_dump(mode="json")["classes"] == ["3", "5"]
    other = dataset(source="svhn")
    assert (other.name, other.val, other.test) == ("svhn", 0.1, 0.2)
    assert dataset(source="svhn", name="x", val=5).val == 5


def test_only_settings_that_matter_to_a_source_are_part_of_its_identity() -> None:
    common = {"name", "source", "val", "test", "split_seed"}
    for source, spec in SOURCES.items():
        path = {"path": "x"} if "path" in spec.settings else {}
        known = set(dataset(source=source, **path).model_dump(mode="json"))
        assert known == common | spec.settings - {"mirror", "group_by", "list_file"}, source
    used = {"folds": 3, "fold": 0, "list_file": "x.csv", "group_by": {"folder": 1}}
    unused = set(dataset(source="image_folder", path="x").model_dump(mode="json"))
    assert set(dataset(source="image_folder", path="x", **used).model_dump(mode="json")) == unused | set(used)


def test_where_the_bytes_come_from_is_no_part_of_an_identity() -> None:
    plain = dataset(source="svhn").model_dump(mode="json")
    assert dataset(source="svhn", mirror="https://here/").model_dump(mode="json") == plain


def test_what_is_written_down_reads_back_the_same() -> None:
    for settings in (
        {"source": "image_folder", "path": "x", "size": [4, 8], "val": 0.25},
        {"images_per_class": 3},
        {"classes": 4},
        {},
    ):
        first = dataset(**settings)
        assert dataset(**first.model_dump(mode="json")) == first
        assert dataset(**first.model_dump(mode="json", exclude_unset=True)) == first


def test_amounts_are_numbers_or_shares_of_the_training_images() -> None:
    assert count_of(5, 100) == 5 and count_of(0.25, 100) == 25 and count_of(0.001, 100) == 1 and count_of(1, 100) == 1
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    raw = SourceData(images, np.arange(40) % 2, None, None, ["a", "b"])
    parts = split_source(raw, Dataset(val=0.1, test=0.25))
    assert {name: len(part.indices) for name, part in parts.items()} == {"train": 26, "val": 4, "test": 10}
    with pytest.raises(UserError, match=r"^dataset\.val \+ dataset\.test: 42 of 40 images leave none"):
        split_source(raw, Dataset(val=0.8, test=10))
    own = SourceData(
        images, np.arange(40) % 2, images[:2], np.array([0, 1]), ["a", "b"], [], images[:4], np.arange(4) % 2
    )
    parts = split_source(own, Dataset())
    assert {name: (len(part.indices), part.origin) for name, part in parts.items()} == {
        "train": (40, "train"),
        "val": (4, "val"),
        "test": (2, "test"),
    }


def test_a_class_without_training_images_is_named_even_where_nothing_is_drawn() -> None:
    images, labels = np.zeros((4, 1, 1, 1), np.uint8), np.array([0, 0, 2, 2])
    raw = SourceData(images, labels, images, labels, ["a", "b", "c"], [], images, labels)
    with pytest.raises(UserError, match="class 'b': none of its 0 images is left for training; add images, or leave"):
        split_source(raw, Dataset())


def test_the_page_on_data_has_every_source_and_setting() -> None:
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    for name in [*SOURCES, *Dataset.model_fields]:
        assert f"`{name}" in page, name
