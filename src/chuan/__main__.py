"""`python -m chuan`, and so `torchrun -m chuan`."""

from chuan.cli import main

main()
