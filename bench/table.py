"""The numbers of the last benchmarks as Markdown tables, printed and kept as results/latest.md.

python bench/table.py
"""

from collections.abc import Mapping

import common
from iakd import files

COLUMNS = ("ours", "the floor", "the field", "the limit", "ours / floor", "ours / field", "ours / limit")
# Work, and what latest.json calls its images per second: ours, the floor's, the field's, the limit's.
ROWS = {
    "scratch": ("scratch", "floor_scratch", "", "scratch"),
    "kd, the teacher live": ("kd", "floor_kd", "field_kd", "kd"),
    "the same in bf16 (the field in fp32)": ("kd_bf16", "floor_kd_bf16", "field_kd", "kd_bf16"),
    "kd, the teacher's outputs known": ("kd_cached", "", "field_kd", ""),
    "the same in bf16": ("kd_cached_bf16", "floor_kd_bf16_teacher_known", "field_kd", "kd_bf16_teacher_known"),
    "iakd, p = 0.25": ("iakd_p25", "", "field_kd", ""),
    "iakd, p = 0.5": ("iakd_p50", "", "field_kd", ""),
    "iakd, p = 0.75": ("iakd_p75", "", "field_kd", ""),
}
RATIOS = {  # a ratio of rates measured in turns, which is not the ratio of their medians
    "scratch": ("train.vs_floor", ""),
    "kd": ("kd_live.vs_floor", "kd_live.vs_field"),
    "kd_bf16": ("kd_bf16.vs_floor", "kd_bf16.vs_field"),
    "kd_cached": ("", "kd_cached.vs_field"),
    "kd_cached_bf16": ("kd_cached_bf16.vs_floor", "kd_cached_bf16.vs_field"),
    "iakd_p25": ("", "iakd_p25.vs_field"),
    "iakd_p50": ("", "iakd_p50.vs_field"),
    "iakd_p75": ("", "iakd_p75.vs_field"),
}


def main() -> None:
    """Print and write."""
    found = files.read_json(common.LATEST, "run a benchmark first: bench/train.py")
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    lines = [f"{found['machine']}; commit {found['commit'][:12]}", ""]
    if "images_per_s.scratch" in numbers:
        lines += [*speeds(numbers), ""]
    lines += ["| | |", "|---|---:|"]
    lines += [f"| {name} | {value:,.4g} |" for name, value in numbers.items()]
    lines += ["", *(f"    {command}" for command in found["command"].split("; "))]
    text = "\n".join(lines) + "\n"
    files.write_text(common.LATEST.with_suffix(".md"), text)
    print(text)


def speeds(numbers: Mapping[str, float]) -> list[str]:
    """Images per second of everything that trains, side by side."""
    lines = [f"| images/s | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    for work, (ours, floor, field, limit) in ROWS.items():
        rates = [f"images_per_s.{name}" if name else "" for name in (ours, floor, field)]
        rates.append(f"limit.{limit}_images_per_s" if limit else "")
        ratios = [numbers.get(name) for name in RATIOS[ours]]
        best = numbers.get(rates[3])
        ratios.append(numbers[rates[0]] / best if best else None)
        cells = [_shown(numbers.get(name), ",.0f") for name in rates] + [_shown(ratio, ".2f") for ratio in ratios]
        lines.append(f"| {work} | {' | '.join(cells)} |")
    return lines


def _shown(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


if __name__ == "__main__":
    main()
