"""The frame around the commands: help, unknown commands, exit codes, output streams."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys

import pytest

from resgen.cli.main import COMMANDS, guard, main
from resgen.errors import DataError

BARE = [sys.executable, "-c"]


def test_help_loads_no_torch_and_answers_within_a_second():
    """A second of the processor: other processes may share the machine."""
    code = (
        "import sys, time\nfrom resgen.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: print('code', stop.code)\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)\nprint(time.process_time())"
    )
    result = subprocess.run([*BARE, code], capture_output=True, text=True, check=True)
    text, _, seconds = result.stdout.rstrip().rpartition("\n")
    assert text.endswith("code 0\nFalse False")
    assert all(name in text for name in COMMANDS)
    assert float(seconds) < 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: resgen {name}" in text
    assert f"    resgen {name} " in text, "an example"


@pytest.mark.parametrize("group", ["train", "generate"])
def test_group_help_lists_its_commands_only(group, capsys):
    with pytest.raises(SystemExit) as stop:
        main([group, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert [name for name in COMMANDS if f"  {name} " in text] == [n for n in COMMANDS if n.startswith(group)]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["modles"], "error: unknown command 'modles' (did you mean 'models'?); allowed: demo, train,"),
        (["train", "tokeniser"], "error: unknown train command 'tokeniser' (did you mean 'tokenizer'?)"),
        (["generate", "--model", "x"], "error: unknown generate command '--model'; allowed: image"),
        (["--verbose"], "error: unknown command '--verbose'; allowed:"),
        (["list"], "error: unknown command 'list' (did you mean 'models'?)"),
        (["help"], "error: unknown command 'help' (did you mean '--help'?)"),
    ],
)
def test_unknown_command_is_one_line_and_code_2(argv, line, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line) and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("models --jsn", "unknown option '--jsn' (did you mean --json?); `resgen models --help` explains all options"),
        (
            "generate image --model m --num 3 --out o",
            "unknown option '--num' (did you mean --num-samples?); `resgen generate image --help` explains all options",
        ),
        (
            "reconstruct --tokenizer t --model m --input i --out o",
            "unknown option '--model' (did you mean --tokenizer?)",
        ),
        ("generate image --model m --steps-gif a.gif --out o", "unknown option '--steps-gif' (did you mean --trace?)"),
        ("inspect --model m", "unknown option '--model' (give its value alone)"),
        ("doctor --path=runs/x", "unknown option '--path' (give its value alone)"),
        ("models --quite-different", "error: unknown option '--quite-different'; `resgen"),
        ("models some", "error: unexpected 'some'; `resgen models --help`"),
        ("encode", "error: give --out DIR; `resgen encode --help` explains all options"),
        ("completion", "error: give {bash,zsh,fish}; `resgen completion --help`"),
        ("generate image --model m --out o --num-samples x", "error: --num-samples 'x' must be a whole number; `"),
        ("generate image --model m --out o --seed=1.5", "error: --seed '1.5' must be a whole number; `resgen"),
        ("generate image --model m --out o --guidance-scale x", "error: --guidance-scale 'x' must be a number; `"),
        ("generate image --model m --out o --num-samples", "error: --num-samples needs a value; `resgen"),
        ("completion tcsh", "invalid choice 'tcsh' for argument 'shell'"),
    ],
)
def test_wrong_options_are_one_line_and_code_2(argv, line, capsys):
    assert main(argv.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and line in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_is_wrong_with_options_are_lines_with_the_unknown_ones_first(columns, encoding, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", encoding == "utf-8")
    assert main("generate image stray --clas lorelei --sede=3 --xyzzy 2 5".split()) == 2
    assert capsys.readouterr() == (
        "",
        "error: unexpected 'stray'\n"
        "error: unknown option '--clas' (did you mean --class?)\n"
        "error: unknown option '--sede' (did you mean --seed?)\n"
        "error: unknown option '--xyzzy'\n"
        "error: give --model DIR_OR_NAME\n"
        "error: give --out FILE_OR_DIR; `resgen generate image --help` explains all options\n",
    )


def test_a_name_of_any_length_is_one_short_line(capsys):
    assert main(["inspect", "x" * 100_000]) == 2
    assert capsys.readouterr().err.count("x") <= 8000


@pytest.mark.parametrize("argv", [[], ["train"]])
def test_no_command_prints_what_there_is_and_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("resgen ")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("'a.png' is\n  truncated"), 2, "error: 'a.png' is truncated\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            2,
            "error: 'runs/x': no space left on the disk; free some space and run the command again\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/f"), 2, "error: '/f': Permission denied\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(error, code, line, fake, capsys):
    def list_bundled():
        raise error

    fake("resgen.checkpoints.locate", list_bundled=list_bundled, resolve_model=None)
    assert main(["models", "--json"]) == code
    assert capsys.readouterr() == ("", line)


def test_a_defect_keeps_its_traceback(fake):
    fake("resgen.checkpoints.locate", list_bundled=lambda: 1 / 0, resolve_model=None)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_closed_output_is_quiet():
    code = (
        "import sys\nfrom resgen.cli import main, models\n"
        "models.bundled_models = lambda: [dict(name='n' * 99, kind='k', size_bytes=1, description='d')] * 5000\n"
        "sys.exit(main.main(['models']))"
    )
    process = subprocess.Popen([*BARE, code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(("stream", "code"), [(">&-", 0), ("2>&-", 2), (">&- 2>&-", 2)])
def test_a_stream_that_was_closed_before_is_no_error(stream, code):
    words = "models" if code == 0 else "modells"
    command = (
        f'{sys.executable} -c "import sys; from resgen.cli.main import main; sys.exit(main(sys.argv[1:]))" {words}'
    )
    result = subprocess.run(["sh", "-c", f"{command} {stream}"], capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (code, b"", b"")


def test_a_screen_of_one_column_gets_its_help():
    code = "import sys; from resgen.cli.main import main; main(sys.argv[1:])"
    environment = {**os.environ, "COLUMNS": "1"}
    for words, end in ((["train", "generator", "--help"], 0), (["train", "generator", "--recipe", "digits"], 0)):
        result = subprocess.run([*BARE, code, *words], env=environment, capture_output=True, timeout=300, check=False)
        assert result.returncode == end and result.stdout + result.stderr


@pytest.mark.parametrize("words", [["--out", ""], ["--out="], ["--out", "x.png", "--trace", ""]])
def test_an_empty_name_is_not_the_current_folder(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "image", "--model", "fashion-mnist-small", "--class", "Bag", *words]) == 2
    option = words[-2] if len(words) > 1 else "--out"
    assert f"error: {option} '' names nothing; give a file or folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_lists_and_writes_json(bundled, capsys):
    bundled(fashion_mnist_small="pipeline")
    assert main(["models"]) == 0
    assert capsys.readouterr().out.split("\n")[1].split() == ["fashion-mnist-small", "images", "2.0", "clothes"]
    assert main(["models", "--json"]) == 0
    model = {"name": "fashion-mnist-small", "kind": "pipeline", "size_bytes": 2_000_000, "description": "clothes"}
    assert json.loads(capsys.readouterr().out) == {"models": [model]}


def test_memory_that_is_not_enough_is_one_line(capsys):
    def run(error):
        def fail():
            raise error

        return guard(fail)

    cpu = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError(cpu)):
        assert run(error) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and text.startswith("error: out of memory") and "accumulate" in text
    with pytest.raises(RuntimeError, match="something else"):
        run(RuntimeError("something else"))


@pytest.mark.parametrize("name", ["evaluate", "doctor", "train generator"])
def test_help_has_no_empty_line_but_between_paragraphs(name, capsys):
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert "\n\n\n" not in text and re.search(r"For example:\n    \S", text)


def test_what_is_not_there_is_said_with_what_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text("seed: 1")
    assert main(["inspect", "--recipe", "digits", "--config", "setings.yaml"]) == 2
    line = "configuration file 'setings.yaml' cannot be read: No such file or directory; did you mean 'settings.yaml'?"
    assert capsys.readouterr().err == f"error: {line}\n"
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    assert main(["inspect", "runs/digit/model"]) == 2
    line = capsys.readouterr().err
    assert "unknown model 'runs/digit/model'" in line and "no such file or folder: did you mean 'runs/digits'?" in line
