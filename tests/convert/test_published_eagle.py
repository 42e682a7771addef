"""EAGLE heads in their authors' layout: bit-exact both ways, and equal to plain NumPy."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert import published
from jaxdecode.drafters.eagle import KINDS
from jaxdecode.errors import CorruptCheckpointError
from jaxdecode.train.objective import program
from tests import toys
from tests.train import gate

D, V, F, HEADS, KV, DIM, DRAFTS = 32, 61, 48, 4, 2, 8, 20
TEXT = [5, 2, 9, 4, 4, 1, 3, 8]


def tensors_of(version, dtype=np.float32, seed=0):
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
        shapes |= {"fc.bias": (D,), "embed_tokens.weight": (V, D)}
    made = {n: (rng.normal(size=s) * s[-1] ** -0.5).astype(dtype) for n, s in shapes.items()}
    if third:
        tokens = np.sort(rng.choice(V, DRAFTS, replace=False))
        made |= {"d2t": tokens - np.arange(DRAFTS), "t2d": np.isin(np.arange(V), tokens)}
    return made


def config_of(version):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 1,
        "hidden_size": D,
        "num_attention_heads": HEADS,
        "vocab_size": V,
    }
    return config | ({"draft_vocab_size": DRAFTS} if version == 3 else {"bias": True})


def written(path, version, tensors):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config_of(version)))
    return path


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_heads_come_back_bit_by_bit(version, dtype, tmp_path):
    tensors = tensors_of(version, dtype)
    heads = published.read(written(tmp_path / "theirs", version, tensors))
    head_files.save_heads(heads, tmp_path / "ours")
    published.write(jd.load_heads(tmp_path / "ours"), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    tensors.pop("embed_tokens.weight", None)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].tobytes() == tensor.tobytes(), name
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config_of(version)


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale


def rotated(x, base):
    half = DIM // 2
    turn = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def layer_of(tensors, prefix, read, x, base):
    """A Llama layer by the book, whose attention reads `read` and adds to `x`."""
    part = lambda name: tensors[f"{prefix}.{name}.weight"].astype(np.float64)  # noqa: E731
    num = len(x)
    q = rotated((read @ part("self_attn.q_proj").T).reshape(num, HEADS, DIM), base)
    k = rotated((read @ part("self_attn.k_proj").T).reshape(num, KV, DIM), base)
    v = (read @ part("self_attn.v_proj").T).reshape(num, KV, DIM)
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


@pytest.mark.parametrize("version", [1, 3])
def test_they_say_what_plain_numpy_says(version, tmp_path):
    tensors, lm = tensors_of(version), toys.model()
    heads = published.read(written(tmp_path / "theirs", version, tensors))
    module = KINDS[heads.spec.kind]
    parts = module.bind(heads.spec.shape, lm.config, jnp.float32, lm.target)
    data = gate.batch([TEXT])
    output = lm.target.forward(lm.params, data.tokens, program(data), None, parts.taps)
    following = np.asarray([[*TEXT[1:], 7]])
    seen = parts.features(heads.params, output)
    out, _ = parts.run(heads.params, lm.params, following, seen, program(data))
    ours = np.asarray(parts.scores(heads.params, lm.params, out))[0]

    embedded = np.asarray(lm.params["embed"]["embedding"])[following[0]].astype(np.float64)
    base = lm.config.rope.theta
    if version == 1:
        hidden = np.asarray(output.hidden[0], np.float64)
        x = np.concatenate([embedded, hidden], -1) @ tensors["fc.weight"].T + tensors["fc.bias"]
        x = layer_of(tensors, "layers.0", x, x, base)
        scores = x @ np.asarray(lm.params["head"]["kernel"], np.float64).T
    else:
        taps = np.concatenate([np.asarray(output.taps[t][0], np.float64) for t in parts.taps], -1)
        x = taps @ tensors["fc.weight"].T
        sides = (
            (embedded, tensors["midlayer.input_layernorm.weight"]),
            (
                x,
                tensors["midlayer.hidden_norm.weight"],
            ),
        )
        read = np.concatenate([rms(*side) for side in sides], -1)
        x = layer_of(tensors, "midlayer", read, x, base)
        scores = rms(x, tensors["norm.weight"]) @ tensors["lm_head.weight"].T
    np.testing.assert_allclose(ours, scores, rtol=1e-5, atol=1e-5 * np.abs(scores).max())


@pytest.mark.parametrize(("version", "line"), [(1, "eagle1"), (1, "eagle2"), (3, "eagle3")])
def test_they_decode(version, line, tmp_path):
    lm = toys.model()
    heads = published.read(written(tmp_path / "theirs", version, tensors_of(version)))
    out = jd.generate(lm, TEXT, method=line, heads=heads, max_new_tokens=12)
    assert out.tokens == jd.generate(lm, TEXT, max_new_tokens=12).tokens


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
