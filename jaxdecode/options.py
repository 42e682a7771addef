"""What a caller asks for, checked: prompts to token ids, options to arrays on the device."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdecode import checks
from jaxdecode.constraints import rules
from jaxdecode.constraints.rules import Rule
from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.core.entry import CONSTRAINTS
from jaxdecode.core.grammar import AnyMatcher, register
from jaxdecode.core.types import Request, Sampling
from jaxdecode.errors import InputError
from jaxdecode.models.config import ModelConfig
from jaxdecode.sampling.stop import compile_stop

Prompt = str | Sequence[int] | np.ndarray | Mapping[str, Any]
# Room for the end-of-sequence ids of a tokenizer and the caller's own; a fixed size keeps the
# compiled program the same.
NUM_STOP_TOKENS = 16
PROMPT_FORMS = "use text, token ids, {'prompt': text}, {'messages': [...]} or {'tokens': [...]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of one generation, the same for Python and the command line.

    Attributes:
        max_new_tokens: upper bound on new tokens per prompt, at least 1.
        temperature: 0 is greedy; otherwise scores are divided by it.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens up to this total probability, in (0, 1].
        min_p: keep tokens at least this probable relative to the likeliest, in [0, 1].
        repetition_penalty: above 1 makes tokens that already occur less likely; must be > 0.
        logit_bias: token id to a number added to its score.
        stop: strings that end a row; the text is cut before them.
        stop_tokens: token ids that end a row besides the model's own end tokens.
        ignore_eos: do not stop at the model's own end tokens.
        seed: one seed for all prompts, or one per prompt.
        json_schema: every text is JSON that this schema accepts; a dict, or a list with one (or
            None) per prompt.
        regex: every text matches this expression as a whole; text, or likewise a list.
        grammar: every text is derived from `start` of this Lark grammar; likewise.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | Sequence[int] = 0
    json_schema: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None
    regex: str | Sequence[str | None] | None = None
    grammar: str | Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("max_new_tokens", self.max_new_tokens, low=1)
        checks.integer("top_k", self.top_k, low=0)
        checks.number("temperature", self.temperature, "a number >= 0", lambda x: x >= 0)
        checks.number("top_p", self.top_p, "a number in (0, 1]", lambda x: 0 < x <= 1)
        checks.number("min_p", self.min_p, "a number in [0, 1]", lambda x: 0 <= x <= 1)
        checks.number(
            "repetition_penalty", self.repetition_penalty, "a number > 0", lambda x: x > 0
        )
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for seed in self.seeds(1) if isinstance(self.seed, int) else self.seed:
            checks.integer("seed", seed, low=-(2**63), high=2**63 - 1)
        rules.check(self._constraints())

    def _constraints(self) -> dict[str, Any]:
        return {kind: getattr(self, kind) for kind in CONSTRAINTS}

    @property
    def constrained(self) -> bool:
        """Whether some text must have a given form."""
        return any(value is not None for value in self._constraints().values())

    def rules(self, num_prompts: int) -> list[Rule | None]:
        """What each prompt's text must look like; None where it may be anything."""
        return rules.read(self._constraints(), num_prompts)

    def seeds(self, num_prompts: int) -> list[int]:
        """One seed per prompt."""
        if isinstance(self.seed, int):
            return [self.seed] * num_prompts
        if len(self.seed) != num_prompts:
            raise InputError(
                f"seed has {len(self.seed)} values for {num_prompts} prompts; give one integer or "
                "one per prompt."
            )
        return list(self.seed)


def tokenize(prompt: Prompt, tokenizer: Tokenizer | None, config: ModelConfig) -> list[int]:
    """Token ids of one prompt, checked against the vocabulary and the context length.

    Raises:
        InputError: unusable form, empty prompt, id outside the vocabulary, no room for one token.
    """
    tokens = _tokens(prompt, tokenizer)
    if not tokens:
        raise InputError("the prompt is empty; give at least one token.")
    for token in tokens:
        checks.integer("prompt token id", token, low=0, high=config.vocab_size - 1)
    if len(tokens) >= config.max_length:
        raise InputError(
            f"the prompt has {len(tokens)} tokens, but the model's context is "
            f"{config.max_length} tokens including at least one new one; shorten the prompt."
        )
    return [int(token) for token in tokens]


