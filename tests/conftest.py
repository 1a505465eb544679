"""The tests' platform: the CPU, also where there is an accelerator."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
