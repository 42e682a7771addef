"""`bench`: who runs when, what is compared, and the sums against values worked out by hand."""

import collections

import jax.numpy as jnp
import pytest

from jaxdecode import api, resolve
from jaxdecode.core import registry
from jaxdecode.errors import InputError, UnknownNameError
from jaxdecode.evals import bench, summary, ties
from jaxdecode.verifiers import sample_match
from tests import toys

CASES = [
    bench.Case("s:1", "news", [3, 1, 4, 1, 5], 0),
    bench.Case("s:2", "chat", [9, 2], 0),
    bench.Case("s:3", "news", [2, 6, 5, 3, 5, 8, 9, 7, 9], 1),
    bench.Case("s:4", "chat", [1, 2, 1, 2, 1, 2], 0),
    bench.Case("s:5", "news", [7], 0),
]


def plan(methods="prompt_lookup", **changes):
    lines = bench.parse_lines(methods)
    return bench.Plan(lines=lines, max_new_tokens=10, **changes)


@pytest.fixture
def broken(monkeypatch):
    """A line that claims to be exact, but whose rule likes token 5 too much."""
    entry = registry.METHODS["prompt_lookup"]._replace(verifier="broken")
    monkeypatch.setitem(registry.METHODS, "broken", entry)

    def make(config, models):
        del config, models

        def like(visit):
            return visit.scores.at[5].add(4.0)

        return sample_match.walk.make(like, reads_children=False)

    module = type("broken", (), {"Config": sample_match.Config, "make": staticmethod(make)})
    found = resolve._module
    monkeypatch.setattr(resolve, "_module", lambda *at: module if at[1] == "broken" else found(*at))
    resolve.method_of.cache_clear()
    yield
    resolve.method_of.cache_clear()


def test_lines_are_read():
    lines = bench.parse_lines("prompt_lookup:num_draft=4:ngram=2,prompt_lookup,ar")
    assert [line.label for line in lines] == [
        "ar",
        "prompt_lookup:num_draft=4:ngram=2",
        "prompt_lookup",
    ]
    assert lines[1].options == {"num_draft": 4, "ngram": 2}
    everything = {line.label for line in bench.parse_lines("all", has_draft=True)}
    every = {n: e for n, e in registry.METHODS.items() if not e.fills}
    loop = {n: e for n, e in every.items() if e.on_loop}
    assert everything == {n for n, e in loop.items() if not e.heads}
    alone = {line.label for line in bench.parse_lines("L0")}
    exact = {n: e for n, e in every.items() if e.level == "L0"}
    assert alone == {n for n, e in exact.items() if not e.needs and not e.heads}
    sampled = bench.parse_lines("all", has_draft=True, temperatures=(0.0, 0.8))
    refusing = {n for n, e in registry.METHODS.items() if "temperature" in e.refuses}
    assert refusing
    assert {line.label for line in sampled} == everything - refusing
    with pytest.raises(UnknownNameError, match="prompt_lookup"):
        bench.parse_lines("prompt_lokup")
    with pytest.raises(InputError, match="temperature=1"):
        bench.parse_lines("ar:temperature=1")
    with pytest.raises(InputError, match="no_such"):
        bench.check(plan("prompt_lookup:no_such=1"), has_draft=False)


def test_lines_follow_the_model():
    """A model that fills slots has its own baseline, and lines bring what they must equal."""
    lines = bench.parse_lines("all", fills=True)
    assert lines[0].label == "llada"
    assert {line.method for line in lines} >= {"llada", "fast_dllm"}
    assert all(registry.METHODS[line.method].fills for line in lines)
    config = toys.config()
    with pytest.raises(InputError, match="'fast_dllm' cannot run this model, which writes one"):
        bench.check(plan("fast_dllm"), has_draft=False, config=config)
    bench.check(plan("prompt_lookup"), has_draft=False, config=config)


