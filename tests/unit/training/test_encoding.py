"""Two encodings into one folder: the second is refused before it reads or removes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from resgen.errors import DataError, TrainingError
from resgen.training import encoding
from resgen.training.encoding import encode_splits
from resgen.training.state import lock_folder


def test_a_folder_that_another_process_encodes_into_is_refused(tmp_path: Path) -> None:
    out, asked = tmp_path / "codes", []
    unfinished = out / ".train.tmp"

    def encode() -> None:
        encode_splits(
            out,
            ("a", "b"),
            plan=lambda *_: asked.append(1),
            make=lambda *_: iter(()),
            title=str,
            batches=lambda _: 1,
        )

    with lock_folder(out, "encoding"):
        unfinished.mkdir()
        with pytest.raises(TrainingError, match=f"another process is encoding in '{out}'; wait for it or stop"):
            encode()
        assert unfinished.is_dir() and not asked
    with pytest.raises((TypeError, AttributeError)):  # free again: the plan is asked for, and here there is none
        encode()
    assert asked


def test_the_folder_is_held_between_its_two_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, titles = tmp_path / "codes", []

    def title(source: str) -> str:
        titles.append(source)
        with pytest.raises(TrainingError, match="another process is encoding"), lock_folder(out, "encoding"):
            pass
        return source

    monkeypatch.setattr(encoding, "encode_together", lambda *_, **__: None)
    with pytest.raises(DataError):  # nothing was made
        encode_splits(out, ("a", "b"), plan=lambda *_: None, make=lambda *_: iter(()), title=title, batches=lambda _: 1)
    assert titles == ["a", "b"]
