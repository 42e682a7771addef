"""Models of few bits: settings, what they do to laws and steps, and what products read."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode import api
from jaxdecode.errors import InputError
from jaxdecode.evals import lists, quantize, quantized, suites
from jaxdecode.evals.quantize import Setting
from jaxdecode.models import decoder, rounding
from jaxdecode.models.config import Denoiser
from tests import toys

DOWN = "mlp.down"


@pytest.fixture(scope="module")
def spiked() -> api.LanguageModel:
    """A random model with the laws of another, and one channel of 80 times the size on the way."""
    lm = toys.denoiser()
    layers = []
    for layer in lm.params["layers"]:
        mlp = {name: dict(leaf) for name, leaf in layer["mlp"].items()}
        up, down = mlp["gate_up"]["kernel"], mlp["down"]["kernel"]
        mlp["gate_up"]["kernel"] = up.at[:, 1, 5].multiply(80.0)
        mlp["down"]["kernel"] = down.at[:, 5].divide(80.0)
        layers.append({**layer, "mlp": mlp})
    return dataclasses.replace(lm, params={**lm.params, "layers": layers})


@pytest.fixture(scope="module")
def texts() -> list:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 60, 24).tolist(), 8) for _ in range(4)]


@pytest.fixture(scope="module")
def inputs(spiked, texts) -> quantized.Inputs:
    return quantized.calibrate(spiked, texts)


def test_settings_are_read():
    four, both, turned = quantize.settings("w4g32, w8a8:smooth,a4:hadamard")
    assert four == Setting(label="w4g32", weights=4, group=32)
    assert (both.weights, both.activations, both.way) == (8, 8, "smooth")
    assert (turned.weights, turned.activations) == (None, 4)
    assert [s.label for s in quantize.settings("all")] == quantize.USUAL.split(",")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w9", "'w9' is no setting"),
        ("", "is no setting"),
        (":hadamard", "is no setting"),
        ("w4:best", "'best' is not known"),
        ("a8:gptq", "gptq is about weights"),
        ("w4:smooth", "smooth is about activations"),
    ],
)
def test_what_is_no_setting_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        quantize.settings(text)


def test_inputs_tell_mask_tokens_from_others(inputs):
    rows, undecided = inputs.rows["attn.qkv"][0], inputs.undecided
    # Four texts, each with 4, 8, 12 and 16 of its slots masked.
    assert undecided.sum() == 4 * 40 and len(rows) == 4 * 4 * 24
    assert np.ptp(rows[undecided], axis=0).max() == 0
    assert np.ptp(rows[~undecided], axis=0).max() > 0.1


def test_outliers_show_the_large_channel(inputs):
    found = {(row["product"], row["layer"]): row for row in quantized.outliers(inputs)}
    assert len(found) == 8
    for layer in range(2):
        size = np.abs(inputs.rows[DOWN][layer])
        row = found[DOWN, layer]
        assert row["largest"] == pytest.approx(size.max()) and size.max(0).argmax() == 5
        assert row["over_median"] > 100 and row["kurtosis"] > 30
        assert max(found["attn.qkv", layer]["kurtosis"], row["kurtosis"]) == row["kurtosis"]


def test_outliers_by_hand():
    rows = np.full((10, 4), 1.0, np.float32)
    rows[:, 2] = -8.0
    rows[3, 0] = 200.0
    undecided = np.arange(10) < 4
    (row,) = quantized.outliers(quantized.Inputs({"x": [rows]}, undecided))
    assert (row["largest"], row["over_median"]) == (200.0, 200.0)
    assert (row["large_channels"], row["massive_tokens"]) == (0.25, 0.1)
    assert (row["undecided"], row["decided"]) == (pytest.approx((3 * 8 + 200) / 4), 8.0)
    fourth, second = (200**4 + 10 * 8**4 + 29) / 40, (200**2 + 10 * 64 + 29) / 40
    assert row["kurtosis"] == pytest.approx(fourth / second**2, rel=1e-5)


def product(inputs, spiked, label: str, **changes):
    """What a rounded product returns for what it read, and what it should: `[N, O]`."""
    (setting,) = quantize.settings(label)
    rows, kernel = inputs.rows[DOWN][0], spiked.params["layers"][0]["mlp"]["down"]["kernel"]
    leaf = quantize._product({"kernel": kernel}, True, setting, rows)
    how = leaf.get(rounding.NAME, {}) | changes
    read = rounding.read(how, jnp.asarray(rows))
    return read @ leaf["kernel"].T, rows @ kernel.T, leaf["kernel"] - kernel


@pytest.mark.parametrize("way", ["hadamard", "smooth"])
def test_what_is_done_before_rounding_changes_nothing(spiked, inputs, way):
    found, wanted, moved = product(inputs, spiked, f"a8:{way}", levels=jnp.float32(1e9))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * float(abs(wanted).max()))
    assert abs(moved).max() > 1e-2


def test_calibrated_ways_err_less_in_what_a_product_returns(inputs, spiked):
    def error(label: str) -> float:
        found, wanted, _ = product(inputs, spiked, label)
        return float(jnp.square(found - wanted).mean())

    assert error("w3g8:gptq") < 0.95 * error("w3g8")
    assert error("w3g8:awq") <= error("w3g8")
    assert error("a4:smooth") < error("a4") / 2 and error("a4:hadamard") < error("a4") / 2


def test_fewer_bits_cost_more(spiked, inputs, texts):
    cost = {
        setting.label: quantized.divergence(
            spiked, quantize.apply(spiked, setting, inputs.rows), texts
        )
        for setting in quantize.settings("w8,w2g8,a8,a4,a4:hadamard")
    }
    assert 0 < cost["w8"] < cost["w2g8"] / 16
    assert cost["a8"] < cost["a4"] / 4 and cost["a4:hadamard"] < 0.7 * cost["a4"]
    assert quantized.divergence(spiked, spiked, texts) == 0


def test_stacked_layers_are_rounded_alike(inputs, spiked):
    (setting,) = quantize.settings("w4a8:smooth")
    stacked = {**spiked.params, "layers": decoder.stack(spiked.params["layers"])}
    one = quantize.apply(spiked, setting, inputs.rows).params["layers"]
    other = quantize.apply(dataclasses.replace(spiked, params=stacked), setting, inputs.rows)
    for name in ("kernel", rounding.NAME):
        a, b = decoder.stack(one)["mlp"]["down"][name], other.params["layers"]["mlp"]["down"][name]
        a, b = (x["scale"] if isinstance(x, dict) else x for x in (a, b))
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_rounded_is_refused(inputs, spiked, texts):
    with pytest.raises(InputError, match="groups of 5 do not divide the 32 inputs"):
        quantize.apply(spiked, quantize.settings("w4g5")[0], inputs.rows)
    with pytest.raises(InputError, match="fill masked slots"):
        quantized.calibrate(toys.model(), texts)
    with pytest.raises(InputError, match="something to mask"):
        quantized.calibrate(spiked, [([1, 2], 2)])
    with pytest.raises(InputError, match="split over devices"):
        quantize.plain(dataclasses.replace(spiked, mesh="there"))


def test_agreement_by_hand():
    def out(tokens, steps):
        return dataclasses.make_dataclass("Out", ["tokens", "steps"])(tokens, steps)

    own, other = out([[1, 2, 3, 4]], [[0, 1, 2, 2]]), out([[1, 2, 5, 4]], [[1, 1, 2, 0]])
    found = quantized._against(own, other)
    assert (found["same_tokens"], found["same_step"]) == (0.75, 0.5)
    # First 1 against 4; then 1, 2 against 1, 2, 4; then all.
    assert found["differs_by_step"] == [0.5, 0.25, 0.25]


def test_lists_and_text_are_filled_by_every_copy():
    built = toys.config(vocab_size=lists.VOCAB_SIZE)
    mask = Denoiser(mask_token=lists.MASK_TOKEN)
    lm = api.from_params(toys.config(vocab_size=23, denoiser=mask), toys.params(built))
    ways = suites.trials("llada", (0.0,))
    ticks = []
    asked = dict(size=4, count=3, batch_size=16, tick=lambda: ticks.append(0))
    found = quantized.on_lists(lm, quantize.settings("w8,w2g8"), ways, **asked)
    exact, fine, rough = found["rows"]
    assert [row["setting"] for row in found["rows"]] == ["float", "w8", "w2g8"]
    assert len(ticks) == 3 and len(found["outliers"]) == 8
    assert exact["same_tokens"] == exact["same_step"] == 1.0 and exact["divergence"] == 0
    assert exact["nfe"] == 4 and {row["trial"] for row in found["rows"]} == {"llada"}
    assert set(exact["tasks"]) == set(lists.TASKS) and 0 <= exact["accuracy"] <= 1
    assert rough["same_tokens"] < fine["same_tokens"] and rough["divergence"] > fine["divergence"]
    assert rough["differs_by_step"][-1] == pytest.approx(1 - rough["same_tokens"])
    tokens = np.random.default_rng(0).integers(0, 22, 400).tolist()
    # As many rows of the same lengths, so that programs are shared.
    sizes = dict(num_given=7, num_new=4, count=16, draws=2, batch_size=16)
    text = quantized.on_text(lm, quantize.settings("w8"), ways, tokens, **sizes)
    assert [row["setting"] for row in text["rows"]] == ["float", "w8"]
    assert all(row["bits"] > 0 for row in text["rows"])
    with pytest.raises(InputError, match="one piece"):
        quantized.on_text(lm, [], ways, tokens[:15], **sizes)
    with pytest.raises(InputError, match="23 tokens of their own"):
        quantized.on_lists(toys.denoiser(), [], ways, size=4, count=2)
