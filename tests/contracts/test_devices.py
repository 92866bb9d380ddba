"""Every kind trains and samples on an accelerator, as far as devices and shapes go: on fake tensors, without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fake_accelerator import PARTS
from resgen.kinds import KINDS

PROGRAM = Path(__file__).parents[1] / "fake_accelerator.py"


@pytest.fixture(scope="module")
def outcome() -> dict[str, str | None]:
    result = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    document: dict[str, str | None] = json.loads(result.stdout.splitlines()[-1])
    return document


def test_a_tensor_on_the_cpu_is_caught(outcome: dict[str, str | None]) -> None:
    assert outcome["a tensor on the CPU"] == "FakeTensorDeviceMismatchError"
    assert outcome["device"] != "cpu"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", ["start", "training", "sampling"])
def test_every_tensor_is_on_the_accelerator(work: str, kind: str, outcome: dict[str, str | None]) -> None:
    cases = {name: trouble for name, trouble in outcome.items() if name.startswith(f"{work} {kind}")}
    assert cases and not any(cases.values()), "\n".join(trouble for trouble in cases.values() if trouble)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("work", ["start", "training"])
def test_tokenizers_and_vocoder_train_on_the_accelerator(work: str, part: str, outcome: dict[str, str | None]) -> None:
    assert outcome[f"{work} {part}"] is None
