"""The settings of an experiment: all sections, and the checks across sections."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from iakd.config.base import (
    MOST_PROCESSES,
    Amount,
    AutoOnOff,
    Label,
    Labels,
    Name,
    Seeds,
    Strict,
    did_you_mean,
    explain,
    merged,
    plain,
)
from iakd.config.dataset import SOURCES, Dataset
from iakd.config.export import Export
from iakd.config.methods import METHODS, Method
from iakd.config.networks import Network, Teacher
from iakd.config.search_space import SearchSpace
from iakd.config.training import Recipe
from iakd.config.tuning import Tune
from iakd.errors import UserError


class Teach(Strict):
    """How teachers are trained; read by `iakd teach`."""

    seeds: Seeds = Field(
        [0], description="one teacher per seed; students use them in turn; imported teachers have no seed"
    )
    recipe: Recipe = Recipe()


class Distill(Strict):
    """Which students are trained, and how; read by `iakd distill`."""

    seeds: Seeds = Field([0, 1, 2], description="one student per seed, for each pair and method")
    transfer: Amount | None = Field(
        None, description="training images that a student sees, stratified by class: a number or a share; default: all"
    )
    recipe: Recipe = Recipe()


class Pair(Strict):
    """A teacher and a student, by name, with per-pair overrides."""

    teacher: Name = Field(description="name of one of the teachers")
    student: Name = Field(description="name of one of the students")
    recipe: dict[str, Any] = Field({}, description="overrides of distill.recipe")
    methods: dict[Label, dict[str, Any]] = Field({}, description="overrides of the options in methods, by label")

    @model_validator(mode="before")
    @classmethod
    def _from_names(cls, value: Any) -> Any:
        """Accept [teacher, student] as a short form."""
        if isinstance(value, list | tuple) and len(value) == 2:
            return {"teacher": value[0], "student": value[1]}
        return value

    @property
    def name(self) -> str:
        """TEACHER-STUDENT."""
        return f"{self.teacher}-{self.student}"


class Evaluate(Strict):
    """The evaluation on the test set; read by `iakd evaluate`."""

    batch_size: int = Field(256, gt=0, description="images per batch")
    latency_runs: int = Field(30, gt=0, description="timed runs; their median is reported")


class Report(Strict):
    """What the report compares; read by `iakd evaluate` and `iakd report`."""

    title: str = Field("Interactive knowledge distillation", description="heading of the report")
    references: Labels = Field(
        ["scratch", "kd"], description="labels of the methods with which the others are compared"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence level of the intervals")


# Every class has a method of this name, for abstract base classes, which nothing here uses.
warnings.filterwarnings("ignore", 'Field name "register" in "Tracking" shadows')


class Tracking(Strict):
    """MLflow, which mirrors the results; the environment variable MLFLOW_TRACKING_URI overrides `uri`."""

    enabled: bool = Field(True, description="mirror runs to MLflow")
    uri: str = Field("sqlite:///mlflow.db", min_length=1, description="MLflow's tracking URI")
    artifacts: str = Field(
        "mlartifacts", min_length=1, description="folder or URI for artifacts, unless a tracking server chooses it"
    )
    experiment: str | None = Field(
        None, min_length=1, max_length=250, description="name of MLflow's experiment; default: iakd-<dataset>"
    )
    register: str | None = Field(
        None,
        pattern=r"^[^/:'\"%]+$",
        max_length=50,
        description="name in MLflow's model registry under which exported models are registered, the best one on the "
        "validation images as champion; with several pairs, each has a name of its own, <register>-<pair>; default: "
        "not registered",
    )


class Only(Strict):
    """The part of the experiment that is run and reported; the settings of the rest stay, and its results, too."""

    methods: Labels | None = Field(None, min_length=1, description="labels of methods; default: all")
    pairs: list[str] | None = Field(None, min_length=1, description="TEACHER-STUDENT; default: all")
    seeds: Seeds | None = Field(None, description="of students; default: all")

    def includes(self, pair: str, method: str, seed: int) -> bool:
        """Whether a student is in this part."""
        wanted: list[tuple[Any, list[Any] | None]] = [(pair, self.pairs), (method, self.methods), (seed, self.seeds)]
        return all(values is None or one in values for one, values in wanted)


Device = Literal["auto", "cpu", "cuda"]


class Compute(Strict):
    """How trainings use the machine; these settings are not part of a run's identity."""

    device: Device = Field("auto", description="auto: the GPU if there is one")
    threads: int = Field(
        1,
        gt=0,
        le=MOST_PROCESSES,
        description="torch's CPU threads per job; a different number may round sums differently",
    )
    processes: int = Field(
        1,
        gt=0,
        le=MOST_PROCESSES,
        description="processes that share each training of iakd teach and distill, each with its own threads or GPU: "
        "docs/parallel.md",
    )
    deterministic: bool = Field(
        True, description="on a GPU: the same seed gives bit-identical results, somewhat slower"
    )
    gpu_share: int = Field(1, gt=0, description="trainings that share a GPU; a small training leaves most of it idle")
    seeds_together: int = Field(
        1, gt=0, description="seeds of a student that one process trains side by side, with the same results"
    )
    engine: Literal["auto", "eager", "graphs"] = Field(
        "auto", description="graphs: whole steps as CUDA graphs; auto: graphs on a GPU"
    )
    channels_last: Literal["auto"] | bool = Field(
        "auto",
        description="memory layout of images and weights during training; auto: where it was measured to be faster",
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=MOST_PROCESSES,
        description="processes per training that decode images (dataset.storage: files); 0: the training decodes them "
        "itself; default: one per core",
    )
    checkpoint_seconds: float = Field(30.0, ge=0, description="seconds between two checkpoints of a training")
    teacher_cache: AutoOnOff = Field(
        "auto",
        description="cache the teacher's outputs on disk for other trainings; auto: if they would be reused, and steps "
        "are not recorded as CUDA graphs",
    )
    teacher_cache_gib: float = Field(8.0, gt=0, description="maximum size of the teacher cache per data set, in GiB")

    @field_validator("engine", mode="before")
    @classmethod
    def _compile_was_removed(cls, value: Any) -> Any:
        if value == "compile":
            raise ValueError("compile was removed because it was never faster than eager: set auto, or graphs on a GPU")
        return value

    @model_validator(mode="after")
    def _one_or_several(self) -> "Compute":
        if self.processes > 1 and self.seeds_together > 1:
            raise ValueError(
                "processes split one training, seeds_together runs several in one process: set one of them to 1"
            )
        return self


