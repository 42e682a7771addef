"""Configs: what is read, and what is refused by name."""

import pytest

from jaxdecode.errors import InputError
from jaxdecode.training import config, setup
from jaxdecode.training.recipes import RECIPES

GOOD = """\
recipe: medusa
target: some/model
data: {train: a.jsonl}
batch_size: 4
steps: 10
optimizer: {lr: 1e-3}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    return path


def test_a_file_is_read_and_numbers_may_have_exponents(file):
    found = config.read(file, ["optimizer.warmup_steps=5", "log.writers=[tensorboard]", "seed=7"])
    assert (found.optimizer.lr, found.optimizer.warmup_steps, found.seed) == (1e-3, 5, 7)
    assert found.log.writers == ("tensorboard",)
    assert config.of(config.to_dict(found)) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimzer.lr=1", "'optimzer' is not known. Did you mean 'optimizer'"),
        ("optimizer.lrr=1", "'lrr' is not known. Did you mean 'lr'"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0 is not valid; it must be above 0"),
        ("optimizer.lr=fast", '"optimizer.lr" - should be "float" instead of value "fast"'),
        ("recipe=medus", "recipe 'medus' is not known. Did you mean 'medusa'"),
        ("steps=1.5", '"steps" - should be "int"'),
        ("steps=0", "steps=0 is out of range"),
        ("minutes=0", "minutes=0.0 is not valid; it must be above 0"),
        ("data={}", "'data.train' is missing"),
        ("data.max_length=1", "data.max_length=1 is out of range"),
        ("micro_batches=3", "batch_size=4 does not divide by micro_batches=3"),
        ("draft=some", "recipe 'medusa' trains no draft model; leave draft out"),
        ("log.writers=[paper]", "'paper' is not known; use tensorboard or wandb"),
        ("steps", "is not of the form KEY=VALUE"),
        ("steps.more=1", "'steps' is a value, not a group"),
    ],
)
def test_what_cannot_be_used_is_named(file, change, message):
    with pytest.raises(InputError) as error:
        config.read(file, [change])
    assert message in str(error.value)


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        config.read(tmp_path / "no.yaml")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is not YAML"):
        config.read(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(InputError, match="must be a mapping"):
        config.read(tmp_path / "b.yaml")


def test_settings_of_objectives_are_checked():
    with pytest.raises(InputError, match="no setting 'dekay'. Did you mean 'decay'"):
        setup.objective_config(RECIPES["medusa"], {"dekay": 1})
    with pytest.raises(InputError, match="decay=2 is not valid"):
        setup.objective_config(RECIPES["medusa"], {"decay": 2})


def test_the_first_difference_of_two_runs_is_named(file):
    a = config.to_dict(config.read(file))
    assert config.first_difference(a, config.to_dict(config.read(file, ["log.every=7"]))) is None
    b = config.to_dict(config.read(file, ["optimizer.clip=2"]))
    assert config.first_difference(a, b) == ("optimizer.clip", 1.0, 2.0)
