"""`jaxdecode plan`: what a model takes on hardware that is not here."""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from jaxdecode import checks
from jaxdecode.cli.common import AsJson, Debug, Flag, note, print_json, show_progress
from jaxdecode.cli.output import run_bar
from jaxdecode.cli.plan_table import print_plan, print_search
from jaxdecode.errors import InputError

if TYPE_CHECKING:
    from jaxdecode.evals.bench_lines import Line
    from jaxdecode.models.config import ModelConfig
    from jaxdecode.plan import report
    from jaxdecode.plan.curve import Curve
    from jaxdecode.plan.hardware import Topology
    from jaxdecode.plan.search import Space
    from jaxdecode.plan.setup import Setup

_DTYPES = Literal["bfloat16", "float32"]
_BATCH = 16
_DOES_NOT_FIT = 1
# libtpu looks for a TPU, and for others like itself, unless told not to; the type given last need
# not be that of the topology. JAX must not take a device of this machine: only compilers are used.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "JAX_PLATFORMS": "cpu",
    # XLA:GPU complains about its own speed.
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Compile a model for hardware that is not here: does it fit, what does a step cost, and how
    many draft tokens are worth verifying.

    Exit code 1 if it does not fit. No weights are needed, and no device.
    """

    model: Annotated[str, arg(metavar="NAME_OR_PATH")]
    """A model of configs/models, or the path of a checkpoint."""
    topology: Annotated[str, arg(metavar="CHIP:SHAPE")]
    """v4, v5e, v5p, v6e or tpu7x with the shape of a slice (v5e:4x4, v5p:4x4x4), or a100, h100 or
    b200 with a number of GPUs (h100:8)."""
    mesh: Annotated[str | None, arg(metavar="AXES", help_behavior_hint="")] = None
    """How the devices are split, for example data=2,model=8. The best by its floor by default."""
    method: Annotated[str | None, arg(metavar="LINE", help_behavior_hint="")] = None
    """Method whose proposal is verified, or that fills slots; with options as for bench, such as
    fast_dllm:reuse=prefix. Plain decoding by default."""
    drafter: Flag = False
    """Compile the method's whole step too, drafter included (slow)."""
    batch: Annotated[int | None, arg(help_behavior_hint="")] = None
    """Rows of the whole batch; 16 by default, and open under --search."""
    context: int = 4096
    """Tokens of a row, prompt and answer."""
    dtype: _DTYPES = "bfloat16"
    """Number format of the weights."""
    cache_dtype: Annotated[_DTYPES | None, arg(help_behavior_hint="")] = None
    """Number format of keys and values; that of the weights by default, and open under --search."""
    attention: Literal["auto", "xla"] = "auto"
    """auto is the kernel of the chip if it can serve the model, else xla."""
    layers: Literal["auto", "list", "stacked"] = "auto"
    """Form of the layers; auto is what `load` takes: stacked on TPU, else list, which is compiled
    many times slower."""
    nodes: str = "16,128"
    """Numbers of nodes whose verification is compiled, beside 1 and the method's own; what those
    between them cost is interpolated."""
    curve: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Tokens per target call by number of nodes: JSON such as {"8": 1.6, "32": 1.8}, or what
    `bench --json` wrote."""
    search: Flag = False
    """Propose what is not given of mesh, batch and cache dtype, and compile the best."""
    whole_heads: Flag = False
    """Refuse a mesh on which KV heads have to be repeated."""
    json: AsJson = False
    progress: Flag = False
    """Show progress even if stderr is no terminal."""
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        if self.search and (self.method is not None or self.drafter):
            raise InputError("--search chooses the number of nodes: leave --method out.")
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from jaxdecode.plan import hardware

        topology = hardware.parse(self.topology)
        config = _config(self.model)
        space = self._space(config, topology)
        if self.search and config.denoiser is not None:
            raise InputError(
                "--search chooses the number of nodes of a tree; this model fills slots."
            )
        return self._search(space) if self.search else self._plan(space)

    def _space(self, config: "ModelConfig", topology: "Topology") -> "Space":
        from jaxdecode.dist import mesh
        from jaxdecode.plan import hardware
        from jaxdecode.plan.search import Space

        sizes = None if self.mesh is None else mesh.parse(self.mesh)
        closed = not self.search
        return Space(
            config=config,
            topology=topology,
            devices=hardware.devices(topology),
            context=self.context,
            dtype=self.dtype,
            mesh=sizes,
            batch=_BATCH if self.batch is None and closed else self.batch,
            cache_dtype=self.dtype if self.cache_dtype is None and closed else self.cache_dtype,
            whole_heads=self.whole_heads,
            attention=self.attention,
            layers=self.layers,
        )

    def _plan(self, space: "Space") -> int:
        from jaxdecode import resolve
        from jaxdecode.evals import bench_lines
        from jaxdecode.plan import report, search

        fills = space.config.denoiser is not None
        wanted = self.method or bench_lines.baseline_of(fills)
        line = bench_lines.parse_line(wanted)
        resolve.check_model(line.method, space.config)
        sizes = space.mesh or search.rank(space, self._curve(None))[0].mesh
        assert space.batch is not None and space.cache_dtype is not None
        made = search.setup(space, sizes, space.batch, space.cache_dtype)
        plan = self._passes(space, made, line) if fills else self._steps(space, made, line)
        head = self._head(space) | {"method": line.label}
        if self.json:
            print_json(head | report.as_dict(plan))
        else:
            print_plan(head, plan)
        return 0 if plan.fits else _DOES_NOT_FIT

    def _steps(self, space: "Space", made: "Setup", line: "Line") -> "report.Plan":
        """The plan of a method that verifies trees."""
        from jaxdecode.plan import report

        nodes = self._nodes(made, line)
        whole = (line.method, line.options) if self.drafter else None
        total = report.num_programs(nodes, whole=self.drafter)
        with run_bar("compiling", total, show_progress(self.progress)) as tick:
            return report.make(
                made,
                space.topology,
                curve=self._curve(made),
                nodes=nodes,
                method=whole,
                tick=tick,
            )

    def _passes(self, space: "Space", made: "Setup", line: "Line") -> "report.Plan":
        """The plan of a method that fills slots."""
        from jaxdecode.plan import passes, programs

        method = programs.filling(made, line.method, line.options)
        total = len(passes.widths(made, method))
        with run_bar("compiling", total, show_progress(self.progress)) as tick:
            return passes.make(made, space.topology, method, tick)

    def _search(self, space: "Space") -> int:
        from jaxdecode.plan import report, search

        curve = self._curve(None)
        candidates = search.rank(space, curve)
        total = search.num_programs(candidates)
        with run_bar("compiling", total, show_progress(self.progress)) as tick:
            plans = search.best(space, candidates, curve, tick=tick)
        head = self._head(space) | {"method": "ar"}
        if self.json:
            ranked = [dataclasses.asdict(candidate) for candidate in candidates]
            print_json(head | {"plans": list(map(report.as_dict, plans)), "ranked": ranked})
        else:
            print_search(head, plans, candidates)
        return 0 if plans[0].fits else _DOES_NOT_FIT

    def _head(self, space: "Space") -> dict[str, Any]:
        return {
            "model": self.model,
            "topology": space.topology.name,
            "num_devices": space.topology.num_devices,
            "num_hosts": space.topology.num_hosts,
            "dtype": self.dtype,
        }

    def _nodes(self, made: "Setup", line: "Line") -> list[int]:
        from jaxdecode.plan import programs

        try:
            asked = [int(part) for part in self.nodes.split(",") if part.strip()]
        except ValueError as error:
            raise InputError(
                f"--nodes {self.nodes}: expected integers separated by commas."
            ) from error
        for nodes in asked:
            checks.integer("--nodes", nodes, low=1, high=1024)
        return [*asked, programs.num_nodes(made, line.method, line.options)]

    def _curve(self, made: "Setup | None") -> "Curve":
        """The acceptance curve; one of `bench` needs the setup, to count its methods' nodes."""
        from jaxdecode.plan import curve

        if self.curve is None:
            return curve.DEFAULT
        path = Path(self.curve).expanduser()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"--curve {path}: cannot be read as JSON ({error}).") from error
        if isinstance(content, dict) and "summary" in content:
            return curve.DEFAULT if made is None else _bench_curve(content, made, path)
        if not isinstance(content, dict) or not all(key.isdecimal() for key in content):
            raise InputError(
                f'--curve {path}: expected {{"nodes": tokens per call}}, for example '
                '{"8": 1.6, "32": 1.8}, or a file of `bench --json`.'
            )
        return curve.make({int(key): value for key, value in content.items()}, str(path))


def _bench_curve(content: dict[str, Any], made: "Setup", path: Path) -> "Curve":
    """Of every number of nodes that `bench` measured, the method with most tokens per call."""
    from jaxdecode.evals import bench, summary
    from jaxdecode.plan import curve, programs

    best: dict[int, float] = {}
    for row in content["summary"]:
        if row["category"] != summary.OVERALL:
            continue
        (*_, line) = bench.parse_lines(row["line"])
        try:
            nodes = programs.num_nodes(made, line.method, line.options)
        except NotImplementedError:
            note(f"{path}: {row['line']} is left out: its nodes depend on more than the target.")
            continue
        if nodes > 1:
            best[nodes] = max(best.get(nodes, 1.0), row["acceptance_length"])
    return curve.make(best, str(path))


def _config(name: str) -> "ModelConfig":
    """The model's configuration: of a short name, or of a checkpoint."""
    from jaxdecode.convert.catalog import model_shape
    from jaxdecode.convert.open import open_source

    path = Path(name).expanduser()
    return open_source(path).config if path.exists() else model_shape(name)
