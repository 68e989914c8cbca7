"""What is in a ``.codes`` file or a model, as facts to print."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from codec import __version__, container
from codec.cli.backends import load_codec, torch_is_here
from codec.cli.jobs import files_below
from codec.errors import EXTRAS, install_command
from codec.pretrained import FILES, find_model, shipped_models, shipped_name


def names_in(name: str) -> list[str]:
    """The ``.codes`` files in a folder that is not a model's; other names as they are."""
    if not Path(name).is_dir() or any(Path(name, file).exists() for file in FILES):
        return [name]
    return [str(path) for path in files_below(Path(name), {".codes"})] or [name]


def environment() -> dict[str, Any]:
    """Versions, devices, and the optional packages; for those that are missing, how to install them."""
    distributions = importlib.metadata.packages_distributions()
    facts = {"codec": __version__, "python": platform.python_version(), "platform": platform.platform()}
    facts["devices"] = ", ".join(_devices())
    for package in ("torch", "numpy", "soundfile", "soxr", "safetensors", *EXTRAS):
        present = distributions.get(package)
        facts[package] = importlib.metadata.version(present[0]) if present else f"missing: {install_command(package)}"
    return facts


def _devices() -> list[str]:
    if not torch_is_here():
        return ["cpu"]
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: of a library that it loads
        return ["cpu", f"torch cannot be used: {error}"]
    devices = [f"cpu ({torch.get_num_threads()} threads)"] + ["mps"] * torch.backends.mps.is_available()
    return devices + [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]


def describe(name: str, backend: str | None) -> dict[str, Any]:
    """Facts about a ``.codes`` file, a model folder or a shipped model, by name.

    Raises:
        CodecError, OSError: it cannot be read.
    """
    if Path(name).is_file():
        return _describe_codes(Path(name))
    if Path(name).is_dir() or shipped_name(name) is not None:
        return _describe_model(name, backend)
    raise FileNotFoundError(f"{name}: no such file, model folder or shipped model ({', '.join(shipped_models())})")


def _describe_codes(path: Path) -> dict[str, Any]:
    with open(path, "rb") as stream:
        codes = container.Reader(stream)
        damage = [b.reason for b in codes.blocks() if isinstance(b, container.Damage)]
        header = codes.header  # with its length, which may be known at the end only
    more = f" (and {len(damage) - 1} more)" if damage[1:] else ""
    return {
        "file": str(path),
        "format_version": codes.version,
        "model": header.model,
        "fingerprint_prefix": header.fingerprint,  # files hold the first half of their model's
        "duration_s": round(header.duration, 3),
        "num_samples": header.num_samples,
        "original_rate_hz": header.original_sample_rate,
        "model_rate_hz": header.sample_rate,
        "frames": header.num_frames,
        "num_quantizers": header.num_quantizers,
        "codebook_size": header.codebook_size,
        "bitrate_kbps": round(header.bitrate / 1000, 4),
        "gain_db": round(header.gain_db, 3),
        "bytes": path.stat().st_size,
        "blocks": codes.num_blocks,
        **({"damage": damage[0] + more} if damage else {"checksums": "correct"}),
    }


def _describe_model(name: str, backend: str | None) -> dict[str, Any]:
    codec, folder = load_codec(name, backend), find_model(name)
    contexts = (codec.encoder_context, codec.decoder_context)
    timing: dict[str, float] = {}  # what a frame depends on, and how long a stream waits
    for part, context, ahead in zip(("encoder", "decoder"), contexts, codec.look_aheads, strict=True):
        field = (context.left + 1 + context.right) * codec.hop_length
        samples = {"receptive_field": field, "look_ahead": ahead, "latency": ahead + codec.hop_length}
        timing |= {f"{part}_{key}_ms": round(1000 * count / codec.sample_rate, 1) for key, count in samples.items()}
    return {
        "model": codec.name,
        "folder": str(folder),
        "fingerprint": codec.fingerprint,
        "sample_rate_hz": codec.sample_rate,
        "hop_length": codec.hop_length,
        "frame_rate_hz": codec.frame_rate,
        "quantizer": codec.config.quantizer.kind,
        "num_quantizers": codec.num_quantizers,
        "codebook_size": codec.codebook_size,
        "bitrate_kbps": round(codec.bitrate / 1000, 4),
        "lowest_bitrate_kbps": round(codec.bitrate_of(1) / 1000, 4),
        "causal": codec.config.causal,
        **timing,
        "parameters": codec.num_parameters,
        "bytes": sum((folder / file).stat().st_size for file in FILES),
    }
