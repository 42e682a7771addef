"""What letting rows into a running batch gains over fixed batches, where answers differ in length.

    python tests/bench/refilling.py smollm2-135m prompts.jsonl --num-prompts 200 --new-tokens 256
    python tests/bench/refilling.py random

Decodes the first prompts of the file in both ways, in turn, and prints the rates (medians, prefill
included, after one round that compiles), their ratio, and how far the answers differ in length.
Fixed batches get all prompts at once, sorted by length. The tokens must be the same, and those of a
few prompts alone. `random` is a small random model, whose texts end by chance.
"""

import argparse
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdecode as jd
from jaxdecode import api
from jaxdecode.cli.common import use_compile_cache
from jaxdecode.cli.prompts import read_suite, tokenize_all
from jaxdecode.evals import toys
from jaxdecode.models import decoder

# Tokens of the random model; some of them end a text, so that its length is a matter of chance.
SIZE = 512


def random_model() -> api.LanguageModel:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_heads": 8, "num_kv_heads": 4}
    more = {
        "vocab_size": SIZE,
        "num_layers": 4,
        "layer_windows": (0,) * 4,
        "head_dim": 32,
        "max_length": 2048,
    }
    config = toys.config(**sizes, **more, query_scale=32**-0.5)
    return api.from_params(config, decoder.init_params(config, jax.random.key(0), jnp.float32))


def asked(args: argparse.Namespace) -> tuple[api.LanguageModel, list, dict]:
    options = {"max_new_tokens": args.new_tokens, "batch_size": args.batch_size, "seed": 0}
    if args.model == "random":
        rng = np.random.default_rng(0)
        lengths = rng.integers(4, 100, args.num_prompts)
        rows = [rng.integers(0, SIZE, n).tolist() for n in lengths]
        ends = range(SIZE // args.mean_tokens)
        return random_model(), rows, options | {"temperature": 1.0, "stop_tokens": tuple(ends)}
    lm = jd.load(args.model, dtype=args.dtype)
    rows = tokenize_all(lm, read_suite(args.prompts))
    rows = [row for row in rows if len(row) <= args.most_prompt_tokens][: args.num_prompts]
    return lm, rows, options | {"temperature": args.temperature}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts", nargs="?")
    parser.add_argument("--num-prompts", type=int, default=1000)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--most-prompt-tokens", type=int, default=10**6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--method", default="ar")
    parser.add_argument("--mean-tokens", type=int, default=64, help="of the random model's texts")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    use_compile_cache()
    lm, prompts, options = asked(args)
    options["method"] = args.method

    def fixed() -> list[list[int]]:
        return jd.generate(lm, prompts, **options).tokens

    def refilled() -> list[list[int]]:
        found = dict(jd.generate_many(lm, iter(prompts), **options))
        return [found[i].tokens[0] for i in range(len(prompts))]

    ways, rates, tokens = (fixed, refilled), {fixed: [], refilled: []}, {}
    for turn in range(args.repeats + 1):
        for way in ways if turn % 2 else ways[::-1]:
            begin = time.perf_counter()
            tokens[way] = way()
            seconds = time.perf_counter() - begin
            print(f"{way.__name__} {seconds:.1f} s", file=sys.stderr, flush=True)
            if turn:
                rates[way].append(sum(map(len, tokens[way])) / seconds)
    lengths = [len(row) for row in tokens[fixed]]
    some = range(0, len(prompts), max(len(prompts) // 8, 1))
    alone = [jd.generate(lm, [prompts[i]], **options).tokens[0] for i in some]
    medians = {way.__name__: statistics.median(rates[way]) for way in ways}
    result = {
        "prompts": len(prompts),
        "new_tokens": {"mean": float(np.mean(lengths)), "longest": max(lengths)},
        "tokens_per_second": {name: round(rate, 1) for name, rate in medians.items()},
        "all_rates": {way.__name__: [round(rate, 1) for rate in rates[way]] for way in ways},
        "ratio": round(medians["refilled"] / medians["fixed"], 2),
        "same": sum(a == b for a, b in zip(tokens[fixed], tokens[refilled], strict=True)),
        "alone": len(alone),
        "same_alone": sum(tokens[refilled][i] == row for i, row in zip(some, alone, strict=True)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
