"""What `make demo` runs: class activation maps of the examples by the best pair at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(pictures: str, output: str) -> int:
    """Explain every picture of a folder; without reachable weights by untrained networks, saying so.

    Returns the exit code of the last `r2viz cam`.
    """
    command = [sys.executable, "-m", "r2viz", "cam", pictures, "--output", output, "--overwrite"]
    code = subprocess.call(command)
    if code:
        print(
            "demo: no trained weights at hand (see above), so the figures show untrained networks and say so.",
            file=sys.stderr,
        )
        code = subprocess.call([*command, "--weights", "random"])
    if not code:
        print(f"demo: the figures are in {Path(output)}/*.png")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
