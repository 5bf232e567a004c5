"""The notebooks in examples/ run from their first cell to their last."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))


def cells(path: Path) -> list[str]:
    """Return the code cells of a notebook. Outputs belong to a run, not into the repository."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "clear the outputs"
    return [cell.source for cell in code]


def show(source: str, namespace: dict[str, Any]) -> Any:
    """Run a cell, and return the value of the expression at its end, as Jupyter shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace) if last else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown = [show(source, namespace) for source in cells(path)]
    printed = capsys.readouterr().out
    assert printed.count(" %") == 5 and shown[-1].label in "0123456789"
    assert all(result.metrics["val_top1"] > 70 for result in namespace["results"].values()), printed
    assert namespace["correct"] > 0.7 * len(namespace["test"])
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"
