"""Suites of models that fill slots: bounds with known values, measures by hand, tables by task."""

import json
import math

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.cli import bench_suite
from jaxdecode.errors import InputError
from jaxdecode.evals import elbo, lists, oracles, suites
from tests import toys

EQUAL = ((0.5, 0.0), (0.0, 0.5))
FREE = ((0.25, 0.25), (0.25, 0.25))
TEXTS = [[0, 0, 0], [0, 1, 1]]


def test_the_bound_of_a_model_that_knows_its_text_is_its_entropy():
    """Both tokens alike: ln 2. Masks of one slot cost nothing, of both 2 ln 2, as often each."""
    found = elbo.bound(oracles.table_model(EQUAL), TEXTS, given=1, draws=8)
    np.testing.assert_allclose(found.bits * math.log(2), [math.log(2)] * 2, atol=1e-6)
    assert found.num_tokens == 4 and found.per_token == pytest.approx(0.5)
    apart = elbo.bound(oracles.table_model(FREE), TEXTS, given=1, draws=4)
    assert apart.bits[0] * math.log(2) == pytest.approx(1.3863, abs=1e-4)
    assert apart.error == pytest.approx(0.0, abs=1e-6)


def test_a_model_with_blocks_of_one_pays_what_a_chain_pays():
    """Each slot masked alone, after those before it: the sum over slots, not a bound."""
    lm = toys.denoiser(block=1)
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    found = elbo.bound(lm, [text] * 48, given=2, draws=96)
    total = 0.0
    for end in range(3, 9):
        # The slot alone in its block, after a text that is given; nothing later is seen.
        total += elbo.bound(lm, [text[:end]], given=end - 1, draws=1).bits[0]
    spread = found.error / 48
    assert found.bits.mean() == pytest.approx(total, abs=5 * spread) and spread < 0.05 * total


def test_a_shifted_model_pays_for_all_but_the_first_token():
    lm = toys.denoiser(shifted=True)
    found = elbo.bound(lm, [[5, 6, 7, 8]], draws=2)
    assert found.num_tokens == 3 and np.isfinite(found.bits).all()
    plain = elbo.bound(toys.denoiser(), [[5, 6, 7, 8]], draws=2)
    assert plain.num_tokens == 4
    with pytest.raises(InputError, match="fill slots"):
        elbo.bound(toys.model(), [[1, 2]])
    with pytest.raises(InputError, match="nothing is left to pay"):
        elbo.bound(toys.denoiser(), [[1, 2]], given=2)


def test_measures_of_text_by_hand():
    assert suites.entropy([1, 1, 2, 2]) == 1.0 and suites.entropy([7] * 5) == 0.0
    assert suites.repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert suites.repetition([1] * 8) == pytest.approx(1 - 1 / 5)
    assert suites.repetition([1, 2]) == 0.0
    assert suites.windows(range(10), 4, 2) == [[0, 1, 2, 3], [6, 7, 8, 9]]
    with pytest.raises(InputError, match="one piece has 11"):
        suites.windows(range(10), 11, 1)


def test_trials_of_a_suite_and_of_ones_own():
    labels = [trial.label for trial in suites.usual("lists", 6)]
    assert labels == [
        "llada:steps=6:order=random T=1",
        "llada:steps=3:order=random T=1",
        "llada:steps=2:order=random T=1",
        "llada:steps=1:order=random T=1",
        "llada",
        "llada:steps=1",
        "fast_dllm:threshold=0.9",
        "fast_dllm:threshold=0.7",
        "fast_dllm_factor",
    ]
    grid = suites.usual("parallelbench", 4)
    assert len(grid) == 3 + 4 * 3 + 4 + 1 and len({trial.label for trial in grid}) == len(grid)
    text = [trial.label for trial in suites.usual("text", 4)]
    assert text[:3] == [f"llada:steps={n}:order=random T=1" for n in (4, 2, 1)]
    assert text[3:6] == [f"llada:steps={n} T=1" for n in (4, 2, 1)]
    own = suites.trials("llada:steps=2,fast_dllm", (0.0, 0.5))
    assert [trial.label for trial in own] == [
        "llada:steps=2", "fast_dllm", "llada:steps=2 T=0.5", "fast_dllm T=0.5",
    ]  # fmt: skip
    drawn = suites.usual("lists", 6)
    assert suites.ideal("shuffle", drawn[1], 6) == pytest.approx(0.3125)
    assert suites.ideal("shuffle", drawn[4], 6) is None


def test_the_oracle_shows_the_trend():
    ways = [way for way in suites.usual("lists", 4) if "steps=2" not in way.label]
    ways = [way for way in ways if way.line.method == "llada" and way.temperature]
    rows = suites.fill_lists(oracles.lists_model(4), ways, size=4, count=256, batch_size=256)
    found = {(row["task"], row["trial"]): row for row in rows}
    one, four = (way.label for way in ways)
    for task in lists.TASKS:
        assert found[task, one]["accuracy"] == 1.0 and found[task, one]["nfe"] == 4
        row = found[task, four]
        allowed = 4 * math.sqrt(row["ideal"] * (1 - row["ideal"]) / 256) + 1e-9
        assert abs(row["accuracy"] - row["ideal"]) <= allowed
        assert (row["nfe"], row["tokens_forwarded"], row["tokens_per_step"]) == (1, 11, 4)
        best = found[task, suites.BEST]
        wanted = 4 - 3 * row["accuracy"]
        assert best["accuracy"] == 1.0 and best["nfe"] == pytest.approx(wanted)
    with pytest.raises(InputError, match="23 tokens of their own"):
        suites.fill_lists(toys.denoiser(), ways, size=4, count=2)
    with pytest.raises(InputError, match="for models that fill slots"):
        suites.fill_lists(toys.model(), ways, size=4, count=2)


def test_text_is_written_and_judged(monkeypatch):
    lm = toys.denoiser()
    tokens = np.random.default_rng(0).integers(0, 60, 200).tolist()
    ways = suites.trials("llada:steps=4", (1.0,))
    rows = suites.write_text(lm, ways, tokens, num_given=4, num_new=12, count=6, draws=4)
    held_out, ours = rows
    assert held_out["trial"] == "held-out text" and "nfe" not in held_out
    assert ours["nfe"] == 4 and ours["tokens_forwarded"] == 4 * 16
    assert ours["characters"] == 6 * 12 and 0 < ours["entropy"] <= math.log2(12)
    assert ours["bits_per_character"] == ours["bits"] > 0
    again = jd.generate(
        lm, [tokens[:4]], method="llada", steps=4, temperature=1.0, max_new_tokens=12, seed=0
    )
    calls = []
    monkeypatch.setattr(elbo, "bound", lambda lm, texts, **_: calls.append(texts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        suites.write_text(lm, ways, tokens, num_given=4, num_new=12, count=6)
    assert len(calls[0]) == 6 and len(again.tokens[0]) == 12


def test_tables_are_markdown():
    rows = [{"task": "copy", "accuracy": 0.5, "nfe": 12.345, "ideal": None}]
    assert bench_suite.markdown(rows, ("task", "accuracy", "ideal", "nfe")) == [
        "| task | accuracy | ideal | nfe |",
        "|---|---:|---:|---:|",
        "| copy | 0.500 | - | 12.3 |",
    ]
    assert bench_suite.is_suite("lists:9") and bench_suite.is_suite("text:a.txt")
    assert not bench_suite.is_suite("listing.jsonl")
    assert json.dumps(rows)
