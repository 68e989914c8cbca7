"""What is in a ``.codes`` file or a model, as facts to print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codec import container
from codec.pretrained import ALIAS, find_model, shipped_models


def describe(name: str) -> dict[str, Any]:
    """Facts about a ``.codes`` file, a model folder or a shipped model, by name.

    Raises:
        ContainerError, ModelError, OSError: it cannot be read.
    """
    if Path(name).is_file():
        return _describe_codes(Path(name))
    if Path(name).is_dir() or name in (*shipped_models(), ALIAS):
        return _describe_model(name)
    raise FileNotFoundError(f"{name}: no such file, model folder or shipped model ({', '.join(shipped_models())})")


def _describe_codes(path: Path) -> dict[str, Any]:
    with open(path, "rb") as stream:
        header = container.read_header(stream)
        damage = [b.reason for b in container.read_blocks(stream, header) if isinstance(b, container.Damage)]
    facts = {
        "file": str(path),
        "format_version": container.VERSION,
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
        "bytes": path.stat().st_size,
        "blocks": header.num_blocks,
        "checksums": "correct" if not damage else "WRONG",
    }
    return facts | ({"damage": damage[0] + (f" (and {len(damage) - 1} more)" if damage[1:] else "")} if damage else {})


def _describe_model(name: str) -> dict[str, Any]:
    from codec.model import Codec  # brings torch, which a .codes file does not need

    codec = Codec.from_pretrained(name)
    folder = find_model(name)
    one = codec.bitrate / codec.num_quantizers / 1000
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
        "bitrate_kbps": f"{one:g} to {codec.bitrate / 1000:g}" if codec.num_quantizers > 1 else f"{one:g}",
        "causal": codec.config.causal,
        "parameters": sum(p.numel() for p in codec.parameters()),
        "bytes": sum((folder / file).stat().st_size for file in ("config.json", "model.safetensors")),
    }
