"""What the functions of `iakd` accept: networks, settings, data. UserError, in one line, says what to give instead."""

import contextlib
import copy
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from iakd.config import Method, Recipe, explain_all
from iakd.data.loader import ImageLoader
from iakd.errors import UserError, reason_of
from iakd.evaluation.plausibility import is_near_chance
from iakd.files import check_writable
from iakd.models import Network
from iakd.models.external.partition import Partition
from iakd.models.external.plain import as_network, undivided
from iakd.models.network import are_probabilities
from iakd.models.shapes import trial
from iakd.training.validation import validate

BATCH = 256  # images, where the teacher is checked

Section = TypeVar("Section", bound=BaseModel)


def network_of(
    module: nn.Module, image: tuple[int, int, int], parts: Partition | None, name: str, method: Method
) -> Network:
    """A module as a network, with blocks if it is known how it is divided; the method may need them."""
    if parts is not None:
        _trial_logits(module, image, name)  # or what it cannot do would be taken for a fault of the parts
    network = as_network(module, image, parts, name, trained=name == "student")
    if network is not None:
        return network
    blind = method.beyond_outputs
    if blind or method.init != "random":
        raise UserError(
            f"{blind[0] if blind else f'init: {method.init}'} needs the blocks of the {name}, a "
            f"{type(module).__name__}, which are not known: describe them with {name}_parts=iakd.Partition(stem=…, "
            "blocks=…, head=…), or choose a method that compares outputs, such as kd"
        )
    return undivided(module)


def check_module(module: Any, name: str, parts: Any) -> None:
    """Check that a module can be trained, or teach, as it is; `parts` are None or a Partition."""
    if not isinstance(module, nn.Module):
        what = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise UserError(f"the {name} is {what}; give a network, a torch.nn.Module")
    if not isinstance(parts, Partition | None):
        raise UserError(f"{name}_parts is a {type(parts).__name__}; give an iakd.Partition")
    if hasattr(module, "_orig_mod"):
        raise UserError(f"the {name} comes from torch.compile; give the network that was compiled")
    for path, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise UserError(f"{path} of the {name} has no shape yet: call the network with a batch of images first")
        if parameter.is_meta:
            raise UserError(f"{path} of the {name} is on the meta device, where it has no values")
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UserError(f"{path} of the {name} is {kind}; make the network float32, with {name}.float()")
        if name == "student" and (parameter.is_complex() or parameter.layout != torch.strided):
            kind = "complex" if parameter.is_complex() else "sparse"
            raise UserError(f"{path} of the student is {kind}, and only dense tensors of real numbers can be trained")
    if name == "student" and not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError("the student has no parameter that needs a gradient, so there is nothing to train")


def check_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Check that no tensor belongs to both."""
    for kind in ("parameters", "buffers"):
        teachers = {id(tensor) for tensor in getattr(teacher, kind)()}
        shared = [path for path, tensor in getattr(student, f"named_{kind}")() if id(tensor) in teachers]
        if shared:
            raise UserError(
                f"teacher and student share {kind} ({shared[0]}), so training would change the teacher: give one of "
                "them a copy (copy.deepcopy)"
            )


def own_copy(teacher: nn.Module) -> nn.Module:
    """Return a copy on the CPU."""
    try:
        with torch.no_grad():  # or the parameters of TorchScript would be results of a computation
            return copy.deepcopy(teacher).cpu()
    except Exception as error:  # a user's module can fail in any way
        reason = reason_of(error)
        raise UserError(
            f"the teacher cannot be copied ({reason}): it may have stored an output; call it once under torch.no_grad()"
        ) from error


def make_folder(path: Path) -> None:
    """Make the folder of checkpoints, and check that it can be written to: later it would be too late."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    except OSError as error:
        raise UserError(f"checkpoints: {path}: {error.strerror}; give a folder that can be written to") from None


def whole_number(value: Any, name: str, least: int) -> int:
    """Return `value` as a whole number that is at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name} is {value!r}; give a whole number") from None
    if number < least or isinstance(value, bool):
        raise UserError(f"{name} is {value}; give a whole number, at least {least}")
    return number


def section(model: type[Section], values: Mapping[str, Any], name: str) -> Section:
    """Return a section of the settings, given as a dictionary."""
    if not isinstance(values, Mapping):
        raise UserError(f"{name} is {values!r}; give a dictionary of settings")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"{name}: {explain_all(error, model)}") from None


def check_augmentation(recipe: Recipe) -> None:
    """Check that the recipe does not augment float images, which it could not."""
    augment = recipe.augment
    if augment.pad or augment.flip or augment.policy != "none" or augment.crop != "none":
        raise UserError(
            "recipe.augment: pad, flip, crop and policy change uint8 images, and train_data returns float tensors: let "
            "the Dataset augment them, or return uint8 images"
        )


def check_classes(network: Network, data: ImageLoader, name: str) -> int:
    """Return the number of classes of a network, and check that it computes such images, and has all labels."""
    for training in (False, True) if name == "student" else (False,):
        mode = " in training mode" * training
        logits = _trial_logits(network, data.image_shape, name, training)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise UserError(f"the {name} returns {what}{mode} instead of logits (B, classes)")
        if not logits.isfinite().all():
            raise UserError(f"the {name} returns logits that are not finite numbers{mode}")
        if are_probabilities(logits):
            raise UserError(f"the {name} returns probabilities{mode} instead of logits: leave out its softmax")
        if training and not logits.requires_grad:
            raise UserError(
                f"the outputs of the {name} have no gradient, so nothing would be trained: does its `forward` detach "
                "them, or switch gradients off?"
            )
    if int(data.labels.max()) >= logits.shape[1]:
        raise UserError(f"the {name} has {logits.shape[1]} classes, and a label is {int(data.labels.max())}")
    return int(logits.shape[1])


def _trial_logits(module: nn.Module, image: Sequence[int], name: str, training: bool = False) -> Any:
    """Return what a network makes of two black images."""
    try:
        with trial(module, training), torch.set_grad_enabled(training):
            return module(torch.zeros(2, *image))
    except Exception as error:  # a user's module can fail in any way
        mode = " in training mode" * training
        raise UserError(f"the {name} cannot compute images of {tuple(image)}{mode} ({reason_of(error)})") from None


def check_accuracy(teacher: Network, data: ImageLoader) -> None:
    """Warn of a teacher that is near chance: it takes other images, or its classes have another order.

    Raises UserError if its outputs for these images are not finite.
    """
    with contextlib.closing(data):
        found = validate(teacher, data, BATCH)
    if not math.isfinite(found["val_nll"]):
        raise UserError("the teacher returns logits that are not finite numbers for some of the images")
    labels, top1 = data.labels.cpu().numpy(), found["val_top1"]
    if is_near_chance(top1 / 100, found["val_balanced_accuracy"] / 100, labels, int(labels.max()) + 1):
        warnings.warn(
            f"the teacher is right for only {top1:.1f} % of the images, near chance: check the normalisation and the "
            "order of the classes",
            stacklevel=3,
        )
