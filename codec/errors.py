"""Errors as a user reads them: one line that says what is wrong."""

from __future__ import annotations

EXTRAS = {  # package -> the extra of this one that brings it; heavy packages are imported where they are used
    "accelerate": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "yaml": "train",
    "librosa": "eval",
    "pesq": "eval",
    "pystoi": "eval",
    "huggingface_hub": "hub",
    "transformers": "bench",
}


def install(extra: str) -> str:
    """How to install an extra of this package."""
    return f"pip install -e '.[{extra}]'"


def one_line(error: BaseException) -> str:
    """The message on one line: file errors as ``path: reason``, a missing package with the extra to install."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package in EXTRAS:
            return f"the package {package} is missing; install the extra: {install(EXTRAS[package])}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
