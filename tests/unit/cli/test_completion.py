"""Completion in shells: the scripts know the commands and their options, and the shells agree."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from resgen.cli.main import main

CASES = [
    ("resgen ", "train", "image"),
    ("resgen tr", "train", "demo"),
    ("resgen train ", "generator", "train"),
    ("resgen train generator --r", "--recipe", "--out"),
    ("resgen train generator --resume --rec", "--recipe", "--out"),
    ("resgen generate im", "image", "speech"),
]


def complete(shell: str, script: Path, line: str) -> list[str]:
    """What the shell offers at the end of `line`."""
    words = line.split(" ")
    if shell == "bash":
        quoted = " ".join(map(shlex.quote, words))
        code = (
            f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
            "$(complete -p resgen | sed 's/.*-F //; s/ .*//'); printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        command = ["bash", "--norc", "-c", code]
    else:
        command = ["fish", "--no-config", "-c", f"source {script}; complete -C {shlex.quote(line)}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_completes_commands_and_options(shell, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell])
    text = capsys.readouterr().out
    assert not ended.value.code and "--recipe" in text
    if shell == "zsh" or shutil.which(shell) is None:
        return  # zsh completes within its own editor only
    script = tmp_path / "script"
    script.write_text(text)
    for line, expected, other in CASES:
        offers = complete(shell, script, line)
        assert expected in offers and other not in offers, line
