"""The only place that builds models for tests."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers.models import BPE

from jaxdecode import api, options, resolve
from jaxdecode import engine as engines
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.tokenizer import load_tokenizer
from jaxdecode.core import loop
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import DraftWeights, HeadSpec, Models, Weights
from jaxdecode.core.registry import METHODS
from jaxdecode.core.types import Verdict
from jaxdecode.evals import exactness
from jaxdecode.evals import toys as smallest
from jaxdecode.models import decoder
from jaxdecode.models.config import Denoiser, ModelConfig, Rope
from jaxdecode.sampling import noise

# Lines that one run of the loop decodes; policies call it piece by piece.
LOOP = [n for n, entry in METHODS.items() if entry.on_loop and not entry.fills]
# Lines that fill slots in any order.
FILL = [name for name, entry in METHODS.items() if entry.fills]
# One line per way of drafting and of checking. Contract tests that compile much run over these at
# every commit, and over the others with the slow tests.
CORE = (
    "ar",
    "auto",
    "prompt_lookup",
    "token_recycling",
    "draft_model",
    "layerskip",
    "speculative_sampling",
    "spectr",
)


def core_first(names):
    """Parameters of a test: lines outside CORE are slow."""
    return [name if name in CORE else pytest.param(name, marks=pytest.mark.slow) for name in names]


def config(**changes) -> ModelConfig:
    """A two-layer model small enough for property tests; keyword arguments replace fields."""
    sizes = dict(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_length=2048,
        query_scale=8**-0.5,
    )
    return smallest.config(**(sizes | changes))


def gemma_like(**changes) -> ModelConfig:
    """Every optional part at once: windows, two RoPE bases, q/k and post norms, scaling."""
    parts = dict(
        family="gemma3",
        num_layers=4,
        layer_windows=(7, 7, 0, 7),
        local_rope=Rope(theta=100.0),
        rope=Rope(theta=1000.0, scaling="linear", factor=2.0),
        qk_norm=True,
        post_norms=True,
        norm_offset=1.0,
        activation="gelu_tanh",
        embed_scale=32**0.5,
        tied_embeddings=True,
        query_scale=0.2,
    )
    return config(**(parts | changes))


@functools.lru_cache
def params(model: ModelConfig, seed: int = 0, dtype: str = "float32"):
    """Random parameters, sharpened so that greedy decoding is not a near tie."""
    tree = decoder.init_params(model, jax.random.key(seed), jnp.dtype(dtype))
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape, leaf.dtype) * jnp.std(leaf)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


@functools.lru_cache
def model(name: str = "llama", seed: int = 0) -> api.LanguageModel:
    """A random language model without a tokenizer."""
    built = gemma_like() if name == "gemma" else config()
    return api.from_params(built, params(built, seed), name=name)


@functools.lru_cache
def denoiser(**parts) -> api.LanguageModel:
    """A random model that fills undecided slots; keyword arguments are fields of `Denoiser`."""
    built = config(denoiser=Denoiser(mask_token=config().vocab_size - 1, **parts))
    return api.from_params(built, params(config()), name="denoiser")


@functools.lru_cache
def knowing(lm: api.LanguageModel) -> api.LanguageModel:
    """An oracle whose states and embeddings a layer can read: bounded scores, one-hot tokens."""
    size = lm.config.vocab_size
    built = config(vocab_size=size, hidden_size=size, num_layers=1, layer_windows=(0,))
    built = dataclasses.replace(built, denoiser=lm.config.denoiser)

    def forward(*args):
        output = lm.target.forward(*args)
        return dataclasses.replace(output, hidden=jnp.maximum(output.hidden, -8.0))

    def embed(params, tokens):
        return jax.nn.one_hot(tokens, size)

    target = lm.target._replace(forward=forward, embed=embed)
    return dataclasses.replace(lm, config=built, target=target)


def filler(name: str) -> api.LanguageModel:
    """A random model that a line which fills slots can run."""
    return denoiser(inserts=True) if "insertions" in METHODS[name].needs else denoiser()


def helpers(name: str, lm: api.LanguageModel | None = None) -> dict:
    """What a method needs besides the target, as keyword arguments of `generate`."""

    given = {}
    if "draft" in METHODS[name].needs:
        given["draft"] = dataclasses.replace(model(seed=5), tokenizer=lm and lm.tokenizer)
    kind = METHODS[name].heads
    return given if kind is None else given | {"heads": random_heads(kind, lm or model())}


# Sizes of heads that differ from their defaults: blocks must be shorter than the tests' texts.
SIZES = {"learn2pd": {"block_length": 8}}


@functools.lru_cache
def random_heads(kind: str, lm: api.LanguageModel):
    """Random heads of a kind, as small as contract tests need them."""
    spec = HeadSpec(kind, head_files.shape_of(kind, SIZES.get(kind, {})))
    return smallest.random_heads(spec, lm)


def drafted(lm: api.LanguageModel, name: str, draft: api.LanguageModel, maps=(), **asked):
    """What runs a method that needs a draft model; `maps` as in `DraftWeights`."""
    _, choice = resolve.split(name, asked)
    weights = DraftWeights(draft.params, *maps)
    chosen, params = resolve.weights_of(
        choice, Models(_bound(lm), _bound(draft)), lm.params, weights
    )
    return engines.Engine(model=_bound(lm), method=chosen, weights=params)


def built(lm: api.LanguageModel, name: str, **asked) -> engines.Engine:
    """What runs a registry line, with the helpers it needs."""
    given = helpers(name, lm) | asked
    parts = [given.pop(part, None) for part in ("draft", "heads")]
    _, choice = resolve.split(name, given)
    made = api._engine(lm, choice, *parts)
    drafter = made.method.drafter
    if drafter.price is not None:
        made.weights = drafter.price(made.weights, np.ones(len(drafter.widths)))
    return made


def after_steps(made: engines.Engine, num_steps: int, prompts):
    """The state after some steps at temperature 0.9."""
    chosen = options.Options(max_new_tokens=40, temperature=0.9)
    asked = request(model(), chosen, prompts)
    state = engines.prefilled(made, asked, prompts, 40)
    run = functools.partial(loop.run, target=made.model.target, method=made.method)
    return run(made.weights, asked, state, jnp.int32(num_steps))


def drawn(name: str) -> dict:
    """A temperature, where the line takes one. Tests that ask for it share their programs."""
    return {} if "temperature" in METHODS[name].refuses else {"temperature": 0.9}


def fitting(name: str) -> dict:
    """Options with which a line that fills slots does on toys what it does on trained models."""
    if name == "adablock":
        return {"block_length": 4, "delimiters": list(range(12)), "min_delimiter": 0.05}
    if name == "fast_dllm_v2":
        return {"block_length": 8, "sub_block": 4}
    blocks = {"block_length": 8} if "block_length" in METHODS[name].options else {}
    # Random heads are undecided; so bounds are where some slots pass.
    half = {"learn2pd": {"gamma": 0.5}, "tracelock": {"accept": 0.5}}
    return blocks | half.get(name, {})


def strict(name: str) -> dict:
    """Options with which a line that is not exact by design gives the tokens of plain decoding."""
    return exactness.strict_options(name)


def spelling(folder) -> api.LanguageModel:
    """A random model with a tokenizer whose tokens are one or two letters, kept in `folder`."""
    letters = [chr(ord("a") + i) for i in range(26)]
    pairs = [a + b for a in "abcde" for b in "abcdefg"]
    vocab = {piece: i for i, piece in enumerate(letters + pairs)}
    library = tokenizers.Tokenizer(BPE(vocab=vocab, merges=[(p[0], p[1]) for p in pairs]))
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    built = config()
    return api.from_params(built, params(built), tokenizer=load_tokenizer(folder))


def writing(folder) -> api.LanguageModel:
    """A random model whose tokens are bytes, some longer pieces and an end token, in `folder`."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [
        '{ "',
        '" :',
        'Ġ "',
        '" ,',
        "n a",
        "m e",
        "na me",
        "t r",
        "u e",
        "tr ue",
        "1 2",
        "[ ]",
    ]
    pieces = [*letters, *(merge.replace(" ", "") for merge in merges)]
    pairs = [tuple(merge.split(" ")) for merge in merges]
    library = tokenizers.Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, pairs))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<|end|>"])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    # A few rows more than the tokenizer has tokens, as many checkpoints have.
    built = config(vocab_size=len(pieces) + 1 + 7)
    return api.from_params(built, params(built), tokenizer=load_tokenizer(folder))


