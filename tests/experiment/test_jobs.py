"""The experiment: which jobs it has, and what makes each of them run again."""

import shutil
from pathlib import Path

import pytest

from iakd.config import load
from iakd.errors import UserError
from iakd.experiment import provenance
from iakd.experiment.jobs import Experiment, StudentJob, plan_experiment, select
from iakd.experiment.provenance import source_files, source_sha

DEFAULT = Path(__file__).parents[2] / "params.yaml"


def experiment(*changes: str) -> Experiment:
    return plan_experiment(load(DEFAULT, list(changes)))


def keys(experiment: Experiment) -> dict[str, str]:
    return {
        job.path: job.key for job in (experiment.data, *experiment.teachers, *experiment.studies, *experiment.students)
    }


def changed(*changes: str) -> set[str]:
    """The kinds of jobs whose key differs from the default experiment's."""
    before, after = keys(experiment()), keys(experiment(*changes))
    return {
        path.split("/")[1] + "/" * ("students" in path) + path.split("/")[-2] * ("students" in path)
        for path in after
        if before.get(path) != after[path]
    }


def test_the_default_grid() -> None:
    jobs = experiment()
    assert len(jobs.teachers) == 1 and len(jobs.studies) == 3
    fewer = {"iakd-uniform", "iakd-linear", "iakd-review", "iakd-tuned"}
    contenders = set(jobs.params.methods) - fewer
    assert len(jobs.students) == 5 * len(contenders) + 3 * len(fewer)
    required = {
        "scratch",
        "kd",
        "kd-longer",
        "kd-from-teacher",
        "iakd-uniform",
        "iakd-linear",
        "iakd-review",
        "two-path",
        "two-path-from-teacher",
        "iakd-tuned",
        "kd-tuned",
        "two-path-tuned",
    }
    assert required <= {job.label for job in jobs.students}
    assert jobs.params.tune.trials * jobs.params.tune.seeds >= 24
    assert len({job.path for job in jobs.trained}) == len(jobs.trained)


def test_a_student_setting_never_touches_a_teacher() -> None:
    assert changed("methods.kd.kd.temperature=2") == {"students/kd"}
    assert not changed("distill.recipe.lr=0.01") & {"data", "teachers"}
    assert not changed("distill.transfer=50") & {"data", "teachers"}


def test_a_teacher_setting_touches_those_who_learn_from_it() -> None:
    after = changed("teach.recipe.lr=0.01")
    assert "teachers" in after and "tune" in after and "students/kd" in after
    assert "students/scratch" not in after and "data" not in after


def test_machine_and_display_are_no_part_of_an_identity() -> None:
    for change in ("compute.threads=2", "tracking.enabled=false", "report.title=x", "tune.workers=7", "tune.trials=99"):
        assert changed(change) == set(), change


def test_a_study_touches_only_the_students_that_use_it() -> None:
    assert changed("tune.seed=5") == {"tune", *(f"students/{name}-tuned" for name in ("iakd", "kd", "two-path"))}


def test_more_seeds_keep_the_finished_ones() -> None:
    before, after = keys(experiment()), keys(experiment("distill.seeds=[0, 1, 2, 3, 4, 5]"))
    assert all(after[path] == key for path, key in before.items())


def test_a_method_may_have_fewer_seeds_which_changes_no_training() -> None:
    seeds = {label: [job.seed for job in jobs] for label, jobs in students_by_label(experiment()).items()}
    assert seeds["iakd-linear"] == [0, 1, 2]
    assert seeds["kd"] == [0, 1, 2, 3, 4]
    before, after = (keys(experiment("teach.seeds=[5, 6]", f"methods.scratch.seeds={n}")) for n in ("null", 2))
    assert {path for path in before if path not in after} == {
        f"digits/students/resnet20w8-resnet8w8/scratch/seed{seed}" for seed in (2, 3, 4)
    }
    assert all(before[path] == key for path, key in after.items())
    assert len(experiment("methods.kd.seeds=9").students) == len(experiment().students), "there are only five"


def students_by_label(jobs: Experiment) -> dict[str, list[StudentJob]]:
    found: dict[str, list[StudentJob]] = {}
    for job in jobs.students:
        found.setdefault(job.label, []).append(job)
    return found


def test_students_take_the_teachers_in_turn() -> None:
    jobs = experiment("teach.seeds=[5, 6]")
    assert [job.teacher.seed for job in jobs.students[:3]] == [5, 6, 5]


