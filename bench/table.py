"""The numbers of the last benchmarks as a Markdown table, printed and kept as results/latest.md.

python bench/table.py
"""

import common
from iakd import files


def main() -> None:
    """Print and write."""
    found = files.read_json(common.LATEST, "run a benchmark first: bench/train.py")
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    lines = [f"{found['machine']}; commit {found['commit'][:12]}", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {value:,.4g} |" for name, value in numbers.items()]
    lines += ["", *(f"    {command}" for command in found["command"].split("; "))]
    text = "\n".join(lines) + "\n"
    files.write_text(common.LATEST.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
