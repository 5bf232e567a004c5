"""Whether a training takes its teacher's outputs from a table: where that is possible and worth it."""

from iakd.config import Method
from iakd.distillation.registry import loss_class
from iakd.distillation.teacher_cache.cache_dir import CacheDir
from iakd.experiment.jobs import STATE, Experiment, StudentJob, StudyJob
from iakd.models.features import FeatureSpec

FOLDER = "teacher-views"
WORTH = 0.1  # share of the outputs that has to be there already; a miss costs one or two hundredths of a step


def cache_dir_for(experiment: Experiment, job: StudentJob | StudyJob, data: str) -> CacheDir | None:
    """Where a training keeps its teacher's outputs, None where it does not; `data` is a hash of its images."""
    compute, augment = experiment.params.compute, job.recipe.augment
    if compute.teacher_cache == "off" or augment.views is None:
        return None
    if compute.teacher_cache == "auto" and expected_share(experiment, job) < WORTH:
        return None
    folder = STATE / experiment.params.dataset.name / FOLDER
    return CacheDir(folder, data, augment, int(compute.teacher_cache_gib * 2**30))


def expected_share(experiment: Experiment, job: StudentJob | StudyJob) -> float:
    """The share of all outputs, over the trainings that share a table with this one, that need not be computed.

    Trainings of one seed see the same views, others draw theirs independently: after k of them (1 - 1/V)^k of an
    image's V views have not been seen.
    """
    views = job.recipe.augment.views
    assert views is not None
    if isinstance(job, StudyJob):
        return 1 - _distinct(views, job.recipe.epochs) / (job.recipe.epochs * experiment.params.tune.trials)
    like = [
        other
        for other in experiment.students
        if other.teacher.path == job.teacher.path
        and other.recipe.augment == job.recipe.augment
        and other.recipe.batch_size == job.recipe.batch_size
        and other.recipe.precision == job.recipe.precision
        and _outputs_only(other.method)
    ]
    if not like:
        return 0.0
    epochs = {other.seed: other.recipe.epochs for other in like}
    return 1 - _distinct(views, sum(epochs.values())) / sum(other.recipe.epochs for other in like)


def _distinct(views: int, draws: int) -> float:
    """Expected number of different views among so many draws."""
    return views * (1 - (1 - 1 / views) ** draws)


def _outputs_only(method: Method) -> bool:
    """Whether a training by `method` looks at its teacher's outputs, and at nothing inside the teacher."""
    parts = [loss_class(name) for name in method.names]
    return any(part.teacher_features != FeatureSpec() for part in parts) and not any(
        part.uses_hidden_features for part in parts
    )
