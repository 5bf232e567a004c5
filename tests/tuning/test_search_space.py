"""Which settings of a schedule a study searches."""

import optuna
import pytest
import yaml

from iakd.config import KINDS, LrSchedule, Params, Recipe, Schedule, Space, parse
from iakd.errors import UserError
from iakd.experiment.jobs import plan_experiment
from iakd.tuning.decisions import first_trials, params_of, suggest
from iakd.tuning.results import read_schedule, write_schedule

RECIPE = Recipe()
TRIMMED = Space(p0=(0.2, 0.6), cycles=(2, 4), steps=(3, 3))


def draw(kind: str, space: Space = TRIMMED, recipe: Recipe = RECIPE, seed: int = 0) -> dict[str, object]:
    """Parameters drawn at random for one kind."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    space = space.model_copy(update={"kind": [kind]})
    trial = study.ask()
    values = suggest(trial, space, recipe)
    assert trial.params == values
    return values


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
    assert set(draw(kind)) == {"kind", "p0", "slope", "student_only"} | expected
    Schedule.model_validate(draw(kind))


def test_review_counts_cycles_only_where_the_learning_rate_has_no_drops() -> None:
    smooth = Recipe(lr_schedule=LrSchedule(kind="cosine"))
    none = Recipe(lr_schedule=LrSchedule(milestones=[]))
    assert "cycles" not in draw("review")
    assert "cycles" in draw("review", recipe=smooth)
    assert "cycles" in draw("review", recipe=none)


def test_draws_stay_within_the_bounds_and_fill_them() -> None:
    draws = [draw("cyclic", seed=seed) for seed in range(60)]
    assert {values["cycles"] for values in draws} == {2, 3, 4}
    starts = [float(str(values["p0"])) for values in draws]
    assert 0.2 <= min(starts) < 0.25 < 0.55 < max(starts) <= 0.6
    assert draw("step")["steps"] == 3


def test_settings_that_a_kind_does_not_use_do_not_change_its_shape() -> None:
    """The list of used settings is checked against p(t) itself, both ways."""
    np = pytest.importorskip("numpy")
    from iakd.interactive.schedule import keep_probabilities

    def p(schedule: Schedule, drops: list[int]) -> object:
        return keep_probabilities(schedule, np.arange(100), 100, drops, 4).tolist()

    changed = {"p0": 0.3, "p1": 0.7, "t_end": 0.4, "slope": 0.3, "student_only": 0.4, "cycles": 5, "steps": 7}
    for kind in KINDS:
        for recipe, drops in ((Recipe(), [60, 80]), (Recipe(lr_schedule=LrSchedule(kind="cosine")), [])):
            base = Schedule.model_validate({"kind": kind})
            used = set(params_of(base, recipe)) - {"kind"}
            for name, value in {**changed, "steepness": 4.0}.items():
                differs = p(base.model_copy(update={name: value}), drops) != p(base, drops)
                assert differs == (name in used), (kind, name, drops)


def test_the_default_space_holds_all_of_the_papers_schedules() -> None:
    chosen, excluded = first_trials(plan_of({}).studies[0].first, Space(), Recipe())
    assert [values["kind"] for values in chosen] == ["uniform", "linear", "review"]
    assert not excluded


def test_a_schedule_outside_the_space_is_left_out_not_bent() -> None:
    first = [Schedule(kind="uniform", p0=0.1), Schedule(kind="linear", p0=0.5), Schedule(kind="cosine")]
    chosen, excluded = first_trials(first, Space(kind=["uniform", "linear"], p0=(0.2, 0.6)), Recipe())
    assert [values["kind"] for values in chosen] == ["linear"]
    assert excluded == [first[0], first[2]]


def test_schedules_that_methods_spell_out_go_before_the_defaults() -> None:
    methods = {
        "low": {"method": "iakd", "iakd": {"schedule": {"kind": "linear", "p0": 0.3}}},
        "wave": {"method": "iakd", "iakd": {"schedule": {"kind": "cyclic"}}},
        "also-low": {"method": "iakd+kd", "iakd": {"schedule": {"kind": "linear", "p0": 0.3}}},
        "kd": {},
    }
    first = plan_of(methods).studies[0].first
    assert [(s.kind, s.p0) for s in first] == [
        ("uniform", 0.5),
        ("linear", 0.3),
        ("review", 0.5),
        ("cyclic", 0.5),
    ]


def test_a_study_is_another_one_when_a_first_schedule_changes() -> None:
    keys = {plan_of({"low": {"method": "iakd", "iakd": {"schedule": {"p0": p0}}}}).studies[0].key for p0 in (0.3, 0.4)}
    assert len(keys) == 2


def test_impossible_bounds_are_refused_on_reading() -> None:
    with pytest.raises(UserError, match=r"tune\.space: t_end: .*greater than 0"):
        parse({**settings({}), "tune": {"space": {"t_end": [0.0, 0.5]}}}, "params.yaml")


def test_schedule_yaml_comes_back_exactly(tmp_path) -> None:  # type: ignore[no-untyped-def]
    values = draw("sigmoid")
    path = write_schedule(tmp_path, "toy/big-small", 7, 91.25, values)
    assert read_schedule(tmp_path) == Schedule.model_validate(values)
    assert yaml.safe_load(path.read_text()) == values
    assert path.read_text().startswith("# Best schedule of the study toy/big-small: trial 7, 91.25 %")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("kind: nonsense", "damaged"), ("kind: [", "damaged"), ("- 1", "damaged")],
)
def test_a_missing_or_damaged_schedule_is_one_line(tmp_path, content: str | None, message: str) -> None:  # type: ignore[no-untyped-def]
    if content is not None:
        (tmp_path / "schedule.yaml").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_schedule(tmp_path)
    assert "iakd tune" in str(error.value) and "\n" not in str(error.value)


def settings(methods: dict[str, object]) -> dict[str, object]:
    """Settings with one study."""
    return {
        "teachers": [{"arch": "resnet20"}],
        "students": [{"arch": "resnet8"}],
        "methods": {**methods, "tuned": {"method": "iakd", "iakd": {"schedule": "tuned"}}},
    }


def plan_of(methods: dict[str, object]):  # type: ignore[no-untyped-def]
    """The experiment of such settings."""
    params: Params = parse(settings(methods), "params.yaml")
    return plan_experiment(params)
