"""Methods that choose or change what is trained on."""

from iakd.params.base import Strict
from iakd.params.methods.entry import Entry


class DataOptions(Strict):
    """Sections of the methods in this module."""


METHODS: dict[str, Entry] = {}
