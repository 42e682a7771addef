"""Every recipe, by the config that is shipped for it, from data to tokens on a tiny model."""

import inspect

import jax
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import catalog
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import flattened
from jaxdecode.core.protocols import HeadSpec, Weights
from jaxdecode.core.registry import METHODS
from jaxdecode.models import decoder
from jaxdecode.paths import config_dir
from jaxdecode.training import config as configs
from jaxdecode.training import fresh, setup
from jaxdecode.training.recipes import RECIPES
from jaxdecode.training.run import train
from tests import toys
from tests.training import gate, runs

# Small enough to run in seconds; what the file says of sizes of heads and objective stays.
SMALL = [
    f"target={runs.TINY}",
    "data.max_length=32",
    "batch_size=2",
    "micro_batches=1",
    "steps=2",
    "measure={num_prompts: 1, max_new_tokens: 6, baseline: ar}",
]

# What the tiny run's random prompts do not have: here every token is a label.
FITTING = {
    "ctrldiff": [f"objective.labels={list(range(90))}", "shape.num_classes=90"],
}


def shipped(recipe):
    """The config that is shipped for a recipe: NAME_smollm2.yaml, or the first that names it."""
    folder = config_dir() / "train"
    own = folder / f"{recipe}_smollm2.yaml"
    if own.exists():
        return own
    files = sorted(folder.glob("*.yaml"))
    return next(f for f in files if f"recipe: {recipe}\n" in f.read_text(encoding="utf-8"))


def fills(recipe):
    return METHODS[RECIPES[recipe].method].fills


def rules(recipe):
    """Whether it trains what decides which slots of another model are filled."""
    return fills(recipe) and RECIPES[recipe].heads is not None


def small(recipe, folder):
    """The shipped config of a recipe with everything small."""
    changes = [
        *SMALL,
        *FITTING.get(recipe, []),
        f"data.train={runs.write_data(folder)}",
        f"data.held_out={runs.write_data(folder, num=2, seed=1, name='held.jsonl')}",
    ]
    if RECIPES[recipe].draft:
        changes.append("draft={num_layers: 1}")
    if rules(recipe):
        changes.append(f"target={runs.denoiser(folder / 'target')}")
    elif fills(recipe):
        changes.append("objective.mask_token=95")
    if recipe == "cj_grpo":  # a random model's answers are never right as a whole
        changes.append("objective.reward=share")
    return configs.read(shipped(recipe), changes)


@pytest.mark.filterwarnings("ignore:.*does not help")
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shipped_config_runs_from_end_to_end(recipe, tmp_path):
    config = small(recipe, tmp_path)
    run = train(config, out=tmp_path / "run")
    assert run.stopped == "finished"
    measured = run.metrics[-1]
    assert np.isfinite(run.metrics[0]["loss"]) and run.metrics[0]["gradient"] > 0
    if RECIPES[recipe].measure == "loss":
        assert measured["held_out_loss"] == run.best
    else:
        assert measured["acceptance_length"] == run.best and measured["differing"] in (0, None)
    line, lm = RECIPES[recipe], jd.load(config.target, progress=False)
    asked = {"max_new_tokens": 6, "method": line.method}
    if line.heads is not None:
        asked["heads"] = run.folder
        if "block_length" in METHODS[line.method].options:  # those of the config's lists
            asked["block_length"] = 6
    elif line.draft:
        asked["draft"] = jd.load(run.checkpoint, progress=False)
    else:
        lm = jd.load(run.checkpoint, progress=False)
        assert (lm.config.denoiser is not None) == fills(recipe)
    out = jd.generate(lm, [3, 4, 5, 6], **asked)
    num = len(out.tokens[0])
    # Texts that are written as a whole have a length of their own.
    assert num == 6 or (METHODS[line.method].continuous and 1 <= num < 6)


@pytest.mark.parametrize(
    "path", sorted((config_dir() / "train").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_config_is_read(path):
    assert configs.read(path, []).recipe in RECIPES


SIGNATURES = {
    "init": ["key", "weights", "texts"],
    "loss": ["params", "target_params", "batch", "key", "moment"],
    "export": ["params", "target"],
    "judge": ["params", "target_params", "batch", "key", "moment"],
    "features": ["target_params", "batch"],
    "rollout": ["params", "target_params", "batch", "key", "moment"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_objective_has_the_parameters_of_the_seam(recipe):
    if rules(recipe):
        made, _ = gate.objective(recipe, lm=toys.denoiser())
    else:  # toys have no mask token of their own
        made, _ = gate.objective(recipe, **({"mask_token": 3} if fills(recipe) else {}))
    for field, wanted in SIGNATURES.items():
        function = getattr(made, field)
        if function is not None:
            assert list(inspect.signature(function).parameters) == wanted, field


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shipped_config_fits_the_model_it_names(recipe):
    """Sizes in the file are right for SmolLM2, not only for the tiny model."""
    config = configs.read(shipped(recipe))
    setup.objective_config(config.line, config.objective)
    if isinstance(config.target, dict):
        fresh.read(config.target)
        return
    if config.target.startswith("runs/"):
        return
    target, key = catalog.model_shape(config.target), jax.random.key(0)
    if isinstance(config.draft, dict):
        setup.draft_config(target, config.draft)
    if config.line.heads is None:
        return
    spec = HeadSpec(config.line.heads, head_files.shape_of(config.line.heads, config.shape))
    made = jax.eval_shape(
        lambda: head_files.initial(spec, target, key, decoder.init_params(target, key))
    )
    assert jax.tree.leaves(made)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_frozen_stays_and_what_is_trained_moves(recipe, tmp_path):
    built = setup.build(small(recipe, tmp_path))
    weights, texts = Weights(built.lm.params, _params(built.draft)), built.loader.texts
    start = built.objective.init(jax.random.key(0), weights, texts(built.lm.config.vocab_size))
    before = {name: np.array(leaf) for name, leaf in flattened(start.params).items()}
    target = jax.tree.map(np.array, built.lm.params)
    step = setup.compiled(built, built.lm.dtype, 10)
    state = setup.first_state(built)
    for _ in range(2):
        batch = setup.to_devices(next(built.loader), None, 2)
        state, _ = step(state, built.parts.held, built.lm.params, batch, jax.random.key(0))
    moved = {n for n, leaf in state.params.items() if (np.asarray(leaf) != before[n]).any()}
    assert moved
    for name, leaf in built.parts.held.items():
        assert np.asarray(leaf).tobytes() == before[name].tobytes(), name
        assert name not in state.params
    for a, b in zip(jax.tree.leaves(target), jax.tree.leaves(built.lm.params), strict=True):
        assert a.tobytes() == np.asarray(b).tobytes()


def _params(lm):
    return None if lm is None else lm.params
