"""SpecReason: a small model writes a text step by step, the target judges each step by one digit.

A step goes up to the next delimiter. The target is asked for a digit from 0 to 9 about it; below
the threshold the step is thrown away and the target writes it itself. What is asked never gets into
the text. Threshold 0 gives the small model's text, threshold 10 the target's own.

Exactness: L3. Cost: a step of the small model and one pass of the target over the question, and for
a refused step the target's own; each segment prefills its text again.
Source: arXiv:2504.07891; differs: the digit is the likeliest of the ten rather than of all tokens,
no markers of a final answer, and no end at a repeated step.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

from jaxdecode import checks
from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.core.protocols import Writer
from jaxdecode.errors import InputError
from jaxdecode.options import Options
from jaxdecode.results import Generation, RowStats, collect

# Added to the scores of the digits, so that one of them is the judge's token.
_ONLY = 200.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        threshold: smallest digit with which a step of the small model is accepted; 0 accepts
            every step, 10 none.
        delimiter: text that ends a step.
        max_step_tokens: longest step.
        num_own_steps: first steps that the target writes itself.
        judge: what the target reads after a step, before its digit.
    """

    threshold: int = 7
    delimiter: str = "\n\n"
    max_step_tokens: int = 512
    num_own_steps: int = 0
    judge: str = "\n\nIs the last step right and useful? Score from 0 (no) to 9 (yes):\n"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("threshold", self.threshold, low=0, high=10)
        checks.integer("max_step_tokens", self.max_step_tokens, low=1)
        checks.integer("num_own_steps", self.num_own_steps, low=0)
        for name in ("delimiter", "judge"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}={getattr(self, name)!r} must be some text.")


@dataclasses.dataclass
class _Row:
    """A text under way.

    Attributes:
        tokens: prompt and accepted steps.
        start: tokens of the prompt.
        end: most tokens it may have.
        logprobs: of the new tokens, under the model that wrote them.
        finish: why it ended; None while it goes on.
        num_steps: steps so far.
        num_judged: steps that the target judged.
        nfe: target forward calls, the judge's included.
        forwarded: tokens that went through the target in them.
    """

    tokens: list[int]
    start: int
    end: int
    logprobs: list[float] = dataclasses.field(default_factory=list)
    finish: str | None = None
    num_steps: int = 0
    num_judged: int = 0
    nfe: int = 0
    forwarded: int = 0


@dataclasses.dataclass
class _Step:
    """One step of one row, cut to what the row may still take."""

    tokens: list[int]
    logprobs: list[float]
    finish: str | None


def run(
    config: Config,
    options: Options,
    prompts: Sequence[Sequence[int]],
    target: Writer,
    draft: Writer,
    progress: Callable[[int], None] | None,
) -> Generation:
    """Continues every prompt; rows may be in different phases.

    Args:
        config: options of this policy.
        options: options of the generation, for both models.
        prompts: token ids of every row.
        target: the judge, and writer of what the judge refuses.
        draft: the small model.
        progress: called with the number of new tokens after every round.
    """
    begin = time.perf_counter()
    tokenizer = _shared_tokenizer(target, draft)
    question = tokenizer.encode(config.judge, add_special=False)
    digits = digit_tokens(tokenizer)
    rows = []
    for prompt in prompts:
        end = min(len(prompt) + options.max_new_tokens, target.max_length)
        rows.append(_Row(list(prompt), len(prompt), end))
    while live := [i for i, row in enumerate(rows) if row.finish is None]:
        tried = [i for i in live if _may_try(rows[i], config, draft)]
        steps = _write(draft, tried, rows, options, config)
        room = target.max_length - len(question)
        asked = [i for i in tried if len(rows[i].tokens) + len(steps[i].tokens) < room]
        texts = [rows[i].tokens + steps[i].tokens + question for i in asked]
        scores = dict(zip(asked, _judge(target, asked, texts, digits), strict=True))
        for i in asked:
            rows[i].num_judged += 1
            rows[i].nfe += 1
            rows[i].forwarded += 1
        refused = [i for i in live if scores.get(i, -1) < config.threshold]
        steps |= _write(target, refused, rows, options, config, count=True)
        for i in live:
            _append(rows[i], steps[i])
        if progress is not None:
            progress(sum(len(row.logprobs) for row in rows))
    seconds = time.perf_counter() - begin
    return collect([_result(row, tokenizer, seconds) for row in rows])


