"""How far graphs, bf16 and another memory layout drift from eager fp32 in 50 steps of resnet56 → resnet20.

Batches, swaps and initial weights are the same.

    python bench/engines.py [--device cpu] [--threads N]

`loss` is the largest relative difference, over the steps, of the mean loss of the epoch so far; `weights` the length of
the difference of all parameters and running statistics after the last step, relative to theirs. Graphs need a GPU.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

import common
from contestants import training
from iakd.processes import Interrupt

EPOCHS, STEPS = 5, 10
KEPT = 0.9  # the teacher's weights are random: through many of its blocks at once differences would explode
VARIANTS = {  # settings other than eager fp32 in the layout of the CPU
    "graphs": {"engine": "graphs"},
    "contiguous": {"channels_last": False},
    "bf16": {"precision": "bf16"},
}


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
        losses, weights = walk(expression, device)
        for name, settings in VARIANTS.items():
            if name != "graphs" or device.type == "cuda":
                theirs, end = walk(expression, device, **settings)
                drift = max(abs(a - b) / a for a, b in zip(losses, theirs, strict=True))
                numbers |= {f"{expression}.{name}_loss": drift}
                numbers |= {f"{expression}.{name}_weights": float((end - weights).norm() / weights.norm())}
    common.record("engines", numbers)


def walk(expression: str, device: torch.device, **settings: Any) -> tuple[list[float], Tensor]:
    """The mean loss of the epoch so far after every step, and all floating-point state in the end."""
    made = training(expression, device, STEPS, p=KEPT, **{"channels_last": True, **settings})
    losses = [made.sums.means()["loss"] for _ in range(EPOCHS) for _ in made.epoch(Interrupt())]
    state = [value for value in made.objective.student.state_dict().values() if value.is_floating_point()]
    return losses, torch.cat([value.double().flatten() for value in state])


if __name__ == "__main__":
    main()
