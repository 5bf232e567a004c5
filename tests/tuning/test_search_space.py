"""Which settings a study searches, with which values, and what it starts with."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml

from iakd.config import KINDS, Method, Recipe, Schedule, SearchSpace, parse
from iakd.config.schedule import settings_used
from iakd.config.search_space import KIND, SCHEDULE
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.interactive.schedule import keep_probabilities
from iakd.tuning.decisions import distributions, suggest
from iakd.tuning.results import read_best, write_best

Section = dict[str, Any]
TUNED: Section = {"method": "iakd", "iakd": {"schedule": "tuned"}}
TRIMMED = {"p0": [0.2, 0.6], "cycles": [2, 4], "steps": [3, 3]}
SMOOTH = {"lr_schedule": {"kind": "cosine"}}


def plan_of(
    methods: dict[str, Any], tune: dict[str, Any] | None = None, recipe: dict[str, Any] | None = None
) -> Experiment:
    """The experiment of settings with these methods."""
    raw = {
        "teachers": [{"arch": "resnet20"}],
        "students": [{"arch": "resnet8"}],
        "methods": methods,
        "tune": tune or {},
        "distill": {"recipe": recipe or {}},
    }
    return plan_experiment(parse(raw, "params.yaml"))


def space_of(
    method: dict[str, Any], tune: dict[str, Any] | None = None, recipe: dict[str, Any] | None = None
) -> SearchSpace:
    """What the study of one method searches."""
    return plan_of({"mine": method}, tune, recipe).studies[0].space


def kd(**tune: Any) -> dict[str, Any]:
    """A kd whose settings are searched; two underscores in a name stand for a dot."""
    return {"method": "kd", "tune": {name.replace("__", "."): values for name, values in tune.items()}}


def draw(space: SearchSpace, seed: int = 0) -> dict[str, Any]:
    """Parameters drawn at random."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    params = suggest(trial, space)
    assert trial.params == params
    assert trial.distributions == distributions(space, params)
    return params


