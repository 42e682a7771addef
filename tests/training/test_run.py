"""Runs from end to end: resumed ones equal uninterrupted ones bit by bit, and what goes wrong."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecode as jd
from jaxdecode.errors import (
    CheckpointError,
    CorruptCheckpointError,
    DestinationExistsError,
    InputError,
    JaxdecodeError,
)
from jaxdecode.training import acceptance, config, folder, metrics, setup, step
from jaxdecode.training.objective import Batch, Export, Objective, Start
from jaxdecode.training.run import train
from tests.training import runs


class Killed(Exception):
    """Stands for a kill at a place of the run where nothing is cleaned up."""


def killing(step):
    def watch(line):
        if line["step"] >= step:
            raise Killed

    return watch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and its config."""
    folder = tmp_path_factory.mktemp("whole")
    content = runs.config(folder)
    return content, train(content, out=folder / "run")


@pytest.mark.parametrize("kill", [3, 6, 9])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, tmp_path, kill):
    content, run = whole
    with pytest.raises(Killed):
        train(content, out=tmp_path / "run", watch=killing(kill))
    again = train(content, out=tmp_path / "run", resume=True)
    assert again.stopped == "finished"
    runs.assert_same(run.folder, again.folder)
    loss = [(line["step"], line["loss"]) for line in run.metrics]
    assert [(line["step"], line["loss"]) for line in again.metrics] == loss
    a, b = (jd.load_heads(made.checkpoint).params for made in (run, again))
    for name in a:
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes()


def test_another_seed_is_another_run(whole, tmp_path):
    other = train(whole[0] | {"seed": 1}, out=tmp_path / "run")
    with pytest.raises(AssertionError):
        runs.assert_same(whole[1].folder, other.folder)


def test_sigterm_saves_and_ends(whole, tmp_path):
    content, run = whole

    def terminate(line):
        if line["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stopped = train(content, out=tmp_path / "run", watch=terminate)
    assert stopped.stopped == "SIGTERM" and signal.getsignal(signal.SIGTERM) is before
    assert runs.saved(stopped.folder)[0] == 6
    train(content, out=tmp_path / "run", resume=True)
    runs.assert_same(run.folder, tmp_path / "run")


def test_minutes_end_a_run_with_a_result_and_resume_goes_on(whole, tmp_path):
    content, run = whole
    with pytest.warns(UserWarning, match=r"over at step 1 of \d+, .* run with steps=1 would"):
        short = train(content | {"minutes": 1e-9}, out=tmp_path / "run")
    assert short.stopped == "time" and runs.saved(short.folder)[0] == 1
    assert jd.load_heads(short.checkpoint).params
    assert train(content, out=tmp_path / "run", resume=True).stopped == "finished"
    runs.assert_same(run.folder, tmp_path / "run")


def test_the_host_is_one_step_ahead_of_the_devices(whole, tmp_path, monkeypatch):
    issued, ahead, real = [], [], setup.compiled

    @jax.jit
    def slow(loss):
        work = jax.lax.fori_loop(0, 300, lambda _, x: jnp.sin(x @ x), jnp.eye(256))
        return loss + 0 * work.sum()

    def compiled(*given):
        one_step = real(*given)

        def late(*args):
            ahead.append(sum(not loss.is_ready() for loss in issued))
            state, found = one_step(*args)
            issued.append(slow(found["loss"]))
            return state, found | {"loss": issued[-1]}

        return late

    monkeypatch.setattr(setup, "compiled", compiled)
    train(whole[0] | {"log": {"every": 100}}, out=tmp_path / "run")
    assert max(ahead) == 1


def test_resume_without_a_checkpoint_begins(whole, tmp_path):
    content, run = whole
    train(content, out=tmp_path / "run", resume=True)
    runs.assert_same(run.folder, tmp_path / "run")


def test_watching_may_change_on_resume_and_computing_may_not(whole, tmp_path):
    content, run = whole
    shutil.copytree(run.folder, tmp_path / "run")
    with pytest.raises(InputError, match=r"optimizer\.lr=0\.01, and now it is 0\.02"):
        train(content | {"optimizer": {"lr": 0.02}}, out=tmp_path / "run", resume=True)
    train(content | {"log": {"every": 5}}, out=tmp_path / "run", resume=True)


def test_a_run_is_not_replaced_without_being_asked(whole, tmp_path):
    content, run = whole
    with pytest.raises(DestinationExistsError, match="--resume goes on"):
        train(content, out=run.folder)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DestinationExistsError, match="holds no run"):
        train(content, out=tmp_path, overwrite=True)


