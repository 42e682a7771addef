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
# Installs what fits this runtime, and nothing where jaxdecode is there already. SOURCE may be a path
# of a checkout, a wheel or a git address.
import importlib.util, os, shutil, subprocess, sys

SOURCE = os.environ.get("JAXDECODE_SOURCE", "jaxdecode")
if importlib.util.find_spec("jaxdecode") is None:
    tpu = any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))
    extra = "tpu" if tpu else "cuda13" if shutil.which("nvidia-smi") else "plots"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"{SOURCE}[{extra}]"], check=True)

import jax

import jaxdecode as jd

print(
    f"jaxdecode {jd.__version__}, jax {jax.__version__}:", *{d.device_kind for d in jax.devices()}
)
# What is run automatically takes small settings.
SMALL = bool(os.environ.get("JAXDECODE_SMALL"))

# %%
import pathlib, tempfile

work = pathlib.Path(tempfile.mkdtemp())
# Put a text of yours here: a megabyte gives words, ten megabytes sentences.
verse = "the sun is up, the sky is blue, the wind is warm, the day is new. "
(work / "train.txt").write_text(verse * 400)
(work / "held_out.txt").write_text(verse * 40)
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