def _tokens(prompt: Prompt, tokenizer: Tokenizer | None) -> Sequence[int]:
    if isinstance(prompt, Mapping):
        forms = [name for name in ("prompt", "messages", "tokens") if name in prompt]
        extra = sorted(set(prompt) - {"prompt", "messages", "tokens"})
        if len(forms) != 1 or extra:
            raise InputError(f"a prompt has the keys {sorted(prompt)}; {PROMPT_FORMS}.")
        if forms[0] == "messages":
            return _need(tokenizer).apply_chat(prompt["messages"])
        if forms[0] == "prompt" and not isinstance(prompt["prompt"], str):
            raise InputError(f"'prompt' must be text, got {type(prompt['prompt']).__name__}.")
        return _tokens(prompt[forms[0]], tokenizer)
    if isinstance(prompt, str):
        if not prompt:
            raise InputError("the prompt is empty; give some text.")
        return _need(tokenizer).encode(prompt)
    if isinstance(prompt, Sequence | np.ndarray) and not isinstance(prompt, bytes):
        return [int(token) if isinstance(token, np.integer) else token for token in prompt]
    raise InputError(f"a prompt is a {type(prompt).__name__}; {PROMPT_FORMS}.")


def _need(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise InputError(
            "this checkpoint has no tokenizer, so text cannot be used; give {'tokens': [...]}, or "
            "put tokenizer.json or tokenizer.model beside the weights and convert again."
        )
    return tokenizer


def make_request(
    options: Options,
    row_keys: Sequence[np.ndarray],
    *,
    batch: int,
    tokenizer: Tokenizer | None,
    config: ModelConfig,
    end_tokens: Sequence[int] = (),
    matchers: Sequence[AnyMatcher | None] = (),
) -> Request:
    """Options of one batch as arrays; rows past those with a key are padding.

    `end_tokens` are the model's own; `ignore_eos` leaves them out. `matchers` are the rows'
    grammars; whoever made them keeps them alive.
    """
    keys = np.zeros((batch, 2), np.uint32)
    keys[: len(row_keys)] = row_keys
    stop_table = None
    if options.stop:
        stop_table = _stop_table(tuple(options.stop), _need(tokenizer), config.vocab_size)
    return Request(
        key=jnp.asarray(keys),
        sampling=_sampling(options, batch, config),
        stop_tokens=jnp.asarray(_stop_tokens(options, end_tokens, config), jnp.int32),
        stop_table=stop_table,
        grammar=_numbers(matchers, batch),
    )


def _numbers(matchers: Sequence[AnyMatcher | None], batch: int):
    if not any(matchers):
        return None
    numbers = np.zeros(batch, np.int32)
    for row, matcher in enumerate(matchers):
        numbers[row] = 0 if matcher is None else register(matcher)
    return jnp.asarray(numbers)


@functools.lru_cache(maxsize=8)
def _stop_table(stop: tuple[str, ...], tokenizer: Tokenizer, vocab_size: int):
    return compile_stop(stop, tokenizer.token_bytes, vocab_size).next_state


def _sampling(options: Options, batch: int, config: ModelConfig) -> Sampling:
    def rows(value, dtype, off):
        return None if value == off else jnp.full(batch, value, dtype)

    return Sampling(
        temperature=jnp.full(batch, options.temperature, jnp.float32),
        top_k=rows(options.top_k, jnp.int32, 0),
        top_p=rows(options.top_p, jnp.float32, 1.0),
        min_p=rows(options.min_p, jnp.float32, 0.0),
        repetition_penalty=rows(options.repetition_penalty, jnp.float32, 1.0),
        logit_bias=_bias(options.logit_bias, config),
    )


def _bias(bias: Mapping[int, float] | None, config: ModelConfig):
    if not bias:
        return None
    row = np.zeros(config.vocab_size, np.float32)
    for token, value in bias.items():
        checks.integer("logit_bias token id", token, low=0, high=config.vocab_size - 1)
        checks.number("logit_bias", value, "a finite number", lambda _: True)
        row[token] = value
    return jnp.asarray(row)


def ends(options: Options, end_tokens: Sequence[int]) -> list[int]:
    """Tokens that end a row: the model's own, unless they are ignored, and the caller's."""
    own = () if options.ignore_eos else end_tokens
    return list(dict.fromkeys([*own, *options.stop_tokens]))


def _stop_tokens(options: Options, end_tokens: Sequence[int], config: ModelConfig) -> list[int]:
    tokens = ends(options, end_tokens)
    for token in tokens:
        checks.integer("stop token id", token, low=0, high=config.vocab_size - 1)
    if len(tokens) > NUM_STOP_TOKENS:
        raise InputError(f"{len(tokens)} stop tokens; at most {NUM_STOP_TOKENS} are possible.")
    return tokens + [-1] * (NUM_STOP_TOKENS - len(tokens))
