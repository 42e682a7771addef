"""Times one system, ours or another, in one process and prints one JSON line; standalone.

An outer script interleaves such processes, so that all systems meet the same noise of the machine.

    python systems.py jaxdecode --model CHECKPOINT --dtype float32 --prompt-ids FILE.json
    python systems.py jaxdecode --model CHECKPOINT --prompt-ids FILE.json --method prompt_lookup
    python systems.py transformers --model HF_FOLDER --dtype float32 --prompt-ids FILE.json
    python systems.py transformers --model HF_FOLDER --prompt-ids FILE.json --prompt-lookup 10
    python systems.py llama_cpp --model MODEL.gguf --dtype F32 --prompt-ids FILE.json
    python systems.py to-gguf SRC.gguf DST.gguf --type F32
    python systems.py to-hf SRC.gguf DST_FOLDER
    python systems.py tokens --model CHECKPOINT --suite FILE.jsonl --num-prompts 12 --out FILE.json

FILE.json holds one list of token ids or a list of such lists; row i of a batch is list i, starting
again at the first when there are too few. With --each the lists run one after the other, in batches
of --batch, and every time is the sum over them. Every system does the same work per call: one
prefill and `new` greedy tokens, with no end-of-text stop and no reuse of an earlier call's cache.
`tokens` makes such a file from the prompts that `jaxdecode bench` would take from a suite.
"""

import argparse
import json
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

Rows = list[list[int]]
Generate = Callable[[Rows, int], Rows]  # prompts, number of new tokens -> new tokens of every row


