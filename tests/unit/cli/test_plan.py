"""`resgen plan`: what it prints, where its rate comes from, what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from resgen import modalities
from resgen.cli.main import main
from resgen.cli.plan import count, span
from resgen.modalities import of_recipe
from resgen.training import plan

DIGITS = ["plan", "--recipe", "digits", "--devices", "2", "--device-memory", "8"]


def run(*arguments: str) -> int:
    return main([*DIGITS, *arguments])


def test_json_with_a_given_rate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(plan, "measure_rate")  # nothing may be measured
    assert run("--rate", "0.5", "--set", "generator_training.accumulate=4", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rate"] == {"operations_per_second": 5e11, "source": "given"}
    assert list(document["stages"]) == ["tokenizer", "generator"]
    generator = document["stages"]["generator"]
    assert generator["samples_per_micro_batch"] == 128 // (2 * 4)
    assert generator["seconds_per_step"] == pytest.approx(generator["operations_per_step"] / 1e12)
    assert generator["seconds"] == pytest.approx(1500 * generator["seconds_per_step"])
    memory = generator["memory_bytes"]
    assert memory["total"] == pytest.approx(sum(value for name, value in memory.items() if name != "total"))


def test_tables_with_a_measured_rate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def fake(recipe: Any, **shape: Any) -> dict[str, Any]:
        asked.append(shape)
        return {"operations_per_second": 2e9, "source": "measured", "device": "cpu", "precision": "fp32", "width": 128}

    monkeypatch.setattr(plan, "measure_rate", fake)
    assert run("--stage", "generator", "--shard") == 0
    text = capsys.readouterr().out
    assert asked == [{"samples": 64, "positions": 16}]
    assert "digits on 2 x 8 GB, the generator divided over 2" in text
    assert "rate per device: 2G operations/s, measured on this machine's cpu in fp32" in text
    assert re.search(r"^fits: at most [0-9.]+M of 8G per device$", text, re.MULTILINE)
    for line in ("parameters", "time of the training", "gathered weights", "activations: attention", "total"):
        assert line in text
    assert "tokenizer" not in text


def test_too_little_memory_is_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--device-memory", "0.045", "--rate", "1", "--stage", "generator") == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert "stage 'generator' needs" in output.err and "set generator_training.accumulate=" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--devices", "0"), "--devices 0 must be at least 1"),
        (("--device-memory", "-1"), "--device-memory -1 must be greater than 0"),
        (("--rate", "0"), "--rate 0 must be greater than 0"),
        (("--devices", "3", "--rate", "1"), "batch_size=128 must be a multiple of accumulate=1 times 3 processes"),
        (("--stage", "text", "--rate", "1"), "text"),
        (("--recipe", "nothing"), "nothing"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_speech_has_four_stages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"mlp": 1, "forward": 2, "backward": 1, "operations": 3}
    monkeypatch.setattr(plan, "trace", lambda step, samples, bf16: cost)
    arguments = ["plan", "--recipe", "spoken_digits", "--devices", "1", "--device-memory", "8", "--rate", "1", "--json"]
    assert main(arguments) == 0
    assert list(json.loads(capsys.readouterr().out)["stages"]) == ["tokenizer", "vocoder", "text", "generator"]


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--help"])
    assert stop.value.code == 0
    assert "resgen plan --recipe imagenet256" in capsys.readouterr().out


def test_numbers_and_times() -> None:
    assert [count(value) for value in (0, 12, 999.6, 572_248_897, 1.53e14)] == ["0", "12", "1k", "572M", "153T"]
    assert [span(value) for value in (0.254, 90.0, 150.0, 7200.0, 604_800.0, 1e9)] == [
        "0.254 s",
        "90 s",
        "2.5 min",
        "2.0 h",
        "7.0 days",
        "31.7 years",
    ]


def test_a_modality_that_does_not_say_what_it_takes(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    modality = replace(of_recipe("digits"), plan=None)
    monkeypatch.setattr(modalities, "of_recipe", lambda name: modality)
    assert run("--rate", "1") == 2
    assert "there is no 'plan' for images" in capsys.readouterr().err
