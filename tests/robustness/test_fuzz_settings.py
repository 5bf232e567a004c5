"""Settings that nobody would write: each is refused in one line, or works.

`IAKD_FUZZ=1000 pytest tests/robustness -m robustness` is the long form; docs/testing.md has its figures.
"""

import copy
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import yaml
from fuzzing import ODD_NUMBERS, SCALE, VALUES, examples, limited
from hypothesis import given
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from iakd import config, models
from iakd.config import METHODS, Params, parse, shortest_sum
from iakd.config.base import section_of, types_of
from iakd.config.loading import read_yaml
from iakd.config.networks import VARIANTS
from iakd.config.search_space import Candidate
from iakd.data.loader import DeviceLoader
from iakd.distillation.distiller import make_distiller
from iakd.distillation.registry import timeline_of
from iakd.distillation.warm_start import add_warm_start
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import RESULTS, Experiment, StudentJob, plan_experiment
from iakd.experiment.run_dir import Run
from iakd.models.network import initialise
from iakd.models.pairing import initialise_from_teacher
from iakd.orchestration.snakemake_hooks import data_products
from iakd.tracking.address import mlflow_address
from iakd.training.optimizer import set_lr
from iakd.training.trainer import Trainer

pytestmark = pytest.mark.robustness

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "experiments").glob("*.yaml"))]
LARGEST = 2_000_000  # parameters of a network that is trained here
COUNTS: Counter[str] = Counter()  # what became of the settings

Path_ = tuple[str | int, ...]


def tiny(raw: dict[str, Any]) -> dict[str, Any]:
    """Replace the networks of an experiment by tiny ones."""
    teachers, students = [{"arch": "resnet14", "width": 4}], [{"arch": "resnet8", "width": 4}]
    return {**raw, "teachers": teachers, "students": students, "pairs": None}


BASES = [tiny(yaml.safe_load(path.read_text())) for path in FILES]


def settings_of(section: type[BaseModel], path: Path_ = ()) -> Iterator[tuple[Path_, FieldInfo]]:
    """All settings below a section."""
    for name, setting in section.model_fields.items():
        yield (*path, name), setting
        inner = section_of(setting.annotation)
        if inner:
            yield from settings_of(inner, (*path, name))


def every_setting() -> Iterator[tuple[Path_, FieldInfo]]:
    """All settings; those of a method in an entry that uses it."""
    yield from settings_of(Params)
    yield from settings_of(config.Teacher, ("teachers", 0))
    yield from settings_of(config.Network, ("students", 0))
    for name in METHODS:
        for path, setting in settings_of(config.Method, ("methods", shortest_sum(name))):
            if path[2] == name or (name == "kd" and path[2] not in METHODS):
                yield path, setting


SETTINGS = list(every_setting())
LEAVES = [(path, setting) for path, setting in SETTINGS if not section_of(setting.annotation) and path[-1] != "name"]
IMPORTED = {"checkpoint", "normalisation", "callable", "outputs", "trained_on"}  # of teachers, which none is here
TRAINING = [
    (path, setting)
    for path, setting in LEAVES
    if path[0] not in ("dataset", "tracking", "report") and not (path[0] == "teachers" and path[-1] in IMPORTED)
]
SMALL = ["resnet8", "resnet14", "resnet20", "resnet8x4", "wrn_16_1", "vgg8", "vgg11", "MobileNetV2", "ShuffleV1"]
TEXTS: dict[str, list[str]] = {  # that a setting with this name can be
    "arch": [*SMALL, *models.ARCHITECTURES],
    "kind": [*config.KINDS],
    "source": [*config.SOURCES],
    "method": [*METHODS, "iakd+kd", "iakd+dkd", "fitnet+kd", "hint_points+at", "standardize+dkd", "kcd+iakd"],
}


def bound(setting: FieldInfo, names: tuple[str, str], default: float) -> float:
    return next((getattr(one, name) for one in setting.metadata for name in names if hasattr(one, name)), default)


def fitting(name: str | int, setting: FieldInfo) -> st.SearchStrategy[Any]:
    """Values of the right type, nearly all within the bounds of a setting, and many at them."""
    if name == "variant":
        return st.lists(st.sampled_from(VARIANTS), max_size=2)
    texts = TEXTS.get(str(name), ["x", "kd"])
    kinds = types_of(setting.annotation)
    low, high = bound(setting, ("ge", "gt"), 0), bound(setting, ("le", "lt"), 1000)
    edges = [low, high, (low + high) / 2, low + 1e-30, low + 1e-9, high - 1e-9]
    found: list[st.SearchStrategy[Any]] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            found.append(st.sampled_from(get_args(kind)))
        elif get_origin(kind) in (list, tuple):
            parts = st.floats(0, 1) | st.integers(0, 9) | st.sampled_from([*config.KINDS])
            found += [st.lists(parts, max_size=3), st.lists(st.floats(0.1, 1), min_size=2, max_size=2).map(sorted)]
        elif kind is bool:
            found.append(st.booleans())
        elif kind is int:
            least = math.ceil(low)
            found += [st.integers(least, least + 20), st.sampled_from([int(low), int(high), least + 1, 2 * least + 2])]
        elif kind is float:
            step = (min(high, low + 20) - low) / 1000
            plain = st.integers(1, 999).map(lambda n, step=step: low + n * step)
            found += [plain, plain, plain, st.sampled_from(edges), st.sampled_from(ODD_NUMBERS)]
        elif kind is str:
            found.append(st.sampled_from(texts))
    return st.one_of(found) if found else VALUES


