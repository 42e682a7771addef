"""FreeDave on a model of characters, trained on the project's own documentation."""

import pytest

import jaxdecode as jd
from jaxdecode.evals import suites
from jaxdecode.paths import config_dir

GIVEN, NEW = 32, 96


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The model of `mdlm_shakespeare.yaml` after its steps, on other texts, and beginnings."""
    folder = tmp_path_factory.mktemp("characters")
    docs = sorted((config_dir().parent / "docs").glob("*.md"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in docs)
    cut = len(text) * 9 // 10
    for name, part in {"train": text[:cut], "held_out": text[cut:]}.items():
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
    run = jd.train(
        config_dir() / "train" / "mdlm_shakespeare.yaml",
        overrides=[f"data.{name}={folder / f'{name}.txt'}" for name in ("train", "held_out")],
        out=folder / "run",
    )
    lm = jd.load(run.checkpoint, dtype="float32", progress=False)
    assert lm.tokenizer is not None
    pieces = suites.windows(lm.tokenizer.encode(text[cut:]), GIVEN + NEW, 16)
    return lm, [piece[:GIVEN] for piece in pieces]


@pytest.fixture(scope="module", params=["none", "dual"])
def written(trained, request):
    """What `llada` writes, and `freedave` by its `reach`."""
    lm, begins = trained
    asked = {"max_new_tokens": NEW, "block_length": 32, "reuse": request.param, "batch_size": 16}
    plain = jd.generate(lm, begins, method="llada", **asked)
    return plain, {
        reach: jd.generate(lm, begins, method="freedave", reach=reach, **asked) for reach in (0, 2)
    }


@pytest.mark.slow
def test_no_token_changes(written):
    plain, ours = written
    assert all(out.tokens == plain.tokens for out in ours.values())


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="0.63 of the passes: on these texts pairs save few")
def test_pairs_halve_the_passes(written):
    plain, ours = written
    total, *passes = (sum(stats.nfe for stats in out.stats) for out in (plain, *ours.values()))
    print({reach: number / total for reach, number in zip(ours, passes, strict=True)})
    assert passes[1] <= 0.55 * total < passes[0]
