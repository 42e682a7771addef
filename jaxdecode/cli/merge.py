"""`jaxdecode merge`: the parts of a folder of results in one file."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxdecode.cli.common import AsJson, Debug, print_json
from jaxdecode.errors import InputError

_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge:
    """Join the parts that `generate --out FOLDER` wrote, in the order of the prompts.

    `generate` does it by itself when it finds all parts; this is for parts that were written on
    several machines and copied into one folder.
    """

    folder: Annotated[str, Positional, arg(metavar="FOLDER")]
    """Folder with job.json and all parts."""
    json: AsJson = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode import jobs

        job = jobs.read(Path(self.folder).expanduser())
        if not jobs.merge(job):
            missing = jobs.missing(job)
            names = ", ".join(job.part(number).name for number in missing[:_SHOWN])
            raise InputError(
                f"{job.folder} lacks {len(missing)} of {job.num_parts} parts ({names}"
                f"{', ...' if len(missing) > _SHOWN else ''}); copy them here, or run the same "
                "generate command to make them."
            )
        num_lines = job.num_rows * job.lines_per_row
        if self.json:
            print_json({"results": str(job.results), "num_lines": num_lines})
        else:
            print(f"{job.results}: {num_lines:,} lines")
        return 0
