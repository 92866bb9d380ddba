"""Entry point of `resgen`: find the command, run it, turn errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
import operator
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, get_type_hints

import tyro
from tyro.conf import Positional

import resgen
from resgen.allocator import keep_freed_memory
from resgen.cli.bench import Bench
from resgen.cli.common import check_numbers, message, os_error_line, table
from resgen.cli.compare import Compare, Sweep
from resgen.cli.demo import Demo
from resgen.cli.doctor import Doctor
from resgen.cli.edit import EditImage
from resgen.cli.edit_speech import EditSpeech
from resgen.cli.encode import Encode
from resgen.cli.evaluate import Evaluate
from resgen.cli.export import Export
from resgen.cli.generate import GenerateImage
from resgen.cli.inspect import Inspect
from resgen.cli.models import Models
from resgen.cli.plan import Plan
from resgen.cli.reconstruct import Reconstruct
from resgen.cli.sampling import in_flags
from resgen.cli.serve import Serve
from resgen.cli.speak import GenerateSpeech
from resgen.cli.train import TrainGenerator, TrainText, TrainTokenizer, TrainVocoder
from resgen.errors import ConfigError, ResGenError, unknown
from resgen.extras import MODALITIES
from resgen.files import nearest_path
from resgen.matches import nearest

MAX_LINE = 8000
LEAST_COLUMNS = 20
"""Of the screen; help for fewer would never end."""
"""Characters of an error; some name all keys of a recipe, some quote what a damaged file holds."""
EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 0, 2, 130, 141


class UsageError(ConfigError):
    """What is wrong with the options of a command, a line for each problem."""

    def __init__(self, command: str, problems: Sequence[str]) -> None:
        self.problems = [*problems[:-1], f"{problems[-1]}; `resgen {command} --help` explains all options"]
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print a script that completes commands and options in a shell.

    For example:

        resgen completion bash > ~/.local/share/bash-completion/completions/resgen
        resgen completion zsh > ~/.zfunc/_resgen
        resgen completion fish > ~/.config/fish/completions/resgen.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """Shell to complete in; generate the script again after an update of the package."""

    def run(self) -> None:
        options = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, *OPTIONS)
        tyro.cli(union(commands()), prog="resgen", args=["--tyro-print-completion", self.shell], config=options)


COMMANDS: dict[str, type[Any]] = {
    "demo": Demo,
    "train tokenizer": TrainTokenizer,
    "train vocoder": TrainVocoder,
    "train text": TrainText,
    "train generator": TrainGenerator,
    "encode": Encode,
    "reconstruct": Reconstruct,
    "generate image": GenerateImage,
    "generate speech": GenerateSpeech,
    "edit image": EditImage,
    "edit speech": EditSpeech,
    "serve": Serve,
    "evaluate": Evaluate,
    "compare": Compare,
    "sweep": Sweep,
    "doctor": Doctor,
    "plan": Plan,
    "inspect": Inspect,
    "export": Export,
    "models": Models,
    "bench": Bench,
    "completion": Completion,
}
"""Those of the package; all are in `commands`."""

OPTIONS = (tyro.conf.FlagCreatePairsOff,)
"""Without it, --resume would have a --no-resume beside it."""

VALUES = (
    (r"Error parsing (--[\w-]+): .*invalid literal for int\(\) with base 10: ('.*?')", r"\1 \2 must be a whole number"),
    (r"Error parsing (--[\w-]+): .*could not convert string to float: ('.*?')", r"\1 \2 must be a number"),
    (r"Missing value for argument '(--[\w-]+)'", r"\1 needs a value"),
)
"""What tyro says of a value that is missing or no number, and our words for it."""

PLACES = ("out", "trace")
"""Options that say where to write; nothing may not stand for the current folder."""
ALSO = {"model": "tokenizer", "steps-gif": "trace"}
"""Options that some commands have, by what else they may be called."""

ALSO_COMMANDS = {"help": "--help", "list": "models", "ls": "models", "sample": "generate", "speak": "generate speech"}
"""Other names that people try for commands."""

EXAMPLES = """
  resgen demo
  resgen train tokenizer --recipe digits --out runs/digits-tokenizer
  resgen train generator --recipe digits --tokenizer runs/digits-tokenizer/model --out runs/digits
  resgen generate image --model runs/digits/model --class 3 7 --num-samples 8 --out digits.png
