"""The teacher's outputs, computed or from the cache: the same bits, whatever happens to the cache."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import digit_training
import numpy as np
import pytest
import torch
from digit_training import digit_images, teacher

from iakd import config, models
from iakd.config import METHODS, Augment, Params, shortest_sum
from iakd.data.loader import Batch, BatchFormat, EpochData, EpochSubset
from iakd.distillation.distiller import Distiller
from iakd.distillation.teacher_cache import CacheDir, CachedTeacherOutputs, TeacherOutputs, outputs_suffice
from iakd.distillation.teacher_cache.policy import cache_dir_for, expected_share
from iakd.distillation.teacher_cache.row_file import RowFile
from iakd.experiment.jobs import Experiment, StudentJob, plan_experiment
from iakd.models.features import FeatureSpec
from iakd.models.network import initialise
from iakd.training.trainer import Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BOTH = FeatureSpec(logits=True, pooled=True)
AUGMENT = Augment(pad=1, flip=True)
BATCH = 32
N = digit_training.IMAGES


def cache_dir(folder: Path = Path(".state/digits/teacher-views"), limit: int = 2**30, data: str = "digits") -> CacheDir:
    return CacheDir(folder, data, AUGMENT, limit)


def outputs(
    on: CacheDir | None, needs: FeatureSpec = BOTH, batch_size: int = BATCH
) -> TeacherOutputs | CachedTeacherOutputs:
    live = TeacherOutputs(teacher(), needs, batch_size)
    return CachedTeacherOutputs(live, digit_images(0, N), on) if on else live


def epochs(count: int = 2, seed: int = 0, choice: EpochSubset | None = None, start: int = 0) -> list[Batch]:
    data = digit_images(0, N)
    return [
        b
        for e in range(count)
        for b in data.epoch(seed, e, BatchFormat(BATCH, AUGMENT), start=start, data=EpochData(choice))
    ]


def same(
    a: TeacherOutputs | CachedTeacherOutputs, b: TeacherOutputs | CachedTeacherOutputs, batches: list[Batch]
) -> bool:
    pairs = [(a(batch), b(batch)) for batch in batches]
    values = [(getattr(x, kind), getattr(y, kind)) for x, y in pairs for kind in ("logits", "pooled")]
    return all(u is v is None or torch.equal(u, v) for u, v in values)


@pytest.mark.parametrize("arch", ["resnet20", "resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_s_outputs_depend_neither_on_its_position_nor_on_other_images(arch: str, precision: str) -> None:
    network = models.build(config.Network(arch=arch), 3, 100)
    initialise(network, torch.Generator().manual_seed(0))
    network.eval()
    generator = torch.Generator().manual_seed(1)
    for layout in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=layout)
        images = torch.randn(40, 3, 32, 32, generator=generator).contiguous(memory_format=layout)
        for size in (5, 16, 24):
            live = TeacherOutputs(network, BOTH, size)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                expected = live.compute(images[:size])
                others = torch.randperm(40, generator=generator)[:size]
                others[size // 2] = 1
                shuffled = live.compute(images[others])
                short = live.compute(images[1:3])  # filled up
            for kind, values in expected.items():
                assert torch.equal(shuffled[kind][size // 2], values[1])
                assert torch.equal(short[kind], values[1:3])


@pytest.mark.parametrize("needs", [FeatureSpec(logits=True), FeatureSpec(pooled=True), BOTH])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cold_warm_and_computed_are_equal_bit_by_bit(tmp_path: Path, needs: FeatureSpec, precision: str) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        on = cache_dir(tmp_path)
        cold, warm = outputs(on, needs), outputs(on, needs)
        assert same(outputs(None, needs), cold, epochs())
        assert isinstance(cold, CachedTeacherOutputs) and isinstance(warm, CachedTeacherOutputs)
        assert cold.computed + cold.reused >= 2 * 162
        assert same(outputs(None, needs), warm, epochs())
        assert warm.computed == 0
        assert same(outputs(None, needs), warm, epochs(1, seed=7))  # other views: some are there, most are not
        assert 0 < warm.computed < 162


def test_missing_outputs_are_computed_in_full_batches(tmp_path: Path) -> None:
    on = cache_dir(tmp_path)
    first = outputs(on)
    for batch in epochs(1)[::2]:  # half of the epoch: what was computed ahead is there, too
        first(batch)
    passes: list[int] = []
    second = outputs(on)
    assert isinstance(second, CachedTeacherOutputs)
    compute = second.live.compute
    second.live.compute = lambda images: passes.append(len(images)) or compute(images)  # type: ignore[method-assign,func-returns-value]
    for batch in epochs(1, seed=3):
        second(batch)
    assert set(passes[1:]) == {BATCH}
    assert len(passes) - 1 == -(-second.computed // BATCH)


def test_resuming_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    assert same(outputs(None), outputs(cache_dir(tmp_path)), epochs(start=3))


def test_an_image_that_an_epoch_shows_several_times_has_the_same_outputs(tmp_path: Path) -> None:
    data = digit_images(0, N)
    data.labels[: N // 2] = 0  # of which the balanced sampler leaves most out
    form = BatchFormat(BATCH, AUGMENT, balanced=True)
    batches = [batch for epoch in range(2) for batch in data.epoch(0, epoch, form)]
    views = [(int(i), int(v)) for batch in batches for i, v in zip(batch.indices, batch.views, strict=True)]
    assert len(set(views)) < len(views)
    live = TeacherOutputs(teacher(), BOTH, BATCH)
    cached = CachedTeacherOutputs(live, data, cache_dir(tmp_path))
    assert same(outputs(None), cached, batches) and cached.reused
    assert same(outputs(None), CachedTeacherOutputs(live, data, cache_dir(tmp_path)), batches)


def test_mixed_images_are_computed_and_never_cached(tmp_path: Path) -> None:
    indices = torch.arange(0, 150)
    weights = torch.ones(150)
    weights[::3] = 0.8
    choice = EpochSubset(indices, indices.flip(0), weights)
    on = cache_dir(tmp_path)
    assert same(outputs(None), outputs(on), epochs(2, choice=choice))
    assert same(outputs(None), outputs(on), epochs(2))
    warm = outputs(on)
    assert isinstance(warm, CachedTeacherOutputs)
    assert same(outputs(None), warm, epochs(1, choice=choice))
    assert warm.computed == 50


def test_views_without_numbers_are_computed(tmp_path: Path) -> None:
    cached = outputs(cache_dir(tmp_path))
    plain = [Batch(b.images, b.labels, b.indices) for b in epochs(1)]
    assert same(outputs(None), cached, plain) and not list(tmp_path.iterdir())


def test_other_weights_or_images_have_another_cache(tmp_path: Path) -> None:
    batches = epochs(1)
    outputs(cache_dir(tmp_path))(batches[0])
    outputs(cache_dir(tmp_path, data="others"))(batches[0])
    with torch.autocast("cpu", torch.bfloat16):
        outputs(cache_dir(tmp_path))(batches[0])
    changed = outputs(cache_dir(tmp_path))
    assert isinstance(changed, CachedTeacherOutputs)
    with torch.no_grad():
        next(changed.live.teacher.parameters()).view(-1)[0].add_(1e-6)
    changed(batches[0])
    assert len([folder for folder in tmp_path.iterdir() if folder.is_dir()]) == 4


@pytest.mark.parametrize("damage", ["byte", "row", "cut", "garbage"])
def test_a_damaged_cache_costs_time_only(tmp_path: Path, damage: str) -> None:
    on = cache_dir(tmp_path)
    cold = outputs(on)
    for batch in epochs():
        cold(batch)
    for path in tmp_path.glob("*/*.rows"):
        content = bytearray(path.read_bytes())
        written = np.flatnonzero(np.frombuffer(content, np.uint8))
        match damage:
            case "byte":
                content[written[len(written) // 2]] ^= 64
            case "row":
                content[: len(content) // 2] = bytes(len(content) // 2)
            case "cut":
                del content[len(content) // 3 :]
            case "garbage":
                content[:] = os.urandom(len(content))
        path.write_bytes(content)
    again = outputs(on)
    assert same(outputs(None), again, epochs())
    assert isinstance(again, CachedTeacherOutputs) and again.computed > 0


def test_a_cache_with_other_bits_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its checksums are right, but this machine computes other bits, as if the key had left something out."""
    on = cache_dir(tmp_path)
    other = outputs(on)
    compute = other.live.compute if isinstance(other, CachedTeacherOutputs) else None
    assert compute
    for batch in epochs():
        other(batch)
    other.live.compute = lambda images: {k: v + 1e-6 for k, v in compute(images).items()}  # type: ignore[method-assign,union-attr]
    assert same(outputs(None), outputs(on), epochs())
    other._tables.clear(), other._open(epochs()[0])  # type: ignore[union-attr]
    assert not other._tables and "its outputs differ from those that this machine computes" in caplog.text  # type: ignore[union-attr]


