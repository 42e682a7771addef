"""Whole plans and searches, compiled for this machine's CPU."""

import jax
import pytest

from jaxdecode.errors import InputError, UnsupportedError
from jaxdecode.plan import curve, programs, report, search
from tests.plan import small


@pytest.fixture(scope="module")
def plan():
    return report.make(
        small.setup(), small.topology(), curve=curve.DEFAULT, nodes=(4,), with_prefill=False
    )


def test_a_plan_lists_what_was_compiled(plan):
    assert [program.name for program in plan.programs] == ["decode", "verify, 4 nodes"]
    assert plan.fits and plan.failure is None and plan.memory.missing == 0
    memory = plan.memory
    parts = memory.weights + memory.cache + memory.temporaries + memory.other
    assert parts == memory.needed <= memory.available
    # The cache is updated in place.
    assert all(program.aliased >= memory.cache for program in plan.programs)


def test_the_ladder_knows_what_was_compiled(plan):
    # Nothing is said beyond the last compiled one.
    assert [rung.nodes for rung in plan.ladder] == [1, 2, 4]
    assert [rung.nodes for rung in plan.ladder if rung.compiled] == [1, 4]
    by_nodes = {rung.nodes: rung for rung in plan.ladder}
    assert by_nodes[1].cost == 1 and by_nodes[1].tokens == 1
    low, mid, high = (by_nodes[n].hbm_bytes for n in (1, 2, 4))
    assert low < mid < high
    for rung in plan.ladder:
        assert rung.hbm_bytes >= rung.floor_bytes
    best = max(plan.ladder, key=lambda rung: rung.tokens_per_second)
    assert plan.recommended == best.nodes


def test_a_plan_is_json(plan):
    import json

    found = json.loads(json.dumps(report.as_dict(plan)))
    assert found["fits"] is True and found["memory"]["missing"] == 0
    assert {"mesh", "ladder", "programs", "recommended", "curve"} <= set(found)


def test_what_does_not_fit_is_not_compiled():
    made = small.setup()
    needed = report.arguments(made, small.topology().chip).needed
    plan = report.make(made, small.topology(needed - 7), curve=curve.DEFAULT, nodes=(4,))
    assert not plan.fits and plan.memory.missing == 7
    assert plan.programs == () and plan.ladder == () and plan.recommended is None


def test_the_compiler_may_refuse_what_seemed_to_fit(monkeypatch):
    def refuse(*args):
        raise programs.OutOfMemory("HBM is full")

    monkeypatch.setattr(programs, "compile_step", refuse)
    plan = report.make(small.setup(), small.topology(), curve=curve.DEFAULT, nodes=(4,))
    assert not plan.fits and plan.failure == "HBM is full" and plan.ladder == ()


def space(**options):
    given = {"config": small.CONFIG, "topology": small.topology(), "devices": jax.devices()[:1]}
    given |= {"context": 100, "dtype": "float32", "attention": "xla", "layers": "stacked"}
    return search.Space(**given | options)


def test_a_search_ranks_what_is_open():
    found = search.rank(space(), curve.DEFAULT)
    speeds = [candidate.tokens_per_second for candidate in found]
    assert speeds == sorted(speeds, reverse=True)
    assert {candidate.cache_dtype for candidate in found} == set(search.CACHE_DTYPES)
    assert len({candidate.batch for candidate in found}) > 3
    fixed = search.rank(space(batch=4, cache_dtype="float32"), curve.DEFAULT)
    assert [(c.batch, c.cache_dtype) for c in fixed] == [(4, "float32")]


def test_a_search_compiles_the_best():
    asked = space(batch=4)
    candidates = search.rank(asked, curve.DEFAULT)
    ticks = []
    plans = search.best(asked, candidates, curve.DEFAULT, tick=lambda: ticks.append(1))
    assert len(ticks) == search.num_programs(candidates)
    assert plans[0].fits and plans[0].batch == 4


def test_a_search_says_what_the_smallest_lacks():
    with pytest.raises(UnsupportedError, match="nothing fits.*GB of weights.*GB of cache"):
        search.rank(space(topology=small.topology(1000)), curve.DEFAULT)


def test_heads_can_be_kept_whole():
    # Two KV heads on four devices: one each, twice.
    with pytest.raises(InputError, match="cannot be split|needs 4 devices|do not divide"):
        search.setup(space(whole_heads=True), {"data": 1, "model": 4}, 2, "float32")


@pytest.mark.parametrize("name", ["draft_model", "judge_decoding", "specreason"])
def test_methods_that_need_more_than_a_shape_are_refused(name):
    with pytest.raises(UnsupportedError, match="plan --method ar"):
        programs.check_method(name)


def test_nodes_of_methods():
    made = small.setup()
    assert programs.num_nodes(made, "ar", {}) == 1
    assert programs.num_nodes(made, "token_recycling", {"tree": "recycling_16"}) == 17
    assert programs.num_nodes(made, "prompt_lookup", {"num_draft": 5}) == 6


def test_a_whole_method_compiles():
    made = small.setup()
    found = programs.compile_method(made, "prompt_lookup", {})
    assert found.name == "step of prompt_lookup" and found.traffic is not None
    assert len(found.traffic.unknown_loops) >= 1
