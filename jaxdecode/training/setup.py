"""From a config to what a run works with: models, objective, data, and the compiled step."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdecode import language_model
from jaxdecode.convert import download
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.open import open_source
from jaxdecode.core import attention
from jaxdecode.core.protocols import HeadSpec, Models, Weights
from jaxdecode.dist import mesh as meshes
from jaxdecode.dist import place, rules
from jaxdecode.errors import InputError, UnknownNameError, near_matches
from jaxdecode.language_model import LanguageModel
from jaxdecode.models import decoder
from jaxdecode.models.config import ModelConfig
from jaxdecode.training import step
from jaxdecode.training.config import TrainConfig
from jaxdecode.training.data import Loader, open_data
from jaxdecode.training.objective import Batch, Objective
from jaxdecode.training.recipes import Recipe

# Told of every line of metrics, and of what comes before the first.
Watch = Callable[[Mapping[str, Any]], None]


class Setup(NamedTuple):
    """Everything a run works with.

    Attributes:
        lm: the target.
        draft: the draft model that is trained; None if there is none.
        spec: kind and shape of the heads that are trained; None if there are none.
        objective: what is minimised.
        parts: first parameters: those that move and those that stay.
        optimizer: how parameters move.
        loader: data of this process.
        micro_batches: parts of a step.
    """

    lm: LanguageModel
    draft: LanguageModel | None
    spec: HeadSpec | None
    objective: Objective
    parts: step.Parts
    optimizer: Any
    loader: Loader
    micro_batches: int

    @property
    def mesh(self) -> Mesh | None:
        """Devices of the run."""
        return self.lm.mesh


def build(
    config: TrainConfig,
    *,
    progress: bool = False,
    accept_terms: bool = False,
    watch: Watch = lambda line: None,
) -> Setup:
    """Loads models and data.

    With `cache` that takes a pass over all texts: `watch` is called with how far it is.

    Raises:
        InputError: something in the config cannot be used; named.
        CheckpointError: a model is damaged.
    """
    line = config.line
    # What is cheap to refuse comes first: a typing error should not cost a download.
    settings = objective_config(line, config.objective)
    spec = None
    if line.heads is not None:
        spec = HeadSpec(line.heads, head_files.shape_of(line.heads, config.shape))
    elif config.shape:
        raise InputError(f"recipe {config.recipe!r} trains no heads; leave shape out.")
    assert isinstance(config.target, str)  # a new one is made by now (fresh.opened)
    mesh = None if config.mesh is None else meshes.make(config.mesh)
    trains_target = line.heads is None and not line.draft
    lm = language_model.load(
        config.target,
        dtype=None if config.dtype == "auto" else config.dtype,
        accept_terms=accept_terms,
        mesh=mesh,
        # Copies of kernels are for decoding, and would have to be trained too.
        copies="none" if trains_target else "auto",
        progress=progress,
    )
    _check_mesh(config, lm)
    loader = _open(config, lm)
    draft = _draft(config, lm, progress)
    models = Models(training(lm, config.remat), draft and training(draft, config.remat), spec)
    objective = make_objective(line, settings, models)
    if objective.unpacked and config.data.pack:
        raise InputError(
            f"recipe {config.recipe!r} needs a row for each text; set data.pack to false."
        )
    if config.cache:
        _learn(config, lm, objective, loader, watch)
    weights = Weights(lm.params, draft and draft.params)
    texts = loader.texts(lm.config.vocab_size)
    start = objective.init(jax.random.key(config.seed), weights, texts)
    return Setup(
        lm=lm,
        draft=draft,
        spec=spec,
        objective=objective,
        parts=step.divide(start),
        optimizer=step.optimizer_of(config.optimizer, config.steps, objective.num_moves),
        loader=loader,
        micro_batches=config.micro_batches,
    )


def _learn(
    config: TrainConfig, lm: LanguageModel, objective: Objective, loader: Loader, watch: Watch
) -> None:
    """Lets the loader know what the frozen target says of the texts."""
    if objective.features is None:
        raise InputError(f"recipe {config.recipe!r} cannot keep features; leave cache out.")
    if lm.mesh is not None:
        raise InputError("cache is for one device; leave out mesh or cache.")
    compute = jax.jit(objective.features)
    loader.learn(
        lambda batch: compute(lm.params, to_devices(batch, None, config.batch_size)),
        lambda done, total: watch({"step": 0, "features": done, "of": total}),
    )


def objective_config(line: Recipe, given: Mapping[str, Any]) -> Any:
    """The `Config` of a recipe's objective.

    Raises:
        UnknownNameError: it has no such setting.
        InputError: a value out of range.
    """
    kind = _module(line).Config
    known = [field.name for field in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            raise UnknownNameError(
                f"objective {line.objective!r} has no setting {name!r}."
                f"{near_matches(name, known)} Known: {', '.join(known) or 'none'}."
            )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return kind(**{**line.options, **values})


def make_objective(line: Recipe, config: Any, models: Models) -> Objective:
    """The bundle of a recipe's objective."""
    return _module(line).make(config, models)


