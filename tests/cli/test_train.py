"""`jaxdecode train`, and what the other commands make of the folder of its run."""

import json
import os
import signal

import pytest

from jaxdecode.cli import train as command


@pytest.fixture
def trained(cli, monkeypatch, tmp_path, checkpoint):
    """Runs `jaxdecode train` on a small config."""
    monkeypatch.setattr(command, "use_compile_cache", lambda: None)
    lines = [{"prompt": "abc", "completion": "defghijkl" * n} for n in (1, 2, 3)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"recipe: medusa\ntarget: {checkpoint}\nshape: {{num_heads: 2}}\n"
        f"data: {{train: {data}, held_out: {data}, max_length: 32}}\n"
        "batch_size: 2\nsteps: 4\ncheckpoint: {every: 2}\nlog: {every: 2}\n"
        "measure: {num_prompts: 1, max_new_tokens: 6, baseline: ar}\n"
    )
    return lambda *args: cli("train", config, "--out", tmp_path / "run", *args)


def test_a_run_and_what_comes_after_it(trained, cli, tmp_path, checkpoint):
    outcome = trained()
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    assert f"--method medusa --heads {run}" in outcome.err
    assert "3 of 3 prompts" in outcome.err  # held-out prompts that are trained on
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    asked = ("generate", "--model", checkpoint, "--prompt", "abc", "--max-new-tokens", 8, "--json")
    plain = cli(*asked).records[0]["tokens"]
    assert cli(*asked, "--method", "medusa", "--heads", run).records[0]["tokens"] == plain
    refused = cli(*asked, "--method", "ppd", "--heads", run)
    assert refused.code == 2 and "does not use heads of kind 'medusa'" in refused.err
    missing = cli(*asked, "--method", "medusa")
    assert missing.code == 2 and "needs trained heads of kind 'medusa'" in missing.err
    found = json.loads(cli("inspect", run, "--json").out)
    assert found["kind"] == "heads: medusa" and found["notes"]["recipe"] == "medusa"
    assert str(tmp_path) not in json.dumps(found["target"])
    assert cli("verify", run).code == 0
    tensors = run / "heads" / "heads.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    damaged = cli("verify", run)
    assert damaged.code == 1 and "does not have the hash" in damaged.err


def test_what_comes_before_the_first_step_is_told(trained):
    outcome = trained("--set", "cache=true", "--set", "batch_size=1", "--set", "steps=1")
    assert outcome.code == 0
    told = "computing the target's features of 3 batches of texts\n"
    assert outcome.err.count("features") == outcome.err.count(told) == 1


def test_bench_takes_the_heads(trained, cli, tmp_path, checkpoint):
    trained()
    suite = tmp_path / "suite.jsonl"
    suite.write_text('{"prompt": "abc"}\n')
    asked = ("bench", "--model", checkpoint, "--suite", suite, "--max-new-tokens", 6)
    shown = (*asked, "--methods", "medusa", "--check-only", "--json", "-")
    assert "needs trained heads of kind 'medusa': give --heads" in cli(*shown).err
    found = json.loads(cli(*shown, "--heads", tmp_path / "run").out)
    assert "medusa" in json.dumps(found)


def test_bad_input_is_one_line(trained, tmp_path):
    for setting, message in [
        ("optimizer.speed=1", "key 'speed' is not known"),
        ("data.train=none.jsonl", "none.jsonl"),
        ("target=no-such-model", "no-such-model"),
        ("shape={heads: 2}", "have no 'heads'"),
        ("mesh=data=3", "needs 3 devices"),
    ]:
        outcome = trained("--set", setting)
        assert outcome.code == 2 and outcome.err.count("error:") == 1, outcome.err
        assert message in outcome.err
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    outcome = trained("--overwrite")
    assert outcome.code == 2 and "train.jsonl:2:" in outcome.err


def test_sigterm_has_its_exit_code_and_resume_goes_on(trained, monkeypatch):
    from jaxdecode.training import run

    save = run._Trainer._save

    def terminate(self, done, state):
        save(self, done, state)
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(run._Trainer, "_save", terminate)
        stopped = trained()
    assert stopped.code == 143 and "--resume goes on" in stopped.err
    assert trained().code == 1
    done = trained("--resume", "--json")
    assert done.code == 0 and json.loads(done.out)["stopped"] == "finished"


def test_another_config_cannot_go_on(trained):
    assert trained().code == 0
    outcome = trained("--resume", "--set", "seed=5")
    assert outcome.code == 2 and "was begun with seed=0, and now it is 5" in outcome.err
