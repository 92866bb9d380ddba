"""What a judge says while it looks at the reference, which may take minutes."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from resgen import progress
from resgen.experiments.image import judge
from resgen.progress import Advance


def test_it_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")

    def slow(*values: Any, advance: Advance, **options: Any) -> str:
        advance(500, 1618, "reference")
        time.sleep(0.3)
        return "features"

    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.05)
    monkeypatch.setattr(judge, "load_extractor", lambda name, device: SimpleNamespace(name=name))
    monkeypatch.setattr(judge, "reference_features", slow)
    assert judge.Judge("digits", image_size=8, channels=1, extractor="toy").real == "features"
    assert "reference: 500 of 1,618" in capsys.readouterr().err.splitlines()