def main() -> None:
    """Parses the command line and runs one command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for system, dtypes in {
        "jaxdecode": ("float32", "bfloat16"),
        "transformers": ("float32", "bfloat16"),
        "llama_cpp": ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
    }.items():
        _add_options(commands.add_parser(system), dtypes)
    commands.choices["jaxdecode"].add_argument("--method", default="ar")
    commands.choices["transformers"].add_argument("--prompt-lookup", type=int, default=0)
    tokens = commands.add_parser("tokens", help="token ids of a suite's prompts")
    for name in ("--model", "--suite", "--out"):
        tokens.add_argument(name, type=pathlib.Path, required=True)
    tokens.add_argument("--num-prompts", type=int, default=12)
    to_gguf = commands.add_parser("to-gguf", help="a dequantised copy of a GGUF file")
    to_gguf.add_argument("source", type=pathlib.Path)
    to_gguf.add_argument("destination", type=pathlib.Path)
    to_gguf.add_argument("--type", choices=("F32", "F16"), default="F32")
    to_hf = commands.add_parser("to-hf", help="a float32 transformers folder from a GGUF file")
    to_hf.add_argument("source", type=pathlib.Path)
    to_hf.add_argument("destination", type=pathlib.Path)
    args = parser.parse_args()
    if args.command == "to-gguf":
        from jaxdecode.evals import gguf_copy

        gguf_copy.write(args.source, args.destination, kind=args.type)
    elif args.command == "to-hf":
        write_hf(args.source, args.destination)
    elif args.command == "tokens":
        write_tokens(args)
    else:
        print(json.dumps(measure(args)))


def _add_options(parser: argparse.ArgumentParser, dtypes: tuple[str, ...]) -> None:
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0])
    parser.add_argument("--prompt-ids", type=pathlib.Path, required=True)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)


def measure(args: argparse.Namespace) -> dict:
    """Loads the system, warms it up and times whole calls and calls for one new token."""
    batches = read_prompts(args.prompt_ids, args.batch, each=args.each)
    start = time.perf_counter()
    make = {
        "jaxdecode": make_jaxdecode,
        "transformers": make_transformers,
        "llama_cpp": make_llama_cpp,
    }[args.command]
    generate, version = make(args)
    load_seconds = time.perf_counter() - start
    tokens = [row for prompts in batches for row in generate(prompts, args.new)]
    for prompts in batches:
        generate(prompts, 1)
    if any(len(row) != args.new for row in tokens):
        sys.exit(f"wanted {args.new} new tokens, got {[len(row) for row in tokens]}")
    first, whole = [], []
    for _ in range(args.repeat):
        first.append(_seconds(generate, batches, 1))
        whole.append(_seconds(generate, batches, args.new))
    seconds, ttft = statistics.median(whole), statistics.median(first)
    decode = len(tokens) * (args.new - 1) / (seconds - ttft) if args.new > 1 else None
    return {
        "system": args.command,
        "version": version,
        "model": args.model.name,
        "dtype": args.dtype,
        "threads": args.threads,
        "batch": args.batch,
        "prompt_tokens": [len(row) for prompts in batches for row in prompts],
        "new_tokens": args.new,
        "seconds": seconds,
        "tokens_per_second": len(tokens) * args.new / seconds,
        "decode_tokens_per_second": decode,
        "ttft_seconds": ttft / len(batches),
        "all_seconds": whole,
        "all_ttft_seconds": [value / len(batches) for value in first],
        "load_seconds": load_seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "tokens": tokens,
    }


def _seconds(generate: Generate, batches: list[Rows], num_new: int) -> float:
    start = time.perf_counter()
    for prompts in batches:
        generate(prompts, num_new)
    return time.perf_counter() - start


def read_prompts(path: pathlib.Path, batch: int, *, each: bool = False) -> list[Rows]:
    """Batches of token lists from a JSON file of one list or of a list of lists."""
    rows = json.loads(path.read_text())
    if isinstance(rows[0], int):
        rows = [rows]
    if each:
        return [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return [[rows[i % len(rows)] for i in range(batch)]]


def make_jaxdecode(args) -> tuple[Generate, str]:
    """Our public `generate`, greedy; XLA uses all cores, so --threads is not passed on."""
    import jax

    import jaxdecode
    from jaxdecode.evals import bench

    lm = jaxdecode.load(args.model, dtype=args.dtype)
    line = bench.parse_lines(args.method)[-1]

    def generate(prompts: Rows, num_new: int) -> Rows:
        return jaxdecode.generate(
            lm,
            prompts,
            method=line.method,
            max_new_tokens=num_new,
            ignore_eos=True,
            batch_size=len(prompts),
            **line.options,
        ).tokens

    return generate, f"{jaxdecode.__version__} on jax {jax.__version__}"


def make_transformers(args) -> tuple[Generate, str]:
    """Greedy `generate` of transformers with its default attention; shorter rows padded left.

    Its prompt lookup takes one row at a time.
    """
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    ).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    lookup = {"prompt_lookup_num_tokens": args.prompt_lookup} if args.prompt_lookup else {}
    if lookup and args.batch != 1:
        sys.exit("--prompt-lookup is measured with --batch 1 only")

    @torch.inference_mode()
    def generate(prompts: Rows, num_new: int) -> Rows:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=num_new, **lookup
        )
        return out[:, width:].tolist()

    return generate, f"{transformers.__version__} on torch {torch.__version__}"


def make_llama_cpp(args) -> tuple[Generate, str]:
    """llama.cpp's own decode calls with an argmax between them; one row only."""
    import llama_cpp

    if args.batch != 1:
        sys.exit("llama_cpp is measured with --batch 1 only")
    batches = read_prompts(args.prompt_ids, 1, each=args.each)
    llm = llama_cpp.Llama(
        str(args.model),
        n_ctx=max(len(rows[0]) for rows in batches) + args.new,
        n_batch=512,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )
    num_vocab = llm.n_vocab()

    def next_token() -> int:
        logits = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(num_vocab,)).argmax())

    def generate(prompts: Rows, num_new: int) -> Rows:
        llm.reset()  # the first eval then drops the whole KV cache
        llm.eval(prompts[0])
        tokens = [next_token()]
        while len(tokens) < num_new:
            llm.eval(tokens[-1:])
            tokens.append(next_token())
        return [tokens]

    info = llama_cpp.llama_print_system_info().decode()
    return generate, f"llama-cpp-python {llama_cpp.__version__}; {info}"


def write_tokens(args) -> None:
    """Writes the token ids of a spread sample of a suite's prompts."""
    import jaxdecode
    from jaxdecode.cli import prompts
    from jaxdecode.evals import bench

    lines = prompts.read_suite(str(args.suite))
    chosen = bench.spread([line.category for line in lines], args.num_prompts)
    tokens = prompts.tokenize_all(jaxdecode.load(args.model), [lines[i] for i in chosen])
    args.out.write_text(json.dumps(tokens))


def write_hf(source: pathlib.Path, destination: pathlib.Path) -> None:
    """Writes a transformers folder with float32 weights and the tokenizer."""
    import torch
    import transformers

    name = {"gguf_file": source.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.float32, **name
    )
    # transformers does not save a model that it read from GGUF, so the weights move to a plain one.
    del loaded.config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(destination)
    transformers.AutoTokenizer.from_pretrained(source.parent, **name).save_pretrained(destination)


if __name__ == "__main__":
    main()
