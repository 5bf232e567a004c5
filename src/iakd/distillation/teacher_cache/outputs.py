"""The teacher's logits and pooled features, always computed in batches of one size.

A sum over many products may be split up differently in a batch of another size (oneDNN does so below 16 images, cuBLAS
more often), which changes its last bits. In batches of one size an image's outputs are the same at every position and
in any company; so they can be computed once and used again.
"""

import logging
import platform
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from iakd.config.networks import family_modules
from iakd.data.loader import Batch, DeviceLoader, EpochViews
from iakd.devices import to_device
from iakd.distillation.teacher_cache.cache_dir import CacheDir
from iakd.distillation.teacher_cache.row_file import Positions, RowFile
from iakd.experiment.provenance import source_sha
from iakd.files import digest, sha256_bytes
from iakd.models import Network
from iakd.models.features import Features, FeatureSpec, forward_features

KINDS = ("logits", "pooled")


def outputs_suffice(needs: FeatureSpec) -> bool:
    """Whether what is looked at are outputs, and nothing inside the network."""
    return needs != FeatureSpec() and needs == FeatureSpec(logits=needs.logits, pooled=needs.pooled)


def features_of(values: dict[str, Tensor]) -> Features:
    """Outputs by kind as what a walk gives."""
    return Features(logits=values.get("logits"), pooled=values.get("pooled"))


class TeacherOutputs:
    """Computes what `needs` names, of logits and pooled features, for training batches of up to `batch_size` images."""

    def __init__(self, teacher: Network, needs: FeatureSpec, batch_size: int) -> None:
        self.teacher = teacher
        self.needs = needs
        self.batch_size = batch_size
        self.kinds = [kind for kind in KINDS if getattr(needs, kind)]

    def __call__(self, batch: Batch) -> Features:
        """Of each image of the batch."""
        return features_of(self.compute(batch.images))

    def finish(self) -> None:
        """The training has ended."""

    @torch.no_grad()
    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """By kind, (B, …) for images (B, C, H, W) of the layout and in the precision of the training."""
        features = forward_features(self.teacher, self.filled(images), self.needs)
        return {kind: getattr(features, kind)[: len(images)] for kind in self.kinds}

    def filled(self, images: Tensor, more: Tensor | None = None) -> Tensor:
        """A batch of full size, laid out like `images`: these, then `more`, then the first one again and again."""
        if len(images) >= self.batch_size:
            return images
        full = torch.empty_strided(
            (self.batch_size, *images.shape[1:]), images.stride(), dtype=images.dtype, device=images.device
        )
        n = len(images)
        full[:n] = images
        if more is not None:
            full[n : n + len(more)] = more
            n += len(more)
        full[n:] = full[:1]
        return full


