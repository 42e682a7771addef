"""Published masked and block diffusion models in plain NumPy, float64, as their code says.

`logits` evaluates a checkpoint from its config.json and tensors; `llada`, `dream` and `fast_dllm`
are the static, greedy sampling loops of the published generate functions, over any forward pass.
Nothing here knows of the package under test. Where the published loop depends on the order of
equal scores, the leftmost slot goes first.

A forward pass maps canvases `[B, L]` and a mask of real slots `[B, L]` to raw scores `[B, L, V]`;
the loops shift them where the model asks for it.
"""

import numpy as np


def _norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def _rotated(x, positions, theta):
    """RoPE on halves: pair i is (x[i], x[i + D/2]). x: [T, heads, D]."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * theta ** (-np.arange(half) * 2 / x.shape[-1])
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def softmax(x):
    """Along the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _attention(q, k, v, sees):
    """q: [T, heads, D], k and v: [T, kv_heads, D]; every kv head serves a run of query heads."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    return np.einsum("hts,shd->thd", softmax(np.where(sees, scores, -1e30)), v)


def _read(hf):
    """The names and numbers of one of the three layouts."""
    if hf["model_type"] == "llada":
        return dict(
            layers=hf["n_layers"], heads=hf["n_heads"], kv=hf["n_kv_heads"],
            block=None, layer="model.transformer.blocks.{}.",
            q="q_proj", k="k_proj", v="v_proj", o="attn_out", gate="ff_proj", up="up_proj",
            down="ff_out", norms=("attn_norm", "ff_norm"), embed="model.transformer.wte",
            last="model.transformer.ln_f",
            head="model.transformer." + ("wte" if hf["weight_tying"] else "ff_out"),
            scale=np.sqrt(hf["d_model"]) if hf.get("input_emb_norm") else 1.0,
        )  # fmt: skip
    return dict(
        layers=hf["num_hidden_layers"], heads=hf["num_attention_heads"],
        kv=hf["num_key_value_heads"], block=hf.get("bd_size"), layer="model.layers.{}.",
        q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
        gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj",
        norms=("input_layernorm", "post_attention_layernorm"), embed="model.embed_tokens",
        last="model.norm",
        head="model.embed_tokens" if hf["tie_word_embeddings"] else "lm_head", scale=1.0,
    )  # fmt: skip


def logits(hf, tensors, tokens, real=None, positions=None):
    """Raw scores [T, V] of one row.

    Args:
        hf: the parsed config.json.
        tensors: by published name.
        tokens: [T], padding and mask tokens included.
        real: which are no padding; all if None.
        positions: given to RoPE; the index of each token if None.
    """
    c, count = _read(hf), len(tokens)
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    eps, theta = hf["rms_norm_eps"], hf["rope_theta"]
    positions = np.arange(count) if positions is None else np.asarray(positions)
    sees = np.ones((count, count), bool)
    if real is not None:
        sees &= np.asarray(real, bool)[None, :]
    if c["block"]:
        block = np.arange(count) // c["block"]
        sees &= block[:, None] >= block[None, :]

    def linear(x, name):
        out = x @ w[f"{name}.weight"].T
        return out + w[f"{name}.bias"] if f"{name}.bias" in w else out

    x = w[c["embed"] + ".weight"][np.asarray(tokens)] * c["scale"]
    for i in range(c["layers"]):
        at = c["layer"].format(i)
        y = _norm(x, w[f"{at}{c['norms'][0]}.weight"], eps)
        q, k, v = (linear(y, at + c[n]) for n in "qkv")
        q = _rotated(q.reshape(count, c["heads"], -1), positions, theta)
        k = _rotated(k.reshape(count, c["kv"], -1), positions, theta)
        mixed = _attention(q, k, v.reshape(count, c["kv"], -1), sees)
        x = x + linear(mixed.reshape(count, -1), at + c["o"])
        y = _norm(x, w[f"{at}{c['norms'][1]}.weight"], eps)
        gate, up = linear(y, at + c["gate"]), linear(y, at + c["up"])
        x = x + linear(gate / (1 + np.exp(-gate)) * up, at + c["down"])
    x = _norm(x, w[c["last"] + ".weight"], eps)
    return x @ w[c["head"] + ".weight"].T


def forward_of(hf, tensors):
    """The forward pass of a checkpoint, for the loops below; positions count real slots only."""

    def forward(canvas, real):
        rows = []
        for tokens, mask in zip(canvas, real, strict=True):
            positions = np.maximum(np.cumsum(mask) - 1, 0)
            rows.append(logits(hf, tensors, tokens, mask, positions))
        return np.stack(rows)

    return forward


def shifted(scores):
    """Scores of token i from the hidden state before it; the first slot keeps its own."""
    return np.concatenate([scores[:, :1], scores[:, :-1]], 1)


def _padded(prompts, length, pad, mask):
    """Left-padded canvases with `length` undecided slots behind each prompt."""
    width = max(map(len, prompts))
    canvas = np.array([[pad] * (width - len(p)) + list(p) + [mask] * length for p in prompts])
    real = np.array([[False] * (width - len(p)) + [True] * (len(p) + length) for p in prompts])
    return canvas, real, width


def _top(scores, count):
    """Indices of the `count` greatest; of equals the leftmost."""
    return np.argsort(-scores, kind="stable")[:count]


def quotas(num_masked, steps):
    """LLaDA: how many slots each step decides; the remainder goes to the first steps."""
    base, rest = divmod(num_masked, steps)
    return [base + (i < rest) for i in range(steps)]


def llada(forward, prompts, *, steps, length, block, mask, pad=0, guidance=0.0):
    """LLaDA, greedy, low-confidence remasking.

    Args:
        forward: canvases and their real slots to raw scores.
        prompts: lists of tokens, padded to the left in the batch.
        steps: over all blocks.
        length: new tokens.
        block: slots that are filled before those after them.
        mask: the mask token.
        pad: fills the left.
        guidance: classifier-free guidance against the text without its prompt; 0 is none.

    Returns:
        The canvases [B, L], first as they begin, then after every step.
    """
    x, real, width = _padded(prompts, length, pad, mask)
    given, seen = x != mask, [x.copy()]
    assert length % block == 0 and steps % (length // block) == 0
    steps //= length // block
    for start in range(width, width + length, block):
        counts = [quotas(int((row[start : start + block] == mask).sum()), steps) for row in x]
        for i in range(steps):
            scores = forward(x, real)
            if guidance > 0:
                without = forward(np.where(given, mask, x), real)
                scores = without + (guidance + 1) * (scores - without)
            best = scores.argmax(-1)
            sure = np.take_along_axis(softmax(scores), best[..., None], -1)[..., 0]
            sure[:, start + block :] = -np.inf
            sure = np.where(x == mask, sure, -np.inf)
            for row in range(len(x)):
                chosen = _top(sure[row], counts[row][i])
                x[row, chosen] = best[row, chosen]
            seen.append(x.copy())
    return seen


def timesteps(steps, eps=1e-3):
    """Dream: from all noise to almost none, in single precision as published."""
    return np.linspace(1, eps, steps + 1, dtype=np.float32)


def dream(
    forward, prompts, *, steps, length, mask, pad=0, rule="maskgit_plus", eps=1e-3, draw=None
):
    """Dream at temperature 0, with `alg_temp` none.

    The number of undecided slots is averaged over the batch, so rows of one batch share quotas.

    Args:
        forward: canvases and their real slots to raw, unshifted scores.
        prompts: lists of tokens, padded to the left in the batch.
        steps: over the whole text.
        length: new tokens.
        mask: the mask token.
        pad: fills the left.
        rule: "maskgit_plus", "topk_margin", "entropy" or "origin".
        eps: noise level of the last step.
        draw: "origin" only; (step, number of undecided slots) to uniform numbers.

    Returns:
        As of `llada`.
    """
    x, real, _ = _padded(prompts, length, pad, mask)
    t, seen = timesteps(steps, eps), [x.copy()]
    for i in range(steps):
        is_open, last = x == mask, i == steps - 1
        scores = shifted(forward(x, real))
        probs = softmax(scores)
        best = probs.argmax(-1)
        if rule == "origin":
            now = draw(i, int(is_open.sum())) < (1.0 if last else 1 - t[i + 1] / t[i])
            slots = np.argwhere(is_open)[now]
            x[tuple(slots.T)] = best[tuple(slots.T)]
        else:
            ordered = np.sort(probs, -1)[..., ::-1]
            sure = {
                "maskgit_plus": ordered[..., 0],
                "topk_margin": ordered[..., 0] - ordered[..., 1],
                "entropy": (probs * np.log(probs + 1e-10)).sum(-1),
            }[rule]
            sure = np.where(is_open, sure, -np.inf)
            mean = np.float32(is_open.sum() / len(x))
            count = int(mean) if last else int(mean * (1 - t[i + 1] / t[i]))
            for row in range(len(x)):
                chosen = [s for s in _top(sure[row], count) if is_open[row, s]]
                x[row, chosen] = best[row, chosen]
        seen.append(x.copy())
    return seen


def fast_dllm(forward, prompt, *, length, mask, stop=None, block=32, sub_block=8, threshold=0.9):
    """Fast-dLLM v2, one row, greedy, without the sub-block cache.

    A block begins with the token that the last state of the block before it prefers; its other
    slots are filled sub-block by sub-block. The first slot of a block is never scored inside it,
    unless the text begins with it.

    Args:
        forward: canvases and their real slots to raw, unshifted scores.
        prompt: tokens of the row.
        length: new tokens; `length // block` blocks are filled.
        mask: the mask token.
        stop: token that ends the text.
        block: slots of a block.
        sub_block: slots of a sub-block.
        threshold: a slot is decided if its best token is more probable, and the surest always is.

    Returns:
        The canvases [L] after every change, of growing length; the last one ends with the text.
    """

    def scores_of(row):
        return forward(np.array([row]), np.ones((1, len(row)), bool))[0]

    x, seen = list(prompt), []
    # The published condition is `>`: a prompt of just one block is lost there, never cached.
    if len(x) >= block and len(x) % block == 0:
        x.append(int(scores_of(x)[-1].argmax()))
        seen.append(np.array(x))
    for _ in range(length // block):
        if stop in x[len(prompt) :]:
            break
        begin = len(x)
        x += [mask] * (block - len(x) % block)
        first = len(x) - block
        seen.append(np.array(x))
        for start in range(first, len(x), sub_block):
            slots = slice(start, start + sub_block)
            while mask in x[slots] and not _ended(x, begin, stop, mask):
                probs = softmax(shifted(scores_of(x)[None, first:])[0])[start - first :][:sub_block]
                best, is_open = probs.argmax(-1), np.array(x[slots]) == mask
                sure = np.where(is_open, probs.max(-1), -np.inf)
                now = (sure > threshold) | (np.arange(len(sure)) == sure.argmax())
                for j in np.flatnonzero(now & is_open):
                    x[start + j] = int(best[j])
                seen.append(np.array(x))
        if _ended(x, begin, stop, mask):
            break
        x.append(int(scores_of(x)[-1].argmax()))
        seen.append(np.array(x))
    new = x[len(prompt) :]
    if stop in new:
        seen.append(np.array(x[: len(prompt) + new.index(stop) + 1]))
    return seen


def _ended(x, begin, stop, mask):
    """Whether everything up to the first stop token of this block is decided."""
    new = x[begin:]
    return stop in new and mask not in new[: new.index(stop)]
