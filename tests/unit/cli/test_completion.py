"""Completion in shells: the scripts know what the commands know, and the shells agree."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from resgen.cli.completion import candidates, known_values, options_of, script
from resgen.cli.main import COMMANDS, main

CASES = [
    ("resgen ", "train", "fashion-mnist-small"),
    ("resgen tr", "train", "demo"),
    ("resgen train ", "generator", "train"),
    ("resgen train generator --k", "--kind", "ar_resgen"),
    ("resgen train generator --kind ar", "ar_resgen", "--kind"),
    ("resgen train generator --resume --rec", "--recipe", "digits"),
    ("resgen generate image --model fashion-mnist-small --schedule p", "power", "circle"),
    ("resgen completion ", "zsh", "--help"),
    ("resgen train generator --data a-fi", "a-file", "--data"),
]


@pytest.fixture(scope="module")
def words() -> dict[str, tuple[str, ...]]:
    return candidates(COMMANDS, known_values())


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_those_of_the_help(name, capsys):
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    in_help = set(re.findall(r"^\W{1,3}(?:-h, )?(--[a-z][a-z0-9-]*)(?: |$)", capsys.readouterr().out, re.MULTILINE))
    assert in_help - {"--help"} == {option for option in options_of(COMMANDS[name]) if option}


def complete(shell: str, text: str, line: str, folder: Path) -> list[str]:
    """What the shell offers at the end of `line`, in a folder with a file `a-file`."""
    parts = [*line.split(" ")]
    quoted = " ".join(map(shlex.quote, parts))
    path = folder / f"completion.{shell}"
    path.write_text(text)
    (folder / "a-file").touch()
    if shell == "bash":  # files are readline's, when the function offers nothing
        files = 'if [ ${#COMPREPLY[@]} = 0 ]; then compgen -f -- "${COMP_WORDS[COMP_CWORD]}"; fi'
        code = (
            f"source {path}; complete -p resgen | grep -q -- '-o default' || exit 1; COMP_WORDS=({quoted}); "
            f"COMP_CWORD={len(parts) - 1}; _resgen; printf '%s\\n' \"${{COMPREPLY[@]}}\"; {files}"
        )
        command = ["bash", "--norc", "-c", code]
    elif shell == "zsh":  # outside of a widget: what the script gives to the shell's own functions
        code = (
            "compdef() { : }; _files() { print -l -- a-file }; "
            "compadd() { shift; local found=(${(M)@:#${words[CURRENT]}*}); (( $#found )) && print -l -- $found }; "
            f"source {path}; words=({quoted}); CURRENT={len(parts)}; _resgen"
        )
        command = ["zsh", "-fc", code]
    else:
        command = ["fish", "--no-config", "-c", f"source {path}; complete -C {shlex.quote(line)}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, timeout=60)
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell, words, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    text = script(shell, words)
    for line, offered, other in CASES:
        found = complete(shell, text, line, tmp_path)
        assert offered in found and other not in found, line


def test_every_recipe_and_bundled_model_is_known(words):
    assert {"digits", "rvqvae"} <= set(words["train tokenizer --recipe"])
    assert "fashion-mnist-small" in words["generate image --model"]
    assert words["generate speech --model"] == words["edit speech --model"] == ("spoken-digits-small",)
    assert not {"spoken-digits-small"} & set(words["generate image --model"] + words["edit image --model"])
    assert {"fashion-mnist-small", "spoken-digits-small"} <= set(words["evaluate --model"])
    assert "digits" not in words["train text --recipe"] and "digits" in words["train generator --recipe"]
    assert words["completion "] == ("bash", "zsh", "fish")
    assert "train generator --data" not in words


def test_values_of_a_command_are_for_options_that_it_has(words):
    keys = [key for key in known_values() if not key.startswith("--")]
    assert keys and all(words[key] == known_values()[key] for key in keys)


def test_the_command_prints_the_script(capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("complete -o default -F _resgen resgen")
