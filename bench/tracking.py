"""What showing trainings in MLflow costs: processor time of the process that does it, beside that of the trainings.

    python bench/tracking.py

The follower is the real one, at files that are written as trainings write them: a run like resnet20's on CIFAR-100, an
epoch a second, as on a GPU; and the default experiment's 53 short runs, one after the other. Training is measured, too,
in this process and with one thread. Under three minutes, most of it waiting.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import torch

import common
from contestants import BATCH, training
from contestants import epoch as train_epoch
from iakd import config, files
from iakd.experiment.jobs import plan_experiment
from iakd.experiment.run_dir import Row, Run
from iakd.stages import distill, prepare
from iakd.tracking.address import tracking_address
from iakd.tracking.follower import USERS_LOCK, start_follower

EPOCHS, IMAGES = 240, 47_500  # of the published recipe, on CIFAR-100 without its validation images
ON_GPU = 150.0  # seconds that these epochs are to take there
STEPS = 10
SHOWN, PAUSE = 50, 1.05  # epochs that are watched while they come, and seconds between two: each is seen by itself
GRID, GRID_PAUSE = 53, 0.7  # runs of the default experiment; it takes three times as long on two cores
WEIGHTS = {"cifar100": 280_000, "digits": 20_000}  # parameters of the student
PLACES = {"cifar100": 9, "digits": 3}  # its blocks: each has two columns in the history


def main() -> None:
    """Measure and record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        first = followed("cifar100", lambda: play("cifar100", 0, 1, 0.0))
        start_again = followed("cifar100", lambda: play("cifar100", 1, 1, 0.0))
        live = followed("cifar100", lambda: play("cifar100", 2, SHOWN, PAUSE))
        grid = followed("digits", lambda: [play("digits", n, EPOCHS, GRID_PAUSE / EPOCHS) for n in range(GRID)])
        digits = digits_training()
        os.chdir(common.ROOT)
    whole = first + EPOCHS * (live - start_again) / SHOWN
    epoch = cifar_epoch()
    common.record(
        "tracking",
        {
            "start_s": start_again,
            "start_with_new_database_s": first,
            "epoch_ms": 1000 * (live - start_again) / SHOWN,
            "cifar_training_s": EPOCHS * epoch,
            "cifar_share_percent": 100 * whole / (EPOCHS * epoch),
            "gpu_share_of_a_core_percent": 100 * whole / ON_GPU,
            "grid_s": grid,
            "grid_training_s": GRID * digits,
            "grid_share_percent": 100 * grid / (GRID * digits),
        },
    )


def followed(dataset: str, work: Callable[[], object]) -> float:
    """Processor time of a follower, from its start to its end, that watches `work`; in seconds."""
    networks = {"teachers": [{"arch": "resnet56"}], "students": [{"arch": "resnet20"}]}
    settings = config.parse({"dataset": {"name": dataset}, **networks, "methods": {"iakd": {}}}, "bench")
    address = tracking_address(settings)
    assert address is not None
    address.folder.mkdir(parents=True, exist_ok=True)
    users = files.lock(address.folder / USERS_LOCK, shared=True)
    assert users is not None
    follower = start_follower(address, settings)
    work()
    users.close()
    _, status, usage = os.wait4(follower.pid, 0)
    assert status == 0, "the follower failed"
    return usage.ru_utime + usage.ru_stime


def play(dataset: str, seed: int, epochs: int, pause: float) -> None:
    """Leave the files of a training of `epochs`, `pause` seconds each."""
    about = {"dataset": dataset, "teacher": "resnet56", "student": "resnet20", "method": "iakd"}
    path = f"{dataset}/students/resnet56-resnet20/iakd/seed{seed}"
    run = Run(path, "distill", f"key {dataset} {seed}", {"recipe": {"lr": 0.05}}, seed, about, {"data": "0" * 64})
    with run.open():
        rows: list[Row] = []
        for epoch in range(1, epochs + 1):
            rows.append(row(epoch, PLACES[dataset]))
            run.log(rows)
            time.sleep(pause)
        run.finish(rows, {"val_top1": 50.0, "val_nll": 1.5, "epochs": epochs}, bytes(4 * WEIGHTS[dataset]))


def row(epoch: int, places: int) -> Row:
    """What an epoch of iakd leaves."""
    columns: Row = {"epoch": epoch, "step": 742 * epoch, "lr": 0.05, "loss": 1 / epoch, "loss_ce": 1 / epoch}
    columns |= {"train_top1": 50.0, **({"val_top1": 50.0, "val_nll": 1.5} if epoch % 20 == 0 else {})}
    columns |= {f"p_{kind}_{place}": 1 / epoch for kind in ("planned", "drawn") for place in range(places)}
    return columns | {"images_per_s": 4e4, "seconds": 1.0}


def cifar_epoch() -> float:
    """Processor time of an epoch of scratch, the cheapest method, in seconds."""
    made = training("scratch", torch.device("cpu"), STEPS)
    train_epoch(made)
    begun = time.process_time()
    train_epoch(made)
    return (time.process_time() - begun) / (STEPS * BATCH) * IMAGES


def digits_training() -> float:
    """The same of a training of the default experiment, by the same method, from its start to its end."""
    experiment = plan_experiment(
        config.load(common.ROOT / "params.yaml", ["tracking.enabled=false", "compute.device=cpu"])
    )
    prepare.run(experiment)
    warm_up, measured = [job for job in experiment.students if job.label == "scratch"][:2]
    distill.run(experiment, warm_up)
    begun = time.process_time()
    distill.run(experiment, measured)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