def test_a_line_brings_what_its_tokens_must_equal(monkeypatch):
    exact = registry.METHODS["fast_dllm"]._replace(level="L0")
    monkeypatch.setitem(registry.METHODS, "exact", exact)
    lines = bench.parse_lines("exact:block_length=8:threshold=0.5", fills=True)
    assert [line.label for line in lines] == [
        "llada",
        "llada:block_length=8:reuse=dual",
        "exact:block_length=8:threshold=0.5",
    ]
    assert bench.reference(lines[2]) == lines[1] and bench.reference(lines[1]) == lines[1]
    found = list(bench.parse_lines("fast_dllm,exact", fills=True))
    assert [line.label for line in found[1:3]] == ["fast_dllm", "llada:block_length=32:reuse=dual"]


def test_lines_that_fill_are_measured_and_compared(monkeypatch):
    """Filling at a threshold is not what filling one by one gives, and one by one is."""
    for name, options in (("same", {"steps": 0}), ("other", {"steps": 2})):
        entry = registry.METHODS["llada"]._replace(options=options)
        monkeypatch.setitem(registry.METHODS, name, entry)
    lines = bench.parse_lines("same,other,fast_dllm:block_length=8", fills=True)
    asked = bench.Plan(lines=lines, max_new_tokens=10, timed=False, baseline="llada")
    records = list(bench.measure(toys.denoiser(), asked, CASES[:2]))
    labels = [line.label for line in lines]
    references = {line.label: bench.reference(line).label for line in lines}
    assert references["other"] == "llada:steps=2", "options of the reference are its own"
    rows = {row["line"]: row for row in summary.summarize(records, labels, "llada")}
    assert rows["llada"]["speedup"] == 1.0 and rows["llada"]["nfe"] == 20
    assert rows["llada"]["tokens_forwarded"] == sum(10 * (len(c.tokens) + 10) for c in CASES[:2])
    assert rows["fast_dllm:block_length=8"]["differ"] is None
    assert rows["same"]["differ"] == rows["other"]["differ"] == 0
    monkeypatch.setattr(bench, "reference", lambda line: lines[0])
    record = next(bench.measure(toys.denoiser(), asked, CASES[:1]))
    assert {found["line"] for found in record["differences"]} == {"other", "llada:steps=2"}
    assert record["lines"]["other"]["rows"][0]["equal"] == "no"


def test_a_sample_is_spread_over_categories():
    names = ["a"] * 10 + ["b"] * 3 + ["c"] * 10
    chosen = bench.spread(names, 9)
    assert chosen == [0, 3, 6, 10, 11, 12, 13, 16, 19]
    assert collections.Counter(names[i] for i in bench.spread(names, 13)) == dict(a=5, b=3, c=5)
    assert [names[i] for i in bench.spread(names, 2)] == ["a", "b"]
    assert bench.spread(names, 99) == list(range(23))


def test_batches_hold_one_category_as_far_as_they_can():
    found = bench.jobs(plan(batch_sizes=(1, 2), temperatures=(0.0, 0.8)), CASES)
    assert len(found) == 2 * (5 + 3) and len({job.key for job in found}) == 16
    pairs = [job for job in found if job.batch_size == 2 and job.temperature == 0.8]
    assert [(job.category, job.prompts) for job in pairs] == [
        ("news", [0, 2]), ("mixed", [4, 1]), ("chat", [3]),
    ]  # fmt: skip


def test_methods_take_turns_in_rotating_order(monkeypatch):
    calls, generate = [], api.generate

    def spy(lm, prompts, **options):
        calls.append((prompts[0], options["method"], options["temperature"]))
        return generate(lm, prompts, **options)

    monkeypatch.setattr(api, "generate", spy)
    asked = plan("prompt_lookup,prompt_lookup:num_draft=2", repeats=2)
    records = list(bench.measure(toys.model(), asked, CASES[:2]))
    a, b, c = (line.label for line in asked.lines)
    assert [record["order"] for record in records] == [
        [[a, b, c], [b, c, a]],
        [[b, c, a], [c, a, b]],
    ]
    assert [prompt for prompt, _, _ in calls] == [CASES[0].tokens] * 6 + [CASES[1].tokens] * 6
    names = [
        label.split(":")[0] for record in records for turn in record["order"] for label in turn
    ]
    assert [method for _, method, _ in calls] == names


