# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   language_info: {name: python, pygments_lexer: ipython3}
# ---

# %% [markdown]
# # A first speed-up in ten minutes
#
# A model writes one token per forward pass. Here some of the tokens are guessed from the text so far, the
# model checks all guesses in one pass, and what is right stays: the same text in fewer passes. No
# training, no second model. Runs on a CPU, a GPU or a TPU.

# %%
# Where jaxdecode is installed, this does nothing. Elsewhere, as in Colab, put a wheel or a git address in place
# of the name, for no package index has it yet; [cuda13] or [tpu] behind it if doctor asks for that.
# %pip install -q jaxdecode
# !jaxdecode doctor

import jaxdecode as jd

# %% [markdown]
# SmolLM2-135M-Instruct (98 MB, Apache-2.0) is fetched once; any Llama, Qwen, Mistral or Gemma 3 checkpoint
# will do, for example `jd.load("hf:Qwen/Qwen3-0.6B")` with `pip install 'jaxdecode[hub]'`.

# %%
lm = jd.load("smollm2-135m")
question = {
    "messages": [{"role": "user", "content": "Why is the sky blue? Answer in two sentences."}]
}
SMALL = False  # True: seconds in place of minutes
new = 24 if SMALL else 128
for piece in jd.stream(lm, question, max_new_tokens=new):
    print(piece, end="", flush=True)

# %% [markdown]
# ## The same text, faster
#
# `method="auto"` drafts as much as pays on this machine, perhaps nothing. The first call compiles, so each is
# called twice.

# %%
edit = """Rename the variable result to total, and print the whole function again:

def price(items):
    result = 0
    for item in items:
        result = result + item.price * item.count
    if result > 100:
        result = result * 0.9
    return result
"""
prompt = {"messages": [{"role": "user", "content": edit}]}
outs = {}
for method in ("ar", "auto"):
    for _ in range(2):
        outs[method] = jd.generate(lm, prompt, method=method, max_new_tokens=new)
    stats = outs[method].stats[0]
    print(
        f"{method:5} {stats.tokens_per_second:6.1f} tokens/s, {stats.acceptance_length:.2f} tokens per pass"
    )
assert outs["ar"].tokens == outs["auto"].tokens  # level L0: token for token
print(outs["auto"].texts[0])

# %% [markdown]
# Sampling keeps the promise too: with the same seed, the same tokens, whatever drafts.

# %%
plain, fast = (
    jd.generate(lm, prompt, method=method, temperature=0.8, seed=1, max_new_tokens=new)
    for method in ("ar", "prompt_lookup")
)
assert plain.tokens == fast.tokens

# %% [markdown]
# ## What else there is
#
# `jd.methods()` lists every method with its level: L0 gives the same tokens, L1 the same distribution, L2 a
# bounded deviation, L3 is a heuristic. `jd.explain` says what one does, costs and where it is from.

# %%
print(len(jd.methods()), "methods")
print(jd.explain("prompt_lookup"))

# %% [markdown]
# On a terminal, `jaxdecode bench --model smollm2-135m --methods auto,prompt_lookup` measures with repeats,
# and compares tokens. Next: [your own checkpoint](own_checkpoint.ipynb), [a drafter of your
# own](train_a_drafter.ipynb), [masked diffusion](masked_diffusion.ipynb), [a pod](plan_a_pod.ipynb).
