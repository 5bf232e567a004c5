"""Methods that look at intermediate features."""

from iakd.params.base import Strict
from iakd.params.methods.entry import Entry


class FeatureOptions(Strict):
    """Sections of the methods in this module."""


METHODS: dict[str, Entry] = {}
