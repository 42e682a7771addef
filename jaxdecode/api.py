"""The public functions: load, generate, infill, stream, methods, explain."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdecode import costs, resolve, template
from jaxdecode import engine as engines
from jaxdecode.constraints.matcher import checked, matchers
from jaxdecode.constraints.rules import Rule
from jaxdecode.continuous import write as continuous
from jaxdecode.convert import heads as head_files
from jaxdecode.convert import vocab
from jaxdecode.convert.heads import Heads as Heads
from jaxdecode.convert.heads import load_heads as load_heads
from jaxdecode.convert.tokenizer import TextStream
from jaxdecode.core.entry import CONSTRAINTS
from jaxdecode.core.protocols import DraftWeights, Models, Writer
from jaxdecode.dist.mesh import describe
from jaxdecode.errors import InputError
from jaxdecode.language_model import LanguageModel as LanguageModel
from jaxdecode.language_model import from_params as from_params
from jaxdecode.language_model import load as load
from jaxdecode.options import Options, Prompt, ends, make_request, tokenize
from jaxdecode.results import Generation, collect, row_result, whole_texts
from jaxdecode.sampling import noise
from jaxdecode.sampling.stop import StopFilter
from jaxdecode.template import start_of
from jaxdecode.trace.recorder import Recorder, list_rows, make_trace
from jaxdecode.zoo import explain as explain
from jaxdecode.zoo import methods as methods

# Text with marks, or token ids with None where a slot is open.
Template = str | Mapping[str, Sequence[int | None]]
# Steps per call of the loop: long enough that the calls cost nothing, short enough that Ctrl-C
# and progress bars answer.
STEPS_PER_CALL = 64
DEFAULT_BATCH_SIZE = 8


def generate(
    lm: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    *,
    method: str = "ar",
    draft: LanguageModel | None = None,
    heads: Heads | str | Path | None = None,
    n: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Callable[[int], None] | None = None,
    memory: dict | None = None,
    trace: bool = False,
    **options: Any,
) -> Generation:
    """Generates n continuations of every prompt.

    A row's result depends on its prompt, its seed and the options, never on its neighbours.

    Args:
        lm: the model.
        prompts: text, token ids, `{"messages": [...]}`, ... or a list of these.
        method: name from `methods()`.
        draft: the draft model of methods that need one.
        heads: the trained heads of methods that need some: a folder, or what `load_heads` gave.
        n: samples per prompt; results list them prompt by prompt. Sample 0 is what n=1 gives.
        batch_size: rows decoded at once; longer lists run batch after batch.
        progress: called with the number of new tokens after every few steps.
        memory: where methods keep what they learned; pass the same dict with the next prompts of
            the same model. It changes speed, never tokens.
        trace: record what every step proposed and what became of it (`out.trace`,
            `out.save_trace(path)`, `out.show()`). Slower: the host takes one step at a time.
        **options: fields of `jaxdecode.options.Options` (max_new_tokens, temperature, top_k,
            top_p, min_p, repetition_penalty, logit_bias, stop, stop_tokens, ignore_eos, seed,
            json_schema, regex, grammar) and options of the method (`explain` lists them).

    Raises:
        InputError: a prompt or an option is unusable; the message names it.
    """
    chosen, choice = resolve.split(method, options)
    prompts = [tokenize(prompt, lm.tokenizer, lm.config) for prompt in _as_list(prompts)]
    _check_counts(n, batch_size)
    rows = [prompt for prompt in prompts for _ in range(n)]
    seeds = [seed for seed in chosen.seeds(len(prompts)) for _ in range(n)]
    keys = [noise.row_key(seeds[i], row, sample=i % n) for i, row in enumerate(rows)]
    if choice.continuous is not None:
        resolve.check_draft(method, given=draft is not None)
        if trace:
            _check_one_text(None, choice, "so it cannot be traced")
        return continuous.run(lm, choice, heads, rows, keys, chosen, batch_size, progress)
    forms = [rule for rule in chosen.rules(len(prompts)) for _ in range(n)]
    engine = _engine(lm, choice, draft, heads)
    if trace:
        _check_one_text(engine, choice, "so it cannot be traced")
    if choice.entry.policy is None:
        if memory is not None:
            engine.memory = memory.get(choice)
        steps = {} if trace else None
        out = _decode(lm, engine, rows, keys, chosen, batch_size, progress, forms, steps)
        if memory is not None:
            memory[choice] = engine.memory
        if steps is None:
            return out
        texts = list_rows(rows, seeds, n, out, steps)
        made = make_trace(lm.name, lm.tokenizer, choice, chosen, texts)
        return dataclasses.replace(out, trace=made)
    assert draft is not None
    small = _engine(draft, resolve.split("ar", {})[1], None)
    writers = _writer(lm, engine, keys, batch_size), _writer(draft, small, keys, batch_size)
    run = resolve.policy(choice.entry.policy)
    return run(choice.policy, chosen, rows, *writers, progress)


def infill(
    lm: LanguageModel,
    templates: Template | Sequence[Template],
    *,
    method: str = "llada",
    draft: LanguageModel | None = None,
    heads: Heads | str | Path | None = None,
    n: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Generation:
    """Fills the open slots of every template; what is given stays as it is.

    Args:
        lm: a masked diffusion model.
        templates: text in which `[[MASK:8]]` stands for eight tokens, `{"tokens": [...]}` with
            None for open slots, or a list of these.
        method: a method that fills slots.
        draft: the autoregressive model of methods that need one.
        heads: trained heads of methods that need some.
        n: samples per template.
        batch_size: rows decoded at once.
        progress: called with the number of new tokens after every few steps.
        **options: as for `generate`, without those that say where a text ends.

    Returns:
        As `generate`, with whole texts: tokens that were given have step -1 and log-probability 0.

    Raises:
        InputError: a template or an option is unusable; the message names it.
    """
    for name in ("max_new_tokens", "stop", "stop_tokens", "ignore_eos", *CONSTRAINTS):
        if name in options:
            raise InputError(
                f"{name} is not for templates, which say where they end; leave it out."
            )
    entry = resolve.entry_of(method)
    if not entry.fills:
        raise InputError(
            f"method {method!r} writes one token after the other; use llada to infill."
        )
    chosen, choice = resolve.split(method, {**options, "max_new_tokens": 1, "ignore_eos": True})
    _check_counts(n, batch_size)
    listed: list[Any] = list(templates) if isinstance(templates, list | tuple) else [templates]
    given = [template.read(part, lm.tokenizer, lm.config) for part in listed]
    rows = [row for row in given for _ in range(n)]
    seeds = [seed for seed in chosen.seeds(len(given)) for _ in range(n)]
    keys = [noise.row_key(seeds[i], row, sample=i % n) for i, row in enumerate(rows)]
    engine = _engine(lm, choice, draft, heads)
    out = _decode(lm, engine, rows, keys, chosen, batch_size, progress)
    return whole_texts(lm.tokenizer, out, [list(row[: row.start]) for row in rows])


def _writer(
    lm: LanguageModel, engine: engines.Engine, keys: Sequence[np.ndarray], batch_size: int
) -> Writer:
    """A model as a policy sees it; `keys` are those of the policy's rows."""

    def write(members, texts, options):
        own = [keys[i] for i in members]
        return _decode(lm, engine, texts, own, options, batch_size, None)

    return Writer(write=write, tokenizer=lm.tokenizer, max_length=lm.config.max_length)


