"""`jaxdecode bench --suite lists|parallelbench|text:FILE|dija:FILE`: models that fill slots."""

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
    from jaxdecode.evals.quantize import Setting
    from jaxdecode.evals.suites import Trial

NAMES = ("lists", "parallelbench", "text", "dija")
ORACLE = "oracle"
_SIZE, _PROBLEMS = 6, 128
# Of a text: what is given, and how many pieces of it.
_GIVEN, _PIECES = 32, 16
# The ways that a rounded model fills in, where none are asked for.
_FEW = "llada,fast_dllm:threshold=0.9:block_length=0:reuse=none"
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
_QUANTIZED = ("divergence", "nfe", "same_tokens", "same_step")
_OUTLIERS = (
    "product",
    "layer",
    "largest",
    "over_median",
    "kurtosis",
    "large_channels",
    "massive_tokens",
    "undecided",
    "decided",
)
_DIJA = (
    "condition",
    "prompts",
    "mask_tokens",
    "open_slots",
    "literal",
    "refused",
    "asr_k",
    "over_refusal",
    "right",
    "leaked",
    "leaked_at",
)
_WORDS = ("task", "trial", "setting", "product", "condition")
_REACHED = 1
Table = tuple[str, tuple[str, ...]]


def is_suite(text: str) -> bool:
    """Whether --suite names one of these rather than a file."""
    return text.partition(":")[0] in NAMES and not Path(text).exists()


def run(command: "Bench") -> int:
    """Executes the command; returns the exit code."""
    from jaxdecode.cli.bench import numbers
    from jaxdecode.evals import quantized, suites

    others = (command.resume, command.remember, command.check_only, command.draft, command.heads)
    if any((*others, command.engine)):
        raise InputError(
            f"--suite {command.suite} takes neither of --resume, --remember, --check-only, "
            "--draft, --heads and --engine; leave them out."
        )
    name, _, argument = command.suite.partition(":")
    temperatures = numbers("--temperature", command.temperature, float)
    batch_size, *more = numbers("--batch-size", command.batch_size, int)
    if more:
        raise InputError(f"--batch-size {command.batch_size}: --suite {name} takes one.")
    checks.integer("--batch-size", batch_size, low=1)
    sizes: dict[str, Any] = {"batch_size": batch_size, "seed": command.seed}
    if name == "dija":
        return _run_dija(command, argument, temperatures, sizes)
    size = _slots(command, name, argument)
    chosen = _settings(command, name)
    if command.methods != "all":
        ways = suites.trials(command.methods, temperatures)
    elif chosen is not None:
        ways = suites.trials(_FEW, temperatures)
    else:
        ways = suites.usual(name, size)
    _check_outputs(command)
    use_compile_cache()
    lm = _model(command, ways, size)
    if name == "text":
        texts = [_read(lm, argument)]
        sizes |= {"num_given": _GIVEN, "num_new": size, "count": command.num_prompts or _PIECES}
    else:
        texts = []
        sizes |= {"size": size, "count": command.num_prompts or _PROBLEMS}
    steps = len(ways) + 1 if name == "text" else len(ways) * 5
    steps = steps if chosen is None else len(ways) * (len(chosen) + 1)
    with run_bar("measuring", steps, show_progress(command.progress)) as tick:
        if chosen is not None:
            measure = quantized.on_text if name == "text" else quantized.on_lists
            found = measure(lm, chosen, ways, *texts, tick=tick, **sizes)
        else:
            measure = suites.write_text if name == "text" else suites.fill_lists
            found = {"rows": measure(lm, ways, *texts, tick=tick, **sizes)}
    document = _head(command, lm) | sizes | found
    _write(command, document, _tables(name, rounded=chosen is not None))
    return 0


def _head(command: "Bench", lm: "LanguageModel") -> dict[str, Any]:
    from jaxdecode.evals import machine

    return {"model": command.model, "suite": command.suite, "machine": machine.describe(lm)}


def _check_outputs(command: "Bench") -> None:
    command.check_outputs()
    if command.json not in (None, "-"):
        check_output(Path(command.json).expanduser(), command.overwrite, "--json")


def _settings(command: "Bench", name: str) -> "list[Setting] | None":
    """How the model is rounded, if it is."""
    from jaxdecode.evals import quantize

    if not command.quantize:
        return None
    if name not in ("lists", "text"):
        raise InputError("--quantize goes with --suite lists or text:FILE.")
    if command.model == ORACLE:
        raise InputError("--quantize: the oracle has no weights; give a model.")
    if command.plots is not None:
        raise InputError("--quantize has no pictures; leave --plots out.")
    return quantize.settings(command.quantize)


def _tables(name: str, *, rounded: bool) -> list[Table]:
    if not rounded:
        return [("rows", _TEXT if name == "text" else _LISTS)]
    quality = "bits" if name == "text" else "accuracy"
    return [("rows", ("setting", "trial", quality, *_QUANTIZED)), ("outliers", _OUTLIERS)]


def _run_dija(
    command: "Bench", name: str, temperatures: tuple[float, ...], sizes: dict[str, Any]
) -> int:
    """Exit code 1 if a slot of a user's text was filled unasked."""
    from jaxdecode import resolve
    from jaxdecode.evals import dija, suites

    if not name:
        raise InputError("--suite dija wants prompts: --suite dija:FILE.")
    if command.quantize or command.plots is not None:
        raise InputError("--suite dija has no --quantize and no --plots; leave them out.")
    asked = "llada" if command.methods == "all" else command.methods
    way, *more = suites.trials(asked, temperatures)
    if more:
        raise InputError("--suite dija takes one of --methods and one --temperature.")
    items = dija.read(name)[: command.num_prompts]
    _check_outputs(command)
    resolve.check_model(way.line.method, command.read_config())
    use_compile_cache()
    lm = command.load_model(command.model)
    told = {"temperature": way.temperature, "max_new_tokens": command.max_new_tokens}
    line = way.line
    rows = dija.measure(lm, items, method=line.method, **sizes, **told, **line.options)
    about = {"method": line.label, **sizes, **told, "rows": rows}
    _write(command, _head(command, lm) | about, [("rows", _DIJA)])
    reached = sum(row["open_slots"] for row in rows if row["condition"] != "infill")
    return _REACHED if reached else 0


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


def _write(command: "Bench", document: dict[str, Any], tables: list[Table]) -> None:
    """The tables as Markdown, or JSON in their place; and the files that were asked for."""
    parts = ["\n".join(markdown(document[key], columns)) + "\n" for key, columns in tables]
    text = "\n".join(parts)
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
    lines.append("|" + "|".join("---" if c in _WORDS else "---:" for c in columns) + "|")
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