def test_a_damaged_checkpoint_is_named(whole, tmp_path):
    content, run = whole
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    data = max((folder / "steps" / "12" / "state").rglob("*"), key=_size)
    content_bytes = bytearray(data.read_bytes())
    content_bytes[len(content_bytes) // 2] ^= 1
    data.write_bytes(content_bytes)
    with pytest.raises(CorruptCheckpointError, match=r"steps/12 is damaged.*resume from step 8"):
        train(content, out=folder, resume=True)
    shutil.rmtree(folder / "steps" / "12")
    train(content, out=folder, resume=True)
    runs.assert_same(run.folder, folder)


def _size(path):
    return path.stat().st_size if path.is_file() else -1


def test_a_full_disk_loses_nothing(whole, tmp_path, monkeypatch):
    from orbax.checkpoint import CheckpointManager

    content, run = whole
    save = CheckpointManager.save

    def full(self, step, **options):
        if step == 8:
            raise ValueError("UNAVAILABLE: write failed: No space left on device")
        return save(self, step, **options)

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointManager, "save", full)
        with pytest.raises(CheckpointError) as error:
            train(content, out=tmp_path / "run")
    assert "no space left on the disk" in str(error.value) and "--resume" in str(error.value)
    assert runs.saved(tmp_path / "run")[0] == 4
    train(content, out=tmp_path / "run", resume=True)
    runs.assert_same(run.folder, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    content = runs.config(tmp_path, optimizer={"lr": 3e38})
    with pytest.raises(JaxdecodeError, match="lower optimizer.lr"):
        train(content, out=tmp_path / "run")


def test_metrics_cut_short_by_a_kill_are_written_again(whole, tmp_path):
    content, run = whole
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train(content, out=folder, watch=killing(9))
    with (folder / metrics.FILE).open("a") as file:
        file.write('{"step": 11, "lo')
    again = train(content, out=folder, resume=True)
    assert [line["step"] for line in again.metrics] == [line["step"] for line in run.metrics]


def measured(tmp_path, resume=False, **measure):
    """A run whose parameters do not move, so that every measurement is equal."""
    content = runs.config(tmp_path, optimizer={"lr": 1e-9})
    content["data"]["held_out"] = runs.write_data(tmp_path, num=3, seed=1, name="held.jsonl")
    content["measure"] = {"every": 4, "num_prompts": 2, "max_new_tokens": 8} | measure
    return train(content, out=tmp_path / "run", resume=resume)


def test_acceptance_is_measured_and_the_best_is_kept(tmp_path):
    run = measured(tmp_path)
    lengths = [line["acceptance_length"] for line in run.metrics if "acceptance_length" in line]
    assert len(lengths) == 3 and run.best == lengths[0] == max(lengths)
    assert all(line.get("differing", 0) == 0 for line in run.metrics)
    assert jd.load_heads(run.folder).notes["step"] == 4


def test_what_cannot_be_measured_is_refused_before_the_first_step(tmp_path):
    """And the folder goes on once it can be."""
    with pytest.raises(InputError, match="'medusa_63' is 4 tokens deep, but the heads guess 2"):
        measured(tmp_path, options={"tree": "medusa_63"})
    assert not any(path.read_text() for path in tmp_path.rglob("metrics.jsonl"))
    assert measured(tmp_path, resume=True).stopped == "finished"


def test_a_run_that_gets_no_better_ends_early(tmp_path):
    run = measured(tmp_path, patience=1)
    assert run.stopped == "early" and runs.saved(run.folder)[0] == 8


def test_a_run_that_does_not_help_says_so(tmp_path, monkeypatch):
    found = {"prompt_lookup": 1.5, "medusa": 1.25}
    monkeypatch.setattr(
        acceptance.Exam,
        "measure",
        lambda exam, candidate, method, options: {"acceptance_length": found[method]},
    )
    with pytest.warns(UserWarning, match=r"1\.25 tokens .* 1\.50: this run does not help"):
        measured(tmp_path)


def test_micro_batches_add_up(tmp_path):
    """Rows that weigh alike: a plain step along the gradient is that of the whole batch."""
    content = runs.config(tmp_path)
    line = '{"tokens": [%s], "prompt_length": 0}\n'
    rng = np.random.default_rng(0)
    rows = [",".join(map(str, rng.integers(0, 90, 40))) for _ in range(8)]
    (tmp_path / "even.jsonl").write_text("".join(line % row for row in rows))
    content["data"] = {"train": str(tmp_path / "even.jsonl"), "max_length": 48}
    built = setup.build(config.of(content))
    data, optimizer = next(built.loader), optax.sgd(1.0)
    moved = []
    for parts in (1, 2):
        run = step.make(
            built.objective, optimizer, dtype=np.float32, num_steps=1, micro_batches=parts
        )
        state = step.begin(built.parts, optimizer)
        state, _ = run(state, built.parts.held, built.lm.params, data, jax.random.key(0))
        moved.append(state.params)
    for name, before in built.parts.moving.items():
        whole, added = (np.asarray(params[name]) - before for params in moved)
        assert np.abs(whole).max() > 1e-3
        np.testing.assert_allclose(added, whole, atol=1e-6)


def test_all_parts_of_a_step_have_its_moment():
    """A loss that is the share of the run: the gradient of each step, in parts or not, is known."""

    def loss(params, target, batch, key, moment):
        del target, key
        share = moment.share
        return params["x"] * share * jnp.sign(batch.weight.sum()), {"share": share}

    made = Objective(init=lambda *_: Start({}), loss=loss, export=lambda *_: Export())
    rows = jnp.ones((4, 3), jnp.int32)
    batch = Batch(tokens=rows, positions=rows, segments=rows, weight=jnp.ones((4, 3)))
    sgd = optax.sgd(1.0)
    for parts in (1, 2, 4):
        run = step.make(made, sgd, dtype=np.float32, num_steps=8, micro_batches=parts)
        state = step.begin(step.Parts({"x": jnp.float32(0)}, {}), sgd)
        for number in range(3):
            state, found = run(state, {}, {}, batch, jax.random.key(0))
            assert float(found["share"]) == number / 8
        assert float(state.params["x"]) == -(0 + 1 + 2) / 8


def test_all_moves_of_a_step_have_its_rollout():
    """What a step begins with is x there, twice as many rows; each move sees that, in parts too."""

    def rollout(params, target, batch, key, moment):
        del target, key, moment
        many = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), batch)
        return dataclasses.replace(many, features=many.tokens * params["x"])

    def loss(params, target, batch, key, moment):
        del target, key, moment
        seen = batch.features.mean()
        return -params["x"], {"seen": seen, "rows": jnp.float32(len(batch.tokens))}

    made = Objective(
        init=lambda *_: Start({}),
        loss=loss,
        export=lambda *_: Export(),
        rollout=rollout,
        num_moves=3,
    )
    rows = jnp.ones((4, 3), jnp.int32)
    batch = Batch(tokens=rows, positions=rows, segments=rows, weight=jnp.ones((4, 3)))
    sgd = optax.sgd(1.0)
    for parts in (1, 2, 4):
        run = step.make(made, sgd, dtype=np.float32, num_steps=8, micro_batches=parts)
        state = step.begin(step.Parts({"x": jnp.float32(0)}, {}), sgd)
        for number in range(2):
            state, found = run(state, {}, {}, batch, jax.random.key(0))
            assert float(found["seen"]) == 3 * number and float(found["rows"]) == 8 / parts
            assert float(found["tokens"]) == 12
        assert float(state.params["x"]) == 6 and int(state.step) == 2


