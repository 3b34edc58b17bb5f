"""Loaded by pytest before any test module: threads first, then the Hypothesis profile (see budget.py)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before numpy and torch are imported: the tests run in processes, and threads on top of them lose.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# pytest's import mode 'importlib' leaves sys.path alone; test modules say `from budget import matrix_settings`.
sys.path.insert(0, str(Path(__file__).parent))

import budget  # noqa: E402, F401
