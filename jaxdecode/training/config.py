"""What a run is told: a YAML file read into frozen dataclasses; unknown keys are errors."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import dacite
import yaml

from jaxdecode import checks
from jaxdecode.errors import InputError, UnknownNameError, near_matches
from jaxdecode.training.data import Data
from jaxdecode.training.recipes import RECIPES, Recipe

# What a resumed run may change: how it is watched, not what it computes.
WATCHING = ("checkpoint", "measure", "log", "minutes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with linear warm-up and a cosine that ends at `final` times the peak.

    Attributes:
        lr: peak learning rate.
        warmup_steps: steps of the linear rise.
        final: last learning rate over the peak.
        weight_decay: of kernels; vectors are never decayed.
        b1: decay of the mean of gradients.
        b2: decay of the mean of their squares.
        clip: largest global norm of the gradient.
    """

    lr: float = 1e-3
    warmup_steps: int = 0
    final: float = 0.1
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    clip: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("optimizer.lr", self.lr, "above 0", lambda x: x > 0)
        checks.integer("optimizer.warmup_steps", self.warmup_steps, low=0)
        checks.number("optimizer.final", self.final, "from 0 to 1", lambda x: 0 <= x <= 1)
        checks.number("optimizer.weight_decay", self.weight_decay, "at least 0", lambda x: x >= 0)
        for name in ("b1", "b2"):
            value = getattr(self, name)
            checks.number(f"optimizer.{name}", value, "from 0 to below 1", lambda x: 0 <= x < 1)
        checks.number("optimizer.clip", self.clip, "above 0", lambda x: x > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving:
    """When a place to resume from is written.

    Attributes:
        every: steps between two.
        keep: how many are kept.
    """

    every: int = 200
    keep: int = 2

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("checkpoint.every", self.every, low=1)
        checks.integer("checkpoint.keep", self.keep, low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measuring:
    """How acceptance is measured: held-out prompts are decoded, greedily, by the loop itself.

    Attributes:
        every: steps between two measurements; 0 measures at the end only.
        num_prompts: of `data.held_out`, the first so many.
        max_new_tokens: of each.
        batch_size: prompts decoded at once.
        options: of the decoding method, such as the tree.
        baseline: method without training that the result has to beat.
        patience: measurements without a better one after which the run stops; None goes on.
    """

    every: int = 200
    num_prompts: int = 16
    max_new_tokens: int = 64
    batch_size: int = 8
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    baseline: str = "prompt_lookup"
    patience: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("measure.every", self.every, low=0)
        for name in ("num_prompts", "max_new_tokens", "batch_size"):
            checks.integer(f"measure.{name}", getattr(self, name), low=1)
        if self.patience is not None:
            checks.integer("measure.patience", self.patience, low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """Where metrics go besides `metrics.jsonl`.

    Attributes:
        every: steps between two lines.
        writers: "tensorboard" and "wandb", each with the extra of its name installed.
        project: of wandb.
    """

    every: int = 10
    writers: tuple[str, ...] = ()
    project: str = "jaxdecode"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("log.every", self.every, low=1)
        for name in self.writers:
            if name not in ("tensorboard", "wandb"):
                raise InputError(f"log.writers: {name!r} is not known; use tensorboard or wandb.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run.

    Attributes:
        recipe: what is trained (`training/recipes.py`).
        target: model that is decoded later: short name, path or `hf:org/name`; or sizes of a new
            one (`training/fresh.py`), for recipes that train the target.
        data: texts (`training/data.py`).
        batch_size: rows of a step, of all processes together.
        steps: of the whole run.
        minutes: of steps and measurements, after which the run ends as at its last step; None
            is no bound. The learning rate still falls as if all steps were made.
        draft: of recipes that train a draft model, the one to start from: a name or path as for
            the target, or fields of a model config that differ from the target's: a new one.
        shape: sizes of the heads that differ from their defaults.
        objective: settings of the objective that differ from their defaults.
        optimizer: how parameters move.
        micro_batches: parts of a step's rows that are computed one after the other; the
            gradients are added up, so that memory is needed for one part only.
        seed: of the order of the data, of first parameters and of noise.
        dtype: of the computation; parameters that are trained are float32 always. "auto" is
            float32 on CPU, else bfloat16.
        remat: compute activations of the target's layers again in the backward pass.
        cache: compute what is read of a frozen target once for each text, before the first step,
            and keep it in memory; worth it where texts are seen several times.
        mesh: devices to split over, such as "data=4,model=2"; None is one device.
        checkpoint: places to resume from.
        measure: acceptance.
        log: metrics.
    """

    recipe: str
    target: str | dict[str, Any]
    data: Data
    batch_size: int
    steps: int
    minutes: float | None = None
    draft: str | dict[str, Any] | None = None
    shape: dict[str, Any] = dataclasses.field(default_factory=dict)
    objective: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: Optimizer = Optimizer()
    micro_batches: int = 1
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: bool = False
    cache: bool = False
    mesh: str | None = None
    checkpoint: Saving = Saving()
    measure: Measuring = Measuring()
    log: Logging = Logging()

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.recipe not in RECIPES:
            names = sorted(RECIPES)
            raise UnknownNameError(
                f"recipe {self.recipe!r} is not known.{near_matches(self.recipe, names)} "
                f"Known: {', '.join(names)}."
            )
        for name in ("batch_size", "steps", "micro_batches"):
            checks.integer(name, getattr(self, name), low=1)
        if self.minutes is not None:
            checks.number("minutes", self.minutes, "above 0", lambda x: x > 0)
        checks.integer("seed", self.seed, low=0, high=2**32 - 1)
        if self.batch_size % self.micro_batches:
            raise InputError(
                f"batch_size={self.batch_size} does not divide by "
                f"micro_batches={self.micro_batches}."
            )
        if self.line.draft != (self.draft is not None):
            what = "needs a draft model" if self.line.draft else "trains no draft model"
            fix = "set draft" if self.line.draft else "leave draft out"
            raise InputError(f"recipe {self.recipe!r} {what}; {fix}.")
        if isinstance(self.target, dict) and (self.line.draft or self.line.heads):
            raise InputError(
                f"recipe {self.recipe!r} trains for a model that is there; name it in target."
            )

    @property
    def line(self) -> Recipe:
        """The recipe."""
        return RECIPES[self.recipe]


def read(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The config of a YAML file.

    Args:
        path: the file.
        overrides: `optimizer.lr=3e-4` each; values are YAML.

    Raises:
        InputError: no such file, not YAML, or a key or value that cannot be used.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config {path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"config {path} must be a mapping of keys to values.")
    for item in overrides:
        _override(content, item)
    try:
        return of(content)
    except InputError as error:
        raise InputError(f"config {path}: {error}") from error


def of(content: Mapping[str, Any]) -> TrainConfig:
    """The config of a mapping as the YAML file has it.

    Raises:
        InputError: a key or value that cannot be used.
    """
    # YAML 1.1 reads 1e-3 as text.
    settings = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _float})
    try:
        return dacite.from_dict(TrainConfig, content, settings)
    except dacite.UnexpectedDataError as error:
        key = min(error.keys)
        known = _known_keys()
        short = sorted({part for name in known for part in name.split(".")})
        raise InputError(
            f"key {key!r} is not known.{near_matches(key, short)} Known: {', '.join(known)}."
        ) from error
    except dacite.MissingValueError as error:
        raise InputError(f"key {error.field_path!r} is missing.") from error
    except dacite.DaciteError as error:
        raise InputError(str(error)) from error


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The inverse of `of`."""
    return dataclasses.asdict(config)


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Key and both values of the first setting in which two runs would compute differently."""
    for key in sorted(old.keys() | new.keys()):
        if key in WATCHING or old.get(key) == new.get(key):
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            inner = next(k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))
            return f"{key}.{inner}", a.get(inner), b.get(inner)
        return key, a, b
    return None


def _float(value: Any) -> Any:
    try:
        return value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return value


def _override(content: dict[str, Any], item: str) -> None:
    name, equals, text = item.partition("=")
    if not equals or not name.strip():
        raise InputError(f"--set {item!r} is not of the form KEY=VALUE, such as optimizer.lr=3e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {item!r}: the value is not YAML.") from error
    *above, last = name.strip().split(".")
    node = content
    for part in above:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise InputError(f"--set {item!r}: {part!r} is a value, not a group of settings.")
    node[last] = value


def _known_keys() -> list[str]:
    keys = []
    for field in dataclasses.fields(TrainConfig):
        if dataclasses.is_dataclass(field.type):
            keys += [f"{field.name}.{inner.name}" for inner in dataclasses.fields(field.type)]
        else:
            keys.append(field.name)
    return keys
