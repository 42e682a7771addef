"""How much faster answers come in batches than one by one: what distillation gains.

    python tests/bench/batching.py smollm2-135m spec_bench.jsonl

Takes 8 prompts of the file and decodes 64 tokens for each, in one batch and one by one, in turn,
and prints both rates, prefill included, and their ratio. The answers must be the same.
"""

import argparse
import json
import statistics
import time

import numpy as np

import jaxdecode as jd
from jaxdecode.cli.common import use_compile_cache
from jaxdecode.cli.prompts import read_suite, tokenize_all
from jaxdecode.evals.bench import spread
from jaxdecode.training import distill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--most-prompt-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    use_compile_cache()
    lm = jd.load(args.model, dtype="float32")
    lines = read_suite(args.prompts)
    rows = tokenize_all(lm, lines)
    fit = [i for i, row in enumerate(rows) if len(row) <= args.most_prompt_tokens]
    chosen = spread([lines[i].category for i in fit], args.num_prompts)
    prompts = [
        distill.Prompt(np.asarray(rows[fit[i]], np.int32), 0, lines[fit[i]].category)
        for i in chosen
    ]
    options = {"max_new_tokens": args.new_tokens, "ignore_eos": True}
    sizes = (1, args.num_prompts)
    pairs = [(len(prompt.tokens), args.new_tokens) for prompt in prompts]
    longest = [(max(length for length, _ in pairs), args.new_tokens)]
    jd.warmup(lm, batch_sizes=(1,), requests=sorted(set(pairs)))
    jd.warmup(lm, batch_sizes=(args.num_prompts,), requests=longest)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    answers = {}
    for turn in range(args.repeats):
        for size in sizes if turn % 2 else sizes[::-1]:
            begin = time.perf_counter()
            asked = dict(enumerate(prompts))
            answers[size] = dict(distill.answers(lm, asked, batch_size=size, **options))
            seconds = time.perf_counter() - begin
            rates[size].append(args.num_prompts * args.new_tokens / seconds)
    one, many = (statistics.median(rates[size]) for size in sizes)
    same = sum(answers[sizes[0]][i] == answers[sizes[1]][i] for i in range(len(prompts)))
    print(
        json.dumps(
            {
                "tokens_per_second": {size: [round(x, 1) for x in rates[size]] for size in sizes},
                "ratio": round(many / one, 2),
                "equal_answers": f"{same} of {args.num_prompts}",
                "prompt_tokens": [length for length, _ in pairs],
            }
        )
    )


if __name__ == "__main__":
    main()
