"""One peer in a process of its own: reads jobs from stdin, writes tokens and seconds to stdout.

Run as a script by `evals.peers`, perhaps with a Python that has no JAX: it imports nothing of this
package. The first line it gets says what to load, every further one is a job:

    {"engine": "transformers", "model": PATH, "dtype": "float32", "threads": 2, "options": {}}
    {"prompts": [[1, 2]], "max_new_tokens": 8, "end_tokens": [2]}

Every answer is one line: {"version": ...}, {"tokens": [[...]], "seconds": ...}, or {"error": ...}
and the end of the process.
"""

import json
import os
import sys
import time


def main():
    """Loads the peer, then answers jobs until stdin ends."""
    # Libraries print to stdout what is not an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content):
        print(json.dumps(content), file=answers, flush=True)

    try:
        setup = json.loads(sys.stdin.readline())
        make = {"transformers": transformers_peer, "llama-cpp": llama_cpp_peer}[setup["engine"]]
        generate, version = make(setup)
        answer({"version": version})
        for line in sys.stdin:
            job = json.loads(line)
            begin = time.perf_counter()
            tokens = generate(job["prompts"], job["max_new_tokens"], job["end_tokens"])
            answer({"tokens": tokens, "seconds": time.perf_counter() - begin})
    except Exception as error:  # whatever it is, the other process can say it
        answer({"error": f"{type(error).__name__}: {error}"})


def transformers_peer(setup):
    """Greedy `generate`; shorter rows are padded on the left. Options go to `generate`."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(setup["threads"])
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        setup["model"], dtype=getattr(torch, setup["dtype"])
    ).eval()

    @torch.inference_mode()
    def generate(prompts, max_new_tokens, end_tokens):
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        model.generation_config.eos_token_id = end_tokens or None
        model.generation_config.pad_token_id = 0
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            **setup["options"],
        )
        return [cut(row, end_tokens) for row in out[:, width:].tolist()]

    return generate, f"transformers {transformers.__version__}, torch {torch.__version__}"


def llama_cpp_peer(setup):
    """llama.cpp's own decode calls with an argmax between them; one row only."""
    import llama_cpp  # pyright: ignore[reportMissingImports]
    import numpy as np

    llm = llama_cpp.Llama(
        setup["model"],
        n_ctx=setup["max_length"],
        n_batch=512,
        n_threads=setup["threads"],
        n_threads_batch=setup["threads"],
        verbose=False,
        **setup["options"],
    )

    def next_token():
        logits = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(llm.n_vocab(),)).argmax())

    def generate(prompts, max_new_tokens, end_tokens):
        llm.reset()  # the first eval then drops the whole KV cache
        llm.eval(prompts[0])
        tokens = [next_token()]
        while len(tokens) < max_new_tokens and tokens[-1] not in end_tokens:
            llm.eval(tokens[-1:])
            tokens.append(next_token())
        return [tokens]

    return generate, f"llama-cpp-python {llama_cpp.__version__}"


def cut(tokens, end_tokens):
    """The tokens up to and including the first that ends a text; what follows is padding."""
    for index, token in enumerate(tokens):
        if token in end_tokens:
            return tokens[: index + 1]
    return tokens


if __name__ == "__main__":
    main()
