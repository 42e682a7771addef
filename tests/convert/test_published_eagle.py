"""EAGLE heads in their authors' layout: bit-exact both ways, and equal to plain NumPy."""

import dataclasses
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert import published
from jaxdecode.core.protocols import HeadSpec
from jaxdecode.drafters.eagle import KINDS
from jaxdecode.errors import CorruptCheckpointError, UnsupportedError
from jaxdecode.evals.toys import random_heads
from jaxdecode.heads import eagle
from jaxdecode.models.config import Rope
from jaxdecode.training.objective import program
from tests import toys
from tests.training import gate

D, V, F, HEADS, KV, DIM, DRAFTS = 32, 61, 48, 4, 2, 8, 20
# Of the heads' layer, and neither is the target's.
THETA, EPS = 50.0, 1e-2
# Biases of EAGLE-1: of the projection in front, and of queries, keys and values.
PLAIN, NONE, ALL = (True, False), (False, False), (True, True)
TEXT = [5, 2, 9, 4, 4, 1, 3, 8]


def tensors_of(version, dtype=np.float32, seed=0, biases=PLAIN):
    """Random tensors with the names and shapes of SafeAILab/EAGLE."""
    rng, third = np.random.default_rng(seed), version == 3
    layer, wide = ("midlayer", 2 * D) if third else ("layers.0", D)
    shapes = {
        "fc.weight": (D, 3 * D if third else 2 * D),
        f"{layer}.self_attn.q_proj.weight": (HEADS * DIM, wide),
        f"{layer}.self_attn.k_proj.weight": (KV * DIM, wide),
        f"{layer}.self_attn.v_proj.weight": (KV * DIM, wide),
        f"{layer}.self_attn.o_proj.weight": (D, HEADS * DIM),
        f"{layer}.post_attention_layernorm.weight": (D,),
        f"{layer}.mlp.gate_proj.weight": (F, D),
        f"{layer}.mlp.up_proj.weight": (F, D),
        f"{layer}.mlp.down_proj.weight": (D, F),
    }
    if third:
        shapes |= {
            "midlayer.hidden_norm.weight": (D,),
            "midlayer.input_layernorm.weight": (D,),
            "norm.weight": (D,),
            "lm_head.weight": (DRAFTS, D),
        }
    else:
        shapes["embed_tokens.weight"] = (V, D)
        if biases[0]:
            shapes["fc.bias"] = (D,)
        if biases[1]:
            for name, heads in zip("qkv", (HEADS, KV, KV), strict=True):
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (heads * DIM,)
    # Sharp attention: where it is all but uniform, positions hardly matter.
    sharp = {
        name: 8.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0 for name in shapes
    }
    made = {
        n: (rng.normal(size=s) * s[-1] ** -0.5 * sharp[n]).astype(dtype) for n, s in shapes.items()
    }
    if third:
        tokens = np.sort(rng.choice(V, DRAFTS, replace=False))
        made |= {"d2t": tokens - np.arange(DRAFTS), "t2d": np.isin(np.arange(V), tokens)}
    return made


def config_of(version, biases=PLAIN):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 1,
        "hidden_size": D,
        "num_attention_heads": HEADS,
        "vocab_size": V,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
    }
    if version == 3:
        return config | {"draft_vocab_size": DRAFTS}
    return config | {"bias": biases[0]} | ({"qkv_bias": True} if biases[1] else {})


def written(path, version, tensors, biases=PLAIN, **changes):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    config = config_of(version, biases) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(kept))
    return path


