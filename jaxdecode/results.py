"""What a generation gives back, row by row."""

import dataclasses
from collections.abc import Sequence

from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.core.types import FINISH_REASONS
from jaxdecode.engine import Snapshot
from jaxdecode.options import Options
from jaxdecode.sampling.stop import cut_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowStats:
    """Statistics of one row.

    Attributes:
        num_tokens: new tokens, the stop token included.
        nfe: target forward calls the row took part in.
        acceptance_length: new tokens per target call; 1.0 for plain decoding.
        tokens_forwarded: query tokens pushed through the target for this row.
        seconds: wall time of the row's batch, prefill and any compilation included.
        tokens_per_second: num_tokens / seconds.
    """

    num_tokens: int
    nfe: int
    acceptance_length: float
    tokens_forwarded: int
    seconds: float
    tokens_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What `generate` returns; every list has one entry per prompt, in order.

    Attributes:
        texts: decoded new tokens, cut before a stop string; None without a tokenizer.
        tokens: new token ids, including the token that ended the row.
        logprobs: log-probability of each new token under the model (temperature 1, no warp).
        finish_reasons: "stop" (stop token), "stop_string" or "length".
        stats: counters and times.
        steps: step of the loop at which each new token was committed.
    """

    texts: list[str | None]
    tokens: list[list[int]]
    logprobs: list[list[float]]
    finish_reasons: list[str]
    stats: list[RowStats]
    steps: list[list[int]]


def collect(rows: Sequence[tuple]) -> Generation:
    """One `Generation` from the results of its rows."""
    names = [field.name for field in dataclasses.fields(Generation)]
    columns = map(list, zip(*rows, strict=True))
    return Generation(**dict(zip(names, columns, strict=True)))


def row_result(
    tokenizer: Tokenizer | None, snapshot: Snapshot, row: int, start: int, options: Options
) -> tuple:
    """One row's fields of `Generation`, in order; its new tokens begin at slot `start`."""
    tokens = snapshot.new_tokens(row, start).tolist()
    end = start + len(tokens)
    text = None
    if tokenizer is not None:
        text = cut_text(tokenizer.decode(tokens), options.stop)
    nfe = int(snapshot.stats.nfe[row])
    stats = RowStats(
        num_tokens=len(tokens),
        nfe=nfe,
        acceptance_length=len(tokens) / max(nfe, 1),
        tokens_forwarded=int(snapshot.stats.tokens_forwarded[row]),
        seconds=snapshot.seconds,
        tokens_per_second=len(tokens) / snapshot.seconds,
    )
    return (
        text,
        tokens,
        snapshot.canvas.logprob[row, start:end].tolist(),
        FINISH_REASONS[int(snapshot.canvas.finish[row])],
        stats,
        snapshot.canvas.commit_step[row, start:end].tolist(),
    )