"""


def commands() -> dict[str, type[Any]]:
    """All commands by name: those of the package, and those of modalities that were registered.

    Where nobody has registered one, `resgen.modalities` is not imported, and so no PyTorch.
    """
    if "resgen.modalities" not in sys.modules and not entry_points(group=MODALITIES):
        return COMMANDS
    from resgen.modalities import registered

    added = {f"{verb} {one.name}": command for one in registered() for verb, command in one.commands.items()}
    return COMMANDS | added


def overview(group: str = "") -> str:
    """The help of `resgen`, or of a group such as `resgen train`: what each command does, in one line."""
    members = {name: command for name, command in commands().items() if name.startswith(group)}
    rows = [("  " + name, str(command.__doc__).split("\n")[0]) for name, command in members.items()]
    title = str(resgen.__doc__).split("\n")[0]
    about = f"\n{title}\n" if not group else ""
    examples = f"\nbegin with:\n{EXAMPLES.rstrip()}\n" if not group else ""
    return (
        f"usage: resgen {group or 'COMMAND'} ... [--help]\n{about}\ncommands:\n{table(rows)}\n{examples}\n"
        "`resgen COMMAND --help` explains one command. Reports go to standard output, messages to standard error."
    )


def parse(argv: Sequence[str]) -> Any:
    """The command that `argv` asks for, an instance of one of the classes in `commands()`.

    Raises:
        ConfigError: there is no such command, or a wrong option.
        SystemExit: 0 after help, 2 after the help that stands for no command.
    """
    words, known = list(argv), commands()
    for length in (1, 2):
        name = " ".join(words[:length])
        if name in known:
            return read_options(name, words[length:])
    group = words[0] if words and any(name.startswith(words[0] + " ") for name in known) else ""
    rest = words[1:] if group else words
    if rest and rest[0] in ("-h", "--help"):
        print(overview(group))
        raise SystemExit(EXIT_OK)
    if not rest:
        message(overview(group))
        raise SystemExit(EXIT_ERROR)
    if group:
        raise ConfigError(unknown(f"{group} command", rest[0], [n.split()[1] for n in known if n.startswith(group)]))
    raise ConfigError(unknown("command", rest[0], dict.fromkeys(n.split()[0] for n in known), ALSO_COMMANDS))


def read_options(name: str, words: Sequence[str]) -> Any:
    """A command with its options; tyro's box around what is wrong with them becomes a line for each problem.

    Raises:
        UsageError: an option is unknown, lacks a value or has one of another type or size, or a needed one is missing.
        SystemExit: 0 after help.
    """
    options = [f"--{option}" for option in PLACES]
    if empty := [option for option in options if f"{option}=" in words or (option, "") in itertools.pairwise(words)]:
        raise UsageError(name, [f"{option} '' names nothing; give a file or folder" for option in empty])
    hints = get_type_hints(commands()[name], include_extras=True).items()
    bare = {f"--{field}" for field, hint in hints if Positional in getattr(hint, "__metadata__", ())}
    if wrong := [option for word in words if (option := word.partition("=")[0]) in bare]:
        raise UsageError(name, [f"unknown option '{option}' (give its value alone)" for option in wrong])
    screen = io.StringIO()
    try:
        with contextlib.redirect_stderr(screen):
            command, others = call_tyro(name, words)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(name, wrong_options(name, screen.getvalue())) from stop
    if others:
        raise UsageError(name, unknown_options(name, others))
    check_numbers(command)
    return command


def call_tyro(name: str, words: Sequence[str]) -> tuple[Any, list[str]]:
    """A command with its options, and the words that it does not take."""
    kind, prog = commands()[name], f"resgen {name}"
    return tyro.cli(kind, prog=prog, description=about(name), args=words, config=OPTIONS, return_unknown_args=True)


def wrong_options(name: str, screen: str) -> list[str]:
    """The lines for tyro's box: unknown options and then each that is missing, or what it says of another error."""
    _, _, body = screen.partition("For full helptext")[0].partition("\n")  # without the title
    lines = [line[2:].rstrip("│ ") for line in body.splitlines()]  # without borders
    if "Missing from " not in body:
        sections = " ".join("\n" if set(line) <= {"─", "-"} else line.strip() for line in lines).splitlines()
        said = "; ".join(section.strip().rstrip(".") for section in sections if section.strip())
        return [next((match.expand(ours) for tyros, ours in VALUES if (match := re.match(tyros, said))), said)]
    missing, _, others = "\n".join(lines).partition("\nUnrecognized options:\n")
    needed, words = (re.findall(r"^ {4}(\S.*)", part, flags=re.M) for part in (missing, others))  # explanations: 8
    options = re.split(r" (?=--)", " ".join(needed))  # a narrow screen may have broken one
    return [*unknown_options(name, words), *(f"give {option}" for option in options)]


