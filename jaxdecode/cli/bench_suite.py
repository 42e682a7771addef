"""`jaxdecode bench --suite lists|parallelbench|text:FILE`: what filling slots at once costs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdecode import checks
from jaxdecode.cli.common import note, print_json, show_progress, use_compile_cache
from jaxdecode.cli.output import check_output, open_output, run_bar
from jaxdecode.errors import InputError

if TYPE_CHECKING:
    from jaxdecode.api import LanguageModel
    from jaxdecode.cli.bench import Bench
    from jaxdecode.evals.suites import Trial

NAMES = ("lists", "parallelbench", "text")
ORACLE = "oracle"
_SIZE, _PROBLEMS = 6, 128
# Of a text: what is given, and how many pieces of it.
_GIVEN, _PIECES = 32, 16
_LISTS = ("task", "trial", "accuracy", "ideal", "tokens_per_step", "nfe", "tokens_forwarded")
_TEXT = (
    "trial",
    "bits_per_character",
    "entropy",
    "repetition",
    "nfe",
    "tokens_forwarded",
    "tokens_per_second",
)


def is_suite(text: str) -> bool:
    """Whether --suite names one of these rather than a file."""
    return text.partition(":")[0] in NAMES and not Path(text).exists()


def run(command: "Bench") -> int:
    """Executes the command; returns the exit code."""
    from jaxdecode.cli.bench import numbers
    from jaxdecode.evals import machine, suites

    others = (command.resume, command.remember, command.check_only, command.draft, command.heads)
    if any((*others, command.engine)):
        raise InputError(
            f"--suite {command.suite} takes neither of --resume, --remember, --check-only, "
            "--draft, --heads and --engine; leave them out."
        )
    name, _, argument = command.suite.partition(":")
    size = _slots(command, name, argument)
    temperatures = numbers("--temperature", command.temperature, float)
    batch_size, *more = numbers("--batch-size", command.batch_size, int)
    if more:
        raise InputError(f"--batch-size {command.batch_size}: --suite {name} takes one.")
    checks.integer("--batch-size", batch_size, low=1)
    asked = command.methods != "all"
    ways = suites.trials(command.methods, temperatures) if asked else suites.usual(name, size)
    command.check_outputs()
    if command.json not in (None, "-"):
        check_output(Path(command.json).expanduser(), command.overwrite, "--json")
    use_compile_cache()
    lm = _model(command, ways, size)
    count = command.num_prompts
    sizes: dict[str, Any] = {"batch_size": batch_size, "seed": command.seed}
    steps = len(ways) * 5 if name != "text" else len(ways) + 1
    with run_bar("measuring", steps, show_progress(command.progress)) as tick:
        if name == "text":
            tokens = _read(lm, argument)
            sizes |= {"num_given": _GIVEN, "num_new": size, "count": count or _PIECES}
            rows = suites.write_text(lm, ways, tokens, tick=tick, **sizes)
        else:
            sizes |= {"size": size, "count": count or _PROBLEMS}
            rows = suites.fill_lists(lm, ways, tick=tick, **sizes)
    document = {"model": command.model, "suite": command.suite, "machine": machine.describe(lm)}
    _write(command, document | sizes | {"rows": rows}, _TEXT if name == "text" else _LISTS)
    return 0


def _slots(command: "Bench", name: str, argument: str) -> int:
    """Slots to fill: the length of a list, or of a text."""
    from jaxdecode.evals import lists

    if name == "text":
        if not argument:
            raise InputError("--suite text wants held-out text: --suite text:FILE.")
        checks.integer("--max-new-tokens", command.max_new_tokens, low=1)
        return command.max_new_tokens
    if not (argument or str(_SIZE)).isdigit():
        raise InputError(f"--suite {command.suite}: write the length of the lists as {name}:6.")
    size = int(argument or _SIZE)
    checks.integer(f"--suite {name}:", size, low=2, high=lists.MAX_SIZE)
    return size


def _model(command: "Bench", ways: "list[Trial]", size: int) -> "LanguageModel":
    """The model, once it is clear that it can run all of this."""
    from jaxdecode import resolve
    from jaxdecode.evals import oracles

    if command.model == ORACLE:
        if command.suite.startswith("text"):
            raise InputError("the oracle knows lists only; give a model to write text.")
        lm = oracles.lists_model(size)
        config = lm.config
    else:
        lm, config = None, command.read_config()
    for way in ways:
        resolve.check_model(way.line.method, config)
    return lm or command.load_model(command.model)


def _read(lm: "LanguageModel", name: str) -> list[int]:
    if lm.tokenizer is None:
        raise InputError("--suite text needs a model with a tokenizer; this one has none.")
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"--suite text:{name}: cannot be read ({error}).") from error
    return lm.tokenizer.encode(text, add_special=False)


def _write(command: "Bench", document: dict[str, Any], columns: tuple[str, ...]) -> None:
    """The table as Markdown, or JSON in its place; and the files that were asked for."""
    text = "\n".join(markdown(document["rows"], columns)) + "\n"
    if command.json == "-":
        print_json(document, indent=None)
    else:
        print(text, end="")
    for option, name in (("--json", command.json), ("--markdown", command.markdown)):
        if name not in (None, "-"):
            with open_output(name, overwrite=command.overwrite, option=option) as file:
                file.write(json.dumps(document) if option == "--json" else text)
    if command.plots is not None:
        from jaxdecode.evals import plots

        drawn = plots.draw_filling(document, Path(command.plots).expanduser())
        note(f"drew {drawn}")


def markdown(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> list[str]:
    """A table with one line per row."""
    lines = ["| " + " | ".join(name.replace("_", " ") for name in columns) + " |"]
    lines.append("|" + "|".join("---" if c in ("task", "trial") else "---:" for c in columns) + "|")
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
