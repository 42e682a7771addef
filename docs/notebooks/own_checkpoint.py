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
# Where jaxdecode is installed, this does nothing. Elsewhere, as in Colab, put a wheel or a git address in place
# of the name, for no package index has it yet; [cuda13] or [tpu] behind it if doctor asks for that.
# %pip install -q jaxdecode
# !jaxdecode doctor

import jaxdecode as jd

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