def unknown_options(name: str, words: Sequence[str]) -> list[str]:
    """A line for each word that a command does not take; the values of unknown options go with them."""
    screen, lines, value = io.StringIO(), [], False
    with contextlib.redirect_stdout(screen), contextlib.suppress(SystemExit):
        call_tyro(name, ["--help"])
    known = re.findall(r"^[│ ] (?:-h, )?--([\w-]+)", screen.getvalue(), flags=re.M)
    for word in words:
        if option := re.match(r"-+([^\W\d][^=]*)", word):
            also = [one for one in known if one == ALSO.get(option[1])]
            begun = [one for one in known if one.startswith(f"{option[1].lower()}-")]  # --num of --num-samples
            near = also or nearest(option[1], known, 1) or begun
            hint = f" (did you mean --{near[0]}?)" if near else ""
            lines.append(f"unknown option '{word.partition('=')[0]}'{hint}")
        elif not value:
            lines.append(f"unexpected '{word}'")
        value = value or option is not None
    return lines


def about(name: str) -> str:
    """What a command's help begins with: its docstring, every paragraph one line for the screen to break."""
    text = inspect.cleandoc(str(commands()[name].__doc__))
    paragraphs = [part if part.startswith(" ") else " ".join(part.split("\n")) for part in text.split("\n\n")]
    return re.sub(r"\n\n(?= )", "\n", "\n\n".join(paragraphs))  # tyro itself adds a line before one that is indented


def union(commands: Mapping[str, type[Any]]) -> Any:
    """All commands as one type of tyro's, in which those of a group are choices of the group."""
    groups: dict[str, dict[str, type[Any]]] = {}
    for name, command in commands.items():
        group, _, rest = name.partition(" ")
        groups.setdefault(group, {})[rest] = command
    choices = []
    for name, inner in groups.items():
        choice = inner.get("") or make_dataclass(name, [("command", union(inner))], namespace={"__doc__": ""})
        choices.append(Annotated[choice, tyro.conf.subcommand(name)])
    return functools.reduce(operator.or_, choices)


def guard(run: Callable[[], int | None]) -> int:
    """Run a command; the errors a user can cause become one line on standard error and an exit code."""
    try:
        code = run() or EXIT_OK
        sys.stdout.flush()
    except UsageError as error:
        return [fail(problem) for problem in error.problems][-1]
    except ResGenError as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError) and cause.filename:
            return fail(f"{error}; {nearest_path(os.fsdecode(cause.filename))}")
        return fail(str(error))
    except KeyboardInterrupt:
        message("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps Python's last flush silent
        return EXIT_BROKEN_PIPE
    except OSError as error:
        return fail(os_error_line(error))
    except (MemoryError, RuntimeError) as error:
        if is_lost_process(error):
            return fail(
                "another process of the group has ended or cannot be reached; its own message says why; "
                "restart all processes with the same command (training with --resume)"
            )
        if not is_out_of_memory(error):
            raise
        return fail(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'nothing left to allocate'}; "
            "use smaller batches (--batch-size, or in training --set STAGE_training.accumulate=2; for generators "
            "also recompute=true); `resgen plan` estimates the memory of training"
        )
    return code


def fail(text: str) -> int:
    """Say what is wrong in one line; returns the exit code."""
    line = " ".join(text.split())
    message(f"error: {line if len(line) <= MAX_LINE else line[:MAX_LINE] + ' ...'}")
    return EXIT_ERROR


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, a processor's or an accelerator's memory was not enough, whatever PyTorch calls it."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def is_lost_process(error: BaseException) -> bool:
    """Whether processes could not speak to each other, in the words of Gloo, NCCL and PyTorch's store."""
    words = ("closed by peer", "reset by peer", "remote process exited", "connection was likely closed", "broken pipe")
    return any(word in str(error).lower() for word in words)


def run(command: Any) -> Any:
    """Run a command; all but the server, which is there for long and mostly idle, keep the memory that they free."""
    if not isinstance(command, Serve):
        keep_freed_memory()
    try:
        return command.run()
    except ResGenError as error:
        error.args = (in_flags(str(error), command),)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for errors, 130 after an interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None or sys.stderr is None:  # closed by the caller
        nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    if os.environ.get("COLUMNS", "").isdecimal() and int(os.environ["COLUMNS"]) < LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(LEAST_COLUMNS)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is escaped
            stream.reconfigure(errors="backslashreplace")
    if arguments == ["--version"]:
        return guard(lambda: print(f"resgen {resgen.__version__}"))
    code = guard(lambda: run(parse(arguments)))
    leave_group()
    return code


def leave_group() -> None:
    """Leave the processes that a command may have joined; a command that cannot have done so has not loaded PyTorch."""
    parallel = sys.modules.get("resgen.training.parallel")
    if parallel is not None:
        parallel.finalise()
