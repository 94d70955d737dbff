"""Speed and memory of the model against the reference."""

import os

# OpenMP's threads wait without spinning, as in the scripts. It reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
