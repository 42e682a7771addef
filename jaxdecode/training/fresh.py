"""A new model to train from scratch: its sizes, its vocabulary, and random parameters.

It is written as a checkpoint for the time of the run, and so goes through everything that a loaded
target goes through. It is a function of the config and of the training text.
"""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dacite
import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jaxdecode import checks
from jaxdecode.convert.checkpoint import TOKENIZER, write_checkpoint
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError, near_matches
from jaxdecode.models import decoder
from jaxdecode.models.config import Denoiser, ModelConfig, param_shapes
from jaxdecode.training.config import TrainConfig

END, MASK = "<|endoftext|>", "<|mask|>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fresh:
    """A new model, of the Llama kin.

    Attributes:
        num_layers: blocks.
        hidden_size: width; a multiple of num_heads.
        num_heads: query heads, and as many of keys and values.
        intermediate_size: width of the MLP; None takes 8/3 of hidden_size, in whole 32s.
        vocabulary: "text": the bytes that occur in data.train, an end of text and, if the model
            fills, a mask token (other bytes are left out where texts are encoded); "bytes": all
            256 and these; a number: so many tokens, the last of them the mask token if the model
            fills, and no tokenizer.
        max_length: context length in tokens.
        tied_embeddings: whether the output head is the embedding.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int | None = None
    vocabulary: str | int = "text"
    max_length: int = 1024
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name in ("num_layers", "hidden_size", "num_heads", "max_length"):
            checks.integer(f"target.{name}", getattr(self, name), low=1)
        if self.hidden_size % (2 * self.num_heads):
            raise InputError(
                f"target.hidden_size={self.hidden_size} is no even multiple of "
                f"num_heads={self.num_heads}."
            )
        if self.intermediate_size is not None:
            checks.integer("target.intermediate_size", self.intermediate_size, low=1)
        if isinstance(self.vocabulary, int):
            checks.integer("target.vocabulary", self.vocabulary, low=2)
        elif self.vocabulary not in ("text", "bytes"):
            raise InputError(
                f"target.vocabulary={self.vocabulary!r} is not known; use 'text', 'bytes' or a "
                "number of tokens."
            )


@contextlib.contextmanager
def opened(config: TrainConfig) -> Iterator[TrainConfig]:
    """The config with a target that can be loaded: a new one is made, for as long as this is open.

    Raises:
        InputError: its sizes or the training text cannot be used.
    """
    if isinstance(config.target, str):
        yield config
        return
    made = read(config.target)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "new"
        write(place, made, config)
        yield dataclasses.replace(config, target=str(place))


def read(fields: Mapping[str, Any]) -> Fresh:
    """The sizes that a config gives.

    Raises:
        InputError: a field that is missing, not known, or of another type.
    """
    try:
        return dacite.from_dict(Fresh, fields, dacite.Config(strict=True))
    except dacite.UnexpectedDataError as error:
        known = [field.name for field in dataclasses.fields(Fresh)]
        key = min(error.keys)
        raise InputError(
            f"target has no field {key!r}.{near_matches(key, known)} Known: {', '.join(known)}."
        ) from error
    except dacite.DaciteError as error:
        raise InputError(f"target: {error}") from error


def write(folder: Path, made: Fresh, config: TrainConfig) -> None:
    """Writes the checkpoint of a new model for a run."""
    fills = METHODS[config.line.method].fills
    (folder / TOKENIZER).mkdir(parents=True)
    token_ids = {}
    if isinstance(made.vocabulary, int):
        size = made.vocabulary
    else:
        known = _bytes_of(config) if made.vocabulary == "text" else list(range(256))
        special = [END, MASK] if fills else [END]
        size, token_ids = len(known) + len(special), {"eos_token_id": len(known)}
        _write_tokenizer(folder / TOKENIZER, known, special)
    built = model_config(made, size, fills)
    key = jax.random.key(config.seed)
    flat = decoder.flatten(decoder.init_params(built, key))
    arrays = {name: np.asarray(flat[name]) for name in param_shapes(built)}
    write_checkpoint(
        folder,
        built,
        iter(arrays.items()),
        dtypes=dict.fromkeys(arrays, "float32"),
        token_ids=token_ids,
        provenance={"kind": "new", "seed": config.seed},
    )


def model_config(made: Fresh, vocab_size: int, fills: bool) -> ModelConfig:
    """The config of a new model; the last token of one that fills stands in undecided slots."""
    width, head_dim = made.hidden_size, made.hidden_size // made.num_heads
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        num_layers=made.num_layers,
        hidden_size=width,
        intermediate_size=made.intermediate_size or -(-8 * width // 96) * 32,
        num_heads=made.num_heads,
        num_kv_heads=made.num_heads,
        head_dim=head_dim,
        max_length=made.max_length,
        query_scale=head_dim**-0.5,
        tied_embeddings=made.tied_embeddings,
        layer_windows=(0,) * made.num_layers,
        denoiser=Denoiser(mask_token=vocab_size - 1) if fills else None,
    )


def _bytes_of(config: TrainConfig) -> list[int]:
    path = config.data.train
    if not path.endswith(".txt"):
        raise InputError(
            f"target.vocabulary='text' takes its tokens from a .txt file, and data.train is "
            f"{path}; use 'bytes' or a number of tokens."
        )
    try:
        return sorted(set(Path(path).expanduser().read_bytes()))
    except OSError as error:
        raise InputError(f"data.train {path}: cannot be read ({error.strerror}).") from error


def _write_tokenizer(folder: Path, known: list[int], special: list[str]) -> None:
    """One token per byte, in the form that other checkpoints have."""
    letters = _letters()
    vocabulary = {letters[byte]: token for token, byte in enumerate(known)}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in special])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))


def _letters() -> dict[int, str]:
    """How byte-level vocabularies spell bytes: printable ones as themselves, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
