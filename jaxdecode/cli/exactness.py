"""`jaxdecode exactness`: proves what the registry promises and prints the table."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated

from tyro.conf import arg

from jaxdecode.cli.common import (
    AsJson,
    Debug,
    print_json,
    print_table,
    show_progress,
    use_compile_cache,
)

_FAILED = 1
_HEADER = ("METHOD", "LEVEL", "ENUMERATION", "CHI2 P", "TWIN TV", "TWIN P", "ACCEPTED", "VERDICT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exactness:
    """Prove what the methods promise, on models whose exact law is known.

    ENUMERATION is the largest total variation between the exact law of what is emitted and the
    target's; CHI2 P is the p-value of samples of the compiled loop; the TWIN columns are the same
    two figures for the method with a verifier that is wrong on purpose, which both must reject.
    Methods that fill slots are held against the sampler that decides one slot per step, and the
    wrong one decides two; those that promise its tokens are compared with it text by text.
    ACCEPTED is draft tokens accepted per step. Exit code 1 if anything fails.
    """

    methods: Annotated[str, arg(metavar="NAMES")] = "all"
    """Comma-separated names, or all."""
    samples: int = 1_000_000
    """Rows decoded per method for the chi-square test."""
    json: AsJson = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        use_compile_cache()
        from jaxdecode import checks
        from jaxdecode.evals import exactness

        checks.integer("samples", self.samples, low=10_000)
        names = exactness.names(self.methods)
        total = sum(exactness.rows_needed(name, self.samples) for name in names)
        with proof_bar(total, show_progress()) as advance:
            proofs = [exactness.prove(name, self.samples, advance) for name in names]
        if self.json:
            print_json([proof.as_dict() for proof in proofs])
        else:
            print_table(_HEADER, [_line(proof) for proof in proofs])
        return 0 if all(proof.passed for proof in proofs) else _FAILED


@contextlib.contextmanager
def proof_bar(total: int, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar of decoded rows on stderr; yields the function that adds some."""
    if not shown:
        yield None
        return
    from rich.progress import Progress

    from jaxdecode.cli.bars import Bar

    with Bar(*Progress.get_default_columns()) as bar:
        task = bar.add_task("proving", total=total)
        yield lambda rows: bar.advance(task, rows)


def _line(proof) -> list[str]:
    def number(value):
        return "-" if value is None else f"{value:.1e}"

    verdict = "pass" if proof.passed else "FAIL"
    if proof.default_variation is not None:
        loose = f"not exact by design: TV {proof.default_variation:.3f} at its defaults"
        verdict += f" when strict; {loose}"
    figures = (proof.variation, proof.p_value, proof.twin_variation, proof.twin_p_value)
    accepted = f"{proof.accepted:.2f}"
    return [proof.method, proof.level, *map(number, figures), accepted, verdict]
