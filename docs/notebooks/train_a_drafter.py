# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   language_info: {name: python, pygments_lexer: ipython3}
# ---

# %% [markdown]
# # Train a drafter
#
# Small heads on the model's last hidden state guess the next tokens; the model checks them. The model itself
# stays as it is, so the text does too. Three commands: the model answers prompts, heads learn from the
# answers, and the result decodes. A good drafter takes hours on a GPU; this shows every step in minutes.

# %%
# Where jaxdecode is installed, this does nothing. Elsewhere, as in Colab, put a wheel or a git address in place
# of the name, for no package index has it yet; [cuda13] or [tpu] behind it if doctor asks for that.
# %pip install -q jaxdecode
# !jaxdecode doctor

import jaxdecode as jd

# %%
import json, pathlib, tempfile

work = pathlib.Path(tempfile.mkdtemp())
topics = "rain,bread,trains,bees,chess,rivers,paper,winter,bicycles,music,stars,tea".split(",")
asks = ("Tell me about {}.", "Why do people like {}?", "Write two sentences about {}.")
SMALL = False  # True: seconds in place of minutes
asks = asks[: 1 if SMALL else 3]
lines = [{"messages": [{"role": "user", "content": ask.format(t)}]} for t in topics for ask in asks]
(work / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
new, steps = (16, 4) if SMALL else (96, 200)

# %% [markdown]
# ## The model's own answers
#
# A drafter has to guess what the model says. Some prompts are held out, to measure on.

# %%
# !jaxdecode distill --model smollm2-135m --prompts {work}/prompts.jsonl --out {work}/distilled --max-new-tokens {new}

# %% [markdown]
# ## Training
#
# Acceptance is measured inside the run by the loop that decodes later; beside it stands what prompt lookup
# reaches without training.

# %%
config = f"""
recipe: medusa
target: smollm2-135m
shape: {{num_heads: 3}}
data: {{train: {work}/distilled/train.jsonl, held_out: {work}/distilled/held_out.jsonl, max_length: 128}}
optimizer: {{lr: 2.0e-3, warmup_steps: 2}}
batch_size: 4
steps: {steps}
measure: {{every: {steps}, num_prompts: 2, max_new_tokens: {new}}}
"""
(work / "medusa.yaml").write_text(config)
run = jd.train(work / "medusa.yaml", out=work / "run")
print("tokens per pass, held out: best", run.best, "- without training", run.baseline)

# %% [markdown]
# ## Decoding with it

# %%
lm = jd.load("smollm2-135m")
prompt = {"messages": [{"role": "user", "content": "Tell me about mountains."}]}
plain = jd.generate(lm, prompt, max_new_tokens=new)
fast = jd.generate(lm, prompt, method="medusa", heads=run.folder, max_new_tokens=new)
assert plain.tokens == fast.tokens
print(fast.stats[0].acceptance_length, "tokens per pass")
print(fast.texts[0])
