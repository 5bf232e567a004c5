"""What the Snakefile makes of settings from the command line."""

from pathlib import Path
from typing import Any

import pytest

from iakd.orchestration.snakemake_hooks import set_up

SETTINGS: dict[str, Any] = {
    "teachers": [{"arch": "resnet14"}],
    "students": [{"arch": "resnet8"}],
    "methods": {"scratch": {}},
}


def test_strings_of_numbers_are_numbers_and_other_text_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake leaves nested values as strings, and counts a settings file on the command line as such values."""
    monkeypatch.chdir(tmp_path)
    for name in ("IAKD_PARAMS", "IAKD_WITH_PARENT", "PATH"):
        monkeypatch.setenv(name, "before")
    titles = ["Pairs: all of them", "a: b: c", "Run #3 # again", "[draft", "2026-11-27", "{x}"]
    for title in titles:
        given = {"distill": {"seeds": ["0", "1"], "recipe": {"lr": "0.02"}}, "report": {"title": title}}
        params = set_up({**SETTINGS, **given}, given, [tmp_path / "params.yaml"], main=False).params
        assert params.report.title == title
        assert params.distill.seeds == [0, 1]
        assert params.distill.recipe.lr == 0.02
