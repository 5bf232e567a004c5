"""Every setting of an experiment, defined once: names, types, bounds, defaults and what each means.

`params.yaml` is read into `Params`; `workflow/schemas/params.schema.json` is generated from it (`iakd schema`).
"""

import difflib
import json
import re
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from iakd.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]  # no '-': it separates teacher and student
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
MAX_SIDE = 4096
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]  # pixels


class Strict(BaseModel):
    """A section that refuses unknown keys and cannot be changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Amount = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)]

DATASET_OPTIONS = {  # settings that only some sources have a use for
    "digits": set(),
    "cifar10": {"path", "mirror", "only_test"},
    "cifar100": {"path", "mirror", "only_test", "labels"},
    "fashion_mnist": {"path", "mirror"},
    "svhn": {"path", "mirror"},
    "stl10": {"path", "mirror"},
    "tiny_imagenet": {"path", "on_bad_file"},
    "image_folder": {"path", "size", "channels", "on_bad_file"},
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
    path: str | None = Field(None, min_length=1, description="folder or archive; default: downloaded where possible")
    size: Side | tuple[Side, Side] | None = Field(
        None, description="pixels, one number or [height, width]: what images are scaled and cropped to"
    )
    channels: Literal[1, 3] = Field(3, description="3: colour; 1: grey")
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
        return {"name": source, "val": 0.1, "test": 0.2, **data}

    @field_validator("val", "test", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise PydanticKnownError("int_type")
        if not value > 0:
            raise PydanticKnownError("greater_than", {"gt": 0})
        if isinstance(value, float) and value >= 1:
            raise ValueError("a share of the images lies below 1, and a number of images is a whole number")
        return value

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
        return self

    @model_serializer(mode="wrap")
    def _used(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings without those that the source has no use for: new ones leave the identity of others alone."""
        unused = set.union(*DATASET_OPTIONS.values()) - DATASET_OPTIONS.get(self.source, set())
        return {name: value for name, value in serialise(self).items() if name not in unused}

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` as (height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Network(Strict):
    """A network of the zoo; docs/networks.md lists them."""

    name: Name = Field("", description="how results name it; default: the architecture and its width")
    arch: str = Field(description="resnet56, wrn_40_2, vgg13, MobileNetV2, ShuffleV2, torchvision/resnet50, timm/…")
    width: int | None = Field(None, gt=0, description="channels of the first stage; default: the architecture's own")
    shortcut: Literal["A", "B"] = Field(
        "B", description="resnet8 … resnet110x4; A: zero-padded identity; B: 1×1 convolution"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("arch"), str):
            width = data.get("width")
            plain = re.sub(r"[^A-Za-z0-9_.]", "_", data["arch"])  # torchvision/resnet50: no folder of its own
            data = {**data, "name": plain + (f"w{width}" if width else "")}
        return data


def network_called(name: str, role: Literal["teacher", "student"], settings: "Params | None") -> Network:
    """The network that `settings` call `name`, those in this role first; otherwise the architecture of this name."""
    if settings:
        ordered = [settings.teachers, settings.students]
        for network in chain(*(ordered if role == "teacher" else reversed(ordered))):
            if network.name == name:
                return network
    return Network.model_validate({"arch": name})


class Augment(Strict):
    """Random changes of a training image, drawn anew each time it is shown."""

    pad: int = Field(0, ge=0, description="pixels of zero padding before a random crop to the old size: shifts")
    flip: bool = Field(False, description="mirror half of the images left to right")


class LrSchedule(Strict):
    """The learning rate over a training; fractions are of its epochs."""

    kind: Literal["multistep", "cosine", "onecycle", "constant"] = "multistep"
    milestones: list[Fraction] = Field([0.625, 0.75, 0.875], description="multistep: where the rate drops")
    gamma: float = Field(0.1, gt=0, le=1, description="multistep: factor of each drop")
    warmup: Fraction = Field(0.0, description="linear growth from 0 (onecycle: the rising part)")

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError("must ascend")
        return value


class Recipe(Strict):
    """How one network is trained."""

    epochs: int = Field(240, gt=0)
    batch_size: int = Field(64, gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0, description="the highest learning rate")
    momentum: Fraction = Field(0.9, description="sgd")
    nesterov: bool = Field(False, description="sgd")
    weight_decay: float = Field(5e-4, ge=0)
    lr_schedule: LrSchedule = LrSchedule()
    label_smoothing: Fraction = Field(0.0, description="of every cross-entropy in the loss")
    clip_norm: float | None = Field(None, gt=0, description="bound on the norm of the whole gradient")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast; losses stay in float32")
    ema: float | None = Field(None, gt=0, lt=1, description="decay per step of a moving average of the weights")
    augment: Augment = Augment()
    validate_every: int = Field(10, gt=0, description="epochs between two validations; the last one always is")


class Schedule(Strict):
    """p(t), the probability that a student block is KEPT, over the progress t ∈ [0, 1] of the training."""

    kind: Literal["uniform", "linear", "review", "cosine", "step", "sigmoid", "cyclic"] = "linear"
    p0: Fraction = Field(0.5, description="at the start")
    p1: Fraction = Field(1.0, description="at t_end (all but uniform)")
    t_end: float = Field(0.8, gt=0, le=1, description="progress at which p1 is reached (review: of each phase)")
    slope: float = Field(0.0, ge=-2, le=2, description="tilt over depth: the last block's p minus the first's")
    solo: Fraction = Field(0.2, description="last part of the training, at p = 1")
    cycles: int = Field(3, gt=0, description="cyclic; review where the learning rate has no drops")
    steps: int = Field(4, gt=0, description="step: number of equal stairs from p0 to p1")
    steepness: float = Field(10.0, gt=0, description="sigmoid: slope in the middle; 10 is nearly flat at both ends")


class Kd(Strict):
    """Hinton's distillation, ce_weight·CE + kd_weight·T²·KL(teacher_T ‖ student_T)."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)


class LabelSmoothing(Strict):
    """Cross-entropy with smoothed labels."""

    epsilon: Fraction = 0.1


class Iakd(Strict):
    """Interactive distillation: student blocks swapped at random for the teacher's."""

    schedule: Schedule | Literal["tuned"] = Field(Schedule(), description="'tuned': what `iakd tune` found")
    teacher_bn: Literal["eval", "batch"] = Field(
        "eval", description="statistics in swapped blocks: running or the batch's"
    )
    stem: Literal["student", "teacher"] = Field("student", description="teacher: copied and frozen")
    head: Literal["student", "teacher"] = Field("student", description="teacher: copied and frozen")
    at_least_one_student: bool | None = Field(
        None, description="never swap every block at once; default: only where stem and head are frozen"
    )
    bn_reestimate: bool = Field(False, description="gather the student's BatchNorm statistics anew at the end")
    path: Literal["hybrid", "student"] = Field("hybrid", description="iakd+X: whose output the added loss X sees")


METHODS: dict[str, type[Strict] | None] = {  # a part of a method expression and the section with its options
    "scratch": None,
    "label_smoothing": LabelSmoothing,
    "kd": Kd,
    "iakd": Iakd,
}


class Method(Strict):
    """One way to train the student."""

    method: str = Field(description="scratch, label_smoothing, kd, iakd, or a sum such as iakd+kd; default: the label")
    init: Literal["random", "teacher"] = Field(
        "random", description="teacher: copy stem, head and first block of each group"
    )
    recipe: dict[str, Any] = Field({}, description="what differs from distill.recipe")
    kd: Kd = Kd()
    label_smoothing: LabelSmoothing = LabelSmoothing()
    iakd: Iakd = Iakd()

    @property
    def parts(self) -> list[str]:
        """The names that the expression adds up."""
        return self.method.split("+")

    @property
    def tuned(self) -> bool:
        """Whether the schedule comes from a study."""
        return "iakd" in self.parts and self.iakd.schedule == "tuned"

    @property
    def needs_teacher(self) -> bool:
        """Whether training looks at the teacher at all."""
        return self.init == "teacher" or bool({"kd", "iakd"} & set(self.parts))

    @model_validator(mode="after")
    def _known_parts(self) -> "Method":
        for part in self.parts:
            if part not in METHODS:
                raise ValueError(f"unknown method {part!r}{did_you_mean(part, METHODS)}; known: {', '.join(METHODS)}")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"{self.method!r} names a part twice")
        if "scratch" in self.parts and len(self.parts) > 1:
            raise ValueError(f"{self.method!r}: scratch is no loss that could be added")
        for name in self.model_fields_set & set(METHODS):
            if name not in self.parts:
                raise ValueError(f"has options for {name!r}, which {self.method!r} does not use")
        return self

    def settings(self) -> dict[str, Any]:
        """What the training depends on: the options of the parts in use."""
        used = {"method", "init"} | (set(self.parts) & set(type(self).model_fields))
        return self.model_dump(mode="json", include=used)


class Teach(Strict):
    """How teachers are trained; read by `iakd teach`."""

    seeds: list[Seed] = Field([0], min_length=1, description="one teacher each; students take them in turn")
    recipe: Recipe = Recipe()


class Distill(Strict):
    """Which students are trained, and how; read by `iakd distill`."""

    seeds: list[Seed] = Field([0, 1, 2], min_length=1)
    transfer: int | None = Field(None, gt=0, description="training images a student sees, drawn by class; default: all")
    recipe: Recipe = Recipe()


class Space(Strict):
    """The search space of a study over `Schedule`: a list of choices, or [low, high]. Fields that a kind does
    not use are not sampled for it."""

    kind: list[Literal["uniform", "linear", "review", "cosine", "step", "sigmoid", "cyclic"]] = Field(
        ["uniform", "linear", "review", "cosine", "step", "sigmoid", "cyclic"], min_length=1
    )
    p0: tuple[Fraction, Fraction] = (0.1, 0.9)
    p1: tuple[Fraction, Fraction] = (0.7, 1.0)
    t_end: tuple[Fraction, Fraction] = (0.3, 1.0)
    slope: tuple[float, float] = (-0.6, 0.6)
    solo: tuple[Fraction, Fraction] = (0.0, 0.5)
    cycles: tuple[int, int] = (2, 5)
    steps: tuple[int, int] = (2, 6)
    steepness: tuple[float, float] = (4.0, 16.0)

    @model_validator(mode="after")
    def _low_high(self) -> "Space":
        for name in type(self).model_fields:
            if name != "kind":
                low, high = getattr(self, name)
                if low > high:
                    raise ValueError(f"{name}: low {low} is above high {high}")
                for bound in (low, high):
                    try:
                        Schedule.model_validate({name: bound})
                    except ValidationError as error:
                        raise ValueError(f"{name}: no schedule can have it ({explain(error, Schedule)})") from None
        return self


class Sampler(Strict):
    """How a study proposes schedules."""

    kind: Literal["tpe", "random"] = "tpe"
    startup: int = Field(8, ge=0, description="tpe: trials drawn at random before the model is used")
    multivariate: bool = Field(True, description="tpe: model the settings together")
    candidates: int = Field(24, gt=0, description="tpe: draws of which the most promising is taken")


class Pruner(Strict):
    """When a study gives up on a trial."""

    kind: Literal["median", "hyperband", "none"] = "median"
    startup: int = Field(8, ge=0, description="median: finished trials before any is pruned")
    warmup: Fraction = Field(0.4, description="median: part of a training that is never pruned")
    reduction: int = Field(3, gt=1, description="hyperband")


class Tune(Strict):
    """The search for a swap-probability schedule; read by `iakd tune`."""

    trials: int = Field(24, gt=0, description="raise it later, and the study goes on where it was")
    workers: int = Field(2, gt=0, description="processes side by side; changes the time, not the outcome")
    generation: int = Field(8, gt=0, description="trials proposed together, from all generations before")
    seed: Seed = Field(0, description="of the sampler, and of the students it trains")
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    space: Space = Space()
    storage: str | None = Field(None, description="postgresql+psycopg://…; default: a journal file")
    recipe: dict[str, Any] = Field({}, description="what differs from distill.recipe, for instance fewer epochs")


class Evaluate(Strict):
    """The one look at the test set; read by `iakd evaluate`."""

    batch_size: int = Field(256, gt=0)
    latency_runs: int = Field(30, gt=0, description="timed runs; their median is reported")


class Report(Strict):
    """What the report compares; read by `iakd evaluate` and `iakd report`."""

    title: str = "Interactive knowledge distillation"
    references: list[Label] = Field(["scratch", "kd"], description="methods that the others' gains are measured from")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals")


class Tracking(Strict):
    """MLflow as a view of the results; the environment's MLFLOW_TRACKING_URI goes before `uri`."""

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    artifacts: str = Field("mlartifacts", description="folder or address for artifacts, where no server decides")
    experiment: str | None = Field(None, description="default: iakd-<dataset>")


class Compute(Strict):
    """The machine; none of it is part of a run's identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, gt=0, description="of torch on the CPU, per job; sums may round differently with others")
    deterministic: bool = Field(True, description="on a GPU: the same seed gives the same bits, at some cost in speed")
    checkpoint_seconds: float = Field(30.0, ge=0, description="between two checkpoints of a running training")


class Params(Strict):
    """All settings of an experiment."""

    dataset: Dataset = Dataset()
    teachers: list[Network] = Field(min_length=1)
    students: list[Network] = Field(min_length=1)
    pairs: list[tuple[Name, Name]] | None = Field(None, description="[teacher, student] names; default: all")
    methods: dict[Label, Method] = Field(min_length=1)
    teach: Teach = Teach()
    tune: Tune = Tune()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    tracking: Tracking = Tracking()
    compute: Compute = Compute()

    @field_validator("methods", mode="before")
    @classmethod
    def _label_is_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            label: {"method": label, **(method or {})} if isinstance(method, dict | None) else method
            for label, method in value.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> "Params":
        for role, networks in (("teachers", self.teachers), ("students", self.students)):
            names = [network.name for network in networks]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{role}: two are called {name!r}; give them a name")
        for teacher, student in self.pairs or []:
            for name, networks in ((teacher, self.teachers), (student, self.students)):
                known = [network.name for network in networks]
                if name not in known:
                    raise ValueError(
                        f"pairs: no network {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
                    )
        for label, method in self.methods.items():
            try:
                self.student_recipe(method)
            except ValidationError as error:
                raise ValueError(f"methods.{label}.recipe.{explain(error, Recipe)}") from None
        try:
            self.trial_recipe(next(iter(self.methods.values())))
        except ValidationError as error:
            raise ValueError(f"tune.recipe.{explain(error, Recipe)}") from None
        return self

    def student_recipe(self, method: Method) -> Recipe:
        """The recipe of students trained by `method`."""
        return Recipe.model_validate(merged(self.distill.recipe.model_dump(), method.recipe))

    def trial_recipe(self, method: Method) -> Recipe:
        """The recipe of a study's trials."""
        return Recipe.model_validate(merged(self.student_recipe(method).model_dump(), self.tune.recipe))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, sections joined key by key."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def did_you_mean(word: str, known: Any) -> str:
    """' (did you mean …?)' where a known name is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def explain(error: ValidationError, model: type[BaseModel] = Params) -> str:
    """The first mistake of a validation as one line, with the nearest known name for an unknown key."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = f"unknown key{did_you_mean(str(first['loc'][-1]), _keys(model, first['loc'][:-1]))}"
    elif first["type"] != "value_error" and not isinstance(first["input"], dict | list):
        what += f", got {first['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {what}{more}" if where else f"{what}{more}"


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The known keys of the section at `path` below `model`."""
    schema = model.model_json_schema()
    node: dict[str, Any] = schema
    for part in path:
        node = _resolve(node, schema)
        by_pattern = next(iter(node.get("patternProperties", {}).values()), None)
        node = node.get("properties", {}).get(part) or by_pattern or node.get("items") or {}
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: Any, schema: dict[str, Any]) -> dict[str, Any]:
    for choice in [node, *(node.get("anyOf", []) if isinstance(node, dict) else [])]:
        if isinstance(choice, dict) and "$ref" in choice:
            return schema["$defs"][choice["$ref"].rsplit("/", 1)[-1]]
    return node if isinstance(node, dict) else {}


def parse(raw: Any, origin: str) -> Params:
    """Check settings that were read from `origin`. Raises UserError with one line for the first mistake."""
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: expected settings as 'key: value' lines")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{origin}: {explain(error)}") from None


def load(path: Path, changes: list[str] = []) -> Params:  # noqa: B006 - never changed
    """Read `path` and apply `key=value` changes (dotted keys, YAML values, list positions as numbers).

    Raises UserError with one line for whatever is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run where params.yaml is, or name a file with --params") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    for change in changes:
        raw = _apply(raw, change)
    return parse(raw, str(path) + (f" with {', '.join(changes)}" if changes else ""))


def _apply(raw: Any, change: str) -> Any:
    """`raw` with one dotted key set; sections on the way are made where they are missing."""
    key, separator, text = change.partition("=")
    if not separator or not re.fullmatch(r"[^.=]+(\.[^.=]+)*", key):
        raise UserError(f"--set {change}: expected key=value, for instance --set distill.recipe.lr=0.1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {change}: the value is not valid YAML") from None
    node = raw
    *sections, last = key.split(".")
    for section in sections:
        if isinstance(node, list):
            node = _item(node, section, change)
        elif isinstance(node, dict):
            if not isinstance(node.get(section), dict | list):
                node[section] = {}
            node = node[section]
    if isinstance(node, list):
        _item(node, last, change)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    return raw


def _item(node: list[Any], position: str, change: str) -> Any:
    if not position.isdigit() or int(position) >= len(node):
        raise UserError(f"--set {change}: {position!r} is no position in a list of {len(node)}")
    return node[int(position)]


def schema_text() -> str:
    """The JSON schema of params.yaml, as it stands in workflow/schemas/."""
    schema = Params.model_json_schema()
    for definition in (schema, schema["$defs"]["Method"]):  # `method` defaults to the label, which a schema cannot say
        definition["required"] = [name for name in definition.get("required", []) if name != "method"]
    labels = schema["properties"]["methods"]["patternProperties"]
    for pattern, target in labels.items():
        labels[pattern] = {"anyOf": [target, {"type": "null"}]}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"
