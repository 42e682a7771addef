"""`jaxdecode verify`: is a checkpoint whole?"""

import dataclasses

from jaxdecode.cli.common import (
    AcceptTerms,
    AsJson,
    CheckpointPath,
    Debug,
    print_json,
    show_progress,
)
from jaxdecode.errors import CheckpointError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Read a whole checkpoint and check everything that can be checked.

    Exit code 0 if it is sound, 1 if it is damaged. Only our own format has hashes; of the others,
    structure, shapes and finite values are checked.
    """

    path: CheckpointPath
    json: AsJson = False
    accept_terms: AcceptTerms = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode.convert import download, pipeline
        from jaxdecode.convert import heads as head_files

        shown = show_progress()
        path = download.resolve(self.path, accept_terms=self.accept_terms, progress=shown)
        try:
            if head_files.is_heads(path):
                found = head_files.describe(path) | {"checks": ["sha256", "structure"]}
            else:
                found = pipeline.verify(path, progress=shown)
        except CheckpointError as error:
            if self.json:
                print_json({"path": str(path), "ok": False, "error": str(error)})
            raise
        if self.json:
            print_json({"ok": True} | found)
        else:
            checks, fills = ", ".join(found["checks"]), found.get("fills_slots")
            kind = f"; fills slots: {fills}" if fills else ""
            print(f"{path}: sound ({found['num_parameters']:,} parameters{kind}; checked {checks})")
        return 0
