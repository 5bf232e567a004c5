"""The teacher's logits and pooled features, always computed in batches of the same size, so that they can be cached.

Libraries may split a sum of products differently in a batch of another size (oneDNN does below 16 images, cuBLAS more
often), which changes its last bits. In batches of one size, an image's outputs depend neither on its position nor on
the other images, so they can be computed once and reused.
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
from iakd.models.features import NOTHING, Features, FeatureSpec, forward_features

KINDS = ("logits", "pooled")


log = logging.getLogger(__name__)


def outputs_suffice(spec: FeatureSpec) -> bool:
    """Return whether `spec` contains logits or pooled features, and nothing else."""
    return spec != FeatureSpec() and spec == FeatureSpec(logits=spec.logits, pooled=spec.pooled)


class TeacherOutputs:
    """Computes the teacher's logits, pooled features or both, as `spec` says, in batches of `batch_size` images."""

    def __init__(self, teacher: Network, spec: FeatureSpec, batch_size: int) -> None:
        self.teacher = teacher
        self.spec = spec
        self.batch_size = batch_size
        self.kinds = [kind for kind in KINDS if getattr(spec, kind)]

    def __call__(self, batch: Batch, more: FeatureSpec = NOTHING) -> Features:
        """Return the outputs for the images of a batch, and the features after the blocks that `more` names."""
        values, blocks = self._forward(batch.images, self.spec | more)
        return _as_features(values, blocks)

    def blocks(self, images: Tensor, spec: FeatureSpec) -> dict[int, Tensor]:
        """Return the teacher's features after the blocks that `spec` names, for images (B, C, H, W)."""
        return self._forward(images, spec)[1] if spec.blocks else {}

    def finish(self) -> None:
        """End the training; there is nothing to close."""

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs by kind, (B, …), for images (B, C, H, W) in the training's memory layout and precision."""
        return self._forward(images, self.spec)[0]

    @torch.no_grad()
    def _forward(self, images: Tensor, spec: FeatureSpec) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        features = forward_features(self.teacher, self.padded(images), spec)
        values = {kind: getattr(features, kind) for kind in KINDS if getattr(spec, kind)}
        return (
            {kind: value[: len(images)] for kind, value in values.items()},
            {block: value[: len(images)] for block, value in features.blocks.items()},
        )

    def padded(self, images: Tensor, more: Tensor | None = None) -> Tensor:
        """Return a batch of full size, laid out like `images`: these, then `more`, then copies of the first image."""
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


def _as_features(values: dict[str, Tensor], blocks: dict[int, Tensor]) -> Features:
    return Features(blocks, logits=values.get("logits"), pooled=values.get("pooled"))


# --- the key of a cache ---