def test_a_full_disk_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert same(outputs(None), outputs(cache_dir(tmp_path)), epochs())
    assert caplog.text.count("no more outputs are written") == 1


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert same(outputs(None), outputs(cache_dir(tmp_path / "file")), epochs(1))


def test_without_space_there_is_no_cache(tmp_path: Path) -> None:
    small = cache_dir(tmp_path, limit=1000)
    assert same(outputs(None), outputs(small), epochs(1))
    assert not list(tmp_path.glob("*/*"))


def test_the_least_recently_used_cache_is_evicted_unless_it_is_in_use(tmp_path: Path) -> None:
    size = N * 18 * (40 + 4)
    limit = int(2.5 * size)
    users = {name: cache_dir(tmp_path, limit).claim(name, size) for name in ("a", "b")}
    for name, age in (("a", 10), ("b", 100)):
        (tmp_path / name / "content").write_bytes(bytes(size))
        os.utime(tmp_path / name / "lock", (1e9 - age, 1e9 - age))
    assert cache_dir(tmp_path, limit).claim("c", size) is None  # both are in use
    again = cache_dir(tmp_path, limit).claim("a", size)
    assert again is not None  # a folder does not count against itself
    os.utime(tmp_path / "a" / "lock", (1e9, 1e9))
    for user in (*users.values(), again):
        assert user is not None
        user.close()
    user = cache_dir(tmp_path, limit).claim("c", size)
    assert user is not None and sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "lock"]
    user.close()


