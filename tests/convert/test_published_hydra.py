"""Hydra heads in their authors' layout: bit-exact both ways, and equal to plain NumPy."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert import published
from jaxdecode.errors import CorruptCheckpointError, InputError, UnsupportedError
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import hydra, hydra_pp
from jaxdecode.training.objective import program
from tests import toys
from tests.training import gate

D, V, F, HEADS, KV, DIM, LAYERS = 32, 61, 48, 4, 2, 8, 3
ARCHS = ("mlp", "prefix-mlp")
PRE = "prefix_embeding_layer"


def tensors_of(arch, num_heads=2, dtype=np.float32, seed=0):
    """Random tensors with the names and shapes of zankner/Hydra."""
    rng, prefix = np.random.default_rng(seed), arch == "prefix-mlp"
    shapes = {}
    for i in range(num_heads):
        for j in range(LAYERS):
            name = f"hydra_mlp.{i}.{2 * j + 1 if prefix else j}"
            wide = (i + 2) * D if j == 0 else D
            shapes |= {f"{name}.linear.weight": (D, wide), f"{name}.linear.bias": (D,)}
            if j == 0:
                shapes[f"{name}.res_connection.weight"] = (D, wide)
                shapes[f"{name}.res_connection.bias"] = (D,)
        out = f"hydra_lm_head.{i}" + (".1" if prefix else "")
        shapes |= {f"{out}.weight": (V, D), f"{out}.bias": (V,)}
    if prefix:
        layer = f"{PRE}.layers.0"
        shapes |= {
            f"{PRE}.norm.weight": (D,),
            f"{layer}.input_layernorm.weight": (D,),
            f"{layer}.post_attention_layernorm.weight": (D,),
            f"{layer}.self_attn.q_proj.weight": (HEADS * DIM, D),
            f"{layer}.self_attn.k_proj.weight": (KV * DIM, D),
            f"{layer}.self_attn.v_proj.weight": (KV * DIM, D),
            f"{layer}.self_attn.o_proj.weight": (D, HEADS * DIM),
            f"{layer}.mlp.gate_proj.weight": (F, D),
            f"{layer}.mlp.up_proj.weight": (F, D),
            f"{layer}.mlp.down_proj.weight": (D, F),
        }
    return {n: (rng.normal(size=s) * s[-1] ** -0.5).astype(dtype) for n, s in shapes.items()}


def config_of(arch):
    config = {
        "hydra_num_heads": 2,
        "hydra_num_layers": LAYERS,
        "hydra_head_arch": arch,
        "grounded_heads": True,
        "base_model_name_or_path": "toy",
    }
    return config | ({"head_dim": DIM} if arch == "prefix-mlp" else {})


def written(path, tensors, config):
    path.mkdir()
    save_file(tensors, path / "hydra_lm_head.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_heads_come_back_bit_by_bit(arch, dtype, tmp_path):
    tensors, config = tensors_of(arch, dtype=dtype), config_of(arch)
    heads = published.read(written(tmp_path / "theirs", tensors, config))
    head_files.save_heads(heads, tmp_path / "ours")
    published.write(head_files.load_heads(tmp_path / "ours"), tmp_path / "back")
    back = load_file(tmp_path / "back" / "hydra_lm_head.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].tobytes() == tensor.tobytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


@pytest.mark.parametrize("kind", ["hydra", "hydra_pp"])
def test_heads_that_were_trained_here_come_back_bit_by_bit(kind, tmp_path):
    heads = gate.random_heads(kind, {"own_head": True})
    published.write(heads, tmp_path / "theirs")
    back = published.read(tmp_path / "theirs")
    flat = head_files.flattened(back.params)
    assert back.spec == heads.spec
    for name, leaf in head_files.flattened(heads.params).items():
        np.testing.assert_array_equal(flat[name], leaf)
    with pytest.raises(UnsupportedError, match="own_head=True"):
        published.write(smallest.heads(kind, toys.model()), tmp_path / "other")


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale


def prefix_layer(w, x):
    """One Llama layer and a norm over the rows of a text, [T, D]."""
    w = {name.removeprefix(f"{PRE}.layers.0."): t.astype(np.float64) for name, t in w.items()}
    num = len(x)
    y = norm(x, w["input_layernorm.weight"])
    angle = np.arange(num)[:, None] * 10_000.0 ** (-np.arange(0, DIM, 2) / DIM)
    cos, sin = (np.concatenate([f(angle)] * 2, -1)[:, None] for f in (np.cos, np.sin))

    def heads_of(part):
        return (y @ w[f"self_attn.{part}_proj.weight"].T).reshape(num, -1, DIM)

    def turn(z):
        return z * cos + np.concatenate([-z[..., DIM // 2 :], z[..., : DIM // 2]], -1) * sin

    query, key, value = turn(heads_of("q")), turn(heads_of("k")), heads_of("v")
    key, value = (np.repeat(z, HEADS // KV, axis=1) for z in (key, value))
    scores = np.einsum("thd,shd->hts", query, key) * DIM**-0.5
    scores = np.where(np.tril(np.ones((num, num), bool)), scores, -np.inf)
    law = np.exp(scores - scores.max(-1, keepdims=True))
    law /= law.sum(-1, keepdims=True)
    mixed = np.einsum("hts,shd->thd", law, value).reshape(num, -1)
    x = x + mixed @ w["self_attn.o_proj.weight"].T
    y = norm(x, w["post_attention_layernorm.weight"])
    wide = silu(y @ w["mlp.gate_proj.weight"].T) * (y @ w["mlp.up_proj.weight"].T)
    return norm(x + wide @ w["mlp.down_proj.weight"].T, w[f"{PRE}.norm.weight"])


@pytest.mark.parametrize("arch", ARCHS)
def test_heads_say_what_numpy_says_and_decode(arch, tmp_path):
    tensors, lm = tensors_of(arch, seed=1), toys.model()
    heads = published.read(written(tmp_path / "theirs", tensors, config_of(arch)))
    params = head_files.fitting(heads, lm.config, np.float32).params
    rng = np.random.default_rng(2)
    hidden, following = rng.normal(size=(6, D)), rng.normal(size=(2, D))
    state, prefix = hidden[-1], arch == "prefix-mlp"
    ours = jnp.asarray(hidden, jnp.float32)[None]
    if prefix:
        state = prefix_layer(tensors, hidden)[-1]
        own = hydra_pp.bind(lm.config, jnp.float32)
        ours = own.states(params, ours, program(gate.batch([[1] * 6])))
    np.testing.assert_allclose(ours[0, -1], state, atol=1e-5)
    for i in range(2):
        inputs = jnp.concatenate([ours[0, -1], *jnp.asarray(following[: i + 1], jnp.float32)])
        found = hydra.logits(heads.spec.shape, params, i, inputs, lambda x: x)
        x = np.concatenate([state, *following[: i + 1]])
        for j in range(LAYERS):
            name = f"hydra_mlp.{i}.{2 * j + 1 if prefix else j}"
            inner = tensors[f"{name}.linear.weight"] @ x + tensors[f"{name}.linear.bias"]
            if j == 0:
                skip = f"{name}.res_connection"
                x = tensors[f"{skip}.weight"] @ x + tensors[f"{skip}.bias"]
            x = x + silu(inner)
        out = f"hydra_lm_head.{i}" + (".1" if prefix else "")
        wanted = tensors[f"{out}.weight"] @ x + tensors[f"{out}.bias"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    asked = dict(max_new_tokens=8)
    out = jd.generate(lm, [3, 1, 4], method=heads.spec.kind, heads=heads, **asked)
    assert out.tokens == jd.generate(lm, [3, 1, 4], **asked).tokens


def test_what_their_layer_never_reads_stays_out(tmp_path):
    tensors, config = tensors_of("prefix-mlp"), config_of("prefix-mlp")
    del config["head_dim"]
    more = tensors | {
        f"{PRE}.embed_tokens.weight": np.zeros((V, D), np.float32),
        f"{PRE}.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(DIM // 2, np.float32),
    }
    heads = published.read(written(tmp_path / "a", more, config))
    assert heads.target["head_dim"] == DIM
    assert heads.params["prefix"]["layer"]["attn"]["qkv"]["kernel"].shape == (D, KV, 4, DIM)


def test_what_cannot_be_read_is_named(tmp_path):
    tensors, config = tensors_of("mlp"), config_of("mlp")
    with pytest.raises(InputError, match="grounded_heads"):
        published.read(written(tmp_path / "a", tensors, config | {"grounded_heads": False}))
    with pytest.raises(InputError, match="hidden_state_offset"):
        published.read(written(tmp_path / "b", tensors, config | {"hidden_state_offset": 1}))
    lacking = {n: t for n, t in tensors.items() if n != "hydra_mlp.1.0.res_connection.bias"}
    with pytest.raises(CorruptCheckpointError, match="lacks .*res_connection.bias"):
        published.read(written(tmp_path / "c", lacking, config))
