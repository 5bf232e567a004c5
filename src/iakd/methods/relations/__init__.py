"""Methods that look at relations between images."""

from iakd.methods.part import Part

PARTS: dict[str, type[Part]] = {}
