"""`jaxdecode plan`: what it prints, and what it refuses."""

import json

import pytest

from tests.plan.topologies import needs_tpu_compiler, quiet_compilers

__all__ = ["quiet_compilers"]

SMALL = ("--model", "smollm2-135m", "--topology", "v5e:1x1", "--context", 100, "--batch", 2)


def test_bad_names_are_refused_before_anything_is_compiled(cli):
    done = cli("plan", "--model", "llama3-8b", "--topology", "v5x:4x4")
    assert done.code == 2 and "Did you mean" in done.err and done.out == ""
    done = cli("plan", "--model", "llama3-8", "--topology", "v5e:4x4")
    assert done.code == 2 and "Did you mean 'llama3-8b'" in done.err
    assert cli("plan", "--topology", "v5e:4x4").code == 2
    done = cli("plan", "--model", "llama3-8b", "--topology", "v5e:4x4", "--search",
               "--method", "token_recycling")  # fmt: skip
    assert done.code == 2 and "leave --method out" in done.err


@needs_tpu_compiler
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--mesh", "data=2,model=4"), "needs 8 devices, but there are 16"),
        (("--mesh", "modle=8"), "Did you mean 'model'"),
        (("--mesh", "data=16", "--batch", 15), "batch 15 does not divide by data=16"),
        (("--mesh", "model=16", "--whole-heads"), "use a model axis of 1, 2, 4, 8"),
        (("--mesh", "data=16", "--context", 131073), "longer than the model's 131072 tokens"),
        (("--mesh", "data=16", "--nodes", "many"), "integers separated by commas"),
        (("--mesh", "data=16", "--method", "token_recyclin"), "Did you mean 'token_recycling'"),
        (("--mesh", "data=16", "--curve", "/absent"), "cannot be read as JSON"),
        (("--model", "llada-8b", "--method", "token_recycling"), "fills undecided slots; use one"),
        (("--model", "llada-8b", "--search"), "this model fills slots"),
        (("--method", "fast_dllm"), "writes one token after the other; use one of"),
        (
            ("--model", "llada-8b", "--method", "fast_dllm:reuse=block"),
            "'prefix', 'dual' or 'none'",
        ),
    ],
)
def test_what_cannot_be_planned(cli, args, words):
    done = cli("plan", "--model", "llama3-8b", "--topology", "v5e:4x4", *args)
    assert done.code == 2 and words in done.err and done.out == ""


@needs_tpu_compiler
def test_heads_that_no_copies_make_divide(cli):
    done = cli("plan", "--model", "smollm2-135m", "--topology", "v5e:4x4", "--mesh", "model=16")
    assert done.code == 2 and "use a model axis of 1, 3, 9" in done.err


@needs_tpu_compiler
def test_what_does_not_fit_is_said_with_numbers(cli):
    model = ("plan", "--model", "llama3-70b", "--topology", "v5e:4x4")
    done = cli(*model, "--mesh", "data=2,model=8")
    assert done.code == 1 and "GB too much" in done.out and "weights of 17.64" in done.out
    found = json.loads(cli(*model, "--mesh", "data=2,model=8", "--json").out)
    assert found["fits"] is False and found["memory"]["missing"] > 2e9
    none = cli("plan", "--model", "llama3-70b", "--topology", "v5e:2x2")
    assert none.code == 1 and "nothing fits on v5e:2x2" in none.err


@pytest.mark.slow
@needs_tpu_compiler
def test_a_plan_of_a_real_shape(cli, tmp_path):
    curve = tmp_path / "curve.json"
    curve.write_text(json.dumps({"4": 3.0}))
    found = json.loads(cli("plan", *SMALL, "--nodes", "4", "--curve", curve, "--json").out)
    assert found["fits"] and found["mesh"] == "data=1,model=1" and found["recommended"] == 4
    assert [p["name"] for p in found["programs"]] == [
        "decode",
        "verify, 4 nodes",
        "prefill, 128 tokens",
    ]
    table = cli("plan", *SMALL, "--nodes", "4")
    assert table.code == 0 and "fits" in table.out and "recommended" in table.out
