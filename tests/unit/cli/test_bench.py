"""`resgen bench`: what it hands over, what it prints and writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tyro

from resgen.cli.bench import Bench, integers, words
from resgen.cli.main import guard
from resgen.errors import ConfigError
from resgen.evaluation.bench import speed
from resgen.evaluation.bench.cases import MEASURED
from resgen.evaluation.bench.speed import BenchConfig


def parse(*arguments: str) -> Bench:
    return tyro.cli(Bench, args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,))


def row(label: str, seconds: float, batch: int, memory: bool) -> dict[str, Any]:
    names = ("resgen", "rq_transformer", "products", "shallowest")
    values = {
        "label": label,
        "kind": label.split()[0],
        "depth": 4,
        "batch_size": batch,
        "parameters": 12_300_000,
        "steps": 63,
    }
    values |= {"passes": {"transformer": 32.0, "levels": 128.0}, "seconds_per_image": seconds}
    values |= {"images_per_second": 1 / seconds, "over": {name: {"median": 2.5, "min": 2, "max": 3} for name in names}}
    sizes = {"extra_bytes": 7_000_000, "total_bytes": 9_000_000, "largest_batch": 321}
    return values | ({"memory": sizes} if memory else {})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[BenchConfig]:
    seen: list[BenchConfig] = []

    def fake(config: BenchConfig, advance: Any) -> dict[str, Any]:
        seen.append(config)
        advance(0, 2, "timed runs")
        advance(2.0, 2.0, "timed runs")
        memory = config.memory
        settings = {"memory_gb": config.memory_gb if memory else None, "device": "cpu: a", "threads": 2}
        settings |= {"dtype": "float32", "guidance_scale": 2.0, "repetitions": 3, "load": 0.1, "torch": "2"}
        rows = [
            row("resgen", 0.5, 1, memory),
            row("rq_transformer", 1.0, 1, memory),
            row("ar_resgen x2", 0.25, 1, memory),
        ]
        return {"rows": rows, "counted": "What is counted.", "settings": settings}

    monkeypatch.setattr(speed, "bench", fake)
    return seen


def test_defaults_and_lists(calls: list[BenchConfig]) -> None:
    parse().run()
    parse("--kinds", "resgen,maskgit", "direct", "--depths", "1,4", "8", "--batch-sizes", "1", "16").run()
    first, second = calls
    assert first == BenchConfig() and first.kinds == MEASURED
    assert second.kinds == ("resgen", "maskgit", "direct")
    assert second.depths == (1, 4, 8) and second.batch_sizes == (1, 16)


def test_every_option_arrives(calls: list[BenchConfig]) -> None:
    options = (
        "--shape tiny --steps 16 --no-guidance --guidance-start 0.5 --dtype float32,int8 --repetitions 7 --no-memory "
    )
    parse(*(options + "--memory-gb 3 --device cpu --iterations 2").split()).run()
    assert calls[0] == BenchConfig(
        shape="tiny",
        num_steps=16,
        guidance=False,
        guidance_start=0.5,
        dtypes=("float32", "int8"),
        repetitions=7,
        memory=False,
        memory_gb=3.0,
        device="cpu",
        iterations=(2,),
    )


def test_table_and_file(calls: list[BenchConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "speed.json"
    parse("--out", str(out)).run()
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[-4:] == ["batch", "in", "8", "GB"] and "/rq_transformer" in lines[0]
    assert lines[1].split()[:5] == ["resgen", "4", "1", "12.3", "63"] and lines[1].split()[-3:] == ["7", "9", "321"]
    assert "32 + 128" in lines[3] and "0.25" in lines[3] and "2.5" in lines[3]
    assert "What is counted." in printed.out and "2 threads, float32, guidance on" in printed.out
    assert str(out) in lines[-1] and printed.err == ""
    assert json.loads(out.read_text())["rows"][0]["label"] == "resgen"


def test_json_and_no_memory(calls: list[BenchConfig], capsys: pytest.CaptureFixture[str]) -> None:
    parse("--json", "--no-memory").run()
    assert json.loads(capsys.readouterr().out)["rows"][2]["label"] == "ar_resgen x2"
    parse("--no-memory").run()
    assert "MB" not in capsys.readouterr().out.splitlines()[0]


def test_a_real_run(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--shape tiny --kinds resgen --depths 1 --steps 2 --repetitions 1 --no-memory --no-guidance --json"
    parse(*options.split()).run()
    document = json.loads(capsys.readouterr().out)
    assert document["rows"][0]["steps"] == 2 and document["rows"][0]["passes"] == {"transformer": 2.0}


def test_words_and_integers() -> None:
    assert words(("a,b", "c d", ",")) == ("a", "b", "c", "d")
    assert integers("--depths", ("1,4", "8")) == (1, 4, 8)
    for text in ("1,x", "1,9999999", "9" * 30):
        with pytest.raises(ConfigError, match=f"--depths {text} must be whole numbers up to 1,000,000"):
            integers("--depths", (text,))


@pytest.mark.parametrize(
    "arguments",
    [
        "--shape papr",
        "--kinds rq",
        "--depths 1,x",
        "--depths 0",
        "--repetitions 0",
        "--memory-gb 0",
        "--out speed.txt",
        "--shape tiny --depths 1 --steps 99",
    ],
)
def test_errors_are_one_line(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(parse(*arguments.split()).run) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.out == ""


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert "resgen bench --shape paper" in text and "--no-guidance" in text
