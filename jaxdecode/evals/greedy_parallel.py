"""How few passes a text takes if all that is right is decided at once: what learned rules aim at.

Each pass decides every slot of the block whose candidate is the text's own token; where there is
none, the rest of the block is given. This is the loop itself, with a verifier that knows the text.

    out = jd.generate(lm, prompts, method="llada", block_length=32)
    passes(lm, prompts, out.tokens, block_length=32)

Source: arXiv:2509.25188 section 3 (extremely greedy parallel).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode import api, resolve
from jaxdecode import engine as engines
from jaxdecode.commits import picked
from jaxdecode.core.protocols import Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Window
from jaxdecode.sampling import confidence, noise
from jaxdecode.trees import walk
from jaxdecode.verifiers import denoise


def passes(
    lm: api.LanguageModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    block_length: int = 0,
) -> list[int]:
    """Passes that each answer takes, greedily.

    Args:
        lm: a model that fills slots.
        prompts: token ids.
        answers: what is to be arrived at; all of one length.
        block_length: as of `llada`.

    Raises:
        InputError: the model cannot fill slots, or not with these blocks.
    """
    (size,) = {len(answer) for answer in answers}
    asked = {"max_new_tokens": size, "block_length": block_length, "ignore_eos": True}
    chosen, choice = resolve.split("llada", asked)
    engine = api._engine(lm, choice, None)
    # Rows are decoded in order of length, and the batch may be larger than there are rows.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    known = np.zeros((engines.batch_bucket(len(prompts)), lm.config.max_length), np.int32)
    for row, i in enumerate(order):
        known[row, len(prompts[i]) :][:size] = answers[i]
    rule = picked.make(picked.Config(), Models(lm.bound))
    engine.method = engine.method._replace(verifier=_KNOWING, commit=rule)
    engine.weights = Weights(target=lm.params, heads=jnp.asarray(known))
    keys = [noise.row_key(0, list(prompt)) for prompt in prompts]
    out = api._decode(lm, engine, prompts, keys, chosen, len(prompts), None)
    assert out.tokens == [list(answer) for answer in answers]
    return [stats.nfe for stats in out.stats]


def _verify(
    weights: Weights, request: Request, canvas: Canvas, proposal: Window, output: TargetOutput
) -> Candidates:
    found = walk.by_row(denoise.candidates, request, canvas, proposal, output.logits)
    text = confidence.taken(weights.heads, proposal)
    right = proposal.open & (found.tokens == text)
    chosen = right | (proposal.open & ~right.any(-1, keepdims=True))
    own = jnp.take_along_axis(found.scores, text[..., None], axis=-1)[..., 0]
    logprob = own - jax.nn.logsumexp(found.scores, axis=-1)
    return Candidates(tokens=text, logprob=logprob, scores=found.scores, picked=chosen)


# One bundle for all calls: programs are kept by it.
_KNOWING = Verifier(verify=_verify, windows=True)