def of_kind(kind: str, recipe: dict[str, Any] | None = None, seed: int = 0) -> dict[str, Any]:
    """A schedule of one kind, drawn at random."""
    params = draw(space_of(TUNED, {"space": {**TRIMMED, "kind": [kind]}}, recipe), seed)
    return {name.removeprefix(f"{SCHEDULE}."): value for name, value in params.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_given_what_it_uses_and_nothing_else(kind: str) -> None:
    expected = {
        "uniform": set(),
        "linear": {"p1", "t_end"},
        "review": {"p1", "t_end"},
        "cosine": {"p1", "t_end"},
        "step": {"p1", "t_end", "steps"},
        "sigmoid": {"p1", "t_end", "steepness"},
        "cyclic": {"p1", "cycles"},
    }[kind]
    assert set(of_kind(kind)) == {"kind", "p0", "slope", "student_only"} | expected
    Schedule.model_validate(of_kind(kind))


def test_review_counts_cycles_only_where_the_learning_rate_has_no_drops() -> None:
    assert "cycles" not in of_kind("review")
    assert "cycles" in of_kind("review", SMOOTH)
    assert "cycles" in of_kind("review", {"lr_schedule": {"milestones": []}})


def test_whether_review_counts_cycles_follows_the_lr_schedule_that_the_trial_tries() -> None:
    method = {**TUNED, "tune": {"recipe.lr_schedule.kind": ["multistep", "cosine"]}}
    space = space_of(method, {"space": {"kind": ["review"]}})
    seen = set()
    for seed in range(12):
        params = draw(space, seed)
        smooth = params["recipe.lr_schedule.kind"] == "cosine"
        assert (f"{SCHEDULE}.cycles" in params) == smooth
        assert space.candidate(params).recipe.lr_schedule.kind == params["recipe.lr_schedule.kind"]
        seen.add(smooth)
    assert seen == {True, False}


def test_contiguous_paths_have_no_slope() -> None:
    method = {
        "method": "iakd+kd",
        "iakd": {"form": "two_path", "schedule": "tuned"},
        "tune": {"iakd": {"paths": ["any", "teacher_to_student"]}},
    }
    space = space_of(method)
    seen = set()
    for seed in range(12):
        params = draw(space, seed)
        assert (f"{SCHEDULE}.slope" in params) == (params["iakd.paths"] == "any")
        assert space.candidate(params).method.iakd.paths == params["iakd.paths"]
        seen.add(params["iakd.paths"])
    assert len(seen) == 2


def test_draws_stay_within_the_bounds_and_fill_them() -> None:
    draws = [of_kind("cyclic", seed=seed) for seed in range(60)]
    assert {values["cycles"] for values in draws} == {2, 3, 4}
    starts = [values["p0"] for values in draws]
    assert 0.2 <= min(starts) < 0.25 < 0.55 < max(starts) <= 0.6
    assert of_kind("step")["steps"] == 3


def test_settings_that_a_kind_does_not_use_do_not_change_its_shape() -> None:
    """The list of used settings is checked against p(t) itself, both ways."""

    def p(schedule: Schedule, drops: list[int]) -> object:
        return keep_probabilities(schedule, np.arange(100), 100, drops, 4).tolist()

    changed = {"p0": 0.3, "p1": 0.7, "t_end": 0.4, "slope": 0.3, "student_only": 0.4, "cycles": 5, "steps": 7}
    for kind in KINDS:
        for drops in ([60, 80], []):
            base = Schedule.model_validate({"kind": kind})
            used = settings_used(kind, lr_drops=bool(drops))
            for name, value in {**changed, "steepness": 4.0}.items():
                differs = p(base.model_copy(update={name: value}), drops) != p(base, drops)
                assert differs == (name in used), (kind, name, drops)


# --- what a study starts with


def test_the_default_space_holds_all_of_the_papers_schedules() -> None:
    study = plan_of({"tuned": TUNED}).studies[0]
    assert [params[KIND] for params in study.first] == ["uniform", "linear", "review"]
    assert not study.excluded


def test_a_schedule_outside_the_space_is_left_out_not_bent() -> None:
    methods = {
        "uniform": {"method": "iakd", "iakd": {"schedule": {"kind": "uniform", "p0": 0.1}}},
        "cosine": {"method": "iakd", "iakd": {"schedule": {"kind": "cosine"}}},
        "tuned": TUNED,
    }
    study = plan_of(methods, {"space": {"kind": ["uniform", "linear"], "p0": [0.2, 0.6]}}).studies[0]
    assert [params[KIND] for params in study.first] == ["linear"]
    assert [(start[KIND], start[f"{SCHEDULE}.p0"]) for start in study.excluded] == [
        ("uniform", 0.1),
        ("review", 0.5),
        ("cosine", 0.5),
    ]


def test_schedules_that_methods_spell_out_go_before_the_defaults() -> None:
    methods = {
        "low": {"method": "iakd", "iakd": {"schedule": {"kind": "linear", "p0": 0.3}}},
        "wave": {"method": "iakd", "iakd": {"schedule": {"kind": "cyclic"}}},
        "also-low": {"method": "iakd+kd", "iakd": {"schedule": {"kind": "linear", "p0": 0.3}}},
        "kd": {},
        "tuned": TUNED,
    }
    first = plan_of(methods).studies[0].first
    assert [(params[KIND], params[f"{SCHEDULE}.p0"]) for params in first] == [
        ("uniform", 0.5),
        ("linear", 0.3),
        ("review", 0.5),
        ("cyclic", 0.5),
    ]


def test_a_study_is_another_one_when_a_first_schedule_changes() -> None:
    keys = {
        plan_of({"low": {"method": "iakd", "iakd": {"schedule": {"p0": p0}}}, "tuned": TUNED}).studies[0].key
        for p0 in (0.3, 0.4)
    }
    assert len(keys) == 2


def test_the_first_trial_is_the_method_as_it_stands() -> None:
    method = kd(kd__temperature=[1, 16], recipe__lr=[0.01, 0.2], init=["random", "teacher"])
    method |= {"kd": {"temperature": 5}, "recipe": {"lr": 0.1}}
    study = plan_of({"mine": method}).studies[0]
    assert study.first == [{"kd.temperature": 5.0, "recipe.lr": 0.1, "init": "random"}]
    tried = study.space.candidate(study.first[0])
    assert (tried.method.settings(), tried.recipe) == (
        {"method": "kd", "init": "random", "kd": {"temperature": 5.0, "ce_weight": 0.1, "kd_weight": 0.9}},
        study.recipe,
    )


def test_a_tuned_schedule_is_searched_together_with_other_settings() -> None:
    study = plan_of({"mine": {**TUNED, "tune": {"iakd.unit": ["block", "stage"]}}}).studies[0]
    assert [(params[KIND], params["iakd.unit"]) for params in study.first] == [
        ("uniform", "block"),
        ("linear", "block"),
        ("review", "block"),
    ]
    tried = study.space.candidate({**study.first[1], "iakd.unit": "stage"}).method
    assert tried.iakd.unit == "stage" and isinstance(tried.iakd.schedule, Schedule)
    assert tried.iakd.schedule.kind == "linear" and not tried.tuned


# --- the syntax


def test_every_form_of_candidates() -> None:
    method = kd(
        kd__temperature={"low": 1, "high": 16, "log": True},
        recipe__lr=[0.01, 0.2],
        recipe__batch_size=[32, 96],
        recipe__weight_decay={"choices": [0.0005, 0.001]},
        recipe__augment__pad={"low": 0, "high": 4, "step": 2},
        recipe__lr_schedule__milestones=[[0.625, 0.75, 0.875], [0.5, 0.8]],
        recipe__augment__mixup=[None, {"alpha": 0.2}],
        recipe__nesterov=[False, True],
        init=["random", "teacher"],
    )
    space = space_of(method)
    first, excluded = space.params_of({})
    assert not excluded and first["recipe.batch_size"] == 64 and first["recipe.augment.mixup"] == "null"
    by_name: dict[str, set[Any]] = {}
    for seed in range(40):
        params = draw(space, seed)
        tried, recipe = space.candidate(params)
        assert 1 <= tried.kd.temperature <= 16 and 0.01 <= recipe.lr <= 0.2 and 32 <= recipe.batch_size <= 96
        assert isinstance(params["recipe.batch_size"], int) and tried.init == params["init"]
        chosen = {
            "pad": recipe.augment.pad,
            "decay": recipe.weight_decay,
            "milestones": tuple(recipe.lr_schedule.milestones),
            "mixup": recipe.augment.mixup.alpha if recipe.augment.mixup else None,
            "nesterov": recipe.nesterov,
            "low": tried.kd.temperature < 4,
        }
        for name, value in chosen.items():
            by_name.setdefault(name, set()).add(value)
    assert by_name == {
        "pad": {0, 2, 4},
        "decay": {0.0005, 0.001},
        "milestones": {(0.625, 0.75, 0.875), (0.5, 0.8)},
        "mixup": {None, 0.2},
        "nesterov": {True, False},
        "low": {True, False},
    }


def test_a_logarithmic_range_is_drawn_logarithmically() -> None:
    space = space_of(kd(kd__temperature={"low": 1, "high": 16, "log": True}))
    draws = [draw(space, seed)["kd.temperature"] for seed in range(100)]
    assert 40 <= sum(value < 4 for value in draws) <= 60  # linearly: 20


def test_a_setting_is_drawn_only_when_its_condition_holds() -> None:
    space = space_of(
        kd(
            recipe__momentum={"low": 0.5, "high": 0.95, "when": {"recipe.optimizer": "sgd"}},
            recipe__optimizer=["sgd", "adamw"],
        )
    )
    assert [parameter.name for parameter in space.parameters] == ["recipe.optimizer", "recipe.momentum"]
    seen = set()
    for seed in range(12):
        params = draw(space, seed)
        sgd = params["recipe.optimizer"] == "sgd"
        assert ("recipe.momentum" in params) == sgd
        assert sgd or space.candidate(params).recipe.momentum == 0.9, "its own value"
        seen.add(sgd)
    assert seen == {True, False}


def test_nested_sections_are_dotted_names() -> None:
    nested = {"method": "kd", "tune": {"kd": {"temperature": [1, 8]}, "recipe": {"lr": {"low": 0.01, "high": 0.1}}}}
    dotted = kd(kd__temperature=[1, 8], recipe__lr=[0.01, 0.1])
    assert plan_of({"mine": nested}).studies[0].key == plan_of({"mine": dotted}).studies[0].key


def test_a_pair_may_override_what_is_searched() -> None:
    raw = {
        "teachers": [{"arch": "resnet20"}],
        "students": [{"arch": "resnet8"}, {"arch": "resnet14"}],
        "pairs": [
            ["resnet20", "resnet8"],
            {
                "teacher": "resnet20",
                "student": "resnet14",
                "methods": {"mine": {"kd": {"temperature": 2}, "tune": {"kd.temperature": [1, 3]}}},
            },
        ],
        "methods": {"mine": kd(kd__temperature=[1, 8])},
    }
    studies = plan_experiment(parse(raw, "params.yaml")).studies
    assert [study.path for study in studies] == [
        "digits/tune/resnet20-resnet8/mine",
        "digits/tune/resnet20-resnet14/mine",
    ]
    assert [study.first for study in studies] == [[{"kd.temperature": 4.0}], [{"kd.temperature": 2.0}]]
    raw["pairs"][1]["methods"]["mine"]["kd"]["temperature"] = 5  # type: ignore[index]
    with pytest.raises(
        UserError, match=r"pairs: resnet20-resnet14: methods\.mine\.tune\.kd\.temperature: must include"
    ):
        parse(raw, "params.yaml")


IAKD_PATHS = {"method": "iakd+kd", "tune": {"iakd.form": ["single_path", "two_path"], "iakd.weight": [0.1, 1.0]}}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (kd(kd__temperatur=[1, 2]), r"kd\.temperatur: unknown setting 'temperatur' \(did you mean 'temperature'\?\)"),
    (kd(dkd__alpha=[1, 2]), r"dkd\.alpha: dkd is not in 'kd'"),
    (kd(scratch__alpha=[1, 2]), r"scratch\.alpha: scratch is not in 'kd'"),
    (kd(method=["kd", "dkd"]), "method: cannot be searched; what can: init, recipe, kd"),
    (kd(recip__lr=[1, 2]), r"recip\.lr: cannot be searched \(did you mean 'recipe'\?\)"),
    (kd(recipe=[1, 2]), "recipe: a whole section"),
    (kd(kd__temperature__x=[1, 8]), r"kd\.temperature\.x: kd\.temperature is not a section"),
    (kd(kd__temperature=[0, 8]), r"kd\.temperature: a trial with kd\.temperature: 0\.0 is impossible .*greater than 0"),
    (
        kd(kd__temperature=[5, 8]),
        r"kd\.temperature: must include 4\.0, .*; widen the range, or set kd\.temperature itself to a value that is",
    ),
    (
        kd(init=["teacher"]),
        r"init: must include 'random', .*; add it to the choices, or set init itself to a value that is included",
    ),
    (kd(init=["random", "teachr"]), r"init: a trial with init: teachr is impossible"),
    (kd(recipe__lr=[0.1, 0.01]), r"recipe\.lr: low 0\.1 is above high 0\.01"),
    (kd(recipe__lr={"low": 0.01}), r"recipe\.lr: needs low and high, or choices"),
    (kd(recipe__lr={"low": 0.01, "high": 1, "hgh": 3}), r"recipe\.lr\.hgh: unknown key \(did you mean 'high'\?\)"),
    (kd(recipe__lr={"low": 0.0, "high": 1, "log": True}), r"recipe\.lr: log needs low > 0"),
    (kd(recipe__nesterov=[0, 1]), r"recipe\.nesterov: not a number: list its choices"),
    (kd(recipe__batch_size=[16.5, 64]), r"recipe\.batch_size: low must be a whole number"),
    (
        kd(recipe__augment__pad={"low": 0, "high": 5, "step": 2}),
        r"recipe\.augment\.pad: high must be low plus",
    ),
    (
        kd(recipe__augment__pad=[0, 2], recipe__augment=[{"pad": 0}, {}]),
        r"recipe\.augment\.pad: a part of recipe\.augment",
    ),
    (kd(recipe__epochs=[100, 240]), r"recipe\.epochs: cannot be searched: every trial trains equally long"),
    (kd(recipe__lr_schedule__milestones=[[0.7, 0.4], [0.625, 0.75, 0.875]]), "must ascend"),
    (
        kd(recipe__lr={"low": 0.01, "high": 0.2, "when": {"init": "teacher"}}),
        "when: never true, because init is 'random'",
    ),
    (kd(recipe__lr={"low": 0.01, "high": 0.2, "when": {"kd.heat": 1}}), r"kd\.heat: unknown setting 'heat'"),
    (
        kd(init=["random", "teacher"], recipe__lr={"low": 0.01, "high": 0.2, "when": {"init": "blok"}}),
        r"recipe\.lr: when: init is never 'blok'",
    ),
    (
        kd(
            recipe__lr={"low": 0.01, "high": 0.2, "when": {"kd.temperature": 4}},
            kd__temperature={"low": 1, "high": 8, "when": {"recipe.lr": 0.05}},
        ),
        "settings wait for each other",
    ),
    ({**TUNED, "tune": {"iakd.schedule.p0": [0.1, 0.9]}}, "iakd.schedule is tuned, so tune.space has its"),
    (
        {"method": "iakd", "tune": {"iakd.schedule.cycles": [2, 4]}},
        r"iakd\.schedule\.cycles: the schedule does not use it",
    ),
    (
        IAKD_PATHS,
        r"a trial with iakd\.weight: 0\.1 is impossible .*no effect with form: single_path.*`when` can prevent it",
    ),
    (
        {"method": "mlkd", "tune": {"mlkd.temperatures": [[2.0, 3.0], [2.0, 3.0, 4.0, 5.0, 6.0]]}},
        "strong_temperatures: 4",
    ),
]


