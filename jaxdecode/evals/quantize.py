"""A model whose weights and activations are rounded to few bits, to see what that does to it.

    lm = quantize.apply(lm, quantize.settings("w4g32")[0], seen)

A setting is written `w4g32a8:hadamard`: weights of 4 bits with a scale per 32 inputs (without g,
per output), activations of 8 bits with a scale per token, and how. Either part may be left out.

    nearest   to the nearest level
    smooth    channels are divided by the root of how large activations are in them against
              weights, and kernels multiplied by it (SmoothQuant)
    awq       likewise by a power of the activations, the one of 20 with the smallest error (AWQ)
    gptq      one input after the other; what is lost is made good by those that follow (GPTQ)
    hadamard  activations and kernels are rotated first (QuaRot)

Embeddings and head stay as they are. Nothing is faster or smaller for it: values stay floats.
Sources: arXiv:2508.14896 for the settings; arXiv:2211.10438, 2306.00978, 2210.17323, 2404.00456.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdecode.api import LanguageModel
from jaxdecode.errors import InputError
from jaxdecode.models import decoder, layout, lora, rounding

WAYS = ("nearest", "smooth", "awq", "gptq", "hadamard")
USUAL = "w8,w4g32,w3g32,w2g32,w8a8,w4a4,w4a4:smooth,w4a4:hadamard"
# Inputs of every product: `[N, I]` per layer, by the product's name ("attn.qkv").
Seen = Mapping[str, Sequence[Float[np.ndarray, "N I"]]]
_FORM = re.compile(r"(?:w([2-8])(?:g([1-9]\d*))?)?(?:a([2-8]))?(?::(\w+))?")
_POWERS = np.linspace(0.0, 0.95, 20)
# Share of the mean curvature that is added to each input's.
_DAMPING = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is rounded.

    Attributes:
        label: as it is written.
        weights: bits of weights; None leaves them.
        group: inputs with a scale in common; 0 is all of an output's.
        activations: bits of what products read; None leaves them.
        way: one of WAYS.
    """

    label: str
    weights: int | None = None
    group: int = 0
    activations: int | None = None
    way: str = "nearest"

    def __post_init__(self) -> None:
        """Refuses what has no meaning."""
        if self.way not in WAYS:
            raise InputError(f"{self.label}: {self.way!r} is not known; use {', '.join(WAYS)}.")
        if self.weights is None and self.way in ("awq", "gptq"):
            raise InputError(f"{self.label}: {self.way} is about weights; write w4:{self.way}.")
        if self.activations is None and self.way == "smooth":
            raise InputError(f"{self.label}: smooth is about activations; write w8a8:smooth.")


def settings(text: str) -> list[Setting]:
    """Settings from text such as "w4g32,w8a8:smooth"; "all" are the usual ones.

    Raises:
        InputError: text that is no setting; the message has the form.
    """
    found = []
    for part in (USUAL if text == "all" else text).split(","):
        match = _FORM.fullmatch(part.strip())
        if match is None or not any(match.group(1, 3)):
            raise InputError(
                f"{part.strip()!r} is no setting; write bits of 2 to 8 as w4, w4g32 (a scale per "
                f"32 inputs), a8 or w4a8, and perhaps how: w4a4:hadamard ({', '.join(WAYS)})."
            )
        weights, group, activations, way = match.groups()
        found.append(
            Setting(
                label=part.strip(),
                weights=int(weights) if weights else None,
                group=int(group or 0),
                activations=int(activations) if activations else None,
                way=way or "nearest",
            )
        )
    return found


def plain(lm: LanguageModel) -> LanguageModel:
    """The model with every kernel in one form: what rounded ones are compared with.

    Raises:
        InputError: a model that is split over devices.
    """
    if lm.mesh is not None:
        raise InputError("a model that is split over devices is not rounded; load it without mesh.")
    return dataclasses.replace(lm, params=layout.without_copies(lm.params))


def apply(lm: LanguageModel, setting: Setting, seen: Seen) -> LanguageModel:
    """The model, rounded.

    Args:
        lm: on one device.
        setting: how.
        seen: what its products read, as `quantized.calibrate` gives it.

    Raises:
        InputError: groups that do not divide a product's inputs.
        UnsupportedError: a product of a width that cannot be rotated.
    """
    params = plain(lm).params
    layers = params["layers"]
    stacked = not isinstance(layers, Sequence)
    rounded = []
    for i, layer in enumerate(decoder.unstack(layers) if stacked else layers):
        layer = {part: dict(leaf) for part, leaf in layer.items()}
        for name, part in lora.PARTS.items():
            rows = seen[f"{part}.{name}"][i]
            layer[part][name] = _product(layer[part][name], name in lora.TRANSPOSED, setting, rows)
        rounded.append(layer)
    name = f"{lm.name} {setting.label}"
    layers = decoder.stack(rounded) if stacked else rounded
    return dataclasses.replace(lm, name=name, params={**params, "layers": layers})


