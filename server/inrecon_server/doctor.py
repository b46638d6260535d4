"""What inrecon finds on this machine: versions, devices, files, the port."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from inrecon.encoders import why_not
from inrecon.errors import InreconError
from inrecon.hyperparams import HyperparameterFiles
from inrecon.hyperparams.snapshot import shipped_folder

_PACKAGES = (
    "inrecon",
    "torch",
    "torchkbnufft",
    "numpy",
    "ismrmrd",
    "h5py",
    "gadgetron",
    "matplotlib",
    "scikit-image",
    "pyigtl",
    "av",
)
_PORT = 9002


def findings() -> Iterator[tuple[str, str]]:
    """What was looked at, and what was found, one line each."""
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in _PACKAGES:
        yield package, _version(package)
    yield "device", _device()
    yield "cores, threads", f"{_cores()}, {torch.get_num_threads()}"
    reason = why_not()
    yield "tinycudann", "can be used" if reason is None else f"not used: {reason}; torch's hash grid serves instead"
    yield "bart", shutil.which("bart") or "not on the PATH (only tests use it)"
    yield "hyperparameters", _hyperparameters()
    yield f"port {_PORT}", "free" if _free(_PORT) else "in use: is a server running already?"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu (torch sees no CUDA GPU)"
    names = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return ", ".join(f"cuda: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in names)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hyperparameters() -> str:
    try:
        return f"{len(HyperparameterFiles.load().entries)} files in {shipped_folder()}"
    except InreconError as error:
        return f"cannot be used: {error}"


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
