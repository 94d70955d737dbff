"""Everything around the model: configuration, data, training and evaluation."""

import sys


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


# Here, because every command imports this package before anything that could fail.
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
