"""Methods that look at relations between images."""

from iakd.params.base import Strict
from iakd.params.methods.entry import Entry


class RelationOptions(Strict):
    """Sections of the methods in this module."""


METHODS: dict[str, Entry] = {}
