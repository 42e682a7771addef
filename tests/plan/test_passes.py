"""Plans of methods that fill slots, compiled for this machine's CPU."""

import dataclasses
import json

import pytest

from jaxdecode.errors import InputError
from jaxdecode.models.config import Denoiser
from jaxdecode.plan import floor, passes, programs, report
from tests.plan import small

BLOCK = 8
DENOISER = dataclasses.replace(
    small.CONFIG, layer_windows=(0, 0, 0), denoiser=Denoiser(mask_token=255)
)


def made(**options):
    return small.setup(DENOISER, **options)


def planned(**options):
    setup = made()
    method = programs.filling(setup, "fast_dllm", {"block_length": BLOCK} | options)
    return passes.make(setup, small.topology(), method)


@pytest.fixture(scope="module")
def dual():
    return planned()


def test_every_width_is_a_pass(dual):
    whole, part = dual.passes[-1], dual.passes[0]
    assert [each.rows for each in dual.passes] == [BLOCK, 100]
    assert (part.cached, whole.cached) == (100 - BLOCK, 0)
    assert part.scored == whole.scored == BLOCK
    assert dual.fits and dual.ladder == () and dual.curve is None
    for each in dual.passes:
        assert each.hbm_bytes >= each.floor_bytes > 0 and each.milliseconds > 0
    assert part.hbm_bytes < whole.hbm_bytes


def test_reuse_decides_what_goes_in_and_what_is_kept():
    none, prefix = planned(reuse="none"), planned(reuse="prefix")
    assert [each.rows for each in none.passes] == [100]
    assert none.memory.cache == 0 < prefix.memory.cache
    assert [each.rows for each in prefix.passes] == [8, 16, 32, 64, 100]


def test_a_window_moves_weights_once_what_it_reads_and_what_it_keeps():
    setup = made()
    slot = 2 * 2 * 16 * 4  # keys and values of one slot of one layer
    few = floor.window_floor(setup, 8, num_scored=8, cached=92, written=8)
    none = floor.window_floor(setup, 8, num_scored=8, cached=0, written=0)
    assert few.hbm_bytes - none.hbm_bytes == 2 * 3 * slot * (92 + 8)
    scored = floor.window_floor(setup, 8, num_scored=4, cached=0, written=0)
    assert none.flops - scored.flops == 2 * 2 * 4 * 256 * 32


def test_a_plan_of_passes_is_json(dual):
    found = json.loads(json.dumps(report.as_dict(dual)))
    assert found["passes"][0]["rows"] == BLOCK and found["attention"] == "xla"


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(InputError, match="needs blocks"):
        programs.filling(made(), "llada", {"reuse": "dual"})
