"""`jaxdecode methods`: the zoo."""

import dataclasses

from jaxdecode.cli.common import AsJson, Debug, print_json, print_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Methods:
    """List the decoding methods.

    LEVEL is the promise: L0 same tokens as REFERENCE, L1 same distribution, L2 within a stated
    bound, L3 heuristic.
    """

    json: AsJson = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode import api

        rows = api.methods()
        if self.json:
            print_json(rows)
            return 0
        columns = ("name", "level", "reference", "tier", "source", "summary")
        table = [[row[column] for column in columns] for row in rows]
        print_table([column.upper() for column in columns], table)
        return 0
