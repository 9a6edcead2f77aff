"""Time the whole test suite from a cold start and write examples/results/suite.json.

command    python examples/suite.py
cost       the suite: about eight minutes on two idle CPU cores
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from jaxlm.train.rundir import versions

ROOT = Path(__file__).parents[1]


def main() -> None:
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    minutes = (time.perf_counter() - began) / 60
    print(run.stdout[-2000:])
    if run.returncode:
        raise SystemExit("the suite failed: nothing was written")
    passed = int(re.findall(r"(\d+) passed", run.stdout)[-1])
    result = {"minutes": minutes, "passed": passed, "versions": versions()}
    (ROOT / "examples" / "results" / "suite.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
