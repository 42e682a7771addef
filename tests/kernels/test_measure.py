"""The script that times kernels runs where there is no kernel, and gives a whole table."""

from tpu_scripts import measure


def test_the_table_is_whole(capsys):
    measure.main(kv_heads=(1,), nodes=(1, 3), slots=(128,), batch=1, repeats=1)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(rows) == 4 and {len(row) for row in rows} == {9}
    assert [row[3].strip() for row in rows[2:]] == ["1", "3"]
    assert all(float(row[4]) > 0 and row[5].strip() == "-" for row in rows[2:])