@pytest.mark.parametrize(("method", "message"), MISTAKES)
def test_a_mistake_is_one_line_when_the_settings_are_read(method: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"params\.yaml: methods\.mine\.tune\.?.*{message}") as error:
        plan_of({"mine": method})
    assert "\n" not in str(error.value)


def test_a_condition_makes_it_possible() -> None:
    tune = {**IAKD_PATHS["tune"], "iakd.weight": {"low": 0.1, "high": 1.0, "when": {"iakd.form": "two_path"}}}
    space = space_of({**IAKD_PATHS, "tune": tune})
    for seed in range(8):
        params = draw(space, seed)
        assert ("iakd.weight" in params) == (space.candidate(params).method.iakd.form == "two_path")


def test_a_setting_that_all_trials_share_cannot_be_searched() -> None:
    with pytest.raises(UserError, match=r"recipe\.lr: the section tune\.recipe sets it for all trials"):
        plan_of({"mine": kd(recipe__lr=[0.01, 0.2])}, {"recipe": {"lr": 0.1}})


def test_impossible_bounds_of_a_schedule_are_refused_on_reading() -> None:
    with pytest.raises(UserError, match=r"tune\.space: t_end: .*greater than 0"):
        plan_of({"mine": TUNED}, {"space": {"t_end": [0.0, 0.5]}})


