"""How far the engines drift from eager fp32: 50 steps of resnet56 → resnet20 with the same batches, swaps and weights.

    python bench/engines.py [--device cpu] [--threads N]

`loss` is the largest relative difference, over the steps, of the mean loss of the epoch so far; `weights` the length of
the difference of all parameters and running statistics after the last step, relative to theirs. `eager_bf16` is there
to compare with. On a CPU, compiling takes minutes the first time.
"""

import argparse

import torch
from torch import Tensor

import common
from contestants import training
from iakd.training.interrupt import Interrupt

EPOCHS, STEPS = 5, 10
LR = 0.05  # of the published recipe
DRIFT = {"cpu": ("compile", "eager_bf16"), "cuda": ("graphs", "compile", "eager_bf16")}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=common.cores())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    numbers: dict[str, float] = {"steps": EPOCHS * STEPS}
    for expression in ("kd", "iakd"):
        losses, weights = walk(expression, device, "eager")
        for engine in DRIFT[device.type]:
            theirs, end = walk(expression, device, engine)
            numbers[f"{expression}.{engine}_loss"] = max(abs(a - b) / a for a, b in zip(losses, theirs, strict=True))
            numbers[f"{expression}.{engine}_weights"] = float((end - weights).norm() / weights.norm())
    common.record("engines", numbers)


def walk(expression: str, device: torch.device, engine: str) -> tuple[list[float], Tensor]:
    """The mean loss of the epoch so far after every step, and all floating-point state in the end."""
    name, _, precision = engine.partition("_")
    made = training(expression, device, STEPS, p=0.5, precision=precision or "fp32", lr=LR, engine=name)
    losses = [made.sums.means()["loss"] for _ in range(EPOCHS) for _ in made.epoch(Interrupt())]
    state = [value for value in made.network.state_dict().values() if value.is_floating_point()]
    return losses, torch.cat([value.double().flatten() for value in state])


if __name__ == "__main__":
    main()
