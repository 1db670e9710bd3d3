"""A stage on Ray, in a process of its own: `python -m chuan.corpus.on_ray EXECUTOR PARENT ADDRESS CPUS`.

In: the file that `chuan.corpus.executors` has pickled the stage into, the process to end with, the address of a cluster
(or `local`, to start Ray on this machine with so many processors). Out: the stage's files.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import ray

from chuan.corpus.executors import end_with_parent


def main() -> None:
    path, parent, address, cpus = sys.argv[1:]
    end_with_parent(int(parent))
    executor = pickle.loads(Path(path).read_bytes())
    if address == "local":
        ray.init(num_cpus=int(cpus), log_to_driver=False, include_dashboard=False)
    else:
        ray.init(address=address, log_to_driver=False)
    executor.run()
    ray.shutdown()


if __name__ == "__main__":
    main()
