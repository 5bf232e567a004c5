"""The parts that a method expression such as `iakd+kd` adds up, by name; `params.METHODS` describes the same ones."""

from iakd import params
from iakd.data.batches import steps
from iakd.methods import data_side, features, logits, relations
from iakd.methods.part import Part
from iakd.training.timeline import Timeline

PARTS: dict[str, type[Part]] = {
    "iakd": Part,  # the cross-entropy of the hybrid network, which `Distillation` computes
    **logits.PARTS,
    **features.PARTS,
    **relations.PARTS,
    **data_side.PARTS,
}


def timeline_of(recipe: params.Recipe, method: params.Method, n: int) -> Timeline:
    """The timeline of a training on `n` images. Raises UserError where an epoch would have no step."""
    images = [min(PARTS[name].images(method, n, epoch) for name in method.parts) for epoch in range(recipe.epochs)]
    lengths = [steps(count, recipe.batch_size) for count in images]
    return Timeline.of(recipe, steps(n, recipe.batch_size), lengths)