def _shared_tokenizer(target: Writer, draft: Writer) -> Tokenizer:
    ours, theirs = target.tokenizer, draft.tokenizer
    if ours is None or theirs is None:
        which = "the model" if ours is None else "the draft model"
        raise InputError(
            f"method 'specreason' asks questions in text, but {which} has no tokenizer; put "
            "tokenizer.json or tokenizer.model beside its weights and convert again."
        )
    if ours.token_bytes != theirs.token_bytes:
        raise InputError(
            f"method 'specreason' needs two models with one vocabulary, but the model has "
            f"{ours.vocab_size} tokens and the draft model {theirs.vocab_size}, or others; use a "
            "draft model of the same family."
        )
    return ours


def digit_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """Value of every token that is a digit, alone or after a space."""
    found: dict[int, int] = {}
    for value in range(10):
        forms = [tokenizer.encode(f"{space}{value}", add_special=False) for space in ("", " ")]
        single = {tokens[0]: value for tokens in forms if len(tokens) == 1}
        if not single:
            raise InputError(
                f"method 'specreason' needs digits that are one token each, but {value} is "
                f"{len(forms[0])} tokens of this vocabulary; use another method."
            )
        found |= single
    return found


def _may_try(row: _Row, config: Config, draft: Writer) -> bool:
    return row.num_steps >= config.num_own_steps and len(row.tokens) < draft.max_length


def _write(
    writer: Writer,
    members: list[int],
    rows: list[_Row],
    options: Options,
    config: Config,
    *,
    count: bool = False,
) -> dict[int, _Step]:
    """The next step of each of some rows; `count` adds its cost to the rows."""
    if not members:
        return {}
    longest = max(rows[i].end - len(rows[i].tokens) for i in members)
    asked = dataclasses.replace(
        options,
        max_new_tokens=min(config.max_step_tokens, longest),
        stop=(config.delimiter,),
    )
    out = writer.write(members, [rows[i].tokens for i in members], asked)
    steps = {}
    for at, i in enumerate(members):
        left = rows[i].end - len(rows[i].tokens)
        tokens = out.tokens[at][:left]
        if out.finish_reasons[at] == "stop" and len(out.tokens[at]) <= left:
            finish = "stop"
        else:
            finish = "length" if len(tokens) == left else None
        steps[i] = _Step(tokens, out.logprobs[at][:left], finish)
        if count:
            rows[i].nfe += out.stats[at].nfe
            rows[i].forwarded += out.stats[at].tokens_forwarded
    return steps


def _judge(
    target: Writer, members: list[int], texts: list[list[int]], digits: dict[int, int]
) -> list[int]:
    """The target's digit about the last step of each text."""
    if not members:
        return []
    asked = Options(max_new_tokens=1, ignore_eos=True, logit_bias=dict.fromkeys(digits, _ONLY))
    return [digits[tokens[0]] for tokens in target.write(members, texts, asked).tokens]


def _append(row: _Row, step: _Step) -> None:
    row.tokens = row.tokens + step.tokens
    row.logprobs = row.logprobs + step.logprobs
    row.finish = step.finish
    row.num_steps += 1


def _result(row: _Row, tokenizer: Tokenizer, seconds: float) -> tuple:
    """The row's fields of `Generation`, in order."""
    tokens = row.tokens[row.start :]
    stats = RowStats(
        num_tokens=len(tokens),
        nfe=row.nfe,
        acceptance_length=len(tokens) / max(row.nfe, 1),
        tokens_forwarded=row.forwarded,
        seconds=seconds,
        tokens_per_second=len(tokens) / seconds,
        num_judged=row.num_judged,
    )
    steps = list(range(len(tokens)))
    return tokenizer.decode(tokens), tokens, row.logprobs, row.finish, stats, steps, []
