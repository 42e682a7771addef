"""Reads the static schedule of the verify step's kernel: bundles of each inner loop.

    python -m tests.kernels.schedule v5e --write

stores it in `schedule.json` for the installed libtpu. The processor issues bundles in order, so
their number is close to cycles; waiting for copies is not in it.
"""

import importlib.metadata
import json
import os
import re
import sys
import tempfile
from pathlib import Path

# The kernel's inner loops, in the order it is written in.
LOOPS = ("new_words", "new_full", "cache_full", "cache_limit", "finish")
BASELINE = Path(__file__).with_name("schedule.json")
_BUNDLE = re.compile(r"\s*(?:0x)?[0-9a-f]+\s+(LB|LH|LE|PB|PF|CT)?:?\s*:?\s*([> ]*)\{")

_SPILL = re.compile(r"= vst \[vmem:\[#allocation\d+_spill")


def read(text: str) -> dict[str, dict[str, int]]:
    """Bundles and vector spill stores of the loops inside the grid's loop, by name."""
    loops: list[dict[str, int]] = []
    inside = False
    for line in text.splitlines():
        bundle = _BUNDLE.match(line)
        if not bundle:
            continue
        inner = bundle[2].count(">") == 2
        if inner and bundle[1] == "LB":
            loops.append({"bundles": 0, "spills": 0})
        inside = inner and bool(loops)
        if inside:
            loops[-1]["bundles"] += 1
            loops[-1]["spills"] += len(_SPILL.findall(line))
    if len(loops) != len(LOOPS):
        raise ValueError(f"expected the loops {LOOPS}, found {len(loops)}: has the kernel changed?")
    return dict(zip(LOOPS, loops, strict=True))


def version() -> str:
    """The installed libtpu."""
    return importlib.metadata.version("libtpu")


def measure(generation: str) -> dict[str, dict[str, int]]:
    """Compiles the verify step and reads its schedule; needs a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ |= {"LIBTPU_INIT_ARGS": options, "XLA_FLAGS": ""}
        from pallas_kernels.tree_attention import cases
        from tests.kernels import test_compile

        sizes = cases.SCHEDULE
        call, arrays = test_compile.attention(sizes), cases.arrays(sizes)
        test_compile.compiled(generation, "one device", call, arrays, {}, None)
        found = Path(folder).glob("*tree_attention*-final_bundles.txt")
        (file,) = [path for path in found if "schedule-analysis" not in path.name]
        return read(file.read_text(encoding="utf-8"))


def main(generation: str, *options: str) -> None:
    """Prints the schedule, and stores it if told to."""
    loops = measure(generation)
    if "--write" in options:
        stored = json.loads(BASELINE.read_text(encoding="utf-8"))
        stored.setdefault(version(), {})[generation] = loops
        BASELINE.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(loops))


if __name__ == "__main__":
    main(*sys.argv[1:])
