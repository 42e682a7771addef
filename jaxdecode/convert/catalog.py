"""Short model names: small YAML files that say what a model is and where its weights are.

A file has a `shape:` (facts of the model's config.json, enough to plan with), or the keys of
`ModelEntry` (where the weights are and what they must hash to), or both.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from jaxdecode.convert.hf_config import config_from_hf, known_keys
from jaxdecode.errors import CheckpointError, InputError, UnknownNameError, near_matches
from jaxdecode.models.config import ModelConfig
from jaxdecode.paths import config_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One wheel and the member of it that is wanted.

    Attributes:
        package: distribution name.
        version: exact version.
        sha256: of the wheel.
        member: path inside the wheel.
    """

    package: str
    version: str
    sha256: str
    member: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """Where a named model comes from.

    Attributes:
        name: the short name.
        description: one line.
        licence: of the weights.
        file: name of the checkpoint file that the parts make, joined in order.
        sha256: of that file.
        bytes: size of that file.
        parts: wheels to fetch.
        terms: address of terms the user must accept first, if any.
    """

    name: str
    description: str
    licence: str
    file: str
    sha256: str
    bytes: int
    parts: tuple[Part, ...]
    terms: str | None = None


def model_names() -> list[str]:
    """Short names of models whose weights can be fetched, sorted."""
    return [path.stem for path in _files() if "parts" in _content(path)]


def shape_names() -> list[str]:
    """Short names of models whose shape is known, sorted."""
    return [path.stem for path in _files() if "shape" in _content(path)]


def model_entry(name: str) -> ModelEntry:
    """Returns the entry of a short name.

    Raises:
        UnknownNameError: with near matches and the known names.
    """
    known = model_names()
    if name not in known and name in shape_names():
        raise UnknownNameError(
            f"of {name!r} only the shape is known, for `jaxdecode plan`. Models that can be "
            f"fetched: {', '.join(known)}; or give a path, or hf:org/name."
        )
    if name not in known:
        raise UnknownNameError(
            f"{name!r} is neither a known model nor an existing path.{near_matches(name, known)} "
            f"Known models: {', '.join(known)}; or give a path, or hf:org/name."
        )
    return read_entry(config_dir() / "models" / f"{name}.yaml")


def model_shape(name: str) -> ModelConfig:
    """The configuration of a short name; no weights are needed.

    Raises:
        UnknownNameError: with near matches and the known names.
        InputError: the file has keys that mean nothing, or values that make no model.
    """
    known = shape_names()
    if name not in known:
        raise UnknownNameError(
            f"{name!r} is neither a known model nor an existing path.{near_matches(name, known)} "
            f"Known shapes: {', '.join(known)}; or give the path of a checkpoint."
        )
    path = config_dir() / "models" / f"{name}.yaml"
    shape = _content(path)["shape"]
    if not isinstance(shape, dict):
        raise InputError(f"{path}: shape must be a mapping, got {type(shape).__name__}.")
    try:
        config = config_from_hf(shape)
    except CheckpointError as error:
        raise InputError(f"{path}: {error}") from error
    _refuse_unknown(shape, known_keys(shape["model_type"]), path)
    return config


def read_entry(path: Path) -> ModelEntry:
    """Reads where the weights are; unknown, missing or malformed keys are errors."""
    content = {key: value for key, value in _content(path).items() if key != "shape"}
    fields = _checked(ModelEntry, content, path, given={"name": path.stem})
    if not isinstance(fields["parts"], list) or not fields["parts"]:
        raise InputError(f"{path}: parts must be a list of wheels.")
    parts = tuple(Part(**_checked(Part, part, path)) for part in fields.pop("parts"))
    entry = ModelEntry(parts=parts, **fields)
    for digest in (entry.sha256, *(part.sha256 for part in parts)):
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise InputError(f"{path}: {digest!r} is not a SHA-256.")
    if Path(entry.file).name != entry.file:
        raise InputError(f"{path}: file {entry.file!r} must be a plain name.")
    return entry


def _files() -> list[Path]:
    return sorted((config_dir() / "models").glob("*.yaml"))


def _content(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping, got {type(content).__name__}.")
    return content


def _refuse_unknown(content: dict[str, Any], names: list[str], path: Path) -> None:
    unknown = [str(key) for key in content if key not in names]
    if unknown:
        raise InputError(
            f"{path}: unknown key {unknown[0]!r}.{near_matches(unknown[0], names)} "
            f"Known keys: {', '.join(names)}."
        )


def _checked(
    kind: type, content: Any, path: Path, given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The mapping as keyword arguments of dataclass `kind`."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping, got {type(content).__name__}.")
    given = given or {}
    fields = [field for field in dataclasses.fields(kind) if field.name not in given]
    _refuse_unknown(content, [field.name for field in fields], path)
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in content:
            raise InputError(f"{path}: key {field.name!r} is missing.")
        wanted = {"bytes": int, "parts": list}.get(field.name, str)
        value = content.get(field.name)
        if value is not None and type(value) is not wanted:
            raise InputError(f"{path}: {field.name} is {value!r}, expected {wanted.__name__}.")
    return content | given
