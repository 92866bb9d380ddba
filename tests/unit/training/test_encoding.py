"""Two encodings into one folder: the second is refused before it reads or removes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from resgen.errors import TrainingError
from resgen.training.encoding import encode_together
from resgen.training.state import lock_folder
from resgen.types import LOCAL


def test_a_folder_that_another_process_encodes_into_is_refused(tmp_path: Path) -> None:
    out, asked = tmp_path / "codes" / "train", []
    unfinished = tmp_path / "codes" / ".train.tmp"

    def encode() -> None:
        encode_together(out, lambda: asked.append(1), lambda *_: iter(()), name="x", batches=lambda _: 1, reduce=LOCAL)

    with lock_folder(tmp_path / "codes", "encoding"):
        unfinished.mkdir()
        with pytest.raises(TrainingError, match=f"another process is encoding in '{out.parent}'; wait for it or stop"):
            encode()
        assert unfinished.is_dir() and not asked
    with pytest.raises((TypeError, AttributeError)):  # free again: the plan is asked for, and here there is none
        encode()
    assert asked
