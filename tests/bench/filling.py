"""Speed and quality of ways to write the same texts, each run in turn, round after round.

    python tests/bench/filling.py held_out.txt runs/mdlm/model=llada runs/mdlm/model=fast_dllm

Every way is MODEL=LINE, a line as `bench --methods` takes it, or MODEL@DTYPE=LINE. All continue the
same pieces of the text; rates leave compilation out and are medians over the rounds; ratios are to
the first way. Bits are per character, by the evidence bound of the first way's model (or of
--judge).
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy as np

import jaxdecode as jd
from jaxdecode.evals import bench_lines, elbo, suites


def main() -> None:
    """Runs all ways and prints one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("ways", nargs="+")
    parser.add_argument("--judge")
    parser.add_argument("--num-given", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()
    pairs = [way.split("=", 1) for way in args.ways]
    judged_by = args.judge or pairs[0][0]
    models = {name: load(name) for name in {judged_by, *(name for name, _ in pairs)}}
    judge = models[judged_by]
    tokens = judge.tokenizer.encode(args.text.read_text())
    pieces = suites.windows(tokens, args.num_given + args.new_tokens, args.count)
    begins = [piece[: args.num_given] for piece in pieces]
    seconds: dict[str, list[float]] = {way: [] for way in args.ways}
    written = {}
    for number in range(args.rounds + 1):  # the first one compiles
        for way, (name, line) in zip(args.ways, pairs, strict=True):
            begin = time.perf_counter()
            written[way] = write(models[name], bench_lines.parse_line(line), begins, args)
            if number:
                seconds[way].append(time.perf_counter() - begin)
    base = statistics.median(seconds[args.ways[0]])
    for way in args.ways:
        out, taken = written[way], statistics.median(seconds[way])
        texts = [a + b for a, b in zip(begins, out.tokens, strict=True)]
        found = elbo.bound(judge, texts, given=args.num_given, draws=16, seed=0)
        row = {
            "way": way,
            "tokens_per_second": sum(map(len, out.tokens)) / taken,
            "ratio": base / taken,
            "spread": [base / x for x in (max(seconds[way]), min(seconds[way]))],
            "nfe": float(np.mean([stats.nfe for stats in out.stats])),
            "tokens_forwarded": float(np.mean([s.tokens_forwarded for s in out.stats])),
            "bits": found.per_token,
            "error": found.error / found.num_tokens,
            "entropy": float(np.mean([suites.entropy(text) for text in out.tokens])),
            "repetition": float(np.mean([suites.repetition(text) for text in out.tokens])),
            "equal_to_first": sum(
                a == b for a, b in zip(out.tokens, written[args.ways[0]].tokens, strict=True)
            ),
        }
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))


def load(name: str) -> jd.LanguageModel:
    """A model in float32, or as its name says behind an @."""
    path, _, dtype = name.partition("@")
    return jd.load(path, dtype=dtype or "float32")


def write(lm, line, begins, args):
    """What one way writes after the beginnings."""
    return jd.generate(
        lm,
        begins,
        method=line.method,
        max_new_tokens=args.new_tokens,
        batch_size=args.batch_size,
        temperature=args.temperature,
        seed=list(range(len(begins))),
        ignore_eos=True,
        **line.options,
    )


if __name__ == "__main__":
    main()