def _decode(
    lm: LanguageModel,
    engine: engines.Engine,
    rows: Sequence[Sequence[int]],
    row_keys: Sequence[np.ndarray],
    chosen: Options,
    batch_size: int,
    progress: Callable[[int], None] | None,
    forms: Sequence[Rule | None] = (),
    steps: dict[int, list] | None = None,
) -> Generation:
    """Runs the loop over all rows, batch after batch.

    `forms` are the rows' constraints; `steps` is given what each row's steps did, if it is there.
    """
    # Neighbours of like length waste the least padding; results do not depend on it.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    results: dict[int, tuple] = {}
    for first in range(0, len(order), batch_size):
        members = order[first : first + batch_size]
        batch = [rows[i] for i in members]
        keys = [row_keys[i] for i in members]
        last = None
        asked = [forms[i] for i in members] if forms else ()
        recorder = None if steps is None else Recorder([start_of(row) for row in batch])
        watch = recorder and recorder.watch
        for last in _run(lm, engine, batch, keys, chosen, None, asked, watch):
            if progress is not None:
                progress(_num_new(last, batch))
        assert last is not None
        for b, i in enumerate(members):
            results[i] = row_result(lm.tokenizer, last, b, start_of(batch[b]), chosen)
        if steps is not None and recorder is not None:
            steps |= zip(members, recorder.steps, strict=True)
    return collect([results[i] for i in range(len(rows))])


def stream(
    lm: LanguageModel,
    prompt: Prompt,
    *,
    method: str = "ar",
    draft: LanguageModel | None = None,
    heads: Heads | str | Path | None = None,
    on_finish: Callable[[Generation], None] | None = None,
    **options: Any,
) -> Iterator[str]:
    """Yields the text of one prompt as it is decoded; the pieces join to `generate`'s text.

    Nothing of a stop string, and no half of a character, is ever yielded.

    Args:
        lm: the model; it needs a tokenizer.
        prompt: one prompt.
        method: name from `methods()`.
        draft: the draft model of methods that need one.
        heads: the trained heads of methods that need some.
        on_finish: called once with the whole result.
        **options: as for `generate`.
    """
    if lm.tokenizer is None:
        raise InputError("streaming gives text, but this checkpoint has no tokenizer.")
    chosen, choice = resolve.split(method, options)
    tokens = tokenize(prompt, lm.tokenizer, lm.config)
    engine = _engine(lm, choice, draft, heads)
    _check_one_text(engine, choice, "so it cannot stream; use generate")
    return _stream(lm, tokens, engine, chosen, on_finish)


