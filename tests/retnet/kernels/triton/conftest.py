"""Where the kernels run: on a GPU natively, else in Triton's interpreter.

The interpreter has to be asked for before anything imports Triton and must not be asked for in the
processes of other tests, whose models would take these kernels for the best there are. So without a
GPU these files are collected only under TRITON_INTERPRET=1, which `test_triton.py`, one folder up,
sets in a process of its own.
"""

import os

import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _random_numbers_repeat():
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return torch.device("cpu" if interpreted else "cuda")
