"""Runs every benchmark and prints one table. Takes some minutes."""

import os
import platform

import numpy as np
import torch

from benchmarks import generation, locate, memory, plan, start, storage, training


def main() -> None:
    """Prints the machine, then one line a number."""
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores (1 used), Python {platform.python_version()}, "
        f"NumPy {np.__version__}, PyTorch {torch.__version__}"
    )
    for subject in (generation, plan, start, locate, storage, training, memory):
        for name, value in subject.measure().items():
            print(f"{name:<62}{value:>14}", flush=True)


if __name__ == "__main__":
    main()