# --- several studies


def test_every_tuned_method_has_a_study_of_its_own_on_the_same_budget() -> None:
    methods = {
        "kd": {},
        "kd-tuned": kd(kd__temperature=[1, 8]),
        "iakd-tuned": TUNED,
        "scratch-tuned": {"method": "scratch", "tune": {"recipe.lr": [0.01, 0.2]}},
    }
    plan = plan_of(methods, {"trials": 7, "seeds": 4})
    assert [study.path.rpartition("/")[2] for study in plan.studies] == ["kd-tuned", "iakd-tuned", "scratch-tuned"]
    assert {study.settings["tune"]["seeds"] for study in plan.studies} == {4}
    with pytest.raises(UserError, match=r"methods\.kd-tuned\.tune\.trials"):
        plan_of({**methods, "kd-tuned": {"method": "kd", "tune": {"trials": [8, 9]}}})
    used = {student.label: student.study for student in plan.students}
    assert used["kd"] is None and used["kd-tuned"] is plan.studies[0] and used["iakd-tuned"] is plan.studies[1]


def test_only_studies_of_schedules_depend_on_the_space_of_schedules() -> None:
    methods = {"kd-tuned": kd(kd__temperature=[1, 8]), "iakd-tuned": TUNED}
    one, other = (plan_of(methods, {"space": {"p0": [0.1, high]}}).studies for high in (0.8, 0.9))
    assert one[0].key == other[0].key and one[1].key != other[1].key


