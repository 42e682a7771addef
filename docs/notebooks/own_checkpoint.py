# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   language_info: {name: python, pygments_lexer: ipython3}
# ---

# %% [markdown]
# # Bring your own checkpoint
#
# In: Hugging Face safetensors folders, GGUF files, our own checkpoints. Out: our checkpoints and Hugging Face
# folders. Round trips are bit-identical, every byte that is loaded is checked, and pickle files are refused.

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

print(f"jaxdecode {jd.__version__}, jax {jax.__version__}:", *{d.device_kind for d in jax.devices()})
# What is run automatically takes small settings.
SMALL = bool(os.environ.get("JAXDECODE_SMALL"))

# %% [markdown]
# To have a folder like yours, we write one. Put the path of your model here instead.

# %%
import pathlib, tempfile

work = pathlib.Path(tempfile.mkdtemp())
# !jaxdecode convert smollm2-135m {work}/theirs --to safetensors
print(sorted(path.name for path in (work / "theirs").iterdir()))

# %% [markdown]
# `inspect` reads the header only: what it is, how large, and whether we can run it.

# %%
# !jaxdecode inspect {work}/theirs

# %% [markdown]
# A folder loads as it is. Converted once, it loads faster, and has a SHA-256 of every file.

# %%
# !jaxdecode convert {work}/theirs {work}/ours --dtype bfloat16
# !jaxdecode verify {work}/ours

# %%
lm = jd.load(work / "ours")
out = jd.generate(lm, "The capital of France is", max_new_tokens=8)
print(out.texts[0])

# %% [markdown]
# Nothing is downgraded silently: what we do not implement is an error that names the key.

# %%
import json

from jaxdecode.errors import JaxdecodeError

config = json.loads((work / "theirs" / "config.json").read_text())
(work / "theirs" / "config.json").write_text(json.dumps(config | {"num_local_experts": 8}))
try:
    jd.load(work / "theirs")
except JaxdecodeError as error:
    print(error)
