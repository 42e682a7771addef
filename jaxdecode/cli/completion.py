"""`jaxdecode completion`: the Tab key."""

import contextlib
import dataclasses
from typing import Annotated, Literal

import tyro

from jaxdecode.cli.common import Debug


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """Print what makes a shell complete commands and options.

    For bash put `eval "$(jaxdecode completion bash)"` into ~/.bashrc. For zsh write the output to a
    file named _jaxdecode in a folder of $fpath. For fish write it to
    ~/.config/fish/completions/jaxdecode.fish.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        # Imported late: it is the command line that imports this file.
        from jaxdecode.cli.main import parse

        # This is how tyro ends when the script is printed.
        with contextlib.suppress(SystemExit):
            parse(["--tyro-write-completion", self.shell, "-"])
        return 0
