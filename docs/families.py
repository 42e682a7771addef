"""Writes a page per family of methods, from the registry and the docstrings of its files."""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdecode import resolve, zoo
from jaxdecode.core.entry import Entry
from jaxdecode.core.registry import METHODS

FOLDER = Path(__file__).parent / "families"
# Before and after the table of the README.
MARK = "<!-- methods: make docs -->"
LEVELS = {
    "L0": "the tokens of `{}`: same seed, same text",
    "L1": "the distribution of `{}`",
    "L2": "within a stated bound of `{}`",
    "L3": "another distribution than that of `{}`: a heuristic",
}


class Family(NamedTuple):
    """Methods that need the same and promise the like.

    Attributes:
        file: name of its page.
        title: heading of its page.
        about: what its methods have in common.
        needs: what it needs, in a word.
        has: whether a registry line belongs to it; the first family that says yes takes it.
    """

    file: str
    title: str
    about: str
    needs: str
    has: Callable[[Entry], bool]


FAMILIES = (
    Family(
        "continuous",
        "Texts as vectors",
        "Denoise all places of a text at once, as vectors, in a loop of their own, and round them "
        "to tokens at the end. Need parts that were trained for it: `heads=` or `--heads FOLDER`. "
        "See [continuous diffusion](../continuous.md).",
        "trained parts",
        lambda entry: entry.continuous is not None,
    ),
    Family(
        "filling_exact",
        "Filling slots, one law",
        "Need a model that fills undecided slots in any order, and keep the promise of their level "
        "against another line of this table. See [diffusion](../diffusion.md).",
        "a model that fills",
        lambda entry: entry.fills and entry.level in ("L0", "L1", "L2"),
    ),
    Family(
        "filling",
        "Filling several slots at once",
        "Need a model that fills undecided slots in any order. They decide several slots of a pass "
        "as if these were independent, or read keys and values of an earlier text: fewer or "
        "cheaper passes for another distribution. See [diffusion](../diffusion.md).",
        "a model that fills",
        lambda entry: entry.fills,
    ),
    Family(
        "heads",
        "Trained heads and drafters",
        "Need parts that were trained for the target: `heads=` or `--heads FOLDER`. "
        "[Training](../training.md) says how to make them, [converting](../converting.md) how to "
        "take those that others published.",
        "trained parts",
        lambda entry: entry.heads is not None,
    ),
    Family(
        "draft_models",
        "A second, smaller model",
        "Need a draft model: `draft=jd.load(...)` or `--draft NAME_OR_PATH`.",
        "a draft model",
        lambda entry: "draft" in entry.needs,
    ),
    Family(
        "heuristics",
        "The target alone, another law",
        "Need nothing but the target, and write text of another distribution than plain decoding.",
        "nothing",
        lambda entry: entry.level == "L3",
    ),
    Family(
        "target_alone",
        "The target alone",
        "Need nothing but the target, no training and no second model. Start here.",
        "nothing",
        lambda entry: True,
    ),
)


def family_of(entry: Entry) -> Family:
    """The family of a registry line."""
    return next(family for family in FAMILIES if family.has(entry))


def write_pages(folder: Path = FOLDER) -> None:
    """Writes all pages; one that would not change keeps its time, so that nothing is rebuilt."""
    folder.mkdir(exist_ok=True)
    for family in FAMILIES:
        path, text = folder / f"{family.file}.md", page(family)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def support_matrix() -> str:
    """The table of the README: every method, with a link to the file that makes it what it is."""
    lines = ["| family | promise | needs | files in | methods |", "|---|---|---|---|---|"]
    for family in reversed(FAMILIES):
        homes = {name: zoo.home(name) for name in sorted(METHODS) if _in(family, name)}
        for folder in sorted({Path(file).parent for file in homes.values()}):
            names = [name for name, file in homes.items() if Path(file).parent == folder]
            levels = ", ".join(sorted({METHODS[name].level for name in names}))
            links = ", ".join(f"[`{name}`]({homes[name]})" for name in names)
            lines.append(
                f"| {family.title} | {levels} | {family.needs} | `{folder.name}/` | {links} |"
            )
    return "\n".join(lines) + "\n"


def _in(family: Family, name: str) -> bool:
    return family_of(METHODS[name]) is family


def renew_readme(path: Path) -> None:
    """Writes the table anew between its marks."""
    before, table, after = path.read_text(encoding="utf-8").split(MARK)
    path.write_text(f"{before}{MARK}\n{support_matrix()}{MARK}{after}", encoding="utf-8")


