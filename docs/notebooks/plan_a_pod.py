# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   language_info: {name: python, pygments_lexer: ipython3}
# ---

# %% [markdown]
# # Plan a pod without a pod
#
# `jaxdecode plan` compiles the programs that decoding runs with the compiler of hardware that is not here, and reads
# them: does it fit, how many bytes does a step move against the least possible, what binds it, and how many
# draft tokens are worth checking. No weights and no accelerator are needed. Use a CPU runtime.

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

# %%
import importlib.util

if importlib.util.find_spec("libtpu") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "libtpu"], check=True)
model, topology, mesh, context = (
    ("smollm2-135m", "v5e:2x2", "data=4,model=1", 512) if SMALL else ("llama3-8b", "v5e:4x4", "data=2,model=8", 2048)
)

# %%
# !jaxdecode plan --model {model} --topology {topology} --mesh {mesh} --method prompt_lookup --batch 16 --context {context}

# %% [markdown]
# `--search` tries every mesh that fits. When the plan is right, `tpu_scripts` creates the slice, installs, runs
# and fetches results: see [TPU pods](../tpu_pods.md).
