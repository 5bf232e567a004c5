"""Files that belong to the package besides its modules: the workflow, ready-made experiments, the documentation.

A wheel has them in `iakd/project/` (pyproject.toml says which), a clone of the repository where they are developed.
`python -m iakd.shipped` prints the version and a hash of all of it.
"""

import sys
from pathlib import Path

from iakd import __version__
from iakd.errors import UserError
from iakd.files import digest, sha256_file

PACKAGE = Path(__file__).parent
IN_WHEEL = PACKAGE / "project"


def folder() -> Path:
    """Return the folder that has `workflow/`, `experiments/` and `docs/`.

    Raises UserError where only the modules are there, such as a copy of `src/`.
    """
    root = IN_WHEEL if IN_WHEEL.is_dir() else PACKAGE.parents[1]
    if not (root / "workflow/Snakefile").is_file():
        raise UserError(
            f"{PACKAGE} has no workflow beside it: install iakd from its wheel, or use a clone of its repository"
        )
    return root


def snakefile() -> Path:
    """Return the Snakefile of the workflow, which other Snakefiles include, or use as a module.

    Raises UserError like `folder`.
    """
    return folder() / "workflow/Snakefile"


def fingerprint() -> str:
    """Return a SHA-256 of the modules and the workflow, which changes whenever the results might."""
    workflow = folder() / "workflow"
    found = [*PACKAGE.rglob("*.py"), workflow / "Snakefile", *(workflow / "rules").iterdir()]
    return digest(sorted((path.name, sha256_file(path)) for path in found))


if __name__ == "__main__":
    sys.stdout.write(f"iakd {__version__}\nsources {fingerprint()}\n")
