"""Speed and memory of the model against the reference."""

import util  # noqa: F401  # Before torch, since it says how threads wait.