def page(family: Family) -> str:
    """The Markdown of one family."""
    names = [name for name, entry in METHODS.items() if family_of(entry) is family]
    files = dict.fromkeys(file for name in names for file in _files(METHODS[name]))
    table = [
        "| method | what it does | exactness |",
        "|---|---|---|",
        *(f"| [{name}](#{_anchor(name)}) | {_summary(name)} | {_level(name)} |" for name in names),
    ]
    parts = [
        f"# {family.title}",
        family.about,
        "\n".join(table),
        *("\n\n".join(_method(name)) for name in names),
        "## What the files say",
        "Idea, exactness, cost and source of each file that sits in a seat of these methods.",
        *(f"### {file}\n\n{_docstring(file)}" for file in files),
    ]
    return "\n\n".join(parts) + "\n"


def _method(name: str) -> Iterator[str]:
    entry = METHODS[name]
    yield f"## {name}"
    yield f"{_summary(name)[0].upper()}{_summary(name)[1:]}."
    seats = ", ".join(f"[{file}](#{_anchor(file)})" for file in _files(entry))
    lines = [
        f"**Exactness** {_level(name)}: {LEVELS[entry.level].format(entry.reference)}",
        f"**Needs** {', '.join(zoo.needs_of(name)) or 'nothing but the target'}",
        f"**Refuses** {', '.join(f'`{one}`' for one in entry.refuses)}" if entry.refuses else "",
        f"**Source** {_link(entry.source)}" if entry.source != "-" else "",
        f"**Seats** {seats}; shape of the draft: {entry.tree}",
    ]
    yield "\n".join(f"- {line}" for line in lines if line)
    rows = (
        f"| `{option}` | `{value!r}` | {meaning} |" for option, value, meaning in _options(name)
    )
    # Two seats may share their options.
    options = list(dict.fromkeys(rows))
    if options:
        yield "\n".join(["| option | default | meaning |", "|---|---|---|", *options])


def _options(name: str) -> Iterator[tuple[str, Any, str]]:
    """Options of the method's own, their defaults and what they mean."""
    _, choice = resolve.split(name, {})
    for config in choice.configs:
        told = _told(type(config))
        for field in dataclasses.fields(config):
            meaning = _plain(told.get(field.name, "")).replace("|", "\\|")
            yield field.name, getattr(config, field.name), meaning


def _told(config: type) -> dict[str, str]:
    """What a class and those that it inherits from say of their fields."""
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        found |= attributes(inspect.cleandoc(kind.__doc__ or ""))
    return found


def attributes(docstring: str) -> dict[str, str]:
    """What a Google docstring says of each attribute."""
    found: dict[str, str] = {}
    name = None
    for line in docstring.partition("Attributes:\n")[2].splitlines():
        if begins := re.match(r" {4}(\w+): (.*)", line):
            name = begins[1]
            found[name] = begins[2]
        elif name and line.startswith(" " * 5):
            found[name] += f" {line.strip()}"
        else:
            name = None
    return found


def _files(entry: Entry) -> list[str]:
    if entry.continuous:
        return [f"continuous/{entry.continuous}.py"]
    seats = [("drafters", entry.drafter)]
    seats.append(("commits", entry.commit) if entry.fills else ("verifiers", entry.verifier))
    if entry.fills and entry.verifier != "denoise":
        seats.append(("verifiers", entry.verifier))
    if entry.policy:
        seats.append(("search", entry.policy))
    return [f"{folder}/{file}.py" for folder, file in seats]


def _docstring(file: str) -> str:
    module = importlib.import_module(f"jaxdecode.{file.removesuffix('.py').replace('/', '.')}")
    blocks, indented = [], False
    for line in (module.__doc__ or "").strip().splitlines():
        if line.startswith("    ") is not indented:
            indented = not indented
            blocks.append("```text" if indented else "```")
            if indented:  # a fence ends the paragraph before it
                blocks.insert(-1, "")
        begins = re.match(r"(Idea|Exactness|Cost|Source|Differs):", line)
        if begins and not indented:
            blocks += ["", f"**{begins[1]}**{_plain(line[begins.end() :])}"]
        else:
            blocks.append(line if indented else _plain(line))
    return "\n".join([*blocks, *(["```"] if indented else [])])


def _plain(text: str) -> str:
    """Text whose characters mean themselves in Markdown; code and papers stay what they are."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [
        re.sub(
            r"arXiv:\d+\.\d+", lambda paper: _link(paper[0]), re.sub(r"([*_<\[\]|])", r"\\\1", x)
        )
        for x in parts[::2]
    ]
    return "".join(parts)


def _link(source: str) -> str:
    if source.startswith("arXiv:"):
        return f"[{source}](https://arxiv.org/abs/{source.removeprefix('arXiv:')})"
    return f"<https://{source}>" if "/" in source and " " not in source else source


def _summary(name: str) -> str:
    return _plain(METHODS[name].summary)


def _level(name: str) -> str:
    return f"{METHODS[name].level} ({METHODS[name].tier})"


def _anchor(heading: str) -> str:
    """As MyST and GitHub make it."""
    return re.sub(r"[^\w-]", "", heading.lower())


if __name__ == "__main__":
    renew_readme(Path(__file__).parents[1] / "README.md")
