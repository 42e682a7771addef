"""What `jaxdecode doctor` found."""

from typing import Literal, NamedTuple

Status = Literal["ok", "note", "warning", "broken"]


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: "broken" is what makes commands fail, and sets the exit code; a "warning" may; a
            "note" is worth knowing.
        text: what was found.
        fix: what to do about it; empty if nothing.
    """

    name: str
    status: Status
    text: str
    fix: str = ""
