"""Trained heads on disk: a folder that appears whole, and is checked byte by byte when read.

`manifest.json` says what they are and for which target, and has the SHA-256 of the tensors;
`heads.safetensors` holds the parameters, nested names joined by "/".
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxdecode.convert.atomic import atomic_directory
from jaxdecode.convert.safetensors import read_json
from jaxdecode.core.protocols import HeadSpec
from jaxdecode.errors import (
    CorruptCheckpointError,
    InputError,
    UnknownNameError,
    near_matches,
)
from jaxdecode.models import decoder, kv_heads
from jaxdecode.models.config import ModelConfig

FORMAT = "jaxdecode-heads"
VERSION = 1
_TENSORS = "heads.safetensors"
# Where a training run keeps them inside its own folder.
HEADS_FOLDER = "heads"
# What a target must have in common with the one that heads were trained on.
_TARGET_FIELDS = ("vocab_size", "num_layers", "hidden_size", "head_dim")
# What a layer of its kind does that its parameters do not show: published configs say it.
_LAYER_FIELDS = ("norm_eps", "norm_offset", "activation", "query_scale")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """Trained parts of a method.

    Attributes:
        spec: their kind and shape.
        params: their parameters, a nested dict of arrays.
        target: what is known of the model they were trained on: its sizes and name.
        notes: how they were made, for people.
    """

    spec: HeadSpec
    params: Any
    target: Mapping[str, Any]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def kinds() -> list[str]:
    """Names of all kinds of heads, sorted."""
    folder = Path(__file__).parents[1] / "heads"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def module_of(kind: str) -> Any:
    """The file in `heads/` of a kind."""
    if kind not in kinds():
        raise UnknownNameError(
            f"heads of kind {kind!r} are not known.{near_matches(kind, kinds())} "
            f"Known: {', '.join(kinds())}."
        )
    return importlib.import_module(f"jaxdecode.heads.{kind}")


def shape_of(kind: str, sizes: Mapping[str, Any]) -> Any:
    """The `Shape` of a kind with these values; lists become tuples.

    Raises:
        InputError: it has no such field, or a value is out of range.
    """
    shape = module_of(kind).Shape
    known = [field.name for field in dataclasses.fields(shape)]
    for name in sizes:
        if name not in known:
            raise InputError(
                f"heads of kind {kind!r} have no {name!r}.{near_matches(name, known)} "
                f"Known: {', '.join(known)}."
            )
    return shape(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})


def target_of(config: ModelConfig, name: str) -> dict[str, Any]:
    """What heads remember of their target."""
    layer = {field: getattr(config, field) for field in _LAYER_FIELDS}
    layer |= {"rope_theta": config.rope.theta, "rope_scaling": config.rope.scaling}
    sizes = {field: getattr(config, field) for field in _TARGET_FIELDS}
    return {"name": name} | sizes | {"layer": layer}


def initial(spec: HeadSpec, config: ModelConfig, key: Any, target: Any) -> Any:
    """Parameters before training; `target` are the target's."""
    return module_of(spec.kind).init(spec.shape, config, key, target)


def open_heads(heads: Heads | str | Path) -> Heads:
    """The heads themselves, or those of a folder."""
    return heads if isinstance(heads, Heads) else load_heads(heads)


def folder_of(path: str | Path) -> Path:
    """The folder of heads themselves: of a training run, the one inside."""
    folder = Path(path).expanduser()
    inside = folder / HEADS_FOLDER
    return inside if inside.is_dir() and not (folder / "manifest.json").is_file() else folder


def is_heads(path: Path) -> bool:
    """Whether a folder holds heads in our own format, or is a run that has trained some."""
    file = folder_of(path) / "manifest.json"
    return file.is_file() and read_json(file).get("format") == FORMAT


def describe(path: Path) -> dict[str, Any]:
    """What a folder of heads holds, in plain JSON values; every byte is checked.

    Raises:
        CorruptCheckpointError: damaged.
    """
    heads = load_heads(path)
    leaves = flattened(heads.params)
    return {
        "path": str(folder_of(path)),
        "kind": f"heads: {heads.spec.kind}",
        "shape": dataclasses.asdict(heads.spec.shape),
        "target": dict(heads.target),
        "num_parameters": sum(leaf.size for leaf in leaves.values()),
        "num_bytes": sum(leaf.nbytes for leaf in leaves.values()),
        "notes": dict(heads.notes),
        "tensors": [
            {"name": name, "shape": list(leaf.shape), "dtype": leaf.dtype.name}
            for name, leaf in leaves.items()
        ],
    }