def test_all_moves_of_a_step_have_its_learning_rate():
    settings = config.Optimizer(lr=1.0, warmup_steps=2, clip=1e9)
    once, often = (step.optimizer_of(settings, 6, num_moves) for num_moves in (1, 3))
    params = {"x": jnp.float32(0)}
    rates = []
    for optimizer in (once, often):
        state, found = optimizer.init(params), []
        for _ in range(6):
            updates, state = optimizer.update({"x": jnp.float32(1)}, state, params)
            found.append(-float(updates["x"]))
        rates.append(found)
    np.testing.assert_allclose(rates[1], np.repeat(rates[0][:2], 3), rtol=1e-4)


def test_a_warm_up_goes_on_where_it_was(tmp_path):
    """Killed in the first stage of Medusa-2 and in the second."""
    warm = {"alone": 0.5, "rise": "linear"}
    content = runs.config(tmp_path, recipe="medusa2", objective=warm, steps=8)
    run = train(content, out=tmp_path / "whole")
    losses = [line["loss"] for line in run.metrics]
    for kill in (3, 6):
        out = tmp_path / f"killed{kill}"
        with pytest.raises(Killed):
            train(content, out=out, watch=killing(kill))
        again = train(content, out=out, resume=True)
        runs.assert_same(run.folder, again.folder)
        assert [line["loss"] for line in again.metrics] == losses