def cache_key(network: Network, images: torch.Tensor, **more: Any) -> str:
    """Return a hash of everything that affects the bits of `network`'s outputs for batches like `images`.

    That is weights, source code, memory layout, precision and machine, and the JSON values in `more`.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]  # includes buffers that state_dict leaves out
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
    flat = tensor.detach().cpu().contiguous().flatten()
    return sha256_bytes(flat.view(torch.uint8).numpy().tobytes()) + str(tuple(tensor.stride()))


def _precision(device: str) -> str:
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "fp32"


def _machine(device: torch.device) -> list[Any]:
    """Return the libraries, and the processor with its instruction sets or the GPU: they decide how sums are split."""
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


# --- the cache ---


class CachedTeacherOutputs:
    """Returns the same outputs as `live`, bit for bit, for batches of `data`, and computes each view of an image once.

    The views of an epoch are known when it starts. So the outputs in the cache are read at once, and missing ones are
    computed in full batches: first those of the current batch, then the next missing ones of the epoch. All decisions
    are made on the CPU, without waiting for the device. On any error the outputs are computed, with a warning.
    """

    def __init__(self, live: TeacherOutputs, data: DeviceLoader, cache_dir: CacheDir) -> None:
        self.live = live
        self.data = data
        self.cache_dir = cache_dir
        self.reused = self.computed = 0  # number of outputs so far
        self._tables: dict[str, RowFile] = {}  # by kind; empty if the cache is not used
        self._user: IO[str] | None = None  # lock that keeps the cache from eviction
        self._tried = False
        self._epoch: EpochViews | None = None
        self._rows: Positions = np.zeros(0, np.int64)  # table row of each position of the epoch; -1: not cacheable
        self._known = np.zeros(0, bool)  # which positions of the epoch are in `_values`
        self._values: dict[str, Tensor] = {}  # by kind, one row per position of the epoch
        self._unsaved: list[Positions] = []
        self._writable = True

    def __call__(self, batch: Batch, more: FeatureSpec = NOTHING) -> Features:
        """Return the outputs for the images of a batch, and the features after the blocks that `more` names.

        Such features are not cached.
        """
        position = batch.position
        if position is None or position.views.views is None:
            return self.live(batch, more)
        if not self._tried:
            self._tried = True
            self._open(batch)
        if not self._tables:
            return self.live(batch, more)
        if position.views is not self._epoch:
            self._start_epoch(*position)
        current = slice(position.start, position.start + len(batch.indices))
        while not self._known[current].all():
            missing = ~self._known & (self._rows >= 0)
            missing[: current.start] = False
            missing[current] = ~self._known[current]
            positions = np.flatnonzero(missing)[: self.live.batch_size]
            if not self._load(positions):  # unless another process has just computed some
                self._compute(positions, batch)
        values = {kind: values[current].clone() for kind, values in self._values.items()}
        return _as_features(values, self.live.blocks(batch.images, more))

    def finish(self) -> None:
        """Write unsaved outputs, log the share of reused ones, and release the cache."""
        if not self._tables:
            return
        self._save()
        share = self.reused / max(1, self.reused + self.computed)
        log.info(
            "%s: %.0f %% of the teacher's outputs were reused, the others computed", self.cache_dir.folder, 100 * share
        )
        self._close()

    def _open(self, batch: Batch) -> None:
        """Open the cache, and check on the first batch that its outputs are those that are computed here."""
        images = self.live.padded(batch.images)
        augment = self.cache_dir.augment
        assert augment.views is not None
        key = cache_key(
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
            log.warning("%s cannot be used (%s); the teacher's outputs are computed", self.cache_dir.folder, error)
            self._close()
            return
        assert batch.position is not None
        self._values = {
            kind: torch.empty((0, *value.shape[1:]), dtype=value.dtype, device=value.device)
            for kind, value in values.items()
        }
        self._start_epoch(*batch.position)
        known = np.flatnonzero(self._known[batch.position.start :][: len(batch.indices)])
        for kind, value in values.items():
            stored = self._values[kind][batch.position.start :][: len(value)]
            if not torch.equal(_bytes(stored)[known], _bytes(value)[known]):
                log.warning("%s: not used, as its outputs differ from those that this machine computes", folder)
                self._close()
                return

    def _start_epoch(self, views: EpochViews, start: int) -> None:
        """Start an epoch whose first batch is at position `start`, and read its outputs."""
        self._save()
        assert views.views is not None and self.cache_dir.augment.views is not None
        self._epoch = views
        rows = views.indices * self.cache_dir.augment.views + views.views
        self._rows = rows.where(views.views >= 0, -1).numpy()
        self._known = np.zeros(len(rows), bool)
        self._values = {kind: values.new_empty((len(rows), *values.shape[1:])) for kind, values in self._values.items()}
        self._load(np.arange(start, len(rows)))

    def _load(self, positions: Positions) -> bool:
        """Read the outputs at these positions; return whether there are any."""
        positions = positions[self._rows[positions] >= 0]
        read = {kind: table.read(self._rows[positions]) for kind, table in self._tables.items()}
        found = np.logical_and.reduce([found for found, _ in read.values()])
        if not found.any():
            return False
        at = self._on_device(positions[found])
        for kind, (_, payload) in read.items():
            values = self._values[kind]
            content = torch.from_numpy(payload[found]).view(values.dtype).view(-1, *values.shape[1:])
            values.index_copy_(0, at, to_device(content, values.device))
        self._known[positions[found]] = True
        self.reused += int(found.sum())
        return True

    def _compute(self, positions: Positions, batch: Batch) -> None:
        """Compute the outputs at these positions, which start with those of the current batch."""
        assert self._epoch is not None and self._epoch.views is not None and batch.position is not None
        start = batch.position.start
        current = positions[positions < start + len(batch.indices)] - start
        images = batch.images if len(current) == len(batch.indices) else batch.images[self._on_device(current)]
        ahead = torch.from_numpy(positions[len(current) :])
        more = None
        if len(ahead):
            indices, views = (self._on_device(x[ahead].numpy()) for x in (self._epoch.indices, self._epoch.views))
            more = self.data.view_images(indices, views, self.cache_dir.augment)
        at = self._on_device(positions)
        for kind, value in self.live.compute(self.live.padded(images, more)).items():
            self._values[kind].index_copy_(0, at, value[: len(positions)])
        self._known[positions] = True
        self.computed += len(positions)
        self._unsaved.append(positions[self._rows[positions] >= 0])
        if self.data.device.type == "cpu":  # on a GPU, saving now would wait for the device
            self._save()

    def _save(self) -> None:
        """Write the unsaved outputs to the cache."""
        positions = np.concatenate([*self._unsaved, np.zeros(0, np.int64)])
        self._unsaved = []
        if not (len(positions) and self._writable):
            return
        try:
            for kind, table in self._tables.items():
                table.write(self._rows[positions], _bytes(self._values[kind][self._on_device(positions)]).numpy())
        except OSError as error:
            log.warning("%s: no more outputs are written to it: %s", self.cache_dir.folder, error)
            self._writable = False

    def _on_device(self, positions: Positions) -> Tensor:
        return to_device(torch.from_numpy(positions), self.data.device)

    def _close(self) -> None:
        for table in self._tables.values():
            table.close()
        self._tables = {}
        if self._user:
            self._user.close()


def _bytes(values: Tensor) -> Tensor:
    """Return `values` (n, …) as rows of bytes, uint8 (n, width), on the CPU."""
    return values.detach().cpu().flatten(1).contiguous().view(torch.uint8)
