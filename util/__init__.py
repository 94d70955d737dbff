"""Everything around the model: configuration, data, training and evaluation.

Every command imports this package first, and ends here with one line where no command can run. The
scripts import it by its name, because the model, which they import next, loads OpenCV as well.
"""

import os
import sys

# Threads of OpenMP that wait by spinning slow down a machine that others use too, and loader processes
# that share the cores. It is read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from util.runtime.errors import EXIT_CODE, exits_on_user_error

__all__ = ["exits_on_user_error"]


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_CODE)


if sys.platform == "win32":
    _exit("this program runs on Linux and macOS; on Windows use WSL")
try:
    import cv2  # noqa: F401
except ModuleNotFoundError:
    pass  # Whoever needs OpenCV says that it is not installed.
except ImportError as missing:
    _exit(
        f"OpenCV cannot be loaded ({missing}); install opencv-python-headless instead of "
        "opencv-python, or the system packages libgl1 and libglib2.0-0"
    )