def test_finish_releases_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    size = N * 18 * (40 + 4)
    cached = outputs(cache_dir(tmp_path, size + 100), FeatureSpec(logits=True))
    cached(epochs()[0])
    assert cache_dir(tmp_path, size + 100).claim("other", size) is None
    cached.finish()
    assert "0 % of the teacher's outputs were reused" in caplog.text
    other = cache_dir(tmp_path, size + 100).claim("other", size)
    assert other is not None
    other.close()


Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]


def finished(training: Trainer) -> tuple[bytes, list[dict[str, float | int | None]]]:
    history, _ = training.fit()
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds", "images_per_s")} for row in history]
    return models.save_weights(training.objective.student), rows  # type: ignore[arg-type]


@pytest.mark.parametrize(("expression", "precision"), [("kd", "fp32"), ("kd", "bf16"), ("iakd+kd", "fp32")])
def test_the_cache_does_not_change_a_training(
    make_training: Make, fit_until: FitUntil, expression: str, precision: str
) -> None:
    def train(path: str, on: CacheDir | None) -> Trainer:
        return make_training(expression, path, cache_dir=on, precision=precision, augment=AUGMENT.model_dump())

    expected = finished(train("off", None))
    assert finished(train("cold", cache_dir())) == expected
    warm = train("warm", cache_dir())
    assert finished(warm) == expected
    assert isinstance(warm.objective._outputs, CachedTeacherOutputs) and warm.objective._outputs.computed == 0
    on = cache_dir(Path("another"))
    for stop in (4, 9):  # in the middle of an epoch
        part = train("part", on)
        fit_until(part, stop)
    assert finished(train("part", on)) == expected


def test_two_simultaneous_trainings_share_one_cache(make_training: Make) -> None:
    """Step by step in turns, as two processes would: what one has computed the other reuses."""
    alone = finished(make_training("kd", "alone", augment=AUGMENT.model_dump()))
    one, two = (
        make_training("kd", path, cache_dir=cache_dir(), augment=AUGMENT.model_dump()) for path in ("one", "two")
    )
    for training in (one, two):
        training.objective.train()
    for epoch in range(one.timeline.epochs):
        for batches in zip(
            *(t.data.epoch(t.run.seed, epoch, BatchFormat(t.recipe.batch_size, t.recipe.augment)) for t in (one, two)),
            strict=True,
        ):
            for training, batch in zip((one, two), batches, strict=True):
                training.train_step(batch)
                training.step += 1
    assert models.save_weights(one.objective.student) == models.save_weights(two.objective.student) == alone[0]
    assert two.objective._outputs.computed <= BATCH  # its first batch is compared


