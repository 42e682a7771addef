"""`jaxdecode exactness`."""

import json

from jaxdecode.evals import exactness


def test_command(cli, monkeypatch):
    done = cli("exactness", "--methods", "ar", "--samples", "10000", "--json")
    (row,) = json.loads(done.out)
    assert done.code == 0 and row["method"] == "ar" and row["passed"] is True
    table = cli("exactness", "--methods", "ar", "--samples", "10000").out.splitlines()
    assert table[0].startswith("METHOD") and table[1].endswith("pass")
    assert cli("exactness", "--methods", "nothing").code == 2
    monkeypatch.setattr(exactness, "MAX_VARIATION", -1.0)
    failed = cli("exactness", "--methods", "ar", "--samples", "10000")
    assert failed.code == 1 and failed.out.rstrip().endswith("FAIL")
