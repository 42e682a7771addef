"""Two processes load one checkpoint: each opens its own pieces only, and they decode together.

    python -m tests.dist.test_loading FOLDER ADDRESS PROCESS

is one of them; it prints what it opened and what the model said.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from jaxdecode import api
from jaxdecode.convert import pieces
from jaxdecode.convert.pipeline import convert
from tests.dist.ports import free_address
from tests.golden.corpus import tiny_folder

PROMPTS = [[5, 9, 2, 7], [1, 1, 8]]
ASKED = {"max_new_tokens": 8, "ignore_eos": True}


def start(folder, address, process):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.dist.test_loading", str(folder), address, str(process)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder):
    """Exit code, last line of output and errors of both processes."""
    address = free_address()
    running = [start(folder, address, process) for process in range(2)]
    outputs = [process.communicate(timeout=240) for process in running]
    return [(p.returncode, *out) for p, out in zip(running, outputs, strict=True)]


def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "_PIECE_BYTES", 256)
    return convert(tiny_folder("llama"), tmp_path / "ours", progress=False)


def size(folder, names):
    return sum((folder / name).stat().st_size for name in names)


def test_each_process_opens_its_own_pieces_only(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path, monkeypatch)
    runs = run(folder)
    assert [code for code, _, _ in runs] == [0, 0], runs[0][2][-2000:] + runs[1][2][-2000:]
    seen = [json.loads(out.splitlines()[-1]) for _, out, _ in runs]
    alone = api.generate(api.load(folder), PROMPTS, **ASKED)
    assert [each["tokens"] for each in seen] == [alone.tokens] * 2
    split = [{name for name in each["opened"] if ".kernel." in name} for each in seen]
    # Every piece of a kernel is opened by one of them; what all need, such as norms, by both.
    assert not split[0] & split[1]
    kernels = {p.relative_to(folder).as_posix() for p in folder.glob("params/*/*.kernel.*/*")}
    assert split[0] | split[1] == kernels
    assert abs(size(folder, split[0]) / size(folder, kernels) - 0.5) < 0.02


def main(folder, address, process):
    import jax

    opened = set()
    root = str(Path(folder).resolve())

    def watch(event, args):
        if event == "open" and str(args[0]).startswith(root):
            opened.add(Path(args[0]).relative_to(root).as_posix())

    sys.addaudithook(watch)
    jax.distributed.initialize(address, 2, process)
    lm = api.load(root, mesh="model=2")
    tokens = api.generate(lm, PROMPTS, **ASKED).tokens
    print(json.dumps({"opened": sorted(opened), "tokens": tokens}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
