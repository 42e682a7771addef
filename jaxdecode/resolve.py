"""From a method's name and options to the bundles that the loop runs."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sized
from typing import Any

from jax.sharding import Mesh

from jaxdecode.core.entry import CONSTRAINTS, Entry
from jaxdecode.core.protocols import Cache, Method, Model, Models, Verifier, Weights
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError, UnknownNameError, near_matches
from jaxdecode.options import Options

# Longest path of a proposal: longer drafts are never accepted whole in practice, and every slot of
# them is reserved past each row's end.
MAX_DEPTH = 64


@dataclasses.dataclass(frozen=True)
class Choice:
    """A method with the configs of its drafter and verifier; hashable.

    Attributes:
        name: its registry key.
        drafter: the drafter file's `Config`.
        verifier: the verifier file's `Config`.
        commit: the commit rule's `Config`; None where trees are proposed.
        policy: the policy file's `Config`; None for the methods that are the loop itself.
        continuous: the `Config` of a method beside the loop; the others are None then.
    """

    name: str
    drafter: Any = None
    verifier: Any = None
    commit: Any = None
    policy: Any = None
    continuous: Any = None

    @property
    def configs(self) -> list[Any]:
        """The configs that there are: their fields are the method's own options."""
        every = (self.drafter, self.verifier, self.commit, self.policy, self.continuous)
        return [config for config in every if config is not None]

    @property
    def entry(self) -> Entry:
        """The registry line."""
        return METHODS[self.name]


def entry_of(name: str) -> Entry:
    """The registry line of a method; an unknown name is an error with near matches."""
    if name not in METHODS:
        names = sorted(METHODS)
        raise UnknownNameError(
            f"method {name!r} is not known.{near_matches(name, names)} Known: {', '.join(names)}."
        )
    return METHODS[name]


def split(name: str, options: Mapping[str, Any]) -> tuple[Options, Choice]:
    """Sorts keyword options into those of sampling and those of the method's parts.

    Raises:
        UnknownNameError: no such method.
        InputError: an option that neither knows, or a value out of range.
    """
    entry = entry_of(name)
    shared = {field.name for field in dataclasses.fields(Options)}
    parts = _parts(entry)
    given: dict[str, dict[str, Any]] = {seat: {} for seat in parts}
    fields = {seat: {f.name for f in dataclasses.fields(config)} for seat, config in parts.items()}
    own = set().union(*fields.values())
    for option, value in {**entry.options, **options}.items():
        if option in shared:
            continue
        if option not in own:
            fixed = f" Method {name!r} has {', '.join(sorted(own)) or 'no options of its own'}."
            known = shared | own
            raise InputError(
                f"option {option!r} is not known.{near_matches(option, sorted(known))}{fixed}"
            )
        for seat in parts:
            if option in fields[seat]:
                given[seat][option] = tuple(value) if isinstance(value, list) else value
    sampling = Options(**{key: value for key, value in options.items() if key in shared})
    _refuse(name, entry, sampling)
    return sampling, Choice(name, **{seat: parts[seat](**given[seat]) for seat in parts})


def _parts(entry: Entry) -> dict[str, type]:
    """The `Config` of every part that has options."""
    if entry.continuous is not None:
        return {"continuous": _config("continuous", entry.continuous)}
    parts = {"drafter": _config("drafters", entry.drafter)}
    parts["verifier"] = _config("verifiers", entry.verifier)
    if entry.fills:
        parts["commit"] = _config("commits", entry.commit)
    if entry.policy is not None:
        parts["policy"] = _config("search", entry.policy)
    return parts


def _refuse(name: str, entry: Entry, asked: Options) -> None:
    """An error for every option that the method cannot honour."""
    default = Options()
    for field in entry.refuses:
        value = getattr(asked, field)
        # An empty schema still asks for JSON.
        is_empty = isinstance(value, Sized) and not len(value) and field not in CONSTRAINTS
        if value != getattr(default, field) and not is_empty:
            raise InputError(
                f"method {name!r} cannot honour {field}={value!r}; leave {field} out, or use "
                "another method."
            )


def check_model(name: str, config: Any) -> None:
    """Refuses a method that fills slots on a model that cannot, and the other way round."""
    denoiser = config.denoiser
    kind = "writes one token after the other" if denoiser is None else "fills undecided slots"
    if denoiser is not None and denoiser.inserts:
        kind = "inserts tokens"
    fits = [other for other, entry in METHODS.items() if _runs(entry, config)]
    if name in fits:
        return
    raise InputError(
        f"method {name!r} cannot run this model, which {kind}; use one of {', '.join(fits)}."
    )


