"""Progress into a file: a line now and then, where a drawn bar would say nothing until its end."""

import pytest

from jaxdecode.cli import bars, output


@pytest.mark.parametrize(("pause", "lines"), [(0.0, 4), (3600.0, 1)])
def test_a_file_is_told_line_by_line(pause, lines, monkeypatch, capsys):
    monkeypatch.setattr(bars, "PAUSE", pause)
    with output.run_bar("measuring", 3, shown=True) as tick:
        for _ in range(3):
            tick()
    printed = capsys.readouterr()
    told = [line for line in printed.err.splitlines() if "measuring" in line]
    # The last one is what rich leaves behind.
    assert len(told) == lines and "3/3" in told[-1]
    assert printed.out == ""
