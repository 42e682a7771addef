"""Runs several systems in turn, round after round, and prints ratios of medians as Markdown.

    python side_by_side.py PLAN.json --rounds 3 > table.md

PLAN.json: {"baseline": NAME, "systems": {NAME: [command and arguments of systems.py]}}. Each round
starts every system once, in turn, so that all meet the same drift of the machine. Greedy float32
tokens must be equal to the baseline's; the table says so.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys


def main() -> None:
    """Runs the plan and prints the table; raw results go to standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    plan = json.loads(args.plan.read_text())
    results: dict[str, list[dict]] = {name: [] for name in plan["systems"]}
    for _ in range(args.rounds):
        for name, command in plan["systems"].items():
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                sys.exit(f"{name}: {run.stderr[-2000:]}")
            results[name].append(json.loads(run.stdout.strip().splitlines()[-1]))
            print(name, f"{results[name][-1]['seconds']:.3f} s", file=sys.stderr, flush=True)
    print("\n".join(table(results, plan["baseline"])))


def table(results: dict[str, list[dict]], baseline: str) -> list[str]:
    """Rows of Markdown: medians over all repeats of all rounds, and their ratio to the baseline."""
    base = results[baseline]
    lines = [
        "| system | dtype | batch | tokens/s | speed / baseline | first token, s | "
        "first token / baseline | peak GB | equal tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        rate = len(runs[0]["tokens"]) * runs[0]["new_tokens"] / _median(runs, "all_seconds")
        equal = runs[0]["tokens"] == base[0]["tokens"]
        lines.append(
            f"| {name} | {runs[0]['dtype']} | {runs[0]['batch']} | {rate:.1f} | "
            f"{_median(base, 'all_seconds') / _median(runs, 'all_seconds'):.2f} | "
            f"{_median(runs, 'all_ttft_seconds'):.3f} | "
            f"{_median(runs, 'all_ttft_seconds') / _median(base, 'all_ttft_seconds'):.2f} | "
            f"{max(run['peak_gb'] for run in runs):.2f} | {'yes' if equal else 'no'} |"
        )
    return lines


def _median(runs: list[dict], key: str) -> float:
    return statistics.median(value for run in runs for value in run[key])


if __name__ == "__main__":
    main()
