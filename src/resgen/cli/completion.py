"""`resgen completion bash|zsh|fish`: a script with all commands, options and known values, which a shell reads once.

The script is static: completing a word starts no Python. (tyro's own completion knows one command at a time, under a
program name without spaces.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

from tyro.conf import Positional

POSITIONAL = get_args(Positional[str])[1]
"""tyro's mark of an argument without an option."""

SH = """\
_resgen_words() {{
  case $1 in
{cases}
  esac
}}

# $1 is the word at hand, the others are those between `resgen` and it.
_resgen_candidates() {{
  local word=$1 name= option=
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      -*) option=$1 ;;
      *) case $name in {groups}) name=${{name:+$name }}$1 ;; esac ;;
    esac
    shift
  done
  case $name in
    {groups}) _resgen_words "$name"; return ;;
  esac
  case $word in
    -*) _resgen_words "$name"; return ;;
  esac
  case $(_resgen_words "$name ") in
    ?*) if [ -z "$option" ]; then _resgen_words "$name "; return; fi ;;
  esac
  _resgen_words "$name${{option:+ $option}}"
}}
"""

BASH = """
_resgen() {
  local word=${COMP_WORDS[COMP_CWORD]}
  COMPREPLY=($(compgen -W "$(_resgen_candidates "$word" "${COMP_WORDS[@]:1:COMP_CWORD-1}")" -- "$word"))
}
complete -o default -F _resgen resgen
"""

ZSH = """
_resgen() {
  local -a found
  found=(${=$(_resgen_candidates "${words[CURRENT]}" "${(@)words[2,CURRENT-1]}")})
  (( $#found )) && compadd -- $found || _files
}
if ! (( $+functions[compdef] )); then autoload -U compinit && compinit; fi
compdef _resgen resgen
"""

FISH = """\
function __resgen_words
  switch "$argv[1]"
{cases}
  end
end

function __resgen_candidates
  set -l name ''
  set -l option ''
  for word in (commandline -opc)[2..-1]
    if string match -q -- '-*' $word
      set option $word
    else if contains -- "$name" {groups}
      set name (string trim -- "$name $word")
    end
  end
  if contains -- "$name" {groups}; or string match -q -- '-*' (commandline -ct)
    __resgen_words $name
  else if test -z "$option"; and test (count (__resgen_words "$name ")) -gt 0
    __resgen_words "$name "
  else
    __resgen_words (string trim -- "$name $option")
  end
end

complete -c resgen -f -n 'test (count (__resgen_candidates)) -gt 0' -a '(__resgen_candidates)'
complete -c resgen -F -n 'test (count (__resgen_candidates)) -eq 0'
"""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print a script that completes commands, options and names in a shell.

    For example:

        resgen completion bash > ~/.local/share/bash-completion/completions/resgen
        resgen completion zsh > ~/.zfunc/_resgen
        resgen completion fish > ~/.config/fish/completions/resgen.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """The shell that is to read the script; it is up to date until the package is."""

    def run(self) -> None:
        from resgen.cli.main import COMMANDS

        print(script(self.shell, candidates(COMMANDS, known_values())), end="")


def script(shell: str, words: Mapping[str, Iterable[str]]) -> str:
    """The script for `bash`, `zsh` or `fish` of what `candidates` found."""
    # A group has words after it that are neither options nor known values.
    groups = [name for name in words if not any(word.startswith("-") for word in words[name]) and " " not in name]
    quote = "'{}'".format
    if shell == "fish":
        cases = [f"    case {quote(key)}\n      string split ' ' -- {quote(' '.join(words[key]))}" for key in words]
        return FISH.format(cases="\n".join(cases), groups=" ".join(map(quote, groups)))
    cases = [f"    {quote(key)}) printf '%s\\n' {' '.join(words[key])} ;;" for key in words]
    shared = SH.format(cases="\n".join(cases), groups="|".join(map(quote, groups)))
    return shared + (BASH if shell == "bash" else ZSH)


def candidates(commands: Mapping[str, type[Any]], values: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """What may follow which words.

    Args:
        commands: by name, of one word or two.
        values: known values by option, of any command that has it, or by a command and an option, which goes first.

    Returns:
        Under "" and a group's name the next words of commands; under a command its options; under a command and an
        option, or a command and a space for what has no option, the known values. Nothing is under an option whose
        values are not known: the shell completes files.
    """
    words: dict[str, tuple[str, ...]] = {"": tuple(dict.fromkeys(name.split()[0] for name in commands))}
    for name, command in commands.items():
        first, _, second = name.partition(" ")
        if second:
            words[first] = (*words.get(first, ()), second)
        options = {
            option: (*choices, *values.get(f"{name} {option}", values.get(option, ())))
            for option, choices in options_of(command).items()
        }
        words[name] = ("--help", *(option for option in options if option))
        words |= {f"{name} {option}": chosen for option, chosen in options.items() if chosen}
    return words


def options_of(command: type[Any]) -> dict[str, tuple[str, ...]]:
    """The options of a command as it is written on the command line, "" for what has none, with the values that its
    type names."""
    found: dict[str, tuple[str, ...]] = {}
    hints = get_type_hints(command, include_extras=True)
    for field in fields(command):
        hint = hints[field.name]
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if is_dataclass(kind):
            found |= options_of(cast(type[Any], kind))
            continue
        name = next((extra.name for extra in extras if getattr(extra, "name", None)), field.name)
        prefix = "--no-" if kind is bool and field.default is True else "--"
        found["" if POSITIONAL in extras else prefix + name.replace("_", "-")] = tuple(_literals(kind))
    return found


def _literals(kind: Any) -> list[str]:
    """The values of a `Literal`, wherever in a type it is."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [value for part in get_args(kind) for value in _literals(part)]


def known_values() -> dict[str, tuple[str, ...]]:
    """The names that options take, by option, or by command and option where it takes some of them only."""
    from resgen.cli.common import bundled_models
    from resgen.kinds import KINDS
    from resgen.ops.masking import SCHEDULES
    from resgen.pipelines.speech.pipeline import TASKS
    from resgen.recipes import recipe_names, speech_recipe_names

    kinds, models = tuple(KINDS), bundled_models()
    pictures, speech = (
        tuple(model["name"] for model in models if model["kind"] == kind) for kind in ("pipeline", "speech-pipeline")
    )
    pipelines = pictures + speech
    of_pictures = dict.fromkeys(("generate image --model", "edit image --model", "sweep --model"), pictures)
    of_speech = dict.fromkeys(("generate speech --model", "edit speech --model"), speech)
    speech_recipes = dict.fromkeys(("train vocoder --recipe", "train text --recipe"), tuple(speech_recipe_names()))
    return {
        "--recipe": (*recipe_names(), *speech_recipe_names()),
        "--kind": kinds,
        "--kinds": kinds,
        "--schedule": SCHEDULES,
        "--task": TASKS,
        "--device": ("cpu", "cuda"),
        "--model": pipelines,
        "--tokenizer": pipelines,
        "--extractor": tuple(model["name"] for model in models if model["kind"] == "classifier"),
        **of_pictures,
        **of_speech,
        **speech_recipes,
    }
