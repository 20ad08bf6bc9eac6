"""Try an installed rconv as a new user does: the README's example, then an audit of its network.

    python try_package.py README.md

Run by the Python of an environment that has the wheel and no extra (`make package`).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

EXTRAS = ("torchvision", "skimage", "sklearn", "matplotlib", "PIL")


def main(readme: str) -> None:
    """Raise where something does not work."""
    assert not [name for name in EXTRAS if find_spec(name)], "the environment has an extra"
    example = re.search(r"```python\n(.*?)```", Path(readme).read_text("utf-8"), re.DOTALL)[1]
    os.chdir(tempfile.mkdtemp())  # away from the sources
    names: dict = {}
    exec(example, names)
    assert names["result"].unique.all(), "the README's example does not reconstruct its image"
    import rconv

    assert Path(rconv.__file__).is_relative_to(sys.prefix), rconv.__file__
    Path("net.py").write_text(example.partition("model = Net()")[0])
    command = [Path(sys.executable).with_name("rconv"), "audit", "--model", "net.py:Net"]
    command += ["--input-shape", "3,32,32", "--trials", "1", "--time-limit", "0.1"]
    command += ["--json", "audit.json", "--html", "report.html", "--fail-on", "leaks"]
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    risk = json.loads(Path("audit.json").read_text())["verdict"]["risk"]
    assert (code, risk) == (3, "leaks"), (code, risk)
    assert Path("report.html").stat().st_size > 10_000
    print(f"rconv {rconv.__version__} works from its wheel: {os.getcwd()}/report.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
