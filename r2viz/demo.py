"""What `make demo` runs: class activation maps of the examples by the best pair at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(pictures: str, output: str) -> int:
    """Explain every picture of a folder. Returns the exit code of `r2viz cam`."""
    code = subprocess.call([sys.executable, "-m", "r2viz", "cam", pictures, "--output", output, "--overwrite"])
    if not code:
        print(f"demo: the figures are in {Path(output)}/*.png")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