def _one_folder(names: Iterable[str]) -> Iterator[str]:
    """Yield names that would be one folder; on some systems, upper and lower case are the same."""
    first: dict[str, str] = {}
    for name in names:
        other = first.get(name.casefold())
        if other is not None:
            yield repr(name) if other == name else f"{other!r} and {name!r}, one folder where case does not count"
        first[name.casefold()] = name


def _mistakes(*checks: Callable[[], None]) -> Iterator[str]:
    """Yield the message of each check that raises ValueError."""
    for check in checks:
        try:
            check()
        except ValueError as error:
            yield str(error)


def _raise(mistakes: Iterable[str]) -> None:
    """Raise ValueError if there are any mistakes: a line for each, as `explain_all` expects them."""
    told = list(dict.fromkeys(mistakes))
    if told:
        raise ValueError("\n".join(told))


class Params(Strict):
    """All settings of an experiment."""

    dataset: Dataset = Dataset()
    teachers: list[Teacher] = Field(min_length=1, description="networks that students learn from")
    students: list[Network] = Field(min_length=1, description="the small networks to train")
    pairs: list[tuple[Name, Name] | Pair] | None = Field(
        None,
        min_length=1,
        description="[teacher, student] names, or a section with overrides for the pair; default: all pairs",
    )
    methods: dict[Label, Method] = Field(min_length=1, description="ways to train a student, by label")
    teach: Teach = Teach()
    tune: Tune = Tune()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    export: Export = Export()
    tracking: Tracking = Tracking()
    compute: Compute = Compute()
    only: Only = Only()

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
        """Raise ValueError with all mistakes that can be found, a line for each."""
        _raise(self._wrong_names())
        broken: dict[str, str] = {}  # by method: with several pairs, the same mistake would be told several times
        for pair in self.paired:
            for label in self.methods:
                found = list(_mistakes(partial(self._check_method, pair, label))) if label not in broken else []
                broken.update((label, told) for told in found)
                if found and pair.recipe:
                    break  # likely a mistake of the pair's own recipe, which all its methods share
        _raise(broken[label] for label in self.methods if label in broken)
        _raise(_mistakes(self._check_studies, self._check_crops, self._check_exports, self._check_part))
        return self

    def _wrong_names(self) -> Iterator[str]:
        roles: list[tuple[str, Sequence[Network]]] = [("teachers", self.teachers), ("students", self.students)]
        for role, networks in roles:
            for same in _one_folder(network.name for network in networks):
                yield f"{role}: two are called {same}; set `name` for one of them"
        for same in _one_folder(self.methods):
            yield f"methods: two are called {same}; choose another label for one of them"
        for label in self.methods:
            if label.lower().endswith(".json"):
                yield f"methods: {label!r} may be the name of a file beside methods' folders; choose another label"
        for names_of_pair, count in Counter((pair.teacher, pair.student) for pair in self.paired).items():
            if count > 1:
                yield f"pairs: names {'-'.join(names_of_pair)} twice"
        for pair in self.paired:
            for name, (_, networks) in zip((pair.teacher, pair.student), roles, strict=True):
                known = [network.name for network in networks]
                if name not in known:
                    yield f"pairs: no network {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
            for label in pair.methods:
                if label not in self.methods:
                    known = list(self.methods)
                    yield f"pairs: no method {label!r}{did_you_mean(label, known)}; known: {', '.join(known)}"
                elif "seeds" in pair.methods[label]:
                    yield f"pairs: {pair.name}: all pairs have the same seeds; set methods.{label}.seeds"

    def _check_crops(self) -> None:
        """Random parts of images in their full size need files with these, not arrays of scaled images."""
        if self.dataset.storage != "array" and "storage" in SOURCES[self.dataset.source].settings:
            return
        recipes = {"teach.recipe": self.teach.recipe, "distill.recipe": self.distill.recipe}
        for pair in self.paired:
            for label in self.methods:
                recipes[f"methods.{label}.recipe"] = self.student_recipe(pair, self.method(pair, label))
        for where, recipe in recipes.items():
            if recipe.augment.crop != "none":
                raise ValueError(
                    f"{where}.augment.crop: {recipe.augment.crop} needs the images in their full size: "
                    "set dataset.storage: files (sources image_folder and imagenet)"
                )

    def _check_method(self, pair: Pair, label: str) -> None:
        name = f"pairs: {pair.name}"
        try:
            method = self.method(pair, label)
        except ValidationError as error:
            raise ValueError(f"{name}: methods.{label}.{explain(error, Method)}") from None
        bits = next(network.bits for network in self.students if network.name == pair.student)
        for each in method.names if bits else []:
            spec = METHODS[each]
            reason = spec.full_precision or (spec.one_bit_width if isinstance(bits, list) else None)
            if reason:
                raise ValueError(f"{name}: {each} cannot train a student of bits {bits}: {reason}")
        teacher = next(network for network in self.teachers if network.name == pair.teacher)
        lacking = method.needs_of(teacher)
        if lacking:
            raise ValueError(
                f"{name}: methods.{label}: {lacking} ({teacher.origin}): use methods that compare outputs, such as kd "
                "and dkd, or list the other pairs in `pairs`"
            )
        try:
            self.student_recipe(pair, method)
        except ValidationError as error:
            where = f"{name}: recipe, or methods.{label}.recipe" if pair.recipe else f"methods.{label}.recipe"
            raise ValueError(f"{where}.{explain(error, Recipe)}") from None
        try:
            self.trial_recipe(pair, method)
        except ValidationError as error:
            raise ValueError(f"tune.recipe.{explain(error, Recipe)}") from None

    def _check_studies(self) -> None:
        checked: list[tuple[Method, Recipe]] = []
        for pair in self.paired:
            for label in self.methods:
                method = self.method(pair, label)
                if not method.tuned or (studied := (method, self.trial_recipe(pair, method))) in checked:
                    continue
                try:
                    SearchSpace(*studied, self.tune).check()
                except ValueError as error:
                    own = pair.recipe or label in pair.methods
                    where = f"pairs: {pair.name}: " if own else ""
                    raise ValueError(f"{where}methods.{label}.{error}") from None
                checked.append(studied)

    def _check_exports(self) -> None:
        def check(what: str, name: str, known: Collection[str]) -> None:
            if name not in known:
                raise ValueError(
                    f"export.models: no {what} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
                )

        pairs = [pair.name for pair in self.paired]
        found: set[tuple[str, str]] = set()
        for model in self.export.named or []:
            check("pair", model.pair, pairs)
            check("method", model.method, self.methods)
            if model.seed is not None:
                check("seed", str(model.seed), list(map(str, self.seeds_of(self.methods[model.method]))))
            if (model.pair, model.method) in found:
                raise ValueError(
                    f"export.models: {model.pair}/{model.method} is listed twice; one seed can be exported"
                )
            found.add((model.pair, model.method))

    def _check_part(self) -> None:
        known_by_setting: dict[str, list[Any]] = {
            "methods": list(self.methods),
            "pairs": [pair.name for pair in self.paired],
            "seeds": self.distill.seeds,
        }
        for setting, known in known_by_setting.items():
            for name in getattr(self.only, setting) or []:
                if name not in known:
                    near = did_you_mean(name, known) if isinstance(name, str) else ""
                    raise ValueError(
                        f"only.{setting}: {name!r} is not in the settings{near}; known: {', '.join(map(str, known))}"
                    )
        if not self.part().methods:
            raise ValueError("only: none of these methods is trained with any of these seeds (methods.LABEL.seeds)")

    def part(self) -> "Params":
        """Return these settings with the methods, pairs and seeds of `only`, and no others."""
        only = self.only
        pairs = [pair for pair in self.paired if only.pairs is None or pair.name in only.pairs]
        seeds = [seed for seed in self.distill.seeds if seed in (only.seeds or self.distill.seeds)]
        methods = {
            label: method
            for label, method in self.methods.items()
            if label in (only.methods or self.methods) and not set(seeds).isdisjoint(self.seeds_of(method))
        }
        distill = self.distill.model_copy(update={"seeds": seeds})
        return self.model_copy(update={"pairs": pairs, "methods": methods, "distill": distill})

    @property
    def paired(self) -> list[Pair]:
        """Return all pairs, in the order of the settings."""
        if self.pairs is None:
            return [Pair(teacher=t.name, student=s.name) for t in self.teachers for s in self.students]
        return [pair if isinstance(pair, Pair) else Pair.model_validate(pair) for pair in self.pairs]

    def method(self, pair: Pair, label: str) -> Method:
        """Return the method with this label, with the pair's overrides."""
        method = self.methods[label]
        changes = pair.methods.get(label)
        return Method.model_validate(merged(method.model_dump(exclude_unset=True), changes)) if changes else method

    def seeds_of(self, method: Method) -> list[int]:
        """Return the seeds with which students are trained by `method`."""
        return self.distill.seeds[: method.seeds]

    def student_recipe(self, pair: Pair, method: Method) -> Recipe:
        """Return the recipe of a pair's students trained by `method`."""
        recipe = merged(merged(plain(self.distill.recipe), pair.recipe), method.recipe)
        return Recipe.model_validate(recipe)

    def trial_recipe(self, pair: Pair, method: Method) -> Recipe:
        """Return the recipe of a study's trials."""
        return Recipe.model_validate(merged(plain(self.student_recipe(pair, method)), self.tune.recipe))


def network_called(name: str, role: Literal["teacher", "student"], settings: "Params | None") -> Network:
    """Return the network called `name` in `settings`, searching `role` first; else the architecture of that name.

    Raises UserError for an unknown family of architectures.
    """
    if settings:
        ordered: list[Sequence[Network]] = [settings.teachers, settings.students]
        for network in chain(*(ordered if role == "teacher" else reversed(ordered))):
            if network.name == name:
                return network
    try:
        return Network.model_validate({"arch": name})
    except ValidationError as error:
        raise UserError(explain(error, Network)) from None
