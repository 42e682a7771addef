# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   language_info: {name: python, pygments_lexer: ipython3}
# ---

# %% [markdown]
# # Masked diffusion and infilling
#
# A masked diffusion model fills slots in any order, several per pass. Published ones load as they are (LLaDA,
# Dream, Fast-dLLM v2); here we train a small one of characters from nothing, on a text of any kind.

# %%
# Where jaxdecode is installed, this does nothing. Elsewhere, as in Colab, put a wheel or a git address in place
# of the name, for no package index has it yet; [cuda13] or [tpu] behind it if doctor asks for that.
# %pip install -q jaxdecode
# !jaxdecode doctor

import jaxdecode as jd

# %%
import pathlib, tempfile

work = pathlib.Path(tempfile.mkdtemp())
# Put a text of yours here: a megabyte gives words, ten megabytes sentences.
verse = "the sun is up, the sky is blue, the wind is warm, the day is new. "
(work / "train.txt").write_text(verse * 400)
(work / "held_out.txt").write_text(verse * 40)
SMALL = False  # True: seconds in place of minutes
steps = 40 if SMALL else 600
config = f"""
recipe: mdlm
target: {{num_layers: 2, hidden_size: 64, num_heads: 4, vocabulary: text, max_length: 256}}
data: {{train: {work}/train.txt, held_out: {work}/held_out.txt, max_length: 64}}
optimizer: {{lr: 3.0e-3, warmup_steps: 10}}
batch_size: 16
steps: {steps}
measure: {{every: {steps}, num_prompts: 4}}
"""
(work / "chars.yaml").write_text(config)
run = jd.train(work / "chars.yaml", out=work / "run")
dlm = jd.load(run.folder / "model")

# %% [markdown]
# ## One slot per pass, or all that are sure

# %%
for method, options in {"llada": {}, "fast_dllm": {"threshold": 0.9}}.items():
    out = jd.generate(
        dlm, "the sun is ", method=method, max_new_tokens=32, block_length=32, **options
    )
    print(f"{method:10} {out.stats[0].nfe:3} passes: {out.texts[0]!r}")

# %% [markdown]
# ## Infilling
#
# What is given stays as it is; `[[MASK:n]]` stands for n slots.

# %%
filled = jd.infill(dlm, "the sun is [[MASK:4]] the sky is [[MASK:5]] the wind")
print(filled.texts[0])
assert filled.texts[0].startswith("the sun is ") and filled.texts[0].endswith(" the wind")