def load_heads(path: str | Path) -> Heads:
    """Reads trained heads from their folder, or from that of the run that trained them.

    Raises:
        InputError: no such folder, or not one of heads.
        CorruptCheckpointError: damaged: every byte is checked against the manifest.
    """
    folder = folder_of(path)
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"heads={str(path)!r} is not a folder with trained heads; `jaxdecode convert` makes "
            "one of heads that others published."
        )
    manifest = read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder} holds no heads: its manifest is of another format.")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{folder} has version {manifest.get('version')!r} of the heads' format; this release "
            f"reads {VERSION}."
        )
    parts = [manifest.get(name) for name in ("kind", "shape", "target", "sha256")]
    kind, sizes, target, digest = parts
    if not (isinstance(kind, str) and isinstance(sizes, dict) and isinstance(target, dict)):
        raise CorruptCheckpointError(f"{folder}/manifest.json lacks kind, shape or target.")
    spec = HeadSpec(kind, shape_of(kind, sizes))
    params = nested(_read_tensors(folder / _TENSORS, digest))
    return Heads(spec=spec, params=params, target=target, notes=manifest.get("notes") or {})


def save_heads(heads: Heads, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes heads to a folder, which appears whole or not at all.

    Raises:
        DestinationExistsError: the folder exists, and `overwrite` is False.
        CheckpointError: the disk is full.
    """
    # A scalar or a slice of a larger array is not contiguous, which safetensors wants.
    flat = {name: np.ascontiguousarray(leaf) for name, leaf in flattened(heads.params).items()}
    size = sum(leaf.nbytes for leaf in flat.values())
    with atomic_directory(Path(path), overwrite=overwrite, num_bytes=size) as folder:
        save_file(flat, folder / _TENSORS)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "kind": heads.spec.kind,
            "shape": dataclasses.asdict(heads.spec.shape),
            "target": dict(heads.target),
            "sha256": hashlib.sha256((folder / _TENSORS).read_bytes()).hexdigest(),
            "notes": dict(heads.notes),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def fitting(heads: Heads, config: ModelConfig, dtype: Any) -> Heads:
    """The heads with parameters in the target's dtype, if they fit it.

    Args:
        heads: the heads.
        config: the target's.
        dtype: what floating-point parameters are cast to.

    Raises:
        InputError: they were trained on a model of other sizes; names the first that differs.
    """
    for field in _TARGET_FIELDS:
        have, want = heads.target.get(field), getattr(config, field)
        # Published heads do not say everything about their target.
        if have is not None and have != want:
            raise InputError(
                f"the heads ({heads.spec.kind}) were trained on {heads.target.get('name')!r} with "
                f"{field} {have}, but the target has {want}; train heads for this model."
            )
    wanted = _sizes(heads.spec, config)
    heads = dataclasses.replace(heads, params=_repeated(heads.params, wanted))
    _check_sizes(heads, wanted)

    def cast(leaf: Any) -> Any:
        array = jnp.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return dataclasses.replace(heads, params=jax.tree.map(cast, heads.params))


def _sizes(spec: HeadSpec, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    def fresh() -> Any:
        key = jax.random.key(0)
        return initial(spec, config, key, decoder.init_params(config, key))

    return {name: leaf.shape for name, leaf in flattened(jax.eval_shape(fresh)).items()}


def _repeated(params: Any, wanted: Mapping[str, tuple[int, ...]]) -> Any:
    """The parameters with KV heads of layers of their own repeated where the target's are."""

    def fit(name: str, leaf: Any) -> Any:
        have, want = np.shape(leaf), wanted.get(name, ())
        if "attn/qkv/" not in name or len(have) != len(want) or len(have) < 3:
            return leaf
        copies, rest = divmod(want[-3], have[-3])
        fits = copies > 1 and rest == 0 and (have[-2] - 2) % copies == 0
        return kv_heads.repeat_array(".attn.qkv.", leaf, copies) if fits else leaf

    return nested({name: fit(name, leaf) for name, leaf in flattened(params).items()})


def _check_sizes(heads: Heads, wanted: Mapping[str, tuple[int, ...]]) -> None:
    got = {name: np.shape(leaf) for name, leaf in flattened(heads.params).items()}
    for name in sorted(wanted.keys() | got.keys()):
        if wanted.get(name) != got.get(name):
            raise CorruptCheckpointError(
                f"heads of kind {heads.spec.kind!r}: parameter {name!r} should have shape "
                f"{wanted.get(name)}, but has {got.get(name)}."
            )


def flattened(params: Any) -> dict[str, Any]:
    """Nested parameters by name; the inverse of `nested`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of joined names."""
    params: dict[str, Any] = {}
    for name, leaf in flat.items():
        *above, last = name.split("/")
        node = params
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return params


def _read_tensors(path: Path, digest: Any) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise CorruptCheckpointError(f"{path} is missing.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise CorruptCheckpointError(
            f"{path} does not have the hash that its manifest states; copy or train it again."
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpointError(f"{path} is not a safetensors file: {error}") from None
