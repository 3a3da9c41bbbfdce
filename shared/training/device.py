"""Where and in which precision a run computes, and how it is described."""

import os
import platform
from contextlib import AbstractContextManager
from pathlib import Path

import torch


def pick_device() -> torch.device:
    """The local CUDA device of this process if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bfloat16 autocast for `precision="bfloat16"`, nothing for `"float32"`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def describe(device: torch.device) -> str:
    """The device in words: GPU name, or CPU model and number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def digest_of_device(device: torch.device) -> str:
    """What must be equal for two runs to give equal bits: kind of device, threads, version of torch."""
    return f"{device.type}:{torch.get_num_threads() if device.type == 'cpu' else describe(device)}:{torch.__version__}"
