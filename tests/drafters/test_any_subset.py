"""Slots told in a fixed order: the masks, the joint law, and drafts that do not change it."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core import masks
from jaxdecode.core.protocols import Models
from jaxdecode.core.types import Drafted, Sampling
from jaxdecode.drafters import any_subset
from jaxdecode.errors import InputError
from jaxdecode.evals import exactness_fill, filling, lists, oracles, sampled
from jaxdecode.evals import toys as smallest
from jaxdecode.trees import walk
from jaxdecode.verifiers import ranked
from tests import toys
from tests.commits import blocks

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
SLOTS = tuple(range(sampled.NUM_NEW))


def generate(method, lm=None, prompts=PROMPTS, **asked):
    return jd.generate(lm or toys.denoiser(), prompts, method=method, max_new_tokens=17, **asked)


def pass_over(text, given, order="left_to_right", num_draft=5):
    """Scores of all slots of the order from one pass, every undecided slot but the last drafted.

    Returns:
        The window, and the scores of its slots in their order.
    """
    lm = smallest.denoiser()
    open = ~np.asarray(given)
    canvas = blocks.canvas(1, len(text) - 1)
    padded = jnp.asarray([[*text, 0, 0, 0]])
    canvas = dataclasses.replace(
        canvas, tokens=padded, open=jnp.asarray([[*open, True, True, True]])
    )
    config = any_subset.Config(num_draft=num_draft, order=order)
    drafter = any_subset.make(config, Models(lm.bound))
    state = drafter.init(None, blocks.request(1), canvas, None, None)
    place = np.asarray(state.place[0])
    slot = np.argsort(np.where(place < 0, 99, place))[:num_draft]
    state = dataclasses.replace(state, tokens=padded[:, slot], calls=state.calls + 1)
    window, _ = drafter.propose(None, state, None, canvas, None)
    return window, np.array(_scores(lm.params, window, lm.target)[0, : open.sum()])


@functools.partial(jax.jit, static_argnames="target")
def _scores(params, window, target):
    output = target.forward(params, window.tokens, masks.window_program(window), None)
    return target.logits(params, output.hidden)


GIVEN = [True, False, True, False, False, True, False]
TEXT = [0, 1, 2, 3, 4, 0, 2]


@pytest.mark.parametrize("order", ["left_to_right", "random"])
def test_one_pass_has_the_conditionals_of_one_slot_at_a_time(order):
    """Against plain passes over a text that holds no slot but those that are known."""
    lm = smallest.denoiser()
    window, scores = pass_over(TEXT, GIVEN, order)
    turns = np.asarray(window.decides[0, :4])
    assert sorted(turns) == [1, 3, 4, 6]
    known = [slot for slot, is_given in enumerate(GIVEN) if is_given]
    for depth, slot in enumerate(turns):
        at = np.asarray([*known, *turns[: depth + 1]], np.int32)
        level = np.asarray([0] * len(known) + list(range(1, depth + 2)), np.int32)
        row = np.asarray([[*(TEXT[i] for i in at[:-1]), smallest.VOCAB - 1]], np.int32)
        wanted = filling._last_scores(lm.params, row, at, level, target=lm.target)[0]
        np.testing.assert_allclose(scores[depth], wanted, atol=1e-4)
        assert slot == at[-1]


def test_the_joint_log_probability_of_one_pass_is_that_of_the_chain_rule():
    start = len(sampled.PROMPT)
    law = filling.in_turn(smallest.denoiser(), sampled.PROMPT, SLOTS, 1.0)
    for answer in [(0, 1, 2, 3), (4, 4, 0, 1)]:
        text = [*sampled.PROMPT, *answer]
        _, scores = pass_over(text, np.arange(len(text)) < start)
        scores[:, smallest.VOCAB - 1] = -np.inf
        logprobs = np.asarray(jax.nn.log_softmax(scores))
        total = sum(logprobs[i, token] for i, token in enumerate(answer))
        assert total == pytest.approx(np.log(law[answer]), abs=1e-4)


@pytest.mark.parametrize("order", ["left_to_right", "random"])
def test_what_comes_later_changes_nothing_before_it(order):
    window, scores = pass_over(TEXT, GIVEN, order)
    for depth, slot in enumerate(np.asarray(window.decides[0, :4])):
        other = list(TEXT)
        other[slot] = (other[slot] + 1) % 5
        changed = pass_over(other, GIVEN, order)[1]
        assert (changed[: depth + 1] == scores[: depth + 1]).all()
        assert depth == 3 or abs(changed[depth + 1] - scores[depth + 1]).max() > 1e-3


def test_pairs_that_do_not_see_each_other_are_as_many_as_the_formula_says():
    """n (n + 1) / 2 among undecided slots as queries see them, and n per given slot."""
    window, _ = pass_over(TEXT, GIVEN)
    sees = np.asarray(masks.dense(masks.window_program(window), num_slots=0, window=0)[1][0])
    first = window.decides.shape[1]
    undecided, given = [first + i for i in (1, 3, 4, 6)], [first + i for i in (0, 2, 5)]
    queries = sees[:4][:, undecided]
    assert (~queries).sum() == 4 * 5 / 2 and sees[:4][:, given].all()
    assert (~sees[np.ix_(given, undecided)]).all() and sees[np.ix_(given, given)].all()
    assert sees[:, :first].sum() == first  # queries are seen by themselves only


@pytest.mark.parametrize("num_draft", [1, 2, 5])
def test_greedy_text_is_that_of_one_slot_per_pass(num_draft):
    plain, ours = generate("any_subset"), generate("assd", num_draft=num_draft)
    assert ours.tokens == plain.tokens
    for a, b in zip(ours.logprobs, plain.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert all(stats.nfe == 17 for stats in plain.stats)
    assert all(stats.nfe <= 17 for stats in ours.stats)
    assert sum(stats.nfe for stats in ours.stats) < 3 * 17


@pytest.mark.parametrize("num_draft", [1, 5])
def test_a_text_in_between_is_filled_with_what_stands_after_it_seen(num_draft):
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    spans = [
        {"tokens": [*text, *[None] * 5, *text[:2], *[None] * 3]},
        {"tokens": [*text[::-1], *[None] * 7, 8]},
    ]
    plain = jd.infill(toys.denoiser(), spans, method="any_subset")
    ours = jd.infill(toys.denoiser(), spans, method="assd", num_draft=num_draft)
    assert ours.tokens == plain.tokens


def counts(num_draft, rule=None, samples=20_000, **options):
    ready = exactness_fill._setup("assd", {"num_draft": num_draft} | options)
    if rule is not None:
        ready = ready._replace(method=ready.method._replace(verifier=ranked.by_rule(rule)))
    return sampled.counts(ready, samples)


def always(visit):
    """The broken twin that keeps every draft."""
    kept = jnp.log(jax.nn.one_hot(visit.tokens[0], len(visit.scores)))
    return jnp.where(visit.valid[0], kept, visit.scores)


def whole_law(visit):
    """The broken twin that draws from the target's law after a refusal."""
    return jnp.where(visit.valid[0], exactness_fill.wrong_residual(visit), visit.scores)


