"""Every drafter with every verifier, also pairs that no registry line has: right, or refused."""

import functools
import importlib
from pathlib import Path

import jax
import pytest

import jaxdecode as jd
from jaxdecode import engine, options
from jaxdecode.core import loop
from jaxdecode.core.protocols import Models
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from jaxdecode.evals import toys as smallest
from tests import toys

PACKAGE = Path(__file__).parents[2] / "jaxdecode"
PROMPTS = [[3, 1, 4, 1, 5, 3, 1], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
NEW = 8


def files(folder):
    return sorted(path.stem for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__")


def lines(drafter, *verifier):
    """Registry lines with this drafter, and this verifier."""
    wanted = (drafter, *verifier)
    return [n for n, e in METHODS.items() if (e.drafter, e.verifier)[: len(wanted)] == wanted]


def pair(drafter, verifier):
    """What runs the pair; InputError where its construction refuses it."""
    lm, (name, *_) = toys.model(), lines(drafter, verifier) or lines(drafter)
    built = toys.built(lm, name)
    if METHODS[name].verifier == verifier:
        return built
    module = importlib.import_module(f"jaxdecode.verifiers.{verifier}")
    seat = module.make(module.Config(), Models(built.model))
    weights = built.weights
    if verifier == "judge" and weights.heads is None:
        weights = weights._replace(heads=smallest.heads("judge", lm).params)
    method = built.method._replace(verifier=seat)
    return engine.Engine(model=built.model, method=method, weights=weights)


def traced(built):
    """The shapes after one traced step; InputError where tracing refuses the pair."""
    lm = toys.model()
    request = toys.request(lm, options.Options(max_new_tokens=NEW), PROMPTS, batch=2)
    start = engine.prefilled(built, request, PROMPTS, NEW)
    step = functools.partial(loop.step, target=lm.target, method=built.method)
    return jax.eval_shape(step, built.weights, request, start)


CORE = {METHODS[name].drafter for name in toys.CORE}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "drafter", [d if d in CORE else pytest.param(d, marks=SLOW) for d in files("drafters")]
)
def test_every_verifier_takes_a_drafter_or_refuses_it_with_a_message(drafter):
    for verifier in files("verifiers"):
        try:
            traced(pair(drafter, verifier))
        except InputError as refusal:
            assert not lines(drafter, verifier), refusal
            assert len(str(refusal)) > 30


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("speculative_sampling", {"num_chains": 2}),
        ("rsd_c", {"draws": "with_replacement"}),
        ("rsd_c", {"children": "greedy"}),
        ("rsd_s", {"draws": "with_replacement"}),
        ("optimal_mdsd", {"children": "race"}),
        ("block_verification", {"num_chains": 2}),
    ],
)
def test_options_that_would_draw_drafts_in_a_way_the_rule_is_wrong_for_are_refused(name, asked):
    more = toys.helpers(name) | asked
    with pytest.raises(InputError, match="draws them|single chains"):
        jd.generate(toys.model(), PROMPTS, method=name, max_new_tokens=NEW, **more)


def test_what_fits_is_not_refused():
    asked = {"num_chains": 2, "draws": "with_replacement"} | toys.helpers("speculative_sampling")
    out = jd.generate(
        toys.model(), PROMPTS, method="speculative_sampling", max_new_tokens=NEW, **asked
    )
    assert out.tokens == jd.generate(toys.model(), PROMPTS, max_new_tokens=NEW).tokens
