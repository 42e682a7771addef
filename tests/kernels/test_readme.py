"""The example of the README runs and prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "pallas_kernels" / "README.md"


def test_the_example_prints_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    said = re.findall(r"print\(.*\)  # (.*)", code)
    assert run.stdout.splitlines() == said


def test_kernels_import_nothing_of_jaxdecode():
    code = "import sys, pallas_kernels.tree_attention.tpu, pallas_kernels.commit.api\n"
    code += "print(any(name.split('.')[0] == 'jaxdecode' for name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