@pytest.fixture(scope="module")
def law():
    return exactness_fill.law_of("told_left_to_right")


@pytest.mark.parametrize("num_draft", [1, 3])
def test_samples_have_the_joint_law_and_need_fewer_passes(num_draft, law):
    found = counts(num_draft)
    assert sampled.chi_square(found.cells, law) > 1e-4
    assert found.accepted > 0.3


@pytest.mark.parametrize("rule", [always, whole_law])
def test_samples_of_broken_rules_have_not(rule, law):
    assert sampled.chi_square(counts(3, rule).cells, law) < 1e-9


def test_the_law_given_a_draft_is_the_targets_law_over_all_drafts():
    target, draft = np.random.default_rng(0).dirichlet(np.full(5, 0.5), (2, 20)).astype(np.float32)

    def law(scores, probs, token):
        greedy, one = jnp.bool_(False), jnp.array([True])
        return jnp.exp(ranked._rejection(walk.Visit(scores, greedy, probs, token[None], one, None)))

    over_tokens = jax.vmap(law, in_axes=(None, None, 0))
    laws = jax.jit(jax.vmap(over_tokens, in_axes=(0, 0, None)))
    found = laws(jnp.log(target), draft, jnp.arange(5))
    np.testing.assert_allclose((draft[..., None] * found).sum(1), target, atol=1e-6)