def identity(network: Network, images: torch.Tensor, **more: Any) -> str:
    """Of outputs of `network` for batches like `images`, computed here and now: weights, sources, precision, machine.

    `more`: JSON values that they depend on besides.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]  # also those that state_dict leaves out
    return digest(
        {
            "network": repr(network),
            "weights": {name: _sha256(tensor) for name, tensor in tensors},
            "source": [source_sha("iakd.models", *family_modules()), source_sha("iakd.data.loader")],
            "images": [*images.shape[1:], *images.stride()],
            "precision": _precision(images.device.type),
            "machine": _machine(images.device),
            **more,
        }
    )


def _sha256(tensor: torch.Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().flatten()
    return sha256_bytes(plain.view(torch.uint8).numpy().tobytes()) + str(tuple(tensor.stride()))


def _precision(device: str) -> str:
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "fp32"


def _machine(device: torch.device) -> list[Any]:
    """Libraries, and the processor with the instructions that it has or the GPU: they decide how sums are split up."""
    if device.type == "cuda":
        return [
            torch.__version__,
            torch.version.cuda,
            torch.backends.cudnn.version(),
            torch.cuda.get_device_name(device),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
        ]
    return [torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), *_processor()]


def _processor() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    wanted = ("model name", "flags", "Features", "CPU part", "cache size")
    return sorted({line for line in lines if line.startswith(wanted)})


log = logging.getLogger(__name__)


class CachedTeacherOutputs:
    """The same as `live`, bit for bit, for batches of `data`; each view of an image is computed once.

    What an epoch shows is known when it begins. So what the table has of it is read at once, and what is missing is
    computed in full batches: that of the batch in hand, filled up with what will be missing next. All decisions are
    made on the CPU, without waiting for the device.
    """

    def __init__(self, live: TeacherOutputs, data: DeviceLoader, cache_dir: CacheDir) -> None:
        self.live = live
        self.data = data
        self.cache_dir = cache_dir
        self.taken = self.computed = 0  # outputs so far
        self._tables: dict[str, RowFile] = {}
        self._user: IO[str] | None = None
        self._tried = False
        self._epoch: EpochViews | None = None
        self._rows: Positions = np.zeros(0, np.int64)  # of each position of the epoch; -1: none
        self._there = np.zeros(0, bool)  # which positions are in `_values`
        self._values: dict[str, Tensor] = {}  # by kind, one row for each position of the epoch
        self._unsaved: list[Positions] = []
        self._writable = True

    def __call__(self, batch: Batch) -> Features:
        """Of each image of the batch."""
        position = batch.position
        if position is None or position.views.views is None:
            return self.live(batch)
        if not self._tried:
            self._tried = True
            self._open(batch)
        if not self._tables:
            return self.live(batch)
        if position.views is not self._epoch:
            self._start_epoch(*position)
        part = slice(position.start, position.start + len(batch.indices))
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
        log.info(
            "%s: held %.0f %% of the teacher's outputs; the others were computed", self.cache_dir.folder, 100 * share
        )
        self._close()

    def _open(self, batch: Batch) -> None:
        """Find the table, and see for the first batch that what it holds is what is computed here."""
        images = self.live.filled(batch.images)
        augment = self.cache_dir.augment
        assert augment.views is not None
        key = identity(
            self.live.teacher, images, data=self.cache_dir.data, pad=augment.pad, flip=augment.flip, batch=len(images)
        )
        values = self.live.compute(batch.images)
        n = len(self.data) * augment.views
        widths = {kind: _bytes(value).shape[1] for kind, value in values.items()}
        try:
            self._user = self.cache_dir.claim(key, sum(n * (width + 4) for width in widths.values()))
            if self._user is None:
                return
            folder = self.cache_dir.folder / key
            self._tables = {kind: RowFile(folder / f"{kind}.rows", n, width) for kind, width in widths.items()}
        except OSError as error:
            log.warning("%s cannot be used (%s): the teacher's outputs are computed", self.cache_dir.folder, error)
            self._close()
            return
        assert batch.position is not None
        self._values = {
            kind: torch.empty((0, *value.shape[1:]), dtype=value.dtype, device=value.device)
            for kind, value in values.items()
        }
        self._start_epoch(*batch.position)
        known = np.flatnonzero(self._there[batch.position.start :][: len(batch.indices)])
        for kind, value in values.items():
            stored = self._values[kind][batch.position.start :][: len(value)]
            if not torch.equal(_bytes(stored)[known], _bytes(value)[known]):
                log.warning("%s: does not hold what this machine computes; not used", folder)
                self._close()
                return

    def _start_epoch(self, views: EpochViews, start: int) -> None:
        """A new epoch, of which batches from the position `start` on are asked for."""
        self._save()
        assert views.views is not None and self.cache_dir.augment.views is not None
        self._epoch = views
        rows = views.indices * self.cache_dir.augment.views + views.views
        self._rows = rows.where(views.views >= 0, -1).numpy()
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
            values.index_copy_(0, at, to_device(content, values.device))
        self._there[positions[found]] = True
        self.taken += int(found.sum())
        return True

    def _compute(self, positions: Positions, batch: Batch) -> None:
        """Compute the outputs at these positions, of which the first ones are of the batch in hand."""
        assert self._epoch is not None and self._epoch.views is not None and batch.position is not None
        start = batch.position.start
        own = positions[positions < start + len(batch.indices)] - start
        images = batch.images if len(own) == len(batch.indices) else batch.images[self._moved(own)]
        ahead = torch.from_numpy(positions[len(own) :])
        more = None
        if len(ahead):
            indices, views = (self._moved(of[ahead].numpy()) for of in (self._epoch.indices, self._epoch.views))
            more = self.data.view_images(indices, views, self.cache_dir.augment)
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
            log.warning("%s: nothing more is added to it: %s", self.cache_dir.folder, error)
            self._writable = False

    def _moved(self, positions: Positions) -> Tensor:
        return to_device(torch.from_numpy(positions), self.data.device)

    def _close(self) -> None:
        for table in self._tables.values():
            table.close()
        self._tables = {}
        if self._user:
            self._user.close()


def _bytes(values: Tensor) -> Tensor:
    """Rows of `values` (n, …) as uint8 (n, width), on the CPU."""
    return values.detach().cpu().flatten(1).contiguous().view(torch.uint8)