def _check_one_text(engine: engines.Engine | None, choice: resolve.Choice, so: str) -> None:
    """Refuses methods that are not one run of the loop, or write elsewhere than on the canvas."""
    if engine is None or engine.method.drafter.outputs is not None or choice.entry.policy:
        raise InputError(f"method {choice.name!r} does not write token by token, {so}.")


def _stream(lm, tokens, engine, options, on_finish) -> Iterator[str]:
    text, held = TextStream(lm.tokenizer), StopFilter(options.stop)
    sent, last = len(tokens), None
    keys = [noise.row_key(seed, tokens) for seed in options.seeds(1)]
    for last in _run(lm, engine, [tokens], keys, options, _stream_steps(), options.rules(1)):
        new = last.new_tokens(0, sent)
        sent += len(new)
        if piece := held.push(text.push(new.tolist())):
            yield piece
    if piece := held.push(text.flush()) + held.flush():
        yield piece
    if on_finish is not None and last is not None:
        on_finish(collect([row_result(lm.tokenizer, last, 0, len(tokens), options)]))


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        return [prompts]
    listed: list[Any] = list(prompts)
    if not listed:
        raise InputError("there are no prompts; give at least one.")
    if all(isinstance(item, int | np.integer) for item in listed):
        return [listed]  # one prompt of token ids
    return listed


def _check_counts(n: int, batch_size: int) -> None:
    for name, value in (("n", n), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is out of range; it must be an integer >= 1.")


def _engine(
    lm: LanguageModel,
    choice: resolve.Choice,
    draft: LanguageModel | None,
    heads: Heads | str | Path | None = None,
) -> engines.Engine:
    if choice.continuous is not None:
        raise InputError(
            f"method {choice.name!r} writes whole texts beside the loop: only generate runs it."
        )
    if heads is not None:
        heads = head_files.fitting(head_files.open_heads(heads), lm.config, lm.dtype)
    if draft is not None and draft.mesh != lm.mesh:
        raise InputError(
            f"{draft.name!r} lies on mesh {_mesh_text(draft)} and {lm.name!r} on {_mesh_text(lm)}; "
            "load both with the same mesh."
        )
    models = Models(lm.bound, draft and draft.bound, heads and heads.spec)
    takes_one = "draft" in choice.entry.needs
    params = _draft_weights(lm, draft) if draft is not None and takes_one else None
    # What is made of the model's own parameters alone is made once.
    kept = lm.prepared if draft is None and heads is None else {}
    if choice not in kept:
        parts = lm.params, params, heads and heads.params
        _, kept[choice] = resolve.weights_of(choice, models, *parts)
    method, weights = resolve.method_of(choice, models), kept[choice]
    return engines.Engine(model=models.target, method=method, weights=weights)


def _mesh_text(lm: LanguageModel) -> str:
    return "of one device" if lm.mesh is None else describe(lm.mesh.shape)


def _draft_weights(lm: LanguageModel, draft: LanguageModel) -> DraftWeights:
    sides = [vocab.Vocabulary(x.name, x.config.vocab_size, x.tokenizer) for x in (lm, draft)]
    return DraftWeights(draft.params, *(vocab.match(*sides) or ()))


def _run(
    lm, engine, prompts, keys, options, steps, forms=(), watch=None, slots=None
) -> Iterator[engines.Snapshot]:
    """Runs one batch; `forms` are its rows' constraints, `watch` is told of every step.

    Without `slots`, the canvas is as long as the prompts need.
    """
    asked = lm.tokenizer, lm.config.vocab_size, ends(options, lm.end_tokens)
    grammars = matchers(forms, *asked, fills=engine.method.commit is not None)
    request = make_request(
        options,
        keys,
        batch=engines.batch_bucket(len(prompts), lm.mesh),
        tokenizer=lm.tokenizer,
        config=lm.config,
        end_tokens=lm.end_tokens,
        matchers=grammars,
    )
    slots = slots or engines.slots_of(engine, prompts, options.max_new_tokens)
    costs.with_prices(engine, request, slots)
    steps = steps or itertools.repeat(STEPS_PER_CALL)
    snapshots = engines.run(engine, request, prompts, options.max_new_tokens, steps, watch, slots)
    return checked(snapshots, grammars)


def _stream_steps() -> Iterator[int]:
    """One step at first, for the first token's sake; then a few at a time."""
    return itertools.chain([1, 1, 2], itertools.repeat(4))


def _num_new(snapshot: engines.Snapshot, prompts: Sequence[Sequence[int]]) -> int:
    lengths = snapshot.canvas.length[: len(prompts)] + 1
    return int(lengths.sum()) - sum(map(start_of, prompts))
