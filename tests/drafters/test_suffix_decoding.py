"""Suffix decoding against a substring counter in plain Python on random texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.drafters import suffix_decoding as suffix
from jaxdecode.errors import InputError
from tests import toys

SIZE = 64


def count(text, piece):
    """Places of `piece` in `text` that are followed by a token of the text."""
    return sum(text[i : i + len(piece)] == piece for i in range(len(text) - len(piece)))


def occurrences(text, piece):
    """All places of `piece` in `text`."""
    return sum(text[i : i + len(piece)] == piece for i in range(len(text) - len(piece) + 1))


def probabilities(text, pattern, draft):
    """Share of the places of each prefix of pattern + draft that went on with the next token."""
    shares, piece = [], list(pattern)
    for token in draft:
        share = occurrences(text, [*piece, token]) / max(count(text, piece), 1)
        shares.append(share * (shares[-1] if shares else 1.0))
        piece.append(token)
    return shares


def reference(text, config, pattern=None):
    """The best score over match lengths and continuations, and all drafts that reach it."""
    pattern, drafts, best = pattern or text, [], 0.0
    for size in suffix.LENGTHS:
        tail = pattern[-size:]
        if size > len(pattern) or size < config.min_match:
            continue
        ends = [i + size for i in range(len(text) - size) if text[i : i + size] == tail]
        if not ends:
            continue
        shared = min(matched(text[:end], pattern) for end in ends)
        bound = int(config.max_spec_factor * shared + config.max_spec_offset)
        for end in ends:
            draft = text[end : end + min(bound, config.num_draft)]
            probs = [p for p in probabilities(text, tail, draft) if p >= config.min_token_prob]
            score = sum(probs)
            if score > best + 1e-5:
                drafts, best = [], score
            if score > best - 1e-5:
                drafts.append((draft[: len(probs)], shared))
    return drafts, best


def matched(text, pattern):
    """Tokens that two texts share at their ends."""
    size = 0
    while size < min(len(text), len(pattern), 64) and text[-1 - size] == pattern[-1 - size]:
        size += 1
    return size


def found(texts, config):
    """What `lookup` gives for each text, in slots that hold leftovers past its end."""
    canvas = np.random.default_rng(1).integers(0, 4, (len(texts), SIZE)).astype(np.int32)
    for row, text in zip(canvas, texts, strict=True):
        row[: len(text)] = text
    last = jnp.asarray([len(text) - 1 for text in texts], jnp.int32)
    search = jax.jit(jax.vmap(lambda row, last: suffix.lookup(row, last, row, last, config)))
    return jax.tree.map(np.asarray, search(jnp.asarray(canvas), last))


def random_texts(num, alphabet, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, alphabet, rng.integers(1, SIZE)).tolist() for _ in range(num)]


def agrees(texts, config, against=None):
    """Whether each draft is one of those with the best score, and its score is that."""
    drafts = found(texts, config)
    for i, text in enumerate(against or texts):
        wanted, best = reference(text, config)
        tokens = drafts.tokens[i][drafts.valid[i]].tolist()
        if abs(drafts.score[i] - best) > 1e-4:
            return False
        if best and (tokens, drafts.matched[i]) not in wanted:
            return False
    return True


CONFIGS = [
    suffix.Config(num_places=SIZE, max_spec_offset=0.0),
    suffix.Config(num_places=SIZE, max_spec_factor=2.0, max_spec_offset=1.0, min_token_prob=0.3),
    suffix.Config(num_places=SIZE, num_draft=4, min_token_prob=0.0, min_match=2),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("alphabet", [2, 6])
def test_scores_and_drafts_are_those_of_a_substring_counter(config, alphabet):
    assert agrees(random_texts(200, alphabet), config)


def test_the_comparison_can_fail():
    texts = random_texts(50, 4)
    other = [[*text[:-1], (text[-1] + 1) % 4] for text in texts]
    assert not agrees(other, CONFIGS[1], against=texts)


def test_counts_are_over_the_places_that_are_kept():
    text = [1, 2, 5] + [1, 3] * 6 + [1, 2, 7, 1]

    def first(**asked):
        return int(found([text], suffix.Config(**asked)).tokens[0][0])

    assert first(num_places=SIZE) == 3, "six of eight places went on with 3"
    assert first(num_places=1) == 2, "the latest one did not"


def test_the_text_that_promises_more_wins():
    config = suffix.Config(max_spec_offset=10.0, store=16)
    row = jnp.asarray([4, 5, 6, 0, 0, 0, 0, 0], jnp.int32)
    store = np.full(16, suffix.GAP, np.int32)
    store[4:9] = [5, 6, 7, 8, 9]
    draft = suffix.search(row, jnp.int32(2), jnp.asarray(store), config)
    assert draft.tokens[draft.valid].tolist() == [7, 8, 9], "the gap ends the draft"
    assert draft.matched == 2
    own = jnp.asarray([6, 1, 2, 3, 1, 1, 6, 0], jnp.int32)
    draft = suffix.search(own, jnp.int32(6), jnp.asarray(store), config)
    assert draft.tokens[draft.valid].tolist() == [1, 2, 3, 1, 1, 6]


def test_the_store_keeps_the_latest_outputs():
    def number(*values):
        return jnp.asarray(values, jnp.int32)

    state = suffix.State(
        store=number(-1, -1, 1, 2, -1, 3, 4, 5),
        start=number(1, 3),
        length=number(2, 2),
        tokens=number([9, 6, 7, 0], [9, 9, 9, 0]),
    )
    assert suffix._remember(state).tolist() == [2, -1, 3, 4, 5, -1, 6, 7]


def test_a_batch_learns_from_the_one_before_it():
    lm = toys.model()
    prompts = [[3, 1, 4], [3, 1, 4]]
    plain = jd.generate(lm, prompts, max_new_tokens=24)
    asked = dict(method="suffix_decoding", max_new_tokens=24, batch_size=1)
    out = jd.generate(lm, prompts, store=64, **asked)
    assert out.tokens == plain.tokens
    alone = jd.generate(lm, prompts[:1], **asked)
    assert out.stats[1].nfe < min(out.stats[0].nfe, alone.stats[0].nfe)


@pytest.mark.parametrize(
    "wrong", [{"num_draft": 0}, {"min_token_prob": 1.5}, {"max_spec_factor": -1.0}, {"store": -1}]
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        suffix.Config(**wrong)