def reading(tokenizer) -> api.LanguageModel:
    """A random model for a tokenizer."""
    built = config(vocab_size=tokenizer.vocab_size)
    return api.from_params(built, params(built), tokenizer=tokenizer)


def twin(lm: api.LanguageModel) -> api.LanguageModel:
    """Another random model of the same sizes and vocabulary: a draft model."""
    return api.from_params(lm.config, params(lm.config, 5), name="twin", tokenizer=lm.tokenizer)


def filling(folder) -> api.LanguageModel:
    """A random model that fills slots, with the tokenizer of `writing`."""
    lm = writing(folder)
    mask = Denoiser(mask_token=lm.config.vocab_size - 1)
    built = dataclasses.replace(lm.config, denoiser=mask)
    return api.from_params(built, lm.params, tokenizer=lm.tokenizer)


@contextlib.contextmanager
def count_compilations():
    """A list that grows with every program compiled inside the block, or read from disk."""
    events = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            events.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def method(lm: api.LanguageModel, name: str, **asked):
    """The bundles of a registry line."""
    _, choice = resolve.split(name, asked)
    return resolve.weights_of(choice, Models(_bound(lm)), lm.params, None)[0]


def engine(lm: api.LanguageModel, chosen, params=None, kv_dtype=None) -> engines.Engine:
    """What runs a method on a model."""
    weights, prepare = Weights(target=params or lm.params), chosen.drafter.prepare
    if prepare is not None:
        weights = prepare(weights)
    return engines.Engine(model=_bound(lm, kv_dtype), method=chosen, weights=weights)


