"""Real ranks: torchrun on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(ranks: int, *command: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Runs `command` (a script or -m module, and its arguments) on so many ranks; stdout and stderr come together."""
    return subprocess.run(
        [
            *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)],
            *options,
            *command,
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