def test_killed_writers_leave_whole_rows_only(tmp_path: Path) -> None:
    """Two processes write all rows again and again and are killed: each row that counts is whole."""
    path = tmp_path / "table.rows"
    script = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from iakd.distillation.teacher_cache.row_file import RowFile\n"
        "table = RowFile(Path(sys.argv[1]), 5000, 404); rows = np.arange(5000)\n"
        "content = (rows[:, None] * 7 + np.arange(404)).astype(np.uint8)\n"
        "print('ready', flush=True)\n"
        "while True: table.write(rows, content)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline()
    time.sleep(0.002)
    for writer in writers:
        writer.kill()
        writer.wait()
    rows = np.arange(5000)
    found, content = RowFile(path, 5000, 404).read(rows)
    assert found.any()
    assert (content[found] == (rows[:, None] * 7 + np.arange(404)).astype(np.uint8)[found]).all()


def experiment(**changes: object) -> tuple[Experiment, StudentJob]:
    settings = {
        "teachers": [{"arch": "resnet20"}],
        "students": [{"arch": "resnet8"}],
        "methods": {"kd": {}, "scratch": {}},
        "distill": {"seeds": [0, 1], "recipe": {"epochs": 10, "augment": {"pad": 4, "flip": True}}},
        **changes,
    }
    whole = plan_experiment(Params.model_validate(settings))
    return whole, whole.students[0]


@pytest.mark.parametrize("expression", [shortest_sum(name) for name in METHODS])
def test_the_methods_that_use_a_cache_are_known_without_building_networks(make_training: Make, expression: str) -> None:
    """And correctly: the experiment counts those methods and no others."""
    method = make_training(expression, options={"crd": {"negatives": 64}} if expression == "crd" else {}).objective
    assert isinstance(method, Distiller)
    read = FeatureSpec()
    for loss in method.losses.values():
        read |= loss.teacher_features
    uses = outputs_suffice(read)
    twice = experiment(methods={"one": {"method": expression}, "other": {"method": expression}})
    assert (expected_share(*twice) > 0) == uses


def test_hidden_features_or_another_precision_share_no_cache() -> None:
    alone = expected_share(*experiment())
    assert expected_share(*experiment(methods={"kd": {}, "kd+at": {}, "dkd+sp": {}, "kd+fitnet": {}})) == alone
    assert expected_share(*experiment(methods={"kd": {}, "dkd": {"recipe": {"precision": "bf16"}}})) == alone


def test_auto_depends_on_the_expected_reuse() -> None:
    assert expected_share(*experiment()) == pytest.approx(1 - 162 * (1 - (161 / 162) ** 20) / 20)
    assert cache_dir_for(*experiment(), "hash", CPU) is None  # 6 %
    twice = experiment(methods={"kd": {}, "kd-cold": {"method": "kd", "kd": {"temperature": 1}}})
    assert expected_share(*twice) == pytest.approx(1 - 162 * (1 - (161 / 162) ** 20) / 40)
    found = cache_dir_for(*twice, "hash", CPU)
    assert cache_dir_for(*twice, "hash", GPU) is None, "recorded steps save more than a cache, which they cannot read"
    assert found == CacheDir(Path(".state/digits/teacher-views"), "hash", Augment(pad=4, flip=True), 8 * 2**30)
    assert cache_dir_for(*experiment(methods={"scratch": {}}), "hash", CPU) is None
    assert (
        cache_dir_for(*experiment(compute={"teacher_cache": "on", "teacher_cache_gib": 0.5}), "hash", CPU) is not None
    )
    off, job = experiment(methods=twice[0].params.methods, compute={"teacher_cache": False})  # a plain off in YAML
    assert cache_dir_for(off, job, "hash", CPU) is None
    assert job.key == twice[1].key  # no part of a run's identity