def request(lm: api.LanguageModel, chosen: options.Options, prompts, batch: int = 4):
    """Arrays of a batch's options with seed 7."""
    keys = [noise.row_key(7, prompt) for prompt in prompts]
    return options.make_request(chosen, keys, batch=batch, tokenizer=None, config=lm.config)


def _bound(lm: api.LanguageModel, kv_dtype=None):
    return resolve.model_of(lm.config, lm.target, kv_dtype or lm.kv_dtype)


def full_logits(lm: api.LanguageModel, tokens, taps=()):
    """Scores after every token of one row from a single pass: the teacher-forced reference."""
    size = len(tokens)
    row = np.zeros((1, -(-size // 64) * 64), np.int32)
    row[0, :size] = tokens
    logits, hidden = _teacher_forced(lm.params, row, size, target=lm.target, taps=tuple(taps))
    return np.asarray(logits[0, :size]), {name: np.asarray(hidden[name][0, :size]) for name in taps}


def whole(lm: api.LanguageModel, tokens):
    """Scores of every position of one row whose positions see each other, or as its blocks say."""
    size = len(tokens)
    row = np.zeros((1, -(-size // 64) * 64), np.int32)
    row[0, :size] = tokens
    return np.array(_seen_whole(lm.params, row, size, lm.target, lm.config.denoiser)[0, :size])


@functools.partial(jax.jit, static_argnames=("target", "how"))
def _seen_whole(params, row, size, target, how):
    rule = "block_causal" if how.block else "bidirectional"
    program = dataclasses.replace(causal(row.shape[1], size), rule=rule, block=how.block)
    return target.logits(params, target.forward(params, row, program, None).hidden)


def causal(num_rows: int, num_new: int) -> MaskProgram:
    """Mask of one prompt of `num_new` tokens in `num_rows` rows."""
    return MaskProgram(
        cached=jnp.zeros(1, jnp.int32),
        positions=jnp.arange(num_rows, dtype=jnp.int32)[None],
        num_new=jnp.asarray(num_new, jnp.int32)[None],
    )


def rows_of(lm: api.LanguageModel, tokens):
    """Logits and the keys and values of every token from a single pass."""
    size = len(tokens)
    row = np.zeros((1, -(-size // 64) * 64), np.int32)
    row[0, :size] = tokens
    program = causal(row.shape[1], size)
    output = lm.target.forward(lm.params, jnp.asarray(row), program, None)
    return lm.target.logits(lm.params, output.hidden)[0, :size], output.rows


@functools.partial(jax.jit, static_argnames=("target", "taps"))
def _teacher_forced(params, row, size, *, target, taps):
    program = causal(row.shape[1], size)
    output = target.forward(params, row, program, None, taps)
    return target.logits(params, output.hidden), output.taps


def verdict(tokens, num_accepted: int) -> Verdict:
    """One row's verdict with these tokens."""
    return Verdict(
        tokens=jnp.asarray(tokens, jnp.int32),
        logprob=jnp.zeros(len(tokens)),
        path=jnp.arange(len(tokens), dtype=jnp.int32),
        num_accepted=jnp.int32(num_accepted),
    )
