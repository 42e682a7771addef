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
# Where jaxdecode is installed, this does nothing. Elsewhere, as in Colab, put a wheel or a git address in place
# of the name, for no package index has it yet. [tpu] is the compiler for TPUs, [gpu-aot] that for GPUs.
# %pip install -q "jaxdecode[tpu]"
# !jaxdecode doctor

# %%
SMALL = False  # True: seconds in place of minutes
model, topology, mesh, context = (
    ("smollm2-135m", "v5e:2x2", "data=4,model=1", 512) if SMALL else ("llama3-8b", "v5e:4x4", "data=2,model=8", 2048)
)

# %%
# !jaxdecode plan --model {model} --topology {topology} --mesh {mesh} --method prompt_lookup --batch 16 --context {context}

# %% [markdown]
# `--search` tries every mesh that fits. When the plan is right, `tpu_scripts` creates the slice, installs, runs
# and fetches results: see [TPU pods](../tpu_pods.md).
