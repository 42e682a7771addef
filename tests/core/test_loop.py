"""The loop's contract, with drafters that know the future, know nothing, or lie."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode import engine, options
from jaxdecode.caches import dense
from jaxdecode.core import loop
from jaxdecode.core.protocols import Drafter, Method
from jaxdecode.core.types import Proposal
from jaxdecode.models import decoder
from jaxdecode.plan import hlo, traffic
from jaxdecode.verifiers import sample_match
from tests import toys

NEW = 24
MATCH = sample_match.make(sample_match.Config(), None)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8]]
# A chain of three, with a wrong sibling in front of each node.
PARENT = [-1, 0, 0, 2, 2, 4, 4]
DEPTH = [0, 1, 1, 2, 2, 3, 3]


def scripted(script, wrong=False) -> Method:
    """Proposes `script[b, position]` along even nodes and a wrong token at odd ones."""
    script = np.asarray(script)
    return _scripted(script.tobytes(), script.shape, wrong)


@functools.cache  # the identity of a method keys compiled programs
def _scripted(script, shape, wrong) -> Method:
    script = np.frombuffer(script, np.int32).reshape(shape)
    parent, depth = np.asarray(PARENT), np.asarray(DEPTH)

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        position = canvas.length[:, None] + depth[None]
        good = jnp.take_along_axis(jnp.asarray(script), position, axis=1)
        is_good = (np.arange(len(parent)) % 2 == 0) & (not wrong)
        pending = jnp.take_along_axis(canvas.tokens, canvas.length[:, None], axis=1)
        tokens = jnp.where(is_good, good, (good + 1) % 61).at[:, 0].set(pending[:, 0])
        shape = tokens.shape
        return Proposal(
            tokens=tokens,
            parent=jnp.broadcast_to(parent, shape),
            depth=jnp.broadcast_to(depth, shape),
            valid=jnp.ones(shape, bool),
            max_depth=int(depth.max()),
        ), state

    drafter = Drafter(
        init=lambda weights, request, canvas, view, memory: (),
        propose=propose,
        update=lambda weights, state, request, canvas, proposal, verdict, output: state,
        max_depth=int(depth.max()),
    )
    return Method(drafter=drafter, verifier=MATCH, cache=dense.make())


def decode(lm, method, prompts=PROMPTS, **asked):
    chosen = options.Options(**({"max_new_tokens": NEW} | asked))
    built = toys.engine(lm, method)
    request = toys.request(lm, chosen, prompts)
    (snapshot,) = engine.run(built, request, prompts, chosen.max_new_tokens, iter([1000]))
    rows = [snapshot.new_tokens(b, len(p)).tolist() for b, p in enumerate(prompts)]
    return rows, snapshot


def future(lm, **asked):
    """The canvas plain decoding ends with: what an oracle would propose."""
    _, snapshot = decode(lm, toys.method(lm, "ar"), **asked)
    return snapshot.canvas.tokens


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_any_proposal_gives_the_tokens_of_plain_decoding(name, temperature):
    lm, law = toys.model(name), dict(temperature=temperature)
    expected, plain = decode(lm, toys.method(lm, "ar"), **law)
    oracle, best = decode(lm, scripted(future(lm, **law)), **law)
    liar, worst = decode(lm, scripted(future(lm, **law), wrong=True), **law)
    assert oracle == expected == liar
    assert best.stats.nfe[:3].tolist() == [NEW // 4] * 3, "an oracle's tree is accepted whole"
    assert worst.stats.nfe[:3].tolist() == [NEW] * 3, "a liar costs steps, never tokens"
    assert plain.stats.nfe.tolist() == [NEW] * 3 + [0], "padding rows are never counted"
    assert best.stats.num_accepted[:3].tolist() == [NEW - NEW // 4] * 3
    assert best.stats.tokens_forwarded[:3].tolist() == [NEW // 4 * len(PARENT)] * 3
    np.testing.assert_allclose(best.canvas.logprob, plain.canvas.logprob, atol=1e-5)


def test_a_verifier_that_accepts_without_looking_is_caught():
    lm = toys.model()
    honest = scripted(future(lm), wrong=True)

    def trusting(weights, request, canvas, proposal, output):
        verdict = MATCH.verify(weights, request, canvas, proposal, output)
        path = jnp.broadcast_to(jnp.array([0, 1, 3, 5]), verdict.path.shape)
        tokens = jnp.concatenate([proposal.tokens[:, 1::2], verdict.tokens[:, :1]], axis=1)
        accepted = jnp.full_like(verdict.num_accepted, 3)
        return dataclasses.replace(verdict, tokens=tokens, path=path, num_accepted=accepted)

    broken = honest._replace(verifier=honest.verifier._replace(verify=trusting))
    assert decode(lm, broken)[0] != decode(lm, toys.method(lm, "ar"))[0]


@pytest.mark.parametrize("length", [1, 2, 3, 5, NEW])
def test_rows_end_exactly_at_their_bound(length):
    lm = toys.model()
    script = future(lm)
    rows, snapshot = decode(lm, scripted(script), max_new_tokens=length)
    for b, prompt in enumerate(PROMPTS):
        assert rows[b] == script[b, len(prompt) : len(prompt) + length].tolist()
        untouched = snapshot.canvas.commit_step[b, len(prompt) + length :]
        assert (untouched == -1).all() and snapshot.canvas.open[b, len(prompt) + length :].all()
    assert (snapshot.canvas.finish[:3] == 3).all()


def test_nothing_is_written_past_a_stop_token_in_the_middle_of_a_path():
    lm = toys.model()
    script = future(lm)
    for place in range(1, 9):
        stop = int(script[0, len(PROMPTS[0]) + place])
        rows, snapshot = decode(lm, scripted(script), stop_tokens=[stop])
        for b, prompt in enumerate(PROMPTS):
            full = script[b, len(prompt) : len(prompt) + NEW].tolist()
            cut = full[: full.index(stop) + 1] if stop in full else full
            assert rows[b] == cut
            end = len(prompt) + len(cut)
            assert (snapshot.canvas.tokens[b, end:] == 0).all()
            assert (snapshot.canvas.logprob[b, end:] == 0).all()


def test_cache_after_a_run_is_that_of_a_fresh_pass():
    lm = toys.model("gemma")
    state = None
    built = toys.engine(lm, scripted(future(lm)))
    chosen = options.Options(max_new_tokens=NEW)
    request = toys.request(lm, chosen, PROMPTS)
    state = engine.prefilled(built, request, PROMPTS, NEW)
    state = loop.run(
        built.weights, request, state, jnp.int32(100), target=lm.target, method=built.method
    )
    canvas = jax.device_get(state.canvas)
    for b in range(3):
        length = int(canvas.length[b])
        _, rows = toys.rows_of(lm, canvas.tokens[b, :length])
        for layer in range(lm.config.num_layers):
            np.testing.assert_allclose(
                state.cache.key[layer][b, :, :, :length],
                rows[0][layer][0, :, :, :length],
                atol=1e-4,
            )
            np.testing.assert_allclose(
                state.cache.value[layer][b, :, :length], rows[1][layer][0, :, :length], atol=1e-4
            )


def test_a_few_steps_at_a_time_is_the_same_run():
    lm = toys.model()
    chosen = options.Options(max_new_tokens=NEW, temperature=1.0)
    built = toys.engine(lm, toys.method(lm, "ar"))
    request = toys.request(lm, chosen, PROMPTS)
    pieces = list(engine.run(built, request, PROMPTS, NEW, iter([1, 2, 5, 100])))
    whole, _ = decode(lm, toys.method(lm, "ar"), temperature=1.0)
    assert [s.canvas.length[0] - pieces[0].canvas.length[0] for s in pieces] == [0, 2, 7, 23]
    assert [pieces[-1].new_tokens(b, len(p)).tolist() for b, p in enumerate(PROMPTS)] == whole


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_loop_lowers_for_every_platform(platform, stacked):
    lm = toys.model("gemma")
    params = dict(lm.params)
    if stacked:
        params["layers"] = decoder.stack(params["layers"])
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    built = toys.engine(lm, toys.method(lm, "ar"), params=half, kv_dtype=jnp.bfloat16)
    chosen = options.Options(max_new_tokens=NEW, temperature=1.0, top_p=0.9)
    request = toys.request(lm, chosen, PROMPTS)
    state = engine.prefilled(built, request, PROMPTS, NEW)
    traced = loop.run.trace(
        built.weights, request, state, jnp.int32(1), target=lm.target, method=built.method
    )
    assert "stablehlo.while" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_no_pass_of_a_few_slots_copies_the_cache():
    """One of each width in a program; what is copied anywhere is made there, by the wide one."""
    lm = toys.denoiser(block=4)
    built = toys.built(lm, "fast_dllm", block_length=4, reuse="block")
    assert len(built.method.drafter.widths) == 2
    request = toys.request(lm, options.Options(max_new_tokens=NEW), PROMPTS)
    state = engine.prefilled(built, request, PROMPTS, NEW)
    cache, parts = state.cache, {"target": lm.target, "method": built.method}
    program = loop.run.lower(built.weights, request, state, jnp.int32(9), **parts).compile()
    module = hlo.parse(program.as_text())
    found = {i.name: i for i in module.instructions()}
    for array in (cache.key[0], cache.value[0]):
        for name in traffic.copies(module, array.shape):
            assert found[found[name].operands[0]].opcode not in ("get-tuple-element", "parameter")
