"""Shared by all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tests are many and small
