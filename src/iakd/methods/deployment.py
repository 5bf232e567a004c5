"""The network that a method trains and leaves behind: the student, with what a part of the method makes of it."""

import torch

from iakd import params
from iakd.data.streams import derive
from iakd.methods.part import Part
from iakd.methods.parts import PARTS
from iakd.models import Network
from iakd.models.shapes import Shape


def changes_student(method: params.Method) -> bool:
    """Whether it leaves anything but the student that the settings name."""
    return any(PARTS[name].deploy is not Part.deploy for name in method.parts)


def deploy(student: Network, teacher: Network, method: params.Method, image: Shape, seed: int = 0) -> None:
    """Make of `student` what `method` deploys, for images of shape `image` (channels, height, width).

    To load finished weights into, the teacher needs its architecture only. Raises UserError for networks that the
    method cannot be used with.
    """
    for name in method.parts:
        generator = torch.Generator().manual_seed(derive("deployed", name, seed))
        PARTS[name].deploy(student, teacher, method, image, generator)
