"""The notebook in examples/ runs from its first cell to its last, and shows what it promises."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "first_half_hour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def displayed(code: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of the expression at its end, which a notebook shows."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, NOTEBOOK.name, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)


def test_cells_are_few_and_without_outputs() -> None:
    assert 5 <= len(CODE) <= 8
    assert all(cell["outputs"] == [] for cell in CELLS if cell["cell_type"] == "code")
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("soundfile")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = [displayed(code, names) for code in CODE]
    kinds = [
        "png" if hasattr(one, "_repr_png_") else "html" if hasattr(one, "_repr_html_") else "text" for one in shown
    ]
    assert kinds == ["text", "png", "png", "png", "png", "html", "html"]
    assert repr(shown[0]).startswith("ImagePipeline('fashion-mnist-small'")
    assert all(getattr(one, f"_repr_{kind}_")() for one, kind in zip(shown, kinds, strict=True) if kind != "text")
    assert {file.name for file in tmp_path.iterdir()} == {"shoes-and-dresses.png", "steps.gif", "hello.wav"}