def test_records_hold_every_number_and_nothing_compiles_after_warm_up():
    lm, ticks = toys.model(), []
    asked = plan(batch_sizes=(1, 4), temperatures=(0.0, 0.9), repeats=3)
    records = list(bench.measure(lm, asked, CASES, tick=lambda: ticks.append(1)))
    assert len(records) == 2 * (5 + 2)
    assert len(ticks) == bench.num_ticks(asked, CASES, ()) == 2 * (2 + 3 * len(records))
    for record in records:
        assert record["compiled"] == 0 and record["differences"] == []
        for line in record["lines"].values():
            assert len(line["seconds"]) == 3 and min(line["seconds"]) > 0
            assert len(line["rows"]) == len(record["prompts"])
            for row in line["rows"]:
                assert row["tokens"] == [10] * 3 and row["equal"] == "yes"
                assert len(row["nfe"]) == len(row["forwarded"]) == 3
    totals = summary.compared(records, {"ar": "ar", "prompt_lookup": "ar"})
    names = {"line": "prompt_lookup", "reference": "ar"}
    assert totals == [names | {"prompts": 20, "tokens": 200, "differ": 0, "ties": 0}]


def test_what_is_finished_is_left_out():
    lm, asked = toys.model(), plan()
    whole = list(bench.measure(lm, asked, CASES))
    done = frozenset((r["batch_size"], r["temperature"], r["index"]) for r in whole[:3])
    rest = list(bench.measure(lm, asked, CASES, finished=done))
    assert [r["prompts"] for r in rest] == [r["prompts"] for r in whole[3:]]
    assert [r["order"] for r in rest] == [r["order"] for r in whole[3:]]


def test_what_was_learned_helps_the_next_prompts_only_if_asked():
    lm, twice = toys.model(), [CASES[2], CASES[2]]
    for remember in (False, True):
        asked = plan("token_recycling", remember=remember, repeats=2)
        first, second = bench.measure(lm, asked, twice)
        nfe = [r["lines"]["token_recycling"]["rows"][0]["nfe"] for r in (first, second)]
        assert nfe[0][0] == nfe[0][1] and nfe[1][0] == nfe[1][1], "repeats share nothing"
        assert (nfe[1][0] < nfe[0][0]) is remember
        assert first["differences"] == second["differences"] == []


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_broken_method_is_found_and_gets_no_speed_up(broken, temperature):
    asked = plan("prompt_lookup,broken", temperatures=(temperature,))
    records = list(bench.measure(toys.model(), asked, CASES))
    labels = [line.label for line in asked.lines]
    found = {(r["category"], r["line"]): r for r in summary.summarize(records, labels)}
    bad, good = found["overall", "broken"], found["overall", "prompt_lookup"]
    assert bad["differ"] > 0 and bad["ties"] == 0
    assert all(found[category, "broken"]["speedup"] is None for category in ("news", "chat"))
    assert good["differ"] == 0 and good["speedup"] > 0
    difference = next(d for r in records for d in r["differences"])
    place = difference["place"]
    assert difference["expected"][:place] == difference["got"][:place]
    assert difference["expected"][place] != difference["got"][place] and difference["gap"] > 1e-4


def test_only_promises_are_checked(monkeypatch):
    line = registry.METHODS["prompt_lookup"]
    for level, greedy, sampled in (("L0", 1, 1), ("L1", 1, 0), ("L2", 0, 0), ("L3", 0, 0)):
        monkeypatch.setitem(registry.METHODS, "x", line._replace(level=level))
        assert (bench.promised("x", 0.0), bench.promised("x", 0.8)) == (greedy, sampled)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_scores_of_the_choice_have_their_maximum_at_the_token_chosen(temperature):
    lm, prompt = toys.model(), CASES[0].tokens
    law = {"temperature": temperature, "seed": 3}
    tokens = api.generate(lm, [prompt], max_new_tokens=12, **law).tokens[0]
    for place in range(12):
        scores = ties.choice_scores(lm, [*prompt, *tokens[:place]], prompt, **law)
        assert scores.argmax() == tokens[place]
    other = [*tokens[:4], int(scores.argsort()[0]), *tokens[5:]]
    assert ties.gap(lm, prompt, tokens, other, **law) > 1e-3
    assert ties.gap(lm, prompt, tokens, tokens[:4], **law) == float("inf")
    assert ties.gap(lm, prompt, tokens, tokens, **law) == 0.0