def test_pairs_can_be_chosen() -> None:
    jobs = experiment(
        "teachers=[{arch: resnet20}, {arch: resnet32}]", "students=[{arch: resnet8}]", "pairs=[[resnet32, resnet8]]"
    )
    assert {job.teacher.network.name for job in jobs.students} == {"resnet32"}
    assert len(jobs.teachers) == 2, "a teacher without students is still trained and evaluated"


def test_selection_names_what_there_is() -> None:
    jobs = experiment()
    assert [job.seed for job in select(jobs.students, "student", pair=None, method="kd", seed=None)] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"--method kdd: no such student .*did you mean 'kd'.*known: .*scratch"):
        select(jobs.students, "student", method="kdd")
    with pytest.raises(UserError, match="no study in the settings"):
        select([], "study", pair=None)


def test_the_source_hash_covers_what_a_stage_imports_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked on a copy of the sources in which one file after the other is changed."""
    copy = tmp_path / "iakd"
    shutil.copytree(Path(provenance.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE_ROOT", tmp_path)
    stages = ["prepare", "teach", "tune", "distill", "evaluate", "export", "latency", "report"]

    def hashes() -> dict[str, str]:
        source_sha.cache_clear()
        provenance._read.cache_clear()
        return {stage: source_sha(f"iakd.stages.{stage}") for stage in stages}

    def touched(file: str) -> set[str]:
        before = hashes()
        path = copy / file
        path.write_text(path.read_text() + "\n# changed\n")
        after = hashes()
        return {stage for stage in stages if before[stage] != after[stage]}

    try:
        assert touched("training/trainer.py") >= {"teach", "tune", "distill"}
        assert not touched("training/trainer.py") & {"prepare", "report"}
        assert {"tune", "distill"} <= touched("interactive/schedule.py")
        assert touched("data/splits.py") >= {"prepare", "distill"}, "the transfer set is drawn by it, too"
        assert touched("data/writer.py") == {"prepare"}
        assert touched("data/sources/cifar.py") == set(), "digits are read by another module"
        assert touched("data/loader.py") >= {"teach", "tune", "distill", "evaluate"}
        assert touched("stages/report.py") == {"report"}
        assert touched("export/convert.py") == {"export", "latency"}
        assert touched("stages/distill.py") == {"distill"}
        assert touched("cli.py") == set()
        assert touched("tracking/mirror.py") == set(), "the view of a run is no part of it"
    finally:
        source_sha.cache_clear()
        provenance._read.cache_clear()


def test_what_a_job_loads_by_name_is_part_of_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = experiment()
    assert jobs.data.modules == ["iakd.data.sources.digits"]
    by_label = {job.label: job.modules for job in jobs.students}
    assert by_label["kd"] == ["iakd.distillation.losses.kd"] and by_label["scratch"] == []
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr("iakd.experiment.jobs.source_sha", lambda *modules: asked.append(modules) or "source")
    kd = [job.key for job in jobs.students if job.label == "kd"]
    assert kd and all(modules == ("iakd.stages.distill", "iakd.distillation.losses.kd") for modules in asked)


def test_code_of_ones_own_counts_in_folders_without_init_py_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lib_of_mine/scale").mkdir(parents=True)
    (tmp_path / "lib_of_mine/scale/ops.py").write_text("import beside_it\n")
    (tmp_path / "beside_it.py").write_text("")
    (tmp_path / "yaml").mkdir()  # not what `import yaml` imports
    (tmp_path / "mine.py").write_text("import yaml\nfrom lib_of_mine.scale import ops\n")
    assert set(source_files("mine")) == {"mine", "lib_of_mine.scale.ops", "beside_it"}


def test_what_a_job_depends_on_is_listed_in_the_clear() -> None:
    jobs = experiment("methods.kd.recipe={lr: 0.2}")
    kd = next(job for job in jobs.students if job.label == "kd")
    assert {
        "dataset.val=300",
        "teacher.network.arch=resnet20",
        "teacher.recipe.lr=0.1",
        "transfer=100",
        "method.kd.temperature=4.0",
        "recipe.lr=0.2",
        "recipe.lr_schedule.kind=cosine",
        "study=null",
        f"source={kd.source[:16]}",
    } <= set(kd.watched)
    assert {"dataset.split_seed=0"} <= set(jobs.data.watched)
    assert {"tune.space.p0=[0.1, 0.9]", "first.2.iakd.schedule.kind=linear"} <= set(jobs.studies[0].watched)


def test_what_is_listed_changes_with_every_setting_of_the_identity_but_the_seed() -> None:
    def lists(experiment: Experiment) -> dict[str, list[str]]:
        return {job.path: job.watched for job in (experiment.data, *experiment.studies, *experiment.trained)}

    before = experiment()
    for change in (
        "dataset.val=200",
        "teach.recipe.lr=0.2",
        "tune.seed=1",
        "distill.transfer=0.5",
        "methods.kd.init=teacher",
    ):
        after = experiment(change)
        same_key = {path for path, key in keys(before).items() if keys(after)[path] == key}
        assert same_key == {path for path, texts in lists(before).items() if lists(after)[path] == texts}, change
    kd = [job for job in before.students if job.label == "kd"]
    assert kd[0].watched == kd[1].watched, "seeds may be trained in one job or in several"


def test_a_pair_may_differ_in_recipe_and_options() -> None:
    pair = (
        "pairs=[[resnet20w8, resnet8w8], {teacher: resnet20w8, student: other, recipe: {lr: 0.01}, "
        "methods: {kd: {kd: {temperature: 2}}}}]"
    )
    jobs = experiment("students=[{arch: resnet8, width: 8, shortcut: A}, {arch: resnet8, width: 4, name: other}]", pair)
    own, other = (
        {job.label: job for job in jobs.students if job.student.name == name} for name in ("resnet8w8", "other")
    )
    assert own["kd"].recipe.lr == jobs.params.distill.recipe.lr != 0.01
    assert {job.recipe.lr for job in other.values()} == {0.01}
    assert (own["kd"].method.kd.temperature, other["kd"].method.kd.temperature) == (4.0, 2.0)
    assert own["scratch"].method == other["scratch"].method
    assert keys(experiment())[own["kd"].path] == own["kd"].key, "what is other elsewhere leaves a pair alone"


def test_a_part_of_the_experiment_has_the_very_jobs_of_the_whole() -> None:
    """The same teachers, first trials and identities; only what the part needs."""
    two = ("teach.seeds=[0, 1]", "methods.iakd-tuned.seeds=null")
    whole, part = experiment(*two), experiment(*two, "only.methods=[iakd-tuned, kd]", "only.seeds=[1, 3]")
    assert [(job.label, job.seed) for job in part.students] == [
        (label, seed) for label in ("kd", "iakd-tuned") for seed in (1, 3)
    ]
    assert [job.label for job in part.studies] == ["iakd-tuned"]
    assert [job.seed for job in part.teachers] == [0, 1]  # of the study, and of the students with odd positions
    assert [job.seed for job in experiment(*two, "only.methods=[kd]", "only.seeds=[1]").teachers] == [1]
    keys_of_whole = keys(whole)
    assert all(keys_of_whole[path] == key for path, key in keys(part).items())
    (export,) = part.exports
    assert export.students == part.students
    assert (list(part.params.methods), part.params.distill.seeds) == (["kd", "iakd-tuned"], [1, 3])
    fewer = experiment("only.methods=[kd, iakd-linear]", "only.seeds=[4]")
    assert [(job.label, job.seed) for job in fewer.students] == [("kd", 4)], "iakd-linear has three seeds"
    assert list(fewer.params.methods) == ["kd"]


def test_a_part_of_the_pairs() -> None:
    more = ("students=[{arch: resnet8, name: a}, {arch: resnet8, name: b}]",)
    part = experiment(*more, "only.pairs=[resnet20w8-b]")
    assert {job.pair for job in part.students} == {"resnet20w8-b"}
    assert [pair.student for pair in part.params.paired] == ["b"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("only.methods=[kdd]", "only.methods: 'kdd' is not in the settings (did you mean 'kd'?); known: scratch, kd,"),
        ("only.pairs=[a-b]", "only.pairs: 'a-b' is not in the settings; known: resnet20w8-resnet8w8"),
        ("only.seeds=[9]", "only.seeds: 9 is not in the settings; known: 0, 1, 2, 3, 4"),
        ("only={methods: [iakd-tuned], seeds: [4]}", "only: none of these methods is trained with any of these seeds"),
    ],
)
def test_a_part_that_is_not_there(change: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        experiment(change)
    assert words in str(raised.value)
