"""The teacher's outputs from a table that all trainings with the same teacher fill and use together."""

import logging
from typing import IO

import numpy as np
import torch
from torch import Tensor

from iakd.data.batches import Batch, Resident
from iakd.data.choice import Shown
from iakd.data.draws import moved
from iakd.methods.teacher.identity import identity
from iakd.methods.teacher.outputs import Outputs, features_of
from iakd.methods.teacher.rows import Positions, Rows
from iakd.methods.teacher.shelf import Shelf
from iakd.models.walk import Features

log = logging.getLogger(__name__)


class CachedOutputs:
    """The same as `live`, bit for bit, for batches of `data`; each view of an image is computed once.

    What an epoch shows is known when it begins. So what the table has of it is read at once, and what is missing is
    computed in full batches: that of the batch in hand, filled up with what will be missing next. All decisions are
    made on the CPU, without waiting for the device.
    """

    def __init__(self, live: Outputs, data: Resident, shelf: Shelf) -> None:
        self.live = live
        self.data = data
        self.shelf = shelf
        self.taken = self.computed = 0  # outputs so far
        self._tables: dict[str, Rows] = {}
        self._user: IO[str] | None = None
        self._tried = False
        self._shown: Shown | None = None
        self._rows: Positions = np.zeros(0, np.int64)  # of each position of the epoch; -1: none
        self._there = np.zeros(0, bool)  # which positions are in `_values`
        self._values: dict[str, Tensor] = {}  # by kind, one row for each position of the epoch
        self._unsaved: list[Positions] = []
        self._writable = True

    def __call__(self, batch: Batch) -> Features:
        """Of each image of the batch."""
        if batch.shown is None or batch.shown.views is None:
            return self.live(batch)
        if not self._tried:
            self._tried = True
            self._open(batch)
        if not self._tables:
            return self.live(batch)
        if batch.shown is not self._shown:
            self._begin(batch.shown, batch.start)
        part = slice(batch.start, batch.start + len(batch.indices))
        while not self._there[part].all():
            wanted = ~self._there & (self._rows >= 0)
            wanted[: part.start] = False
            wanted[part] = ~self._there[part]
            positions = np.flatnonzero(wanted)[: self.live.batch_size]
            if not self._load(positions):  # else another process has just computed some
                self._compute(positions, batch)
        return features_of({kind: values[part].clone() for kind, values in self._values.items()})

    def finish(self) -> None:
        """The training has ended: let go of the table."""
        if not self._tables:
            return
        self._save()
        share = self.taken / max(1, self.taken + self.computed)
        log.info("%s: held %.0f %% of the teacher's outputs; the others were computed", self.shelf.folder, 100 * share)
        self._close()

    def _open(self, batch: Batch) -> None:
        """Find the table, and see for the first batch that what it holds is what is computed here."""
        images = self.live.filled(batch.images)
        augment = self.shelf.augment
        assert augment.views is not None
        key = identity(
            self.live.teacher, images, data=self.shelf.data, pad=augment.pad, flip=augment.flip, batch=len(images)
        )
        values = self.live.compute(batch.images)
        n = len(self.data) * augment.views
        widths = {kind: _bytes(value).shape[1] for kind, value in values.items()}
        try:
            self._user = self.shelf.claim(key, sum(n * (width + 4) for width in widths.values()))
            if self._user is None:
                return
            folder = self.shelf.folder / key
            self._tables = {kind: Rows(folder / f"{kind}.rows", n, width) for kind, width in widths.items()}
        except OSError as error:
            log.warning("%s cannot be used (%s): the teacher's outputs are computed", self.shelf.folder, error)
            self._close()
            return
        assert batch.shown is not None
        self._values = {
            kind: torch.empty((0, *value.shape[1:]), dtype=value.dtype, device=value.device)
            for kind, value in values.items()
        }
        self._begin(batch.shown, batch.start)
        known = np.flatnonzero(self._there[batch.start :][: len(batch.indices)])
        for kind, value in values.items():
            stored = self._values[kind][batch.start :][: len(value)]
            if not torch.equal(_bytes(stored)[known], _bytes(value)[known]):
                log.warning("%s: does not hold what this machine computes; not used", folder)
                self._close()
                return

    def _begin(self, shown: Shown, start: int) -> None:
        """A new epoch, of which batches from the position `start` on are asked for."""
        self._save()
        assert shown.views is not None and self.shelf.augment.views is not None
        self._shown = shown
        rows = shown.indices * self.shelf.augment.views + shown.views
        self._rows = rows.where(shown.views >= 0, -1).numpy()
        self._there = np.zeros(len(rows), bool)
        self._values = {kind: values.new_empty((len(rows), *values.shape[1:])) for kind, values in self._values.items()}
        self._load(np.arange(start, len(rows)))

    def _load(self, positions: Positions) -> bool:
        """Read what the table has at these positions; says whether it has any."""
        positions = positions[self._rows[positions] >= 0]
        read = {kind: table.read(self._rows[positions]) for kind, table in self._tables.items()}
        found = np.logical_and.reduce([found for found, _ in read.values()])
        if not found.any():
            return False
        at = self._moved(positions[found])
        for kind, (_, payload) in read.items():
            values = self._values[kind]
            content = torch.from_numpy(payload[found]).view(values.dtype).view(-1, *values.shape[1:])
            values.index_copy_(0, at, moved(content, values.device))
        self._there[positions[found]] = True
        self.taken += int(found.sum())
        return True

    def _compute(self, positions: Positions, batch: Batch) -> None:
        """Compute the outputs at these positions, of which the first ones are of the batch in hand."""
        assert self._shown is not None and self._shown.views is not None
        own = positions[positions < batch.start + len(batch.indices)] - batch.start
        images = batch.images if len(own) == len(batch.indices) else batch.images[self._moved(own)]
        ahead = torch.from_numpy(positions[len(own) :])
        more = None
        if len(ahead):
            indices, views = (self._moved(of[ahead].numpy()) for of in (self._shown.indices, self._shown.views))
            more = self.data.view_images(indices, views, self.shelf.augment)
        at = self._moved(positions)
        for kind, value in self.live.compute(self.live.filled(images, more)).items():
            self._values[kind].index_copy_(0, at, value[: len(positions)])
        self._there[positions] = True
        self.computed += len(positions)
        self._unsaved.append(positions[self._rows[positions] >= 0])
        if self.data.device.type == "cpu":  # elsewhere that would be waiting for the device
            self._save()

    def _save(self) -> None:
        """Write what was computed into the table."""
        positions = np.concatenate([*self._unsaved, np.zeros(0, np.int64)])
        self._unsaved = []
        if not (len(positions) and self._writable):
            return
        try:
            for kind, table in self._tables.items():
                table.write(self._rows[positions], _bytes(self._values[kind][self._moved(positions)]).numpy())
        except OSError as error:
            log.warning("%s: nothing more is added to it: %s", self.shelf.folder, error)
            self._writable = False

    def _moved(self, positions: Positions) -> Tensor:
        return moved(torch.from_numpy(positions), self.data.device)

    def _close(self) -> None:
        for table in self._tables.values():
            table.close()
        self._tables = {}
        if self._user:
            self._user.close()


def _bytes(values: Tensor) -> Tensor:
    """Rows of `values` (n, …) as uint8 (n, width), on the CPU."""
    return values.detach().cpu().flatten(1).contiguous().view(torch.uint8)