def test_a_near_tie_is_counted_apart():
    twin = toys.params(toys.config())
    head = twin["head"]["kernel"]  # the last token scores as the chosen one does, up to rounding
    lm, prompt = toys.model(), CASES[0].tokens
    token = api.generate(lm, [prompt], max_new_tokens=1).tokens[0][0]
    kernel = head.at[60].set(head[token] * jnp.float32(1 - 1e-7))
    tied = api.from_params(lm.config, twin | {"head": {"kernel": kernel}})
    law = {"temperature": 0.0, "seed": 0}
    assert ties.gap(tied, prompt, [token], [60], **law) < 1e-4
    assert ties.gap(tied, prompt, [token], [(token + 1) % 60], **law) > 1e-4


def record(index, category, ar, other):
    """A job of one prompt; per line the seconds, and (tokens, nfe, equal)."""
    lines = {}
    for label, (seconds, (tokens, nfe, equal)) in {"ar": ar, "x": other}.items():
        repeats = len(seconds)
        counts = {"tokens": tokens, "nfe": nfe, "forwarded": 3 * nfe}
        row = {name: [count] * repeats for name, count in counts.items()} | {"equal": equal}
        row["per_call"] = {"1": nfe - 1, str(tokens - nfe + 1): 1}
        lines[label] = {"seconds": seconds, "rows": [row]}
    job = {"batch_size": 1, "temperature": 0.0, "index": index, "category": category}
    return job | {"lines": lines}


def test_sums_by_hand():
    records = [
        record(0, "a", ([2.0, 9.0, 2.2], (20, 20, "yes")), ([1.0, 1.1, 7.0], (20, 8, "yes"))),
        record(1, "a", ([1.8, 1.8, 1.8], (10, 10, "yes")), ([0.9, 0.9, 0.9], (10, 4, "tie"))),
        record(2, "b", ([1.0, 1.0, 1.0], (10, 10, "yes")), ([2.0, 2.0, 2.0], (10, 8, "yes"))),
    ]
    rows = {(r["category"], r["line"]): r for r in summary.summarize(records, ["ar", "x"])}
    assert list(dict.fromkeys(category for category, _ in rows)) == ["a", "b", "overall"]
    a, b, overall = (rows[category, "x"] for category in ("a", "b", "overall"))
    assert a["seconds"] == pytest.approx(2.0) and a["tokens_per_second"] == pytest.approx(15.0)
    assert a["speedup"] == pytest.approx(4.0 / 2.0) and a["acceptance_length"] == 30 / 12
    assert b["speedup"] == pytest.approx(0.5) and b["acceptance_length"] == 1.25
    assert overall["speedup"] == pytest.approx(5.0 / 4.0) and overall["nfe"] == 20
    assert (overall["prompts"], overall["tokens"], overall["tokens_forwarded"]) == (3, 40, 60)
    assert (a["ties"], b["ties"], overall["differ"]) == (1, 0, 0)
    assert rows["overall", "ar"]["speedup"] == 1.0
    assert rows["overall", "ar"]["speedup_range"] == (1.0, 1.0)
    # Both repeats and batches are resampled: one batch of one time leaves nothing to vary.
    assert b["speedup_range"] == (0.5, 0.5)
    low, high = overall["speedup_range"]
    assert 2.0 / 7.0 <= low < 1.25 < high <= 9.0 / 1.0
    assert overall["per_call"] == {"1": 7 + 3 + 7, "3": 1, "7": 1, "13": 1}
    assert summary.compared(records, {"ar": "ar", "x": "ar"})[0]["tokens"] == 40
    records[2]["lines"]["x"]["rows"][0]["equal"] = "no"
    spoilt = {(r["category"], r["line"]): r for r in summary.summarize(records, ["ar", "x"])}
    assert all(spoilt[category, "x"]["speedup"] is None for category in ("a", "b", "overall"))
    records[2]["lines"]["x"]["rows"][0]["equal"] = None
    silent = {(r["category"], r["line"]): r for r in summary.summarize(records, ["ar", "x"])}
    assert silent["b", "x"]["differ"] is None and silent["b", "x"]["speedup"] == 0.5