@pytest.mark.parametrize(
    ("version", "biases"), [(1, PLAIN), (1, NONE), (1, ALL), (3, PLAIN)], ids=str
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_heads_come_back_bit_by_bit(version, biases, dtype, tmp_path):
    tensors = tensors_of(version, dtype, biases=biases)
    heads = published.read(written(tmp_path / "theirs", version, tensors, biases))
    head_files.save_heads(heads, tmp_path / "ours")
    published.write(jd.load_heads(tmp_path / "ours"), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    tensors.pop("embed_tokens.weight", None)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].tobytes() == tensor.tobytes(), name
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back == config_of(version, biases)


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * scale


def rotated(x, base=THETA):
    half = DIM // 2
    turn = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def layer_of(tensors, prefix, read, x):
    """A Llama layer by the book, whose attention reads `read` and adds to `x`."""

    def part(name):
        return tensors[f"{prefix}.{name}.weight"].astype(np.float64)

    num = len(x)

    def project(name, heads):
        own = f"self_attn.{name}_proj"
        out = read @ part(own).T + tensors.get(f"{prefix}.{own}.bias", 0)
        return out.reshape(num, heads, DIM)

    q, k, v = rotated(project("q", HEADS)), rotated(project("k", KV)), project("v", KV)
    mixed = np.zeros((num, HEADS, DIM))
    for h in range(HEADS):
        g = h // (HEADS // KV)
        scores = np.where(np.tri(num) > 0, q[:, h] @ k[:, g].T * DIM**-0.5, -np.inf)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[:, h] = weight / weight.sum(-1, keepdims=True) @ v[:, g]
    x = x + mixed.reshape(num, -1) @ part("self_attn.o_proj").T
    normed = rms(x, part("post_attention_layernorm"))
    gate_ = normed @ part("mlp.gate_proj").T
    both = gate_ / (1 + np.exp(-gate_)) * (normed @ part("mlp.up_proj").T)
    return x + both @ part("mlp.down_proj").T


def target_like(**changes):
    """A toy target whose layers are of another kind than the heads'."""
    config = toys.config(**changes)
    return jd.api.from_params(config, toys.params(config))


TARGETS = {
    "llama": {},
    "qwen2": {"family": "qwen2", "qkv_bias": True},
    "qwen3": {"family": "qwen3", "qk_norm": True},
    "llama3": {"rope": Rope(theta=500_000.0, scaling="llama3", factor=8.0)},
}


def said(heads, lm):
    """Scores of the heads over TEXT, what they read, and the tokens behind."""
    module = KINDS[heads.spec.kind]
    parts = module.bind(heads.spec.shape, lm.config, jnp.float32, lm.target)
    data = gate.batch([TEXT])
    output = lm.target.forward(lm.params, data.tokens, program(data), None, parts.taps)
    following = np.asarray([[*TEXT[1:], 7]])
    params = head_files.fitting(heads, lm.config, np.float32).params
    seen = parts.features(params, output)
    out, _ = eagle.run(parts, params, lm.params, following, seen, program(data))
    read = [output.taps[name] for name in parts.taps] or [output.hidden]
    scores = np.asarray(parts.scores(params, lm.params, out))[0]
    return scores, np.concatenate(read, axis=-1)[0].astype(np.float64), following[0]


@pytest.mark.parametrize(
    ("version", "biases"), [(1, PLAIN), (1, NONE), (1, ALL), (3, PLAIN)], ids=str
)
@pytest.mark.parametrize("target", TARGETS)
def test_they_say_what_plain_numpy_says(version, biases, target, tmp_path):
    """Whatever the target's layers are like, the heads' layer is as their own config says."""
    tensors, lm = tensors_of(version, biases=biases), target_like(**TARGETS[target])
    heads = published.read(written(tmp_path / "theirs", version, tensors, biases))
    ours, hidden, following = said(heads, lm)

    embedded = np.asarray(lm.params["embed"]["embedding"])[following].astype(np.float64)
    if version == 1:
        x = np.concatenate([embedded, hidden], -1) @ tensors["fc.weight"].T
        x = x + tensors.get("fc.bias", 0)
        x = layer_of(tensors, "layers.0", x, x)
        scores = x @ np.asarray(lm.params["head"]["kernel"], np.float64).T
    else:
        x = hidden @ tensors["fc.weight"].T
        sides = (
            (embedded, tensors["midlayer.input_layernorm.weight"]),
            (x, tensors["midlayer.hidden_norm.weight"]),
        )
        read = np.concatenate([rms(*side) for side in sides], -1)
        x = layer_of(tensors, "midlayer", read, x)
        scores = rms(x, tensors["norm.weight"]) @ tensors["lm_head.weight"].T
    np.testing.assert_allclose(ours, scores, rtol=1e-5, atol=1e-5 * np.abs(scores).max())
    # The control: the target's own base or norms would show, at ten times the tolerance.
    for field in ("rope_theta", "norm_eps"):
        shape = dataclasses.replace(heads.spec.shape, **{field: None})
        wrong = said(dataclasses.replace(heads, spec=HeadSpec(heads.spec.kind, shape)), lm)[0]
        assert np.abs(wrong - scores).max() > 1e-4 * np.abs(scores).max()


@pytest.mark.parametrize(("version", "line"), [(1, "eagle1"), (1, "eagle2"), (3, "eagle3")])
def test_they_decode(version, line, tmp_path):
    lm = toys.model()
    heads = published.read(written(tmp_path / "theirs", version, tensors_of(version)))
    out = jd.generate(lm, TEXT, method=line, heads=heads, max_new_tokens=12)
    assert out.tokens == jd.generate(lm, TEXT, max_new_tokens=12).tokens


@pytest.mark.parametrize("version", [1, 3])
def test_what_a_config_leaves_out_is_what_llama_means_by_it(version, tmp_path):
    """EAGLE-3's configs have no rotary base, and their code trains with 10,000 for any target."""
    changes = {"rope_theta": None, "rms_norm_eps": None}
    shape = published.read(
        written(tmp_path / "a", version, tensors_of(version), **changes)
    ).spec.shape
    assert (shape.rope_theta, shape.norm_eps) == (10_000.0, 1e-6)
    stretched = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    with pytest.raises(UnsupportedError, match="'yarn'"):
        published.read(written(tmp_path / "b", version, tensors_of(version), **stretched))


def own_heads(kind, lm, **sizes):
    return random_heads(HeadSpec(kind, KINDS[kind].Shape(**sizes)), lm)


@pytest.mark.parametrize(
    ("kind", "target"), [("eagle", "qwen2"), ("eagle", "llama"), ("eagle3", "llama")]
)
def test_heads_that_were_trained_here_are_written_whole(kind, target, tmp_path):
    changes = {"norm_eps": 1e-3, "rope": Rope(theta=100_000.0)} | TARGETS[target]
    lm = target_like(**changes)
    heads = own_heads(kind, lm, **({"draft_vocab": DRAFTS} if kind == "eagle3" else {}))
    head_files.save_heads(heads, tmp_path / "ours")
    published.write(jd.load_heads(tmp_path / "ours"), tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    assert [config[name] for name in sizes] == [HEADS, KV, DIM, F]
    assert (config["rope_theta"], config["rms_norm_eps"]) == (100_000.0, 1e-3)
    back = published.read(tmp_path / "theirs")
    np.testing.assert_array_equal(said(back, lm)[0], said(heads, lm)[0])


@pytest.mark.parametrize(
    ("changes", "sizes", "fault"),
    [
        (TARGETS["llama3"], {}, "rope_scaling none.*llama3"),
        (TARGETS["qwen3"], {}, "no place for .*attn/k_norm/scale"),
        (TARGETS["qwen2"], {}, "no place for .*attn/qkv/bias"),
        ({"activation": "gelu_tanh"}, {}, "activation silu.*gelu_tanh"),
        ({}, {"taps": (0, 0, 1)}, "which layers are read"),
    ],
)
def test_what_the_layout_cannot_say_is_not_written(changes, sizes, fault, tmp_path):
    heads = own_heads("eagle3", target_like(**changes), **sizes)
    with pytest.raises(UnsupportedError, match=fault):
        published.write(heads, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_heads_that_do_not_say_what_their_layer_is_are_not_written(tmp_path):
    heads = own_heads("eagle3", toys.model())
    known = {name: value for name, value in heads.target.items() if name != "layer"}
    with pytest.raises(UnsupportedError, match="earlier version"):
        published.write(dataclasses.replace(heads, target=known), tmp_path / "theirs")


def test_damage_is_named(tmp_path):
    tensors = tensors_of(3)
    tensors["t2d"] = ~tensors["t2d"]
    with pytest.raises(CorruptCheckpointError, match="d2t and t2d"):
        published.read(written(tmp_path / "a", 3, tensors))
    tensors = tensors_of(1)
    tensors.pop("fc.bias")
    with pytest.raises(CorruptCheckpointError, match="lacks \\['fc.bias'\\]"):
        published.read(written(tmp_path / "b", 1, tensors))


def test_a_model_of_one_layer_is_no_head(tmp_path):
    folder = written(tmp_path / "model", 1, {"model.norm.weight": np.ones(D, np.float32)})
    assert published.recognise(folder) is None
