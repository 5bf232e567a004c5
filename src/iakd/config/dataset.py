"""The settings of the data set, and the registry of sources."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from iakd.config.base import Amount, FilePath, Name, Seed, Strict, did_you_mean
from iakd.plugins import SourceSpec, discover

MAX_SIDE = 4096
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]  # pixels


def _source(summary: str, reader: str, *settings: str) -> SourceSpec:
    return SourceSpec(summary, f"iakd.data.sources.{reader}", frozenset(settings))


SOURCES, _UNUSABLE = discover(
    "iakd.sources",
    SourceSpec,
    {
        "digits": _source(
            "Handwritten digits: 1,797 grey images of 8×8 pixels (UCI repository), installed with scikit-learn.",
            "digits:read",
        ),
        "cifar10": _source(
            "CIFAR-10: 60,000 colour images of 32×32 pixels in 10 classes (Krizhevsky 2009).",
            "cifar:read_cifar10",
            "path",
            "mirror",
            "size",
            "only_test",
        ),
        "cifar100": _source(
            "CIFAR-100: 60,000 colour images of 32×32 pixels in 100 classes and 20 superclasses (Krizhevsky 2009).",
            "cifar:read_cifar100",
            "path",
            "mirror",
            "size",
            "only_test",
            "labels",
        ),
        "fashion_mnist": _source(
            "Fashion-MNIST: 70,000 grey images of 28×28 pixels in 10 classes (Xiao, Rasul, Vollgraf 2017).",
            "fashion_mnist:read",
            "path",
            "mirror",
        ),
        "svhn": _source(
            "SVHN: 99,289 colour images of 32×32 pixels, cropped house numbers in 10 classes (Netzer et al. 2011).",
            "svhn:read",
            "path",
            "mirror",
        ),
        "stl10": _source(
            "STL-10: the 13,000 labelled colour images of 96×96 pixels in 10 classes (Coates, Lee, Ng 2011).",
            "stl10:read",
            "path",
            "mirror",
        ),
        "tiny_imagenet": _source(
            "Tiny-ImageNet: colour images of 64×64 pixels in 200 classes; its validation set serves as test set.",
            "tiny_imagenet:read",
            "path",
            "on_bad_file",
        ),
        "imagenet": _source(
            "ImageNet (ILSVRC 2012): photos in 1,000 classes; its published validation set serves as test set.",
            "folders:read_imagenet",
            "path",
            "size",
            "on_bad_file",
            "storage",
            "crop_pct",
        ),
        "image_folder": _source(
            "Images in one folder per class, optionally below train/, val/ and test/.",
            "folders:read_image_folder",
            "path",
            "size",
            "channels",
            "on_bad_file",
            "storage",
            "crop_pct",
            "list_file",
            "group_by",
        ),
        "parquet": _source(
            "Parquet files in the layout of the Hugging Face Hub: one column of images, one of labels.",
            "parquet:read",
            "path",
            "size",
            "channels",
            "on_bad_file",
            "image_column",
            "label_column",
            "group_by",
        ),
    },
)
_SOME_SOURCES = frozenset[str]().union(
    *(spec.settings for spec in SOURCES.values())
)  # settings that only some sources use


_UNLESS_SET = (  # no part of the identity of data that do not use them
    *("classes", "train_fraction", "images_per_class"),
    *("folds", "fold", "group_by", "list_file"),
)


def _known_source(name: str) -> str:
    if name in _UNUSABLE:
        raise ValueError(f"source {name!r}: {_UNUSABLE[name]}")
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}{did_you_mean(name, SOURCES)}; known: {', '.join(SOURCES)}")
    return name


class GroupBy(Strict):
    """Which images belong together, such as the frames of one video: they are never divided between splits."""

    column: str | None = Field(None, min_length=1, description="column of list_file, or of the Parquet files")
    folder: int | None = Field(
        None, gt=0, description="folder that the image is in, by its name; 1: the innermost, 2: the one above it"
    )
    pattern: str | None = Field(
        None,
        min_length=1,
        description="regular expression that is searched in the image's path below `path`; a group is what its "
        "parentheses match, or all that it matches",
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _one(self) -> "GroupBy":
        if [self.column, self.folder, self.pattern].count(None) != 2:
            raise ValueError("set one of column, folder and pattern")
        return self


class Dataset(Strict):
    """Where images come from and how they are split; read by `iakd prepare`."""

    name: Name = Field("digits", description="results go to results/<name>/; default: the source")
    source: Annotated[str, AfterValidator(_known_source)] = Field(
        "digits",
        json_schema_extra={"enum": [*SOURCES]},
        description="data source; docs/data.md describes each",
    )
    val: Amount = Field(
        300,
        description="validation images, drawn from the training images and stratified by class: a number, or a share "
        "such as 0.1; ignored if the source has validation images; default: 300 for digits, else 0.1",
    )
    test: Amount = Field(
        847,
        description="test images, if the source has no test set of its own: a number, or a share; "
        "default: 847 for digits, else 0.2",
    )
    split_seed: Seed = Field(0, description="random seed of the split")
    folds: int | None = Field(
        None,
        ge=2,
        description="divide the images into so many folds, stratified by class; `fold` is the test split instead of "
        "`test`; default: no folds",
    )
    fold: int | None = Field(
        None,
        ge=0,
        description="the fold that is tested: 0 to folds - 1, or, without `folds`, a value of list_file's column fold",
    )
    group_by: GroupBy | None = Field(
        None, description="keep images of the same group, such as a patient, in one split; default: no groups"
    )
    train_fraction: float | None = Field(
        None, gt=0, le=1, description="share of each class kept for training, at least one image; default: all"
    )
    images_per_class: int | None = Field(
        None, gt=0, description="training images kept per class; replaces train_fraction"
    )
    classes: int | list[str] | None = Field(
        None, description="classes to keep: names, or a number for the first so many of the source; default: all"
    )
    path: FilePath | None = Field(None, description="folder or archive; default: downloaded where possible")
    list_file: FilePath | None = Field(
        None,
        description="CSV or JSON file that lists the images with the columns path (below `path`) and, where it has "
        "them, label, split and fold; default: the folders say it",
    )
    size: Side | tuple[Side, Side] | None = Field(
        None, description="size in pixels, one number or [height, width], to which images are scaled and cropped"
    )
    channels: Literal[1, 3] = Field(3, description="3: colour; 1: grey")
    crop_pct: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the shorter side that the centre crop keeps; with size 224, 0.875 is the usual crop from "
        "a shorter side of 256; default: 1, imagenet: 0.875",
    )
    storage: Literal["auto", "array", "files"] = Field(
        "auto",
        description="files: images stay in their files and are decoded during training; array: decoded once; "
        "auto: array if all images take at most 2 GiB, or if `size` is not set",
    )
    on_bad_file: Literal["refuse", "skip"] = Field(
        "refuse", description="skip: leave the file out and list it in the manifest"
    )
    labels: Literal["fine", "coarse"] = Field("fine", description="cifar100: fine: 100 classes; coarse: 20")
    only_test: bool = Field(False, description="cifar10, cifar100: split and use only the test files")
    image_column: str | None = Field(
        None, description="parquet: column of images; default: the only one that holds images"
    )
    label_column: str | None = Field(
        None, description="parquet: column of labels; default: label, or the only candidate"
    )
    mirror: str | None = Field(
        None,
        pattern=r"^https?://",
        exclude=True,  # the server does not change the data
        description="URL of a folder that is tried before the publisher's server",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_source(cls, data: Any) -> Any:
        source = data.get("source", "digits") if isinstance(data, dict) else "digits"
        if source == "digits" or not isinstance(source, str) or source not in SOURCES:
            return data
        more = {"size": 224, "crop_pct": 0.875} if source == "imagenet" else {}
        return {"name": source, "val": 0.1, "test": 0.2, **more, **data}

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        sides = [value, value] if isinstance(value, int) else value
        if value is not None and (
            not isinstance(sides, list | tuple)
            or len(sides) != 2
            or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides)
        ):
            raise ValueError(f"expected one number of pixels, or [height, width], from 1 to {MAX_SIDE}")
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _classes(cls, value: Any) -> Any:
        names = value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None
        if value is not None and (type(value) is not int or value < 2) and (names is None or len(set(names)) < 2):
            raise ValueError("expected a number of classes, or a list of names; at least two")
        if names and (twice := [name for name in names if names.count(name) > 1]):
            raise ValueError(f"{twice[0]!r} is named twice")
        return value

    @model_validator(mode="after")
    def _options_of_the_source(self) -> "Dataset":
        known = SOURCES[self.source].settings
        for name in sorted(self.model_fields_set & _SOME_SOURCES - known):
            if getattr(self, name) != type(self).model_fields[name].default:
                can = ", ".join(sorted(known)) or "no optional settings"
                raise ValueError(f"{name} is not a setting of source {self.source}, which has: {can}")
        if self.path is None and "path" in known and "mirror" not in known:
            raise ValueError(f"source {self.source} needs `path`: where the files are")
        if self.train_fraction is not None and self.images_per_class is not None:
            raise ValueError("train_fraction and images_per_class exclude each other: set one of them")
        if self.folds is not None and not (self.fold is not None and self.fold < self.folds):
            raise ValueError(f"folds needs `fold`, the one that is tested: 0 to {self.folds - 1}")
        if self.fold is not None and self.folds is None and self.list_file is None:
            raise ValueError("fold needs `folds`, the number of folds, or a list_file with a column fold")
        if self.group_by and self.group_by.column and self.source == "image_folder" and self.list_file is None:
            raise ValueError("group_by.column needs a list_file that has the column")
        if self.group_by and not self.group_by.column and self.source == "parquet":
            raise ValueError("group_by of source parquet needs `column`: its images are not in files of their own")
        if self.storage == "files" and self.size is None:
            raise ValueError("storage files needs `size`: the size to which images are scaled")
        return self

    @model_serializer(mode="wrap")
    def _used(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the settings that the source uses, so that a new setting does not change other data sets' identity."""
        unused = set(_SOME_SOURCES - SOURCES[self.source].settings)
        unused |= {name for name in _UNLESS_SET if getattr(self, name) is None}
        return {name: value for name, value in serialise(self).items() if name not in unused}

    @property
    def height_width(self) -> tuple[int, int] | None:
        """Return `size` as (height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size