def test_a_study_needs_the_teacher_if_one_of_its_trials_does() -> None:
    scratch = {"method": "scratch", "tune": {"recipe.lr": [0.01, 0.2]}}
    assert not plan_of({"mine": scratch}).studies[0].method.needs_teacher
    scratch["tune"] = {"init": ["random", "teacher"]}  # type: ignore[assignment]
    plan = plan_of({"mine": scratch})
    assert plan.studies[0].method.needs_teacher and plan.students[0].settings["teacher"]


# --- best.yaml


def test_best_yaml_comes_back_exactly(tmp_path: Path) -> None:
    space = space_of({**TUNED, "tune": {"recipe.augment.mixup": [None, {"alpha": 0.2}]}})
    params = {**draw(space), "recipe.augment.mixup": '{"alpha": 0.2}'}
    path = write_best(tmp_path, "mine", space.entry(params), "Best trial.")
    assert read_best(tmp_path) == space.candidate(params).method
    assert Recipe.model_validate(read_best(tmp_path).recipe).augment == space.candidate(params).recipe.augment
    assert Method.model_validate(yaml.safe_load(path.read_text())["mine"]) == read_best(tmp_path)
    assert path.read_text().startswith("# Best trial.\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("mine: {method: nonsense}", "damaged"),
        ("kind: [", "damaged"),
        ("- 1", "damaged"),
        ("", "damaged"),
    ],
)
def test_a_missing_or_damaged_best_yaml_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "best.yaml").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_best(tmp_path)
    assert "iakd tune" in str(error.value) and "\n" not in str(error.value)
