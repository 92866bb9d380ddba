"""The runner of pages: what it takes for a command, what it passes over, and what it says of failures."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_pages import RunPages, Step, main, steps_of

PAGE = """# A page

```
python -c "open('made.txt', 'w').write('here')"    # a comment
cat made.txt \\
    OTHER
docker run it
resgen train ... --resume
```

1. In a list

   ```python
   word = open("made.txt").read()
   open("again.txt", "w").write(word)
   ```

```json
{"no": "command"}
```

```python
open("third.txt", "w").write(word + " and there")
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text(PAGE)
    return Path("page.md")


def test_the_commands_of_a_page_in_its_order(page: Path) -> None:
    steps = list(steps_of(page))
    assert [step.code.split()[0] for step in steps] == ["python", "cat", "docker", "resgen", "word"]
    assert [step.is_python for step in steps] == [False] * 4 + [True]
    assert steps[1].code == "cat made.txt OTHER"


def test_every_command_runs_in_the_same_folder_and_the_table_says_how_long(
    page: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(RunPages(pages=(page,), replace=("OTHER=made.txt",), out=Path("table.md"))) == 0
    assert Path("again.txt").read_text() == "here" and Path("third.txt").read_text() == "here and there"
    assert "3 ran, 0 failed, 2 were passed over" in capsys.readouterr().out
    rows = Path("table.md").read_text().splitlines()[2:]
    assert "needs docker" in rows[2] and "a part of a command" in rows[3] and len(rows) == 5
    assert all(float(rows[place].split("|")[-2]) >= 0 for place in (0, 1, 4))


def test_a_failure_is_named_and_those_after_it_run(page: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(RunPages(pages=(page,))) == 1
    out = capsys.readouterr().out
    assert "exit code 1: cat: OTHER: No such file" in out and "1 failed" in out and Path("again.txt").exists()


def test_long_trainings_are_capped(page: Path, capsys: pytest.CaptureFixture) -> None:
    page.write_text("```\necho --max-minutes 24 --max-minutes-per-model 10 > said.txt\n```\n")
    assert main(RunPages(pages=(page,), most_minutes=0.5)) == 0
    assert Path("said.txt").read_text().split() == "--max-minutes 0.5 --max-minutes-per-model 0.5".split()
    page.write_text("```\nresgen train --help\nresgen compare --help\n```\n")
    main(RunPages(pages=(page,), most_minutes=0.5))
    out = capsys.readouterr().out
    assert "| `resgen train --help --max-minutes 0.5` |" in out
    assert "| `resgen compare --help --max-minutes-per-model 0.5` |" in out


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("resgen train text | tee log", "resgen train text --max-minutes 0.5 | tee log"),
        ("ls && resgen train text", "ls && resgen train text --max-minutes 0.5"),
        ("resgen compare --seed 1; ls", "resgen compare --seed 1 --max-minutes-per-model 0.5; ls"),
        ("resgen train text --seed 2 2>&1 >log", "resgen train text --seed 2 --max-minutes 0.5 2>&1 >log"),
        ("resgen train text --data 'a|b' > log", "resgen train text --data 'a|b' --max-minutes 0.5 > log"),
        ("resgen train text --data a\\;b", "resgen train text --data a\\;b --max-minutes 0.5"),
        ("echo resgen train | cat", "echo resgen train | cat"),
    ],
)
def test_the_time_belongs_to_the_training_of_a_line(line: str, runs: str) -> None:
    assert RunPages(pages=(), most_minutes=0.5)._prepared(Step("a.md", line)) == runs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replace": ("PATH",)}, "replace 'PATH' must be OLD=NEW"),
        ({"only": "("}, "only '(' is no regular expression: missing ), unterminated subpattern at position 0"),
        ({"pages": (Path("none.md"),)}, "no such file: 'none.md'; --pages takes Markdown files"),
    ],
)
def test_wrong_options_are_errors(page: Path, options: dict, said: str, capsys: pytest.CaptureFixture) -> None:
    assert main(RunPages(**{"pages": (page,), **options})) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize(("is_up", "said"), [(True, "another server answers"), (False, "did not answer")])
def test_a_server_that_is_not_the_pages_is_a_failure(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, is_up: bool, said: str
) -> None:
    monkeypatch.setattr("run_pages._is_up", lambda: is_up)
    page.write_text("```\nresgen serve --no-such-option 2> said.txt\n```\n")
    assert main(RunPages(pages=(page,))) == 1
    assert said in capsys.readouterr().out and Path("said.txt").exists() != is_up


def test_a_command_that_waits_is_ended(page: Path, capsys: pytest.CaptureFixture) -> None:
    page.write_text("```\nsleep 60\ncat\n```\n")
    assert main(RunPages(pages=(page,), timeout_minutes=0.005)) == 1
    out = capsys.readouterr().out
    assert "took longer than 0.005 minutes" in out and "2 ran, 1 failed" in out