def test_what_is_kept_of_the_target_is_what_it_says(tmp_path):
    """Features by text, packed in whatever rows: losses are those of a run that computes them."""
    content = runs.config(tmp_path)
    runs_of = [
        train(content | {"cache": cache}, out=tmp_path / str(cache)) for cache in (False, True)
    ]
    plain, kept = ([line["loss"] for line in run.metrics] for run in runs_of)
    np.testing.assert_allclose(kept, plain, rtol=1e-4)
    lines = []
    with pytest.raises(Killed):

        def watch(line):
            lines.append(line)
            killing(6)(line)

        train(content | {"cache": True}, out=tmp_path / "killed", watch=watch)
    told = [(line["features"], line["of"]) for line in lines if "features" in line]
    assert [done for done, total in told] == list(range(told[0][1] + 1)) and told[0][1] > 1
    assert "loss" in lines[len(told)]
    again = train(content | {"cache": True}, out=tmp_path / "killed", resume=True)
    runs.assert_same(tmp_path / "True", again.folder)
    with pytest.raises(InputError, match="recipe 'layerskip' cannot keep features"):
        setup.build(config.of({**content, "recipe": "layerskip", "shape": {}, "cache": True}))


def test_the_draft_vocabulary_stays_when_a_run_goes_on(tmp_path):
    content = runs.config(tmp_path, recipe="eagle3", shape={"draft_vocab": 8}, steps=4)
    content["checkpoint"] = {"every": 1}
    run = train(content, out=tmp_path / "whole")
    with pytest.raises(Killed):
        train(content, out=tmp_path / "killed", watch=killing(3))
    again = train(content, out=tmp_path / "killed", resume=True)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    said = [token for line in lines for token in json.loads(line)["tokens"][4:]]
    wanted = sorted(sorted(range(100), key=lambda token: (-said.count(token), token))[:8])
    for made in (run, again):
        assert jd.load_heads(made.folder).params["tokens"].tolist() == wanted


def test_an_early_end_stays_the_end(tmp_path):
    run = measured(tmp_path, patience=1)
    content = folder.read(run.folder)["config"]
    again = train(content, out=run.folder, resume=True)
    assert again.stopped == "early" and runs.saved(again.folder)[0] == 8
    assert again.metrics == run.metrics


def test_what_is_not_finite_is_not_saved(tmp_path):
    content = runs.config(tmp_path, optimizer={"lr": 3e38}, log={"every": 100})
    content["checkpoint"] = {"every": 1}
    with pytest.raises(JaxdecodeError, match="not finite"):
        train(content, out=tmp_path / "run")
    assert runs.saved(tmp_path / "run")[0] < content["steps"]


def test_plain_texts_of_a_frozen_target_are_decoded_once(tmp_path, monkeypatch):
    calls, decode = [], acceptance.Exam._decode

    def counted(exam, lm, **options):
        calls.append(options.get("method", "ar"))
        return decode(exam, lm, **options)

    monkeypatch.setattr(acceptance.Exam, "_decode", counted)
    measured(tmp_path)
    assert calls.count("ar") == 1 and calls.count("medusa") == 3


def test_prompts_must_leave_room(tmp_path):
    with pytest.raises(InputError, match="leaves room for measure.max_new_tokens=100000"):
        measured(tmp_path, max_new_tokens=100000)


def test_the_function_is_not_hidden_by_the_package():
    assert jd.train is train
