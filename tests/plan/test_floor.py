"""Floors against numbers worked out by hand, and acceptance curves."""

import dataclasses

import pytest

from jaxdecode.errors import InputError
from jaxdecode.plan import curve, floor, hardware
from jaxdecode.plan import setup as setups
from tests.plan import small


def test_a_step_reads_every_weight_and_every_visible_key_once():
    made = small.setup()
    work = floor.floor(made, 1)
    # One windowed layer sees 8 slots, two see all 100; keys and values, 2 heads of 16 floats.
    seen = 2 * (8 + 2 * 100) * 2 * 2 * 16
    looked_up = 2 * 32
    assert work.hbm_bytes == 4 * (small.MATRICES + small.NORMS + seen + looked_up)
    assert floor.kv_bytes(made) == 4 * seen
    assert work.wire_bytes == 0


def test_products_grow_with_the_rows_and_reads_do_not():
    made = small.setup()
    one, many = floor.floor(made, 1), floor.floor(made, 16)
    attention = 4 * 2 * 4 * 16 * (8 + 2 * 100)
    assert one.flops == 2 * 2 * small.MATRICES + attention
    assert many.flops == 16 * one.flops
    assert many.hbm_bytes - one.hbm_bytes == 4 * 15 * 2 * 32


def test_tied_embeddings_are_read_as_the_head():
    tied = dataclasses.replace(small.CONFIG, tied_embeddings=True)
    untied = floor.floor(small.setup(), 1)
    assert floor.floor(small.setup(tied), 1) == untied


def test_the_roofline_is_the_slowest_resource():
    chip = hardware.CHIPS["v5e"]
    assert floor.Work(819e9, 0, 0).bound(chip) == ("HBM", pytest.approx(1.0))
    assert floor.Work(819e9, 2 * 197e12, 0).bound(chip) == ("MXU", pytest.approx(2.0))
    assert floor.Work(1, 1, 600e9).bound(chip) == ("ICI", pytest.approx(3.0))


def test_memory_is_counted_as_arrays_lie():
    made = small.setup()
    weights = small.MATRICES + small.EMBEDDING + small.NORMS
    assert setups.shard_bytes(setups.params(made)) == 4 * weights
    # 100 tokens and a step's excess lie in 128 slots.
    assert made.slots == 128
    assert setups.shard_bytes(setups.cache(made)) == 4 * 3 * 2 * 2 * 2 * 16 * 128


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 513}, "context 513 is longer than the model's 512 tokens"),
        ({"context": 0}, "context=0 is out of range"),
        ({"batch": 0}, "batch=0 is out of range"),
    ],
)
def test_what_cannot_be_planned(options, words):
    with pytest.raises(InputError, match=words):
        small.setup(**options)


def test_curves():
    made = curve.make({4: 2.0, 8: 3.0}, "mine")
    assert [made.tokens(n) for n in (1, 2, 4, 6, 8, 99)] == [1, 4 / 3, 2, 2.5, 3, 3]
    assert curve.DEFAULT.tokens(1) == 1 and 1.7 < curve.DEFAULT.tokens(32) < 1.9


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ({}, "no points"),
        ({0: 1.0}, "number of nodes=0"),
        ({4: 5.0}, "from 1 to the number of nodes, 4"),
        ({4: 0.5}, "tokens per call=0.5"),
        ({4: "many"}, "tokens per call='many'"),
    ],
)
def test_impossible_curves(points, words):
    with pytest.raises(InputError, match=words):
        curve.make(points, "mine")
