"""Batches from files: the same as of resident images, whoever decodes them; and what happens when that fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import photos
import pytest
import torch

from iakd.config import Augment
from iakd.config.training import Erase, Mix
from iakd.data.file_index import entry_at
from iakd.data.file_loader import FileLoader, make_loader
from iakd.data.loader import Batch, BatchFormat, DeviceLoader, EpochData, EpochSubset
from iakd.data.store import PreparedData
from iakd.errors import UserError

RESIZED = Augment(crop="resized", flip=True, pad=1)


@pytest.fixture(scope="module")
def same_size(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedData, PreparedData]:
    """The same images as files and as an array."""
    folder = tmp_path_factory.mktemp("same")
    root = photos.same_size(folder / "images", 30)
    return photos.store(root, folder / "files"), photos.store(root, folder / "array", storage="array")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("mixed")
    return photos.store(photos.mixed(folder / "images", 16), folder / "files", size=16)


def same(a: Batch, b: Batch) -> bool:
    ours, theirs = a.tensors(), b.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def all_same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "augment",
    [Augment(), Augment(pad=2, flip=True), Augment(policy="trivialaugment", erase=Erase(), mixup=Mix(alpha=1.0))],
)
def test_batches_are_those_of_resident_images(
    same_size: tuple[PreparedData, PreparedData], augment: Augment, workers: int
) -> None:
    files, array = same_size
    ours = photos.streamed(files, workers)
    theirs = make_loader(array, "train", "cpu")
    assert isinstance(theirs, DeviceLoader)
    assert (len(ours), ours.image_shape) == (len(theirs), theirs.image_shape) == (54, (3, 8, 8))
    assert torch.equal(ours.labels, theirs.labels)
    for batch_size in (7, 53, 100):
        assert len(ours) == len(theirs)
        assert all_same(
            list(ours.epoch(1, 2, BatchFormat(batch_size, augment))),
            list(theirs.epoch(1, 2, BatchFormat(batch_size, augment))),
        )
        assert all_same(list(ours.plain(batch_size)), list(theirs.plain(batch_size)))
    second = Augment(pad=1)
    assert all_same(
        list(ours.epoch(1, 2, BatchFormat(16, augment), data=EpochData(second_view=second))),
        list(theirs.epoch(1, 2, BatchFormat(16, augment), data=EpochData(second_view=second))),
    )
    some = torch.randperm(30)
    choice = EpochSubset(some, some.flip(0), torch.rand(30).round(decimals=1))
    assert all_same(
        list(ours.epoch(1, 2, BatchFormat(16, augment), data=EpochData(choice))),
        list(theirs.epoch(1, 2, BatchFormat(16, augment), data=EpochData(choice))),
    )


def test_a_part_of_the_images_can_be_chosen(same_size: tuple[PreparedData, PreparedData]) -> None:
    chosen = torch.arange(3, 50, 7).numpy()
    ours, theirs = (make_loader(store, "train", "cpu", chosen, workers=0) for store in same_size)
    assert isinstance(ours, FileLoader)
    assert all_same(list(ours.epoch(0, 0, BatchFormat(4))), list(theirs.epoch(0, 0, BatchFormat(4))))


def test_batches_do_not_depend_on_the_number_of_workers_or_the_past(mixed: PreparedData) -> None:
    alone = photos.streamed(mixed)
    whole = list(alone.epoch(3, 1, BatchFormat(5, RESIZED), data=EpochData(second_view=Augment(crop="resized"))))
    assert len(whole) == 6 and all(batch.views is None for batch in whole)
    for workers in (1, 2):
        several = photos.streamed(mixed, workers)
        assert all_same(
            list(several.epoch(3, 1, BatchFormat(5, RESIZED), data=EpochData(second_view=Augment(crop="resized")))),
            whole,
        )
        abandoned = several.epoch(9, 9, BatchFormat(5, RESIZED))
        next(abandoned)
        first_alone = [Batch(b.images, b.labels, b.indices) for b in whole]
        for start in (0, 1, 4, 6):
            assert all_same(list(several.epoch(3, 1, BatchFormat(5, RESIZED), start=start)), first_alone[start:])
        assert all_same(list(several.plain(10)), list(alone.plain(10)))
        with pytest.raises(RuntimeError, match="this pass over the images is over"):
            next(abandoned)


def test_random_resized_crops_differ_by_epoch_seed_and_stream_and_leave_the_order_alone(mixed: PreparedData) -> None:
    data = photos.streamed(mixed)
    crops = Augment(crop="resized")
    first = next(data.epoch(0, 0, BatchFormat(16, crops), data=EpochData(second_view=crops)))
    plain = next(data.epoch(0, 0, BatchFormat(16)))
    assert torch.equal(first.indices, plain.indices)
    assert first.second_view is not None
    shown = first.images, plain.images, first.second_view
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (shown[a] - shown[b]).abs().mean((1, 2, 3)).min() > 0.01  # each image is another
    whole = next(data.epoch(0, 0, BatchFormat(16, Augment(crop="resized", scale=(1, 1), ratio=(1, 1)))))
    assert not torch.equal(whole.images, first.images)


def test_neither_the_global_generator_nor_signal_handlers_change(mixed: PreparedData) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)]
    state = torch.random.get_rng_state()
    for workers in (0, 2):
        list(photos.streamed(mixed, workers).epoch(0, 0, BatchFormat(8, RESIZED)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert handlers == [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)]


def test_resident_images_have_no_full_size_to_crop_from(same_size: tuple[PreparedData, PreparedData]) -> None:
    data = make_loader(same_size[1], "train", "cpu")
    with pytest.raises(UserError, match=r"^augment\.crop: resized needs [^\n]* set dataset\.storage to files"):
        next(data.epoch(0, 0, BatchFormat(8, RESIZED)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (Path.unlink, "is gone"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "has changed"),
        (lambda path: path.write_bytes(b""), "has changed"),
        (lambda path: (path.unlink(), path.mkdir()), r"cannot be read \(Is a directory\)"),
    ],
)
def test_a_file_that_changed_is_one_clear_line(harm: object, words: str, workers: int, tmp_path: Path) -> None:
    root = photos.same_size(tmp_path / "images", 10)
    found = photos.store(root, tmp_path / "store")
    data = photos.streamed(found, workers)
    batches = data.epoch(0, 0, BatchFormat(6))
    next(batches)
    path = root / entry_at(found.files("train"), 8).path
    harm(path)  # type: ignore[operator]
    hint = rf"since `iakd prepare`[^\n]*delete {found.folder} and run `iakd prepare`$"
    with pytest.raises(UserError, match=rf"^{path} {words} {hint}"):
        list(data.plain(6))
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    photos.same_size(root, 10)  # put back
    assert sum(len(batch.labels) for batch in data.plain(6)) == len(data)


def workers_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return all(map(gone, pids))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at Linux's /proc")
def test_workers_outlive_signals_to_the_group_and_end_with_their_set(mixed: PreparedData) -> None:
    data = photos.streamed(mixed, 2)
    before = workers_of(os.getpid())
    batches = data.epoch(0, 0, BatchFormat(5, RESIZED))
    next(batches)
    workers = [pid for pid in workers_of(os.getpid()) if pid not in before]
    assert len(workers) == 2
    for pid in workers:
        for number in (signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)
        subprocess.run(["kill", "-TERM", str(pid)], check=True)  # not from this process
    assert len(list(batches)) == 5 and not any(map(gone, workers))
    os.kill(workers[0], signal.SIGKILL)
    with pytest.raises(UserError, match=r"^a process that decodes images died[^\n]*compute.workers[^\n]*$"):
        for epoch in range(9):
            list(data.epoch(0, epoch, BatchFormat(5, RESIZED)))
    data.close()
    assert not set(workers_of(os.getpid())) - set(before)
    assert len(list(data.epoch(0, 0, BatchFormat(5, RESIZED)))) == 6  # by new ones
    workers += [pid for pid in workers_of(os.getpid()) if pid not in before]
    assert len(workers) == 4
    del data, batches
    assert wait_until_gone(workers, 10)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at Linux's /proc")
@pytest.mark.parametrize("how", ["killed", "ended"])
def test_no_worker_is_left_behind(mixed: PreparedData, how: str) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import photos; from iakd.data.store import PreparedData; from iakd.data.loader import BatchFormat\n"
        "data = photos.streamed(PreparedData.open(Path(sys.argv[2])), 2)\n"
        "batches = data.epoch(0, 0, BatchFormat(5)); next(batches)\n"
        "print(Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text(), flush=True)\n"
        "time.sleep(60) if sys.argv[3] == 'killed' else None\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(mixed.folder), how],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    if how == "killed":
        process.kill()
    assert process.wait(20) == (-signal.SIGKILL if how == "killed" else 0)
    assert wait_until_gone(workers, 2)