def _product(leaf: Any, transposed: bool, setting: Setting, rows: np.ndarray) -> dict[str, Any]:
    """A product's leaves with its kernel rounded, and what is to be done to its input."""
    kernel = leaf["kernel"]
    wide = kernel.astype(jnp.float32)
    flat = wide.T if transposed else wide.reshape(wide.shape[0], -1)
    if setting.group and len(flat) % setting.group:
        raise InputError(
            f"{setting.label}: groups of {setting.group} do not divide the {len(flat)} inputs of a "
            "product; take a number that does."
        )
    flat, how, rows = _prepared(flat, setting, rows)
    if setting.weights is not None:
        group = setting.group or len(flat)
        rounds = _one_by_one if setting.way == "gptq" else _nearest
        flat = rounds(flat, setting.weights, group, rows)
    if setting.activations is not None:
        how["levels"] = jnp.float32(rounding.levels(setting.activations))
    back = flat.T if transposed else flat.reshape(kernel.shape)
    extra = {rounding.NAME: how} if how else {}
    return {**leaf, "kernel": jnp.asarray(back, kernel.dtype), **extra}


def _prepared(flat: Any, setting: Setting, rows: np.ndarray) -> tuple[Any, dict[str, Any], Any]:
    """Kernel and inputs before they are rounded: their product is what it was."""
    if setting.way == "hadamard":
        turn = jnp.asarray(rounding.rotation(len(flat)))
        turned = rounding.rotate(flat.T, turn).T
        return turned, {"rotation": turn}, rounding.rotate(jnp.asarray(rows), turn)
    if setting.way not in ("smooth", "awq"):
        return flat, {}, rows
    scale = _smooth(flat, rows) if setting.way == "smooth" else _searched(flat, setting, rows)
    return flat * scale[:, None], {"scale": jnp.asarray(1 / scale, jnp.float32)}, rows / scale


def _smooth(flat: Any, rows: np.ndarray) -> Float[np.ndarray, "I"]:
    large = np.maximum(np.abs(rows).max(0), 1e-5)
    return np.sqrt(large / np.maximum(np.abs(np.asarray(flat)).max(1), 1e-5)).astype(np.float32)


def _searched(flat: Any, setting: Setting, rows: np.ndarray) -> Float[np.ndarray, "I"]:
    """The power of the mean activation with which the rounded product errs least."""
    assert setting.weights is not None
    mean = np.maximum(np.abs(rows).mean(0), 1e-5)
    best, least = np.ones_like(mean), np.inf
    for power in _POWERS:
        scale = mean**power
        scale = (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
        rounded = _nearest(flat * scale[:, None], setting.weights, setting.group or len(flat), rows)
        error = float(jnp.square(rows @ (rounded / scale[:, None] - flat)).mean())
        if error < least:
            best, least = scale, error
    return best


def _nearest(flat: Any, bits: int, group: int, rows: Any) -> Any:
    del rows
    return rounding.round_weights(flat, bits, group)


def _one_by_one(flat: Any, bits: int, group: int, rows: Any) -> np.ndarray:
    """Rounds input after input and moves each error into the inputs that follow.

    How much of it goes where is the Cholesky factor of the inverse of X^T X.
    """
    kernel, rows = np.array(flat, np.float64), np.asarray(rows, np.float64)
    curvature = rows.T @ rows
    curvature += np.eye(len(kernel)) * (_DAMPING * np.diag(curvature).mean() + 1e-12)
    upper = np.linalg.cholesky(np.linalg.inv(curvature)).T
    low = step = np.zeros(0)
    for i in range(len(kernel)):
        if i % group == 0:
            found = rounding.grid(jnp.asarray(kernel[i : i + group], jnp.float32), bits)
            low, step = (np.asarray(part, np.float64)[0] for part in found)
        level = np.clip(np.round((kernel[i] - low) / step), 0, 2**bits - 1)
        error = (kernel[i] - low - level * step) / upper[i, i]
        kernel[i] = low + level * step
        kernel[i + 1 :] -= upper[i, i + 1 :, None] * error
    return kernel.astype(np.float32)
