"""`jaxdecode methods`: the zoo."""

import dataclasses

from jaxdecode.cli.common import AsJson, Debug, Flag, print_json, print_table
from jaxdecode.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Methods:
    """List the decoding methods.

    LEVEL is the promise: L0 same tokens as REFERENCE, L1 same distribution, L2 within a stated
    bound, L3 heuristic.
    """

    json: AsJson = False
    markdown: Flag = False
    """Print the table of docs/methods.md."""
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        if self.json and self.markdown:
            raise InputError("--json and --markdown are two forms of the output; choose one.")
        from jaxdecode import zoo

        if self.markdown:
            print(zoo.markdown(), end="")
            return 0
        rows = zoo.methods()
        if self.json:
            print_json(rows)
            return 0
        columns = ("name", "level", "reference", "tier", "source", "summary")
        table = [[row[column] for column in columns] for row in rows]
        print_table([column.upper() for column in columns], table)
        return 0
