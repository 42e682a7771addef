"""New models: from the YAML that is shipped and a few hundred characters to a checkpoint."""

import json

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from jaxdecode.evals import lists
from jaxdecode.paths import config_dir
from jaxdecode.training import config as configs
from jaxdecode.training import fresh
from jaxdecode.training.run import train

TEXT = (
    "She sells sea shells on the sea shore;\nthe shells she sells are sea shells, für sure.\n" * 4
)
SMALL = [
    "target={num_layers: 1, hidden_size: 16, num_heads: 2, vocabulary: text, max_length: 64}",
    "data.max_length=32",
    "batch_size=2",
    "steps=2",
    "measure={num_prompts: 2}",
    "dtype=float32",
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.mark.filterwarnings("ignore:.*are also trained on")
@pytest.mark.parametrize("name", ["mdlm_shakespeare", "bd3_shakespeare", "ar_shakespeare"])
def test_a_model_of_characters(name, text, tmp_path):
    changes = [*SMALL, f"data.train={text}", f"data.held_out={text}"]
    config = configs.read(config_dir() / "train" / f"{name}.yaml", changes)
    run = train(config, out=tmp_path / "run")
    assert np.isfinite(run.best) and run.metrics[-1]["held_out_loss"] == run.best
    lm = jd.load(run.checkpoint, progress=False)
    fills = name != "ar_shakespeare"
    known = sorted(set(TEXT.encode()))
    assert lm.config.vocab_size == len(known) + 1 + fills
    assert lm.end_tokens == (len(known),)
    assert lm.tokenizer.decode(lm.tokenizer.encode(TEXT)) == TEXT
    assert lm.tokenizer.encode("as") == [known.index(ord("a")), known.index(ord("s"))]
    assert lm.tokenizer.encode("a<|endoftext|>")[-1] == len(known)
    if fills:
        block = 16 if name == "bd3_shakespeare" else 0
        found = lm.config.denoiser
        assert (found.mask_token, found.block, found.shifted) == (len(known) + 1, block, False)
    else:
        assert lm.config.denoiser is None
    again = train(config, out=tmp_path / "run", resume=True)
    assert again.stopped == "finished"


def test_a_vocabulary_of_a_number_of_tokens(tmp_path):
    for name, seed in (("train", 0), ("held", 1)):
        lines = (json.dumps(line) + "\n" for line in lists.examples(20, 6, seed))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    changes = [
        f"data.train={tmp_path / 'train.jsonl'}",
        f"data.held_out={tmp_path / 'held.jsonl'}",
        "steps=2",
        "batch_size=4",
        "measure={num_prompts: 4}",
    ]
    config = configs.read(config_dir() / "train" / "mdlm_lists.yaml", changes)
    run = train(config, out=tmp_path / "run")
    lm = jd.load(run.checkpoint, progress=False)
    assert (
        lm.config.denoiser.mask_token == lists.MASK_TOKEN
        and lm.config.vocab_size == lists.VOCAB_SIZE
    )


def test_all_bytes():
    with fresh.opened(run_of({"vocabulary": "bytes"})) as config:
        lm = jd.load(config.target, progress=False)
    assert lm.tokenizer.encode("\x00é") == [0, *"é".encode()]
    assert lm.config.vocab_size == 258


def run_of(changes):
    sizes = {"num_layers": 1, "hidden_size": 16, "num_heads": 2} | changes
    data = {"train": "a.jsonl"}
    return configs.of(
        {"recipe": "mdlm", "target": sizes, "data": data, "batch_size": 1, "steps": 1}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": "words"}, "target.vocabulary='words' is not known"),
        ({"hidden_size": 18}, "hidden_size=18 is no even multiple"),
        ({"num_layer": 1}, "target has no field 'num_layer'. Did you mean 'num_layers'"),
        ({"num_layers": 0}, "target.num_layers=0"),
        ({"num_layers": "two"}, "num_layers"),
        ({"vocabulary": "text"}, "data.train is a.jsonl"),
    ],
)
def test_sizes_that_cannot_be_used(changes, message):
    with pytest.raises(InputError) as error, fresh.opened(run_of(changes)):
        pass
    assert message in str(error.value)


def test_heads_need_a_model_that_is_there():
    content = {"recipe": "medusa", "target": {}, "data": {"train": "a"}, "batch_size": 1}
    with pytest.raises(InputError, match="trains for a model that is there"):
        configs.of(content | {"steps": 1})
