"""A loaded model: parameters on their devices, tokenizer, and the pure functions bound to both."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdecode import resolve
from jaxdecode.convert import download, pipeline
from jaxdecode.convert.open import open_source
from jaxdecode.convert.source import cast
from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.core import attention as backends
from jaxdecode.core.attention import Backend
from jaxdecode.core.protocols import Model, Target, Weights
from jaxdecode.dist import axes, place, rules
from jaxdecode.dist import mesh as meshes
from jaxdecode.errors import InputError
from jaxdecode.models import decoder, kv_heads, layout
from jaxdecode.models.config import ModelConfig, param_shapes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LanguageModel:
    """A loaded model: what `load` returns and `generate` takes.

    Attributes:
        name: what it was loaded as.
        config: its architecture.
        params: parameter tree (`models.decoder`).
        target: the pure functions bound to the config.
        tokenizer: None if the checkpoint has none; then prompts are token ids.
        end_tokens: token ids with which the model ends a text or its turn.
        dtype: dtype of parameters and activations.
        kv_dtype: dtype of keys and values. float32 on CPU, where 16-bit attention takes a slow
            path; `dtype` elsewhere.
        mesh: devices it is split over; None for one device.
        prepared: what methods made of its parameters once (`Drafter.prepare`), by method and
            options.
    """

    name: str
    config: ModelConfig
    params: Any
    target: Target
    tokenizer: Tokenizer | None
    end_tokens: tuple[int, ...]
    dtype: Any
    kv_dtype: Any
    mesh: Mesh | None = None
    prepared: dict[resolve.Choice, Weights] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def bound(self) -> Model:
        """Its pure functions and its cache: what the loop takes."""
        bound = resolve.model_of(self.config, self.target, self.kv_dtype, self.mesh)
        return bound._replace(tokenizer=self.tokenizer)

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        fills = f", fills slots: {self.config.denoiser}" if self.config.denoiser else ""
        return (
            f"LanguageModel({self.name!r}, {self.config.family}, {size / 1e6:.0f}M parameters, "
            f"{jnp.dtype(self.dtype).name}, context {self.config.max_length}{fills})"
        )


def load(
    model: str | Path,
    *,
    dtype: str | None = None,
    accept_terms: bool = False,
    layers: str = "auto",
    copies: str = "auto",
    mesh: str | Mesh | None = None,
    attention: str = "auto",
    progress: bool = True,
) -> LanguageModel:
    """Loads a model by short name, path or `hf:org/name`.

    Args:
        model: a short name (`jaxdecode models`), a folder of safetensors, a .gguf file, our own
            checkpoint, or `hf:org/name[@revision]`.
        dtype: "float32" or "bfloat16" for parameters and activations; by default float32
            on CPU and bfloat16 on accelerators.
        accept_terms: accept the licence terms of models that have some.
        layers: "list" keeps one tree per layer, "stacked" scans one stacked tree, "auto" takes
            stacked on TPU and a list elsewhere.
        copies: "all" holds some kernels a second time in the form that CPU products of one or
            of several rows read fastest (`models.layout`: a quarter more memory in float32, three
            quarters in bfloat16), "none" does not, "auto" does on CPU up to 1 GiB.
        mesh: devices to split the model over: a mesh with the axes "data" (rows of a batch) and
            "model" (heads, MLP width, vocabulary), or text such as "data=2,model=4" for one over
            all devices. None is one device.
        attention: who computes attention in steps of the loop: "xla", a kernel ("tpu", "gpu"), or
            "auto": the kernel of the devices in use if it can serve the model, else XLA.
        progress: show progress bars of downloads and conversion on stderr.

    Raises:
        UnknownNameError: no such short name; near matches are listed.
        InputError: the path does not exist or cannot be read.
        CheckpointError: the checkpoint is damaged, unsafe or incomplete.
        UnsupportedError: the architecture or an option of it is not implemented.
    """
    if layers not in ("auto", "list", "stacked"):
        raise InputError(f"layers={layers!r} is not known; use 'auto', 'list' or 'stacked'.")
    if copies not in ("auto", "all", "none"):
        raise InputError(f"copies={copies!r} is not known; use 'auto', 'all' or 'none'.")
    mesh = meshes.make(mesh) if isinstance(mesh, str) else mesh
    path = download.resolve(str(model), accept_terms=accept_terms, progress=progress)
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"dtype={dtype!r} is not supported; use 'float32' or 'bfloat16'.")
    source = open_source(path)
    if mesh is None:
        config = source.config
        arrays = pipeline.read_params(source, dtype)
        params = decoder.nest(config, {name: jnp.asarray(array) for name, array in arrays})
    else:

        def read(name: str, part: slice | None) -> np.ndarray:
            return cast(name, source.read(name, part), dtype)

        config, params = _split(source.config, read, mesh)
    stacked = layers == "stacked" or (layers == "auto" and jax.default_backend() == "tpu")
    if copies == "all" and (stacked or mesh is not None):
        raise InputError("copies='all' needs layers='list' and no mesh.")
    if stacked:
        params["layers"] = _stack(params["layers"], mesh)
    elif mesh is None and (copies == "all" or (copies == "auto" and layout.pay_off(params))):
        params = layout.with_copies(params)
    tokenizer = pipeline.read_tokenizer(source)
    end_tokens = pipeline.read_end_tokens(source, tokenizer)
    return _bind(config, params, str(model), tokenizer, end_tokens, mesh, attention)


def from_params(
    config: ModelConfig,
    params: Any,
    *,
    name: str = "model",
    tokenizer: Tokenizer | None = None,
    end_tokens: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    attention: str = "auto",
) -> LanguageModel:
    """Wraps parameters that are already in memory (`models.decoder.init_params`, training).

    By default the model ends where its tokenizer says. With a mesh, the parameters are split over
    it, as `load` does; `attention` is as there. No text is cut into the mask token of a model that
    fills slots, as with `load`.
    """
    if tokenizer is not None and config.denoiser is not None:
        tokenizer = tokenizer.without(config.denoiser.mask_token)
    if end_tokens is None:
        end_tokens = tokenizer.stop_tokens if tokenizer else ()
    if mesh is not None:
        stacked = not isinstance(params["layers"], Sequence)
        flat = decoder.flatten(params)

        def read(name: str, part: slice | None) -> np.ndarray:
            array = np.asarray(flat[name])
            axis = axes.split_of(name, array.ndim)
            return array if axis is None else array[(slice(None),) * axis + (part,)]

        config, params = _split(config, read, mesh)
        if stacked:
            params["layers"] = _stack(params["layers"], mesh)
    return _bind(config, params, name, tokenizer, end_tokens, mesh, attention)


def _split(
    config: ModelConfig, read: Callable[[str, slice | None], np.ndarray], mesh: Mesh
) -> tuple[ModelConfig, Any]:
    """The parameters split over a mesh, one after the other, and the config they have there.

    Each process reads no more than the parts of its own devices.
    """
    size = mesh.shape[rules.RULES["kv_heads"]]
    copies = rules.kv_copies(config.num_kv_heads, config.group_size, size)
    config = kv_heads.repeat_config(config, copies)
    flat = {}
    for name, shape in param_shapes(config).items():
        where = rules.param_format(name, shape, mesh)
        axis = axes.split_of(name, len(shape))
        if axis is None:
            flat[name] = place.put(read(name, None), where)
            continue
        part = place.own_part(where, shape, axis)
        repeats = copies if kv_heads.is_repeated(name) else 1
        stored = kv_heads.repeated_from(part, repeats)
        array = kv_heads.repeat_array(name, read(name, stored), copies)
        flat[name] = place.put_part(array, where, shape, axis=axis, start=stored.start * repeats)
    return config, decoder.nest(config, flat)


def _stack(layers: Sequence[Any], mesh: Mesh | None) -> Any:
    if mesh is None:
        return decoder.stack(layers)
    places = rules.params(jax.eval_shape(decoder.stack, layers), mesh)
    return jax.jit(decoder.stack, out_shardings=places)(layers)


def _bind(
    config: ModelConfig,
    params: Any,
    name: str,
    tokenizer: Tokenizer | None,
    end_tokens: Sequence[int],
    mesh: Mesh | None,
    attention: str,
) -> LanguageModel:
    dtype = params["embed"]["embedding"].dtype
    kv_dtype = jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" else dtype
    backend = backends.choose(attention, config, kv_dtype, mesh)
    return LanguageModel(
        name=name,
        config=config,
        params=params,
        target=_target(config, kv_dtype, backend),
        tokenizer=tokenizer,
        end_tokens=tuple(end_tokens),
        dtype=dtype,
        kv_dtype=kv_dtype,
        mesh=mesh,
    )


@functools.lru_cache
def _target(config: ModelConfig, kv_dtype: Any, backend: Backend) -> Target:
    return decoder.make_target(config, kv_dtype, backend)
