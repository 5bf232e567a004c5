"""A teacher: a network that is trained here, or one that the user brings."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from iakd.config.base import Strict
from iakd.config.training import Network

REGISTRY, TORCHVISION = "models:/", "torchvision:"


class Normalisation(Strict):
    """How images become a network's input: (value − mean) / std, values from 0 to 1."""

    mean: list[float] = Field(min_length=1, description="per channel; a single number holds for all")
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, description="the same")

    def of_channels(self, channels: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel. Raises ValueError where there are others than `channels`."""
        for values in (self.mean, self.std):
            if len(values) not in (1, channels):
                raise ValueError(f"has {len(values)} channels, and the images have {channels}")
        return (self.mean * channels)[:channels], (self.std * channels)[:channels]


USUAL = {
    "imagenet": Normalisation(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    "cifar10": Normalisation(mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616]),
    "cifar100": Normalisation(mean=[0.5071, 0.4865, 0.4409], std=[0.2673, 0.2564, 0.2762]),
    "half": Normalisation(mean=[0.5], std=[0.5]),
    "none": Normalisation(mean=[0.0], std=[1.0]),
}


class Teacher(Network):
    """A network that students learn from; with `checkpoint` it is imported, else trained."""

    checkpoint: str | None = Field(
        None,
        min_length=1,
        description="weights of a trained teacher: a file; models:/NAME/VERSION or models:/NAME@ALIAS in MLflow's "
        "registry; torchvision:IMAGENET1K_V2 and the like; default: it is trained here",
    )
    normalisation: Normalisation | Literal["imagenet", "cifar10", "cifar100", "half", "none"] | None = Field(
        None,
        description="of the images that the checkpoint was trained on; half: 0.5 and 0.5; none: values from 0 to 1; "
        "default: the data set's own, for torchvision: the one it was trained with",
    )

    @model_validator(mode="before")
    @classmethod
    def _normalisation_of_torchvision(cls, data: Any) -> Any:
        if isinstance(data, dict) and str(data.get("checkpoint")).startswith(TORCHVISION):
            usual = "half" if str(data.get("arch")).endswith("efficientnet_v2_l") else "imagenet"
            return {**data, "normalisation": data.get("normalisation") or usual}
        return data

    @model_validator(mode="after")
    def _only_with_a_checkpoint(self) -> "Teacher":
        if self.normalisation is not None and self.checkpoint is None:
            raise ValueError("normalisation is a setting of a teacher with a `checkpoint`; others take the data set's")
        if self.checkpoint and self.checkpoint.startswith(TORCHVISION) and not self.arch.startswith("torchvision/"):
            raise ValueError(f"{self.checkpoint} is for an arch torchvision/…, not for {self.arch}")
        return self

    @model_serializer(mode="wrap")
    def _used(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings without those of imported teachers where they are not used: a trained one keeps its identity."""
        unused = [name for name in ("checkpoint", "normalisation") if getattr(self, name) is None]
        return {name: value for name, value in serialise(self).items() if name not in unused}

    @property
    def path(self) -> Path | None:
        """The checkpoint, where it is a file and not a name in some registry."""
        if self.checkpoint is None or self.checkpoint.startswith((REGISTRY, TORCHVISION)):
            return None
        return Path(self.checkpoint).expanduser()

    @property
    def own_normalisation(self) -> Normalisation | None:
        """The normalisation in numbers; None: the data set's."""
        return USUAL[self.normalisation] if isinstance(self.normalisation, str) else self.normalisation
