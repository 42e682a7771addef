"""The setting of each heuristic line that leaves nothing of its heuristic gives the plain sampler.

Through the whole loop: what its own tests check on scores alone.
"""

import pytest

import jaxdecode as jd
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
STOP = 7
STRICT = {
    "dream": ({"schedule": "even", "order": "probability"}, {}),
    "ass": ({"schedule": "even"}, {}),
    "dimple": ({"threshold": 1.0}, {}),
    "dparallel": ({"threshold": 0.0, "block_length": 8}, {"order": "entropy", "block_length": 8}),
    "eb_sampler": ({"gamma": 0.0}, {"order": "entropy"}),
    "prophet": ({"gaps": [1e6] * 3}, {}),
    "eoser": ({"end_weight": 1.0}, {}),
    "ddvla": ({"budget": 0.0}, {"schedule": "cosine", "steps": 12}),
    "genmol": ({"order_noise": 0.0}, {}),
    "dkv_cache": ({"renew_every": 1}, {}),
    "mdlm": ({"steps": 10**6}, {"method": "first_hitting"}),
    "dream_origin": ({"steps": 10**6}, {"method": "first_hitting"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 2}])
@pytest.mark.parametrize("name", STRICT)
def test_without_its_heuristic_a_line_is_the_plain_sampler(name, law):
    ours, theirs = STRICT[name]
    asked = law | {"max_new_tokens": 21, "stop_tokens": [STOP]}
    out = jd.generate(toys.denoiser(), PROMPTS, method=name, **asked, **ours)
    plain = jd.generate(toys.denoiser(), PROMPTS, **asked | {"method": "llada"} | theirs)
    assert out.tokens == plain.tokens and out.steps == plain.steps
    # A text that may be reopened ends with its block, not with its stop token.
    if name != "ddvla":
        assert [stats.nfe for stats in out.stats] == [stats.nfe for stats in plain.stats]


def test_genmol_takes_one_pass_per_slot_and_its_noise_moves_turns():
    out = jd.generate(toys.denoiser(), PROMPTS, method="genmol", max_new_tokens=21)
    assert [stats.nfe for stats in out.stats] == [21] * 3
    other = jd.generate(toys.denoiser(), PROMPTS, method="genmol", max_new_tokens=21, seed=1)
    assert out.steps != other.steps