def put(raw: Any, path: Path_, value: Any) -> None:
    node = raw
    for part, following in itertools.pairwise(path):
        inner = node[part] if isinstance(node, list) else node.get(part)
        if not isinstance(inner, dict | list):
            inner = [{}] if isinstance(following, int) else {}
            node[part] = inner
        node = inner
    if isinstance(node, dict) or (isinstance(node, list) and isinstance(path[-1], int)):
        node[path[-1]] = value


def places(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    """All places in settings as they are."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def searched(draw: st.DrawFn) -> tuple[Path_, Any]:
    """A search space of one setting, which nearly always has the method's own value, too."""
    label, name = draw(st.sampled_from([(shortest_sum(name), name) for name in METHODS] + [("iakd+kd", "iakd")]))
    own = [(path[2:], setting) for path, setting in LEAVES if path[:2] == ("methods", label) and path[2] == name]
    path, setting = draw(st.sampled_from(own or [(("recipe", "lr"), config.Recipe.model_fields["lr"])]))
    others = draw(st.lists(fitting(path[-1], setting), min_size=1, max_size=3, unique_by=repr))
    values = [setting.default, *(value for value in others if value != setting.default)]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    space: Any = (
        sorted(values)[:: len(values) - 1]
        if numbers and len(values) > 1 and draw(st.booleans())
        else {"choices": values}
    )
    return ("methods", label, "tune"), {
        ".".join(map(str, path)): draw(VALUES) if draw(st.integers(0, 9)) == 0 else space
    }


@st.composite
def plausible(draw: st.DrawFn) -> dict[str, Any]:
    """The settings of a file with one to four other values that look all right."""
    raw: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(BASES)))
    if draw(st.booleans()):
        init = draw(st.sampled_from(["random", "teacher", "blockwise"]))
        raw["methods"] = {"new": {"method": draw(st.sampled_from(TEXTS["method"])), "init": init}, **raw["methods"]}
    for _ in range(draw(st.sampled_from([1, 1, 2, 3, 4]))):
        if draw(st.integers(0, 5)):
            path, setting = draw(st.sampled_from(TRAINING))
            put(raw, path, draw(fitting(path[-1], setting)))
        else:
            put(raw, *draw(searched()))
    return raw


@st.composite
def odd(draw: st.DrawFn) -> dict[str, Any]:
    """The settings of a file with one to three changes of any kind."""
    raw: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        kind = draw(st.sampled_from(["fitting", "any", "there", "moved", "removed"]))
        if kind in ("fitting", "any"):
            path, setting = draw(st.sampled_from(LEAVES if kind == "fitting" else SETTINGS))
            put(raw, path, draw(fitting(path[-1], setting) if kind == "fitting" else VALUES))
            continue
        known = list(places(raw))
        path = draw(st.sampled_from(known))
        parent: Any = raw
        for part in path[:-1]:
            parent = parent[part]
        if kind == "there":
            parent[path[-1]] = draw(VALUES)
        elif kind == "removed":
            del parent[path[-1]]
        else:
            put(raw, draw(st.sampled_from(known)), copy.deepcopy(parent[path[-1]]))
    return raw


def one_line(error: Exception) -> None:
    text = str(error)
    assert text.strip() and "\n" not in text and len(text) < 1500 and "Traceback" not in text, text


@given(raw=st.one_of(plausible(), plausible(), odd()))
@examples(short=24)
def test_settings_are_refused_in_one_line_or_work(raw: dict[str, Any]) -> None:
    with limited():
        try:
            params = parse(read_yaml(yaml.safe_dump(raw, allow_unicode=True), "the file"), "the file")
        except UserError as error:
            COUNTS["refused"] += 1
            one_line(error)
            return
        COUNTS["accepted"] += 1
        experiment = plan_experiment(params)
        check_plan(experiment)
        try:
            check_training(experiment)
        except (UserError, RunFailed) as error:
            COUNTS["refused for these networks or images"] += 1
            one_line(error)


def check_plan(experiment: Experiment) -> None:
    """Everything that a workflow does with the jobs before one of them runs."""
    jobs = [experiment.data, *experiment.teachers, *experiment.studies, *experiment.students]
    assert len({job.path for job in jobs}) == len(jobs)
    for job in jobs[:20]:
        assert job.folder.resolve().is_relative_to(RESULTS.resolve() / experiment.params.dataset.name)
        assert all(len(part.encode()) <= 255 for part in job.folder.parts)
        assert all(isinstance(text, str) and text.isprintable() for text in job.watched)
        json.loads(json.dumps(job.settings, allow_nan=False))
        assert job.key
    assert data_products(experiment)
    address = mlflow_address(experiment.params)
    assert address.folder.parts and address.display and (address.is_server or address.artifact_location())