def training(lm: LanguageModel, remat: bool) -> Any:
    """The model as training runs it: with a gradient, activations computed again if asked."""
    backend = attention.for_training(lm.config, lm.mesh)
    target = decoder.make_target(lm.config, lm.kv_dtype, backend, remat=remat)
    return lm.bound._replace(target=target)


def compiled(setup: Setup, dtype: Any, num_steps: int) -> Any:
    """The jitted step; the state is donated, and lies where it lay."""
    run = step.make(
        setup.objective,
        setup.optimizer,
        dtype=dtype,
        num_steps=num_steps,
        micro_batches=setup.micro_batches,
        mesh=setup.mesh,
    )
    if setup.mesh is None:
        return jax.jit(run, donate_argnums=0)
    return jax.jit(run, donate_argnums=0, out_shardings=(_places(setup), None))


def first_state(setup: Setup) -> step.State:
    """The state before the first step, on its devices."""
    if setup.mesh is None:
        return step.begin(setup.parts, setup.optimizer)
    make = jax.jit(
        lambda moving: step.begin(step.Parts(moving, {}), setup.optimizer),
        out_shardings=_places(setup),
    )
    return make(setup.parts.moving)


def _places(setup: Setup) -> Any:
    """Where the parts of the state lie."""
    assert setup.mesh is not None
    like = jax.eval_shape(lambda: step.begin(setup.parts, setup.optimizer))
    return rules.trained(like, setup.mesh)


def to_devices(batch: Batch, mesh: Mesh | None, num_rows: int) -> Batch:
    """A batch of this process as part of the batch of all."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)

    def move(leaf: np.ndarray) -> jax.Array:
        shape = (num_rows, *leaf.shape[1:])
        where = rules.batch(mesh)
        start = place.own_part(where, shape, 0).start
        return place.put_part(leaf, where, shape, axis=0, start=start)

    return jax.tree.map(move, batch)


def _open(config: TrainConfig, lm: LanguageModel) -> Loader:
    """Data of this process: the rows that its devices hold."""
    index, count, rows = 0, 1, config.batch_size
    if lm.mesh is not None:
        shape = (rows,)
        part = place.own_part(rules.batch(lm.mesh), shape, 0)
        rows = part.stop - part.start
        index, count = part.start // rows, config.batch_size // rows
    return open_data(
        config.data,
        tokenizer=lm.tokenizer,
        batch_size=rows,
        seed=config.seed,
        process_index=index,
        num_processes=count,
        vocab_size=lm.config.vocab_size,
    )


def _check_mesh(config: TrainConfig, lm: LanguageModel) -> None:
    if lm.mesh is None:
        return
    wanted = lm.mesh.shape["data"] * config.micro_batches
    if config.batch_size % wanted:
        raise InputError(
            f"batch_size={config.batch_size} cannot be split over data={lm.mesh.shape['data']} "
            f"in micro_batches={config.micro_batches}; take a multiple of {wanted}."
        )
    stored = open_source(download.resolve(str(config.target), progress=False)).config
    if stored.num_kv_heads != lm.config.num_kv_heads:
        raise InputError(
            f"mesh {config.mesh!r} repeats the target's {stored.num_kv_heads} KV heads, and what "
            "is trained on it would fit no other mesh; take a model axis that divides them."
        )


def _draft(config: TrainConfig, lm: LanguageModel, progress: bool) -> LanguageModel | None:
    if config.draft is None:
        return None
    if isinstance(config.draft, str):
        dtype = jnp.dtype(lm.dtype).name
        return language_model.load(
            config.draft, dtype=dtype, mesh=lm.mesh, copies="none", progress=progress
        )
    built = draft_config(lm.config, config.draft)
    params = decoder.init_params(built, jax.random.key(config.seed), lm.dtype)
    return language_model.from_params(
        built,
        params,
        name="draft",
        tokenizer=lm.tokenizer,
        end_tokens=lm.end_tokens,
        mesh=lm.mesh,
    )


def draft_config(target: ModelConfig, fields: Mapping[str, Any]) -> ModelConfig:
    """The config of a new draft model: the target's with other sizes.

    Raises:
        InputError: a field that cannot be set.
    """
    sizes = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
    known = [*sizes, "head_dim", "tied_embeddings"]
    for name in fields:
        if name not in known:
            raise InputError(
                f"draft has no field {name!r}.{near_matches(name, known)} "
                f"Known: {', '.join(known)}."
            )
    changes = dict(fields)
    changes["layer_windows"] = (0,) * changes.get("num_layers", target.num_layers)
    changes.setdefault("query_scale", changes.get("head_dim", target.head_dim) ** -0.5)
    built = dataclasses.replace(target, **changes)
    if built.num_heads % built.num_kv_heads:
        raise InputError(
            f"draft.num_heads={built.num_heads} is no multiple of "
            f"num_kv_heads={built.num_kv_heads}."
        )
    return built


def _module(line: Recipe) -> Any:
    return importlib.import_module(f"jaxdecode.training.objectives.{line.objective}")
