"""Whether a training takes its teacher's outputs from a table: where that is possible and worth it."""

from iakd.methods.parts import PARTS
from iakd.methods.teacher.shelf import Shelf
from iakd.models.walk import Needs
from iakd.params import Method
from iakd.plan import STATE, Plan, StudentJob, StudyJob

FOLDER = "teacher-views"
WORTH = 0.1  # share of the outputs that has to be there already; a miss costs one or two hundredths of a step


def shelf_for(plan: Plan, job: StudentJob | StudyJob, data: str) -> Shelf | None:
    """Where a training keeps its teacher's outputs, None where it does not; `data` is a hash of its images."""
    compute, augment = plan.params.compute, job.recipe.augment
    if compute.teacher_cache == "off" or augment.views is None:
        return None
    if compute.teacher_cache == "auto" and expected_share(plan, job) < WORTH:
        return None
    folder = STATE / plan.params.dataset.name / FOLDER
    return Shelf(folder, data, augment, int(compute.teacher_cache_gib * 2**30))


def expected_share(plan: Plan, job: StudentJob | StudyJob) -> float:
    """The share of all outputs, over the trainings that share a table with this one, that need not be computed.

    Trainings of one seed see the same views, others draw theirs independently: after k of them (1 - 1/V)^k of an
    image's V views have not been seen.
    """
    views = job.recipe.augment.views
    assert views is not None
    if isinstance(job, StudyJob):
        return 1 - _distinct(views, job.recipe.epochs) / (job.recipe.epochs * plan.params.tune.trials)
    like = [
        other
        for other in plan.students
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
    parts = [PARTS[name] for name in method.parts]
    return any(part.teacher_needs != Needs() for part in parts) and not any(part.looks_inside for part in parts)