def _runs(entry: Entry, config: Any) -> bool:
    denoiser = config.denoiser
    inserts = denoiser is not None and denoiser.inserts
    return entry.fills == (denoiser is not None) and inserts == ("insertions" in entry.needs)


def check_draft(name: str, *, given: bool) -> None:
    """Refuses a method without the draft model it needs, or with one it does not use."""
    needed = "draft" in METHODS[name].needs
    if needed and not given:
        raise InputError(
            f"method {name!r} needs a draft model: pass draft=jd.load(...), on the command line "
            "--draft NAME_OR_PATH."
        )
    if given and not needed:
        takers = [other for other, entry in METHODS.items() if "draft" in entry.needs]
        raise InputError(
            f"method {name!r} does not use a draft model; leave draft out, or use one of "
            f"{', '.join(takers)}."
        )


def check_heads(name: str, kind: str | None) -> None:
    """Refuses a method without the trained parts it needs, or with others.

    Args:
        name: registry key.
        kind: what the caller gave; None for nothing.
    """
    wanted = METHODS[name].heads
    if kind == wanted:
        return
    if kind is None:
        raise InputError(
            f"method {name!r} needs trained heads of kind {wanted!r}: pass heads=FOLDER, on the "
            "command line --heads FOLDER; `jaxdecode train` makes them for any model."
        )
    takers = [other for other, entry in METHODS.items() if entry.heads == kind]
    raise InputError(
        f"method {name!r} does not use heads of kind {kind!r}; leave heads out, or use "
        f"{' or '.join(takers) or 'heads of another kind'}."
    )


def weights_of(
    choice: Choice, models: Models, target: Any, draft: Any, heads: Any = None
) -> tuple[Method, Weights]:
    """The method's bundles, and the parameters of all parts in the form they read.

    Args:
        choice: method and options.
        models: target, draft model and kind of heads.
        target: the target's parameters.
        draft: the draft model's `DraftWeights`, or None.
        heads: parameters of the heads, or None.
    """
    check_model(choice.name, models.target.config)
    check_draft(choice.name, given=models.draft is not None)
    check_heads(choice.name, None if models.heads is None else models.heads.kind)
    method = method_of(choice, models)
    weights = Weights(target=target, drafter=draft, heads=heads)
    if method.drafter.prepare is not None:
        weights = method.drafter.prepare(weights)
    return method, weights


@functools.lru_cache(maxsize=256)
def method_of(choice: Choice, models: Models) -> Method:
    """The bundles of a choice; cached, because their identity keys compiled programs."""
    entry = choice.entry
    drafter = _module("drafters", entry.drafter).make(choice.drafter, models)
    if drafter.max_depth > MAX_DEPTH:
        raise InputError(
            f"{choice.name!r} would draft {drafter.max_depth} tokens in a row, but a canvas has "
            f"room for {MAX_DEPTH}; lower num_draft."
        )
    commit = None
    if entry.fills:
        commit = _module("commits", entry.commit).make(choice.commit, models)
    return Method(
        drafter=drafter,
        verifier=verifier(entry.verifier, choice.verifier, models),
        cache=models.target.cache if drafter.keeps else cache("none", models.target.mesh),
        commit=commit,
    )


def verifier(file: str, config: Any, models: Models) -> Verifier:
    """The bundle of a file in `verifiers/`."""
    return _module("verifiers", file).make(config, models)


def policy(file: str) -> Callable[..., Any]:
    """What drives the loop, from a file in `search/`."""
    return _module("search", file).run


def continuous(file: str) -> Any:
    """A method that denoises texts as vectors: a file in `continuous/`."""
    return _module("continuous", file)


def cache(file: str, mesh: Mesh | None = None) -> Cache:
    """The bundle of a file in `caches/`."""
    return _module("caches", file).make(mesh)


def model_of(
    config: Any, target: Any, kv_dtype: Any, mesh: Mesh | None = None, kept: str = "dense"
) -> Model:
    """A language model bound to the cache file that keeps its keys and values."""
    return Model(target, config, kv_dtype, cache(kept, mesh), mesh)


def _config(folder: str, file: str) -> type:
    return _module(folder, file).Config


def _module(folder: str, file: str) -> Any:
    return importlib.import_module(f"jaxdecode.{folder}.{file}")
