"""Reduced precision: automatic mixed precision and, for float16, scaling of the loss (`amp`)."""

from contextlib import AbstractContextManager
from pathlib import Path

import torch

from util.config import Config
from util.runtime.errors import UserError
from util.runtime.machine import require_compiler
from util.runtime.seed import choose_kernels

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Holds how the forward passes of a run are computed.

    Args:
        amp: "off", "bf16", "fp16", or "auto", see `resolve_amp`.
        device: where the model is.

    Raises:
        UserError: another word, or the device does not compute in this type, see `require_type`.
    """

    def __init__(self, amp: str, device: torch.device):
        amp = resolve_amp(amp, device)
        if amp not in ("off", *DTYPES):
            raise UserError(f"amp {amp}: expected off, auto, {' or '.join(DTYPES)}")
        require_type("amp", amp, device)
        self.device = device
        self.dtype = DTYPES.get(amp)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager:
        """Return a context in which convolutions and products use the reduced type."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


def compute_as_set(cfg: Config, device: torch.device) -> Config:
    """Have this process compute as the settings say; returns them with what `amp` "auto" means here.

    Raises:
        UserError: this machine lacks what a setting needs.
    """
    if cfg.compile:
        require_compiler()
    require_type("backbone_dtype", cfg.backbone_dtype, device)
    choose_kernels(cfg.seed_deterministic, cfg.tf32)
    return cfg.model_copy(update={"amp": resolve_amp(cfg.amp, device)})


def require_type(key: str, value: str | None, device: torch.device) -> None:
    """Require that a device computes in the type that a setting asks for.

    Args:
        key: name of the setting, for the message.
        value: "bf16", "fp16" or something else, for which nothing is required.
        device: where the model is.

    Raises:
        UserError: float16 on the CPU, where torch cannot train with a scaled loss, or bfloat16 on a
            GPU that only emulates it.
    """
    if value == "fp16" and device.type == "cpu":
        raise UserError(f"{key} fp16 needs a CUDA device; on the CPU set {key} to bf16")
    if value == "bf16" and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise UserError(
                f"{key} bf16 needs a GPU of compute capability 8.0 or more, and this one has "
                f"{major}.{minor}; set {key} to fp16"
            )


def resolve_amp(amp: str, device: torch.device) -> str:
    """Return the precision that "auto" means on a device: "bf16" where it is fast, else "off"."""
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "off"
    information = Path("/proc/cpuinfo")
    flags = information.read_text(errors="replace").split() if information.is_file() else []
    return "bf16" if {"amx_bf16", "avx512_bf16"} & {*flags} else "off"
