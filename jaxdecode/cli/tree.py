"""`jaxdecode tree`: the best static tree for a method, a model and this machine."""

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from jaxdecode.cli.common import (
    AcceptTerms,
    AsJson,
    Debug,
    Flag,
    Overwrite,
    note,
    print_json,
    print_table,
    show_progress,
    use_compile_cache,
)
from jaxdecode.cli.output import run_bar
from jaxdecode.cli.prompts import read_suite, tokenize_all
from jaxdecode.errors import DestinationExistsError, InputError

if TYPE_CHECKING:
    from jaxdecode.evals.accepted import Accepted
    from jaxdecode.evals.tree_search import Candidate

_Path = Annotated[str | None, arg(metavar="FOLDER", constructor=str, help_behavior_hint="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """Search the tree with which a method writes most tokens per second here.

    Half of the prompts are decoded with a wide tree, and every path that is accepted is counted.
    Steps of trees of several sizes are timed. The other half checks what the counts predict.
    """

    model: Annotated[str, arg(metavar="NAME_OR_PATH")]
    """Short name, checkpoint folder, .gguf file, or hf:org/name."""
    method: str
    """A method that drafts in a static tree: medusa, hydra, token_recycling, ..."""
    prompts: Annotated[str, arg(metavar="FILE")]
    """JSONL as `generate --prompts` takes, or Spec-Bench's."""
    out: Annotated[str, arg(metavar="FILE.json")]
    """Tree file to write; methods take it as --set tree=FILE.json."""
    heads: _Path = None
    """Trained heads of methods that need some."""
    num_draft: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Draft tokens per step; by default the number that writes fastest here."""
    most: int = 63
    """Most draft tokens that are tried."""
    wide: int = 160
    """Paths that are counted."""
    depth: int = 5
    """Tokens of the deepest path that is counted."""
    num_prompts: int | None = None
    """Take so many prompts, spread over the categories; all by default."""
    max_new_tokens: int = 128
    """Most new tokens per prompt."""
    batch_size: int = 8
    """Prompts decoded at once while counting."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto is float32 on CPU, else bfloat16."""
    overwrite: Overwrite = False
    progress: Flag = False
    """Show progress even if stderr is no terminal."""
    json: AsJson = False
    accept_terms: AcceptTerms = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        out = Path(self.out)
        if out.exists() and not self.overwrite:
            raise DestinationExistsError(f"{out} exists; choose another file or pass --overwrite.")
        use_compile_cache()
        from jaxdecode import api, checks
        from jaxdecode.convert.heads import load_heads
        from jaxdecode.evals import bench, tree_search

        checks.integer("most", self.most, low=self.num_draft or 1, high=self.wide)
        lines = read_suite(self.prompts)
        if len(lines) < 2:
            raise InputError(f"{self.prompts} has {len(lines)} prompt; give at least two.")
        heads = None if self.heads is None else load_heads(self.heads)
        dtype = None if self.dtype == "auto" else self.dtype
        lm = api.load(self.model, dtype=dtype, accept_terms=self.accept_terms)
        if self.num_prompts is not None:
            chosen = bench.spread([line.category for line in lines], self.num_prompts)
            lines = [lines[i] for i in chosen]
        prompts = tokenize_all(lm, lines)
        with TemporaryDirectory() as folder:
            wide = Path(folder) / "wide.json"
            tree_search.save(self._wide(heads), wide, {})
            found = self._measure(lm, heads, prompts[::2], wide, "counting")
            sizes = [self.num_draft] if self.num_draft else tree_search.sizes_up_to(self.most)
            made = tree_search.candidates(found, sizes)
            if self.num_draft is None:
                full = Path(folder) / "full.json"
                tree_search.save(made[-1].tree, full, {})
                seconds = tree_search.step_seconds(
                    lm, method=self.method, sizes=sizes, heads=heads, tree=str(full)
                )
                made = tree_search.candidates(found, sizes, seconds)
            best = tree_search.best(made)
            notes = self._notes(lm.name, best, found)
            tree_search.save(best.tree, out, notes)
        checked = self._measure(lm, heads, prompts[1::2], out, "checking")
        self._report(made, best, checked)
        return 0

    def _wide(self, heads: Any) -> Any:
        from jaxdecode.evals import tree_search

        depth = getattr(heads and heads.spec.shape, "num_heads", self.depth)
        return tree_search.wide(min(depth, self.depth), self.wide)

    def _measure(self, lm: Any, heads: Any, prompts: Any, tree: Path, title: str) -> "Accepted":
        from jaxdecode.evals import accepted

        batches = -(-len(prompts) // self.batch_size)
        with run_bar(title, batches, show_progress(self.progress)) as advance:
            return accepted.measure(
                lm,
                prompts,
                method=self.method,
                tree=str(tree),
                heads=heads,
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens,
                progress=advance,
            )

    def _notes(self, model: str, best: "Candidate", found: "Accepted") -> dict[str, Any]:
        return {
            "taken": f"counted over {found.steps} steps of {self.method} with {model}, greedy; "
            f"predicted {best.length:.3f} tokens per step",
        }

    def _report(self, made: "list[Candidate]", best: "Candidate", checked: "Accepted") -> None:
        rows = [
            {
                "num_draft": len(candidate.tree.paths),
                "tokens_per_step": candidate.length,
                "seconds_per_step": candidate.seconds,
                "chosen": candidate is best,
            }
            for candidate in made
        ]
        held_out = {"predicted": best.length, "measured": checked.length, "steps": checked.steps}
        if self.json:
            print_json({"out": self.out, "sizes": rows, "held_out": held_out})
            return
        table = [
            (
                str(row["num_draft"]),
                f"{row['tokens_per_step']:.3f}",
                "-" if row["seconds_per_step"] is None else f"{row['seconds_per_step'] * 1e3:.2f}",
                "chosen" if row["chosen"] else "",
            )
            for row in rows
        ]
        print_table(("DRAFTS", "TOKENS/STEP", "MS/STEP", ""), table)
        note(
            f"{self.out}: predicted {best.length:.3f} tokens per step, on other prompts "
            f"{checked.length:.3f}"
        )
