"""The data set."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from iakd.params.base import Amount, Name, Seed, Strict

MAX_SIDE = 4096
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]  # pixels

DATASET_OPTIONS = {  # settings that only some sources have a use for
    "digits": set(),
    "cifar10": {"path", "mirror", "only_test"},
    "cifar100": {"path", "mirror", "only_test", "labels"},
    "fashion_mnist": {"path", "mirror"},
    "svhn": {"path", "mirror"},
    "stl10": {"path", "mirror"},
    "tiny_imagenet": {"path", "on_bad_file"},
    "imagenet": {"path", "size", "on_bad_file", "storage", "crop_pct"},
    "image_folder": {"path", "size", "channels", "on_bad_file", "storage", "crop_pct"},
    "parquet": {"path", "size", "channels", "on_bad_file", "image_column", "label_column"},
}


class Dataset(Strict):
    """Where images come from and how they are split; read by `iakd prepare`."""

    name: Name = Field("digits", description="results go to results/<name>/; default: the source")
    source: Literal[
        "digits",
        "cifar10",
        "cifar100",
        "fashion_mnist",
        "svhn",
        "stl10",
        "tiny_imagenet",
        "imagenet",
        "image_folder",
        "parquet",
    ] = Field("digits", description="which reader in iakd/data/sources/; docs/data.md describes each")
    val: Amount = Field(
        300,
        description="images for validation, drawn from the training images, by class: a number, or a share such as "
        "0.1; not used where the source has validation images; default: 300 of digits, else 0.1",
    )
    test: Amount = Field(
        847,
        description="images for the test, where the source has no test set of its own: a number, or a share; "
        "default: 847 of digits, else 0.2",
    )
    split_seed: Seed = Field(0, description="fixes which image falls in which part")
    train_fraction: float | None = Field(
        None, gt=0, le=1, description="share of each class that is kept for training, at least one image; default: all"
    )
    images_per_class: int | None = Field(
        None, gt=0, description="the same as a number of images; instead of train_fraction"
    )
    path: str | None = Field(None, min_length=1, description="folder or archive; default: downloaded where possible")
    size: Side | tuple[Side, Side] | None = Field(
        None, description="pixels, one number or [height, width]: what images are scaled and cropped to"
    )
    channels: Literal[1, 3] = Field(3, description="3: colour; 1: grey")
    crop_pct: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the shorter side that is kept when the centre is cut out; with size 224, 0.875 is the "
        "customary way from a shorter side of 256; default: 1, imagenet: 0.875",
    )
    storage: Literal["auto", "array", "files"] = Field(
        "auto",
        description="files: images stay in their files and are decoded during the training; array: decoded once; "
        "auto: array where all images take at most 2 GiB, or have no `size`",
    )
    on_bad_file: Literal["refuse", "skip"] = Field("refuse", description="skip: leave out, and list in the manifest")
    labels: Literal["fine", "coarse"] = Field("fine", description="cifar100: 100 classes, or 20")
    only_test: bool = Field(False, description="cifar10, cifar100: split the test files, and use no others")
    image_column: str | None = Field(None, description="parquet; default: the only one that holds images")
    label_column: str | None = Field(None, description="parquet; default: label, or the only one that it could be")
    mirror: str | None = Field(
        None,
        pattern=r"^https?://",
        exclude=True,  # where bytes come from is no part of what they are
        description="address of a folder that is asked for the publisher's files first",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_source(cls, data: Any) -> Any:
        source = data.get("source", "digits") if isinstance(data, dict) else "digits"
        if source == "digits" or source not in DATASET_OPTIONS:
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

    @model_validator(mode="after")
    def _options_of_the_source(self) -> "Dataset":
        known = DATASET_OPTIONS[self.source]
        for name in sorted(self.model_fields_set & set.union(*DATASET_OPTIONS.values()) - known):
            if getattr(self, name) != type(self).model_fields[name].default:
                can = ", ".join(sorted(known)) or "none of the kind"
                raise ValueError(f"{name} is no setting of source {self.source}, which has: {can}")
        if self.path is None and "path" in known and "mirror" not in known:
            raise ValueError(f"source {self.source} needs `path`: where the files are")
        if self.train_fraction is not None and self.images_per_class is not None:
            raise ValueError("train_fraction and images_per_class exclude each other: set one of them")
        if self.storage == "files" and self.size is None:
            raise ValueError("storage files needs `size`: what images are brought to")
        return self

    @model_serializer(mode="wrap")
    def _used(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings without those that the source has no use for: new ones leave the identity of others alone."""
        unused = set.union(*DATASET_OPTIONS.values()) - DATASET_OPTIONS.get(self.source, set())
        unused |= {name for name in ("train_fraction", "images_per_class") if getattr(self, name) is None}
        return {name: value for name, value in serialise(self).items() if name not in unused}

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` as (height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size
