"""Every block of code in the README and in docs/ runs, or is read by what would run it.

Python runs on tiny models in place of named ones. Lines of the command line are parsed, and the
names in them looked up; nothing of them is executed. A block that neither can be is marked in the
line above it: `<!-- not run: why -->`.
"""

import contextlib
import importlib.util
import inspect
import io
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
import yaml
from tokenizers.models import BPE

import jaxdecode as jd
from jaxdecode import api, resolve
from jaxdecode.cli.common import set_options
from jaxdecode.cli.main import parse
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.tokenizer import load_tokenizer
from jaxdecode.core.registry import METHODS
from jaxdecode.dist import mesh
from jaxdecode.errors import JaxdecodeError
from jaxdecode.evals import bench_lines
from jaxdecode.models.config import Denoiser
from jaxdecode.plan import hardware
from jaxdecode.training import config as configs
from jaxdecode.training.run import Run
from tests import toys
from tpu_scripts import cli as tpu

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("", "sh", "bash", "shell", "console")
# Commands of the system in examples; there is nothing of ours in them to check.
OTHERS = ("cd", "cp", "curl", "export", "gcloud", "git", "head", "mkdir", "scp", "source", "ssh")
OTHERS += ("tail",)
TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"
MASK = 259


class Block(NamedTuple):
    """A fenced block: first line in its file, language, text, and why it is not run."""

    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page; those of Sphinx, such as ```{toctree}, are left out."""
    found = []
    pattern = r"(?:<!-- not run: (.+?) -->\n+)?^```([^\n`]*)\n(.*?)^```$"
    for match in re.finditer(pattern, page, flags=re.DOTALL | re.MULTILINE):
        line = page.count("\n", 0, match.start(2)) + 2
        if not match[2].startswith("{"):
            found.append(Block(line, match[2].strip(), match[3], match[1]))
    return found


def to_run(page: Path, *languages: str) -> list[Block]:
    found = blocks(page.read_text(encoding="utf-8"))
    return [block for block in found if block.language in languages and not block.reason]


def having(*languages: str):
    """Pages with such blocks, as parameters of a test."""
    return [pytest.param(page, id=page.name) for page in PAGES if to_run(page, *languages)]


# ------------------------------------------------------------------------------- command lines


def commands(text: str) -> list[list[str]]:
    """The words of every command of a block; of a choice the first, of what may be left out all."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for part in re.split(r"\s{2,}(?=jaxdecode )", line.removeprefix("$ ")):
            part = re.sub(r"\[(--[^\]]*)\]", r"\1", part)
            part = re.sub(r"(?<= )(\w+)(\|\w+)+", r"\1", part)
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
                del words[0]
            if words:
                found.append(words)
    return found


def wrong(words: list[str]) -> str | None:
    """What is wrong with a command of an example, if anything."""
    name, *args = words
    if name in OTHERS or name == "error:":  # what a command answers
        return None
    if name == "jaxdecode":
        return wrong_jaxdecode(args)
    if name in ("python", "python3") and args[:1] == ["-m"]:
        return None if importlib.util.find_spec(args[1]) else f"no module {args[1]}"
    if name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        bad = [arg for arg in args if "=" not in arg and arg not in targets]
        return f"no target {bad}" if bad else None
    if name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = re.findall(r"[\w-]+", " ".join(re.findall(r"\[(.*?)\]", " ".join(args))))
        bad = set(asked) - set(extras["optional-dependencies"])
        return f"no extra {bad}" if bad else None
    if name == "tpu_scripts/tpu":
        return wrong_tpu(args[: re.search(r"[|>]|$", "".join(a[:1] for a in args)).start()])
    if "/" in name and (ROOT / name).is_file():
        inner = args.index("jaxdecode") if "jaxdecode" in args else None
        return None if inner is None else wrong(args[inner:])
    return f"{name} is not known here: check it in this file, or mark the block"


def wrong_tpu(args: list[str]) -> str | None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            tpu.parser().parse_args(args)
    except SystemExit:
        return said.getvalue()
    return None


def wrong_jaxdecode(args: list[str]) -> str | None:
    if args[:1] == ["--version"]:
        return None if set(args) <= {"--version", "--verbose"} else f"{args} is not understood"
    said = io.StringIO()
    cut = "..." in args
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            line = parse([*args[:1], "--help"] if cut else args)
    except SystemExit as stop:
        text = " ".join(said.getvalue().split())
        flags = [arg for arg in args if arg.startswith("--")]
        bad = [flag for flag in flags if cut and flag not in re.findall(r"--[\w-]+", text)]
        return text if stop.code else f"no option {bad}" if bad else None
    except JaxdecodeError as error:
        return str(error)
    try:
        look_up(line.command)
    except (JaxdecodeError, OSError) as error:
        return str(error)
    return None


def look_up(command) -> None:
    """Raises if a name in a command does not exist: a model, a method, an option, a config."""
    model = getattr(command, "model", None)
    if model and re.fullmatch(r"[a-z][a-z0-9.]*-[a-z0-9.-]+", model):
        assert (ROOT / "configs" / "models" / f"{model}.yaml").is_file(), f"no model {model}"
    kind = type(command).__name__
    if kind == "Generate":
        given = set_options(command.set, ())
        draft = {} if command.num_draft is None else {"num_draft": command.num_draft}
        resolve.split(command.method, given | draft)
    elif kind == "Bench" and command.methods not in ("all", "L0"):
        first = re.split("[:,]", command.methods.replace("auto,", ""))[0]
        heads = {entry.heads for entry in METHODS.values()}
        fills = resolve.entry_of(first).fills
        bench_lines.parse_lines(command.methods, has_draft=True, heads=heads, fills=fills)
    elif kind == "Plan":
        hardware.parse(command.topology)
        mesh.parse(command.mesh or "")
    elif kind == "Train" and command.config.startswith("configs/"):
        configs.read(ROOT / command.config, command.set)


@pytest.mark.parametrize("page", having(*SHELL))
def test_command_lines(page):
    found = []
    for block in to_run(page, *SHELL):
        for words in commands(block.text):
            try:
                complaint = wrong(words)
            except AssertionError as error:
                complaint = str(error)
            if complaint:
                found.append(f"{page.name}:{block.line}: {' '.join(words)}: {complaint}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("jaxdecode generate --modle x --prompt y", "--modle"),
        ("jaxdecode bench --modle x ...", "no option ['--modle']"),
        ("jaxdecode generat --model x", "generat"),
        ("jaxdecode generate --model M --prompt x --method promptlookup", "prompt_lookup"),
        ("jaxdecode generate --model M --prompt x --set colour=1", "colour"),
        ("jaxdecode generate --model smollm9-135m --prompt x", "no model smollm9-135m"),
        ("jaxdecode bench --model M --suite x --methods ar,promptlookup", "promptlookup"),
        ("jaxdecode plan --model llama3-8b --topology v9x:4", "v9x"),
        ("jaxdecode train configs/train/nothing.yaml", "nothing.yaml"),
        ("jaxdecode train configs/train/hydra_smollm2.yaml --set lerning=1", "lerning"),
        ("python -m jaxdecode.nothing", "no module"),
        ("make everything", "no target"),
        ("pip install '.[tpus]'", "no extra"),
        ("tpu_scripts/tpu delet job.yaml", "delet"),
        ("rm -rf out", "not known here"),
        ("jaxdecode --version --loud", "--loud"),
    ],
)
def test_wrong_lines_are_found(line, complaint):
    (words,) = commands(line)
    try:
        said = wrong(words)
    except AssertionError as error:
        said = str(error)
    assert said and complaint in said


def test_lines_are_read_as_they_are_meant():
    text = (
        "jaxdecode a SRC [--to orbax|gguf]   # or so\njaxdecode b \\\n  --c   jaxdecode d 'e  f'\n"
    )
    assert commands(text) == [
        ["jaxdecode", "a", "SRC", "--to", "orbax"],
        ["jaxdecode", "b", "--c"],
        ["jaxdecode", "d", "e  f"],
    ]


# ------------------------------------------------------------------------------- other languages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_language_that_is_tested(page):
    for block in blocks(page.read_text(encoding="utf-8")):
        known = (*SHELL, "python", "yaml", "json", "text")
        assert block.language in known or block.reason, f"{page.name}:{block.line}"


@pytest.mark.parametrize("page", having("yaml"))
def test_recipes_are_read(page, tmp_path):
    for block in to_run(page, "yaml"):
        content = yaml.safe_load(block.text)
        if "recipe" in content:
            file = tmp_path / "recipe.yaml"
            file.write_text(block.text, encoding="utf-8")
            configs.read(file)


@pytest.mark.parametrize("page", having("json"))
def test_json_is_json(page):
    for block in to_run(page, "json"):
        for line in [block.text] if block.text.startswith("{\n") else block.text.splitlines():
            json.loads(line)


# ------------------------------------------------------------------------------- Python


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer with a token per byte, an end token and a chat template."""
    folder = tmp_path_factory.mktemp("words")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(BPE(vocab={x: i for i, x in enumerate(letters)}, merges=[]))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<end>"])
    library.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": TEMPLATE, "eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


def tiny(tokenizer, denoiser: Denoiser | None = None) -> api.LanguageModel:
    built = toys.config(vocab_size=MASK + 1)
    params = toys.params(built)
    built = toys.config(vocab_size=MASK + 1, denoiser=denoiser)
    return api.from_params(built, params, name="tiny", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where `auto` keeps what steps cost, so that one page measures it for all."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def names(words, cache, monkeypatch, tmp_path):
    """What a page may use without having made it; models that are loaded are tiny."""
    monkeypatch.setenv("JAXDECODE_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    lm, dlm = tiny(words), tiny(words, Denoiser(mask_token=MASK))
    asked = inspect.signature(api.load)

    def load(*args, **options):
        given = asked.bind(*args, **options).arguments
        mesh.parse(given.get("mesh") or "")
        return dlm if re.search("LLaDA|Dream|mdlm", str(given["model"])) else lm

    def train(config, **options):
        line = configs.read(config, options.get("overrides", ())).line
        folder = tmp_path / "run"
        head_files.save_heads(toys.random_heads(line.heads, lm), folder / "heads")
        figures = {"metrics": [], "stopped": "steps", "best": 1.5, "baseline": 1.3}
        return Run(folder=folder, checkpoint=folder / "steps", **figures)

    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(sys.modules[Run.__module__], "train", train)
    ilm = tiny(words, Denoiser(mask_token=MASK, inserts=True))
    chat = {"messages": [{"role": "user", "content": "Why?"}]}
    models = {"lm": lm, "dlm": dlm, "ilm": ilm}
    return {"jd": jd, **models, "chat": chat, "prompts": ["One, two,", chat]}


@pytest.mark.parametrize("page", having("python"))
def test_python(page, names):
    """The blocks of a page, one after the other, as a reader would type them."""
    for block in to_run(page, "python"):
        # So that a traceback names the line of the page.
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(page), "exec"), names)


def test_python_can_fail(names):
    with pytest.raises(JaxdecodeError, match="colour"):
        exec('jd.generate(jd.load("smollm2-135m"), "a", colour=1)', names)
    with pytest.raises(TypeError):
        exec('jd.load("smollm2-135m", colour=1)', names)


# ------------------------------------------------------------------------------- the site


def test_marked_blocks_and_those_of_sphinx_are_left_out():
    page = (
        "<!-- not run: needs a TPU -->\n```python\n1/0\n```\n\n```{toctree}\nx\n```\n```\ny\n```\n"
    )
    assert [(block.reason, block.text) for block in blocks(page)] == [
        ("needs a TPU", "1/0\n"),
        (None, "y\n"),
    ]


@pytest.fixture(scope="module")
def families():
    spec = importlib.util.spec_from_file_location("families", ROOT / "docs" / "families.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_of_the_index_exists_and_every_method_has_a_family(families, tmp_path):
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"^([a-z_]+)$", index, flags=re.MULTILINE)
    assert named and all((ROOT / "docs" / f"{name}.md").is_file() for name in named)
    shown = re.findall(r"^notebooks/(\w+)$", index, flags=re.MULTILINE)
    assert sorted(shown) == sorted(x.stem for x in (ROOT / "docs" / "notebooks").glob("*.ipynb"))
    families.write_pages(tmp_path)
    text = "\n".join(page.read_text(encoding="utf-8") for page in tmp_path.glob("*.md"))
    assert re.findall(r"^## (.*)$", text, re.MULTILINE).count("What the files say") == 7
    for name in METHODS:
        assert text.count(f"\n## {name}\n") == 1
    links = re.findall(r"\]\(#([\w-]+)\)", text)
    headings = {families._anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert links and set(links) <= headings
    said = families.attributes("Options.\n\nAttributes:\n    a: one\n        two.\n    b: c\n")
    assert said == {"a": "one two.", "b": "c"}


def test_what_a_method_says_of_its_options_is_whole(families):
    """Every option has a meaning, inherited ones too, and none ends in the middle of a sentence."""
    told = {(name, option): text for name in METHODS for option, _, text in families._options(name)}
    assert [key for key, text in told.items() if not text.endswith(".")] == []
    assert told["forced", "max_ngram"] == told["prompt_lookup", "max_ngram"]