def images(side: int = 8) -> DeviceLoader:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (24, 1, side, side), dtype=np.uint8)
    return DeviceLoader(pixels, np.arange(24) % 3, [0.5], [0.25], "cpu")


def network(chosen: config.Network) -> models.Network:
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in models.build(chosen, 1, 3).parameters())
    if size > LARGEST:
        raise TooLarge
    built = models.build(chosen, 1, 3)
    initialise(built, torch.Generator().manual_seed(0))
    return built


class TooLarge(Exception):
    """A network that is not trained here, because that takes too long."""


def check_training(experiment: Experiment) -> None:
    """Build what a teacher, a student of each changed method and a trial of a study are trained with; take steps."""
    jobs = [job for job in experiment.students if job.seed == experiment.params.distill.seeds[0]]
    teacher = experiment.teachers[0]
    try:
        train(experiment, teacher.network, None, config.Method(method="scratch"), teacher.recipe)
        for job in [job for job in jobs if changed(job)][-2:] or jobs[:1]:
            method, recipe = candidate(job)
            train(experiment, job.student, job.teacher.network, method, recipe)
            COUNTS["trained"] += 1
    except TooLarge:
        COUNTS["too large to be trained here"] += 1


ORIGINAL = {
    json.dumps(job.method.settings(), sort_keys=True)
    for base in BASES
    for job in plan_experiment(parse(base, "")).students
}


def changed(job: StudentJob) -> bool:
    return json.dumps(job.method.settings(), sort_keys=True) not in ORIGINAL


def candidate(job: StudentJob) -> Candidate:
    """The settings of a student; where a study finds them, those of a trial."""
    if job.study is None:
        return Candidate(job.method, job.recipe)
    import optuna

    from iakd.tuning.decisions import suggest

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for first in job.study.first:
        job.study.space.candidate(first)
    for _ in range(4):
        try:
            return job.study.space.candidate(suggest(study.ask(), job.study.space))
        except ValidationError:  # a failed trial
            COUNTS["trials of impossible settings"] += 1
    return job.study.space.candidate(job.study.first[0])


def train(
    experiment: Experiment,
    student: config.Network,
    teacher: config.Network | None,
    method: config.Method,
    recipe: config.Recipe,
) -> None:
    """Take the first, a middle and the last step of a training on a few images, and finish it."""
    torch.set_num_threads(1)
    data = images()
    built = network(student)
    taught = network(teacher) if teacher and method.needs_teacher else None
    if method.init == "teacher":
        assert taught
        initialise_from_teacher(built, taught)
    timeline = timeline_of(recipe, method, len(data))
    distiller = make_distiller(
        built, taught, method, data=data, timeline=timeline, seed=0, label_smoothing=recipe.label_smoothing
    )
    run = Run("x/students/run", "distill", "key", {}, 0, {}, {})
    compute = experiment.params.compute.model_copy(update={"device": "cpu", "processes": 1, "threads": 1})
    trainer = Trainer(run, distiller, data, images(), recipe, compute)
    if method.init == "blockwise":
        add_warm_start(trainer, method.blockwise, compute)
        assert trainer.warm_start
        trainer.warm_start.loss_at(0).backward()
    for step in sorted({0, timeline.total // 2, timeline.total - 1}):
        trainer.optimizer.zero_grad()
        rate = timeline.lr(step)
        assert math.isfinite(rate) and rate >= 0
        set_lr(trainer.optimizer, rate)
        trainer.loss_at(step).backward()
        trainer.optimizer.step()
        if trainer.average:
            trainer.average.update()
    distiller.epoch_record(timeline.epochs - 1)
    distiller.record()
    distiller.finish(data, recipe.batch_size)
    distiller.student.eval()
    with torch.no_grad():
        assert distiller.student(next(data.plain(4)).images).shape == (4, 3)


ODD_ANYWHERE: list[Any] = [
    *(None, True, {}, [], {"a": 1}, [[]], [{}], [0, 0], "", "x", "..", "\0", -1, 0.5),
    *(float("inf"), float("nan"), 1e300, 10**400),
]
SMALLEST: dict[str, Any] = {
    "teachers": [{"arch": "resnet14"}],
    "students": [{"arch": "resnet8"}],
    "methods": {"kd": {}},
}


def test_no_setting_meets_a_value_of_another_type_with_a_traceback() -> None:
    """Every setting; in the short form with a third of the values each."""
    for number, (path, _) in enumerate(SETTINGS):
        for value in ODD_ANYWHERE if SCALE else ODD_ANYWHERE[number % 3 :: 3]:
            raw = copy.deepcopy(SMALLEST)
            put(raw, path, copy.deepcopy(value))
            try:
                parse(raw, "the file")
            except UserError as error:
                one_line(error)


def test_the_fuzzer_reaches_training() -> None:
    """Otherwise it would show nothing. Last, after the search."""
    print(dict(COUNTS))
    assert COUNTS["accepted"] > 4 and COUNTS["refused"] > 4 and COUNTS["trained"] > 2