@pytest.mark.parametrize("task", ["shuffle", "replace"])
def test_dependent_slots_are_right_in_fewer_passes(task):
    """With the exact law of every slot; two slots per pass as if independent: 0.375, 0.656."""
    problem = lists.problems(task, 4, 1)[0]
    asked = dict(n=512, batch_size=512, max_new_tokens=4, temperature=1.0)
    out = jd.generate(oracles.lists_model(4), [problem.prompt], method="assd", **asked)
    assert all(problem.accepts(answer) for answer in out.tokens)
    passes = [stats.nfe for stats in out.stats]
    assert max(passes) <= 4 and np.mean(passes) < 3
    if task == "shuffle":
        found = [tuple(answer) for answer in out.tokens]
        every = list(itertools.permutations(problem.items))
        seen = np.asarray([found.count(answer) for answer in every])
        assert sampled.chi_square(seen, np.full(24, 1 / 24)) > 1e-4


@pytest.mark.parametrize(("num_draft", "passes"), [(0, 6), (1, 4), (2, 3), (5, 2)])
def test_slots_that_do_not_depend_on_each_other_come_num_draft_and_one_per_pass(num_draft, passes):
    """After the first pass, which has no drafts."""
    problem = lists.problems("sort", 6, 1)[0]
    asked = dict(max_new_tokens=6, temperature=1.0, num_draft=num_draft)
    out = jd.generate(oracles.lists_model(6), [problem.prompt], method="assd", **asked)
    assert problem.accepts(out.tokens[0]) and out.stats[0].nfe == passes


def test_a_random_order_is_one_of_its_own_per_row():
    out = generate("any_subset", prompts=[[1, 2, 3]] * 2, order="random", seed=[0, 1])
    assert sorted(out.steps[0]) == list(range(17)) and out.steps[0] != out.steps[1]
    assert generate("any_subset").steps[0] == list(range(17))


@pytest.mark.parametrize(("parts", "kind"), [({"block": 8}, "blocks"), ({"shifted": True}, "shif")])
def test_models_that_do_not_see_the_whole_text_are_refused(parts, kind):
    with pytest.raises(InputError, match=f"this model has {kind}.*for example 'llada'"):
        generate("assd", toys.denoiser(**parts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draft": -1}, "num_draft"),
        ({"num_draft": 64}, "num_draft"),
        ({"order": "entropy"}, "order='entropy'"),
        ({"reuse": "dual"}, "reuse"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        generate("assd", **options)


def test_the_mask_token_has_no_chance_in_either_law():
    lm = toys.denoiser()
    mask = lm.config.denoiser.mask_token
    canvas = blocks.canvas(1, 4)
    drafter = any_subset.make(any_subset.Config(num_draft=2), Models(lm.bound))
    request = dataclasses.replace(blocks.request(1), sampling=Sampling(temperature=jnp.ones(1)))
    state = drafter.init(None, request, canvas, None, None)
    window, state = drafter.propose(None, state, request, canvas, None)
    logits = jnp.zeros((1, 5, lm.config.vocab_size)).at[..., mask].set(50.0)
    output = dataclasses.make_dataclass("Output", ["logits"])(logits)
    verdict = ranked.make(ranked.Config(), None).verify(None, request, canvas, window, output)
    assert isinstance(window.drafted, Drafted) and mask not in np.asarray(verdict.tokens)
    state = drafter.update(None, state, request, canvas, window, verdict, output)
    assert (np.asarray(state.probs[..., mask]) == 0).all()
    np.testing.assert_allclose(state.probs.sum(-1), 1.0, atol=1e-6)
