"""Codebook health of an evaluated model: from its stored codes, and from the latents of some of the utterances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from codec.audio import resample
from codec.corpus.manifest import Record
from codec.errors import CodecError
from codec.evaluation.measure import Plan, Reference, codes_path, read_codes
from codec.health import CodebookCounter, Moments, coverage_curve
from codec.model import Codec
from codec.quantizers import Quantizer, ResidualQuantizer

UTTERANCES = 200  # whose latents are looked at, spread evenly over the manifest
LONGEST = 20  # seconds of each
FEW_CODES, FEW_DIMENSIONS = 0.5, 0.05  # below these shares collapse is spoken of
ENOUGH = 10  # frames a code, or a dimension, without which it is not


def stored_codes(plan: Plan, count: int) -> Iterator[Tensor]:
    """Codes ``[K, N]`` of every utterance that has them, in the manifest's order."""
    for index in range(count):
        codes = read_codes(plan, index)
        if codes is not None:
            yield torch.from_numpy(codes)


def count_codes(plan: Plan, codec: Codec, utterances: int) -> CodebookCounter:
    """How often each code of each stage occurs in all utterances."""
    counter = CodebookCounter(max(plan.stages), codec.codebook_size)
    for codes in stored_codes(plan, utterances):
        counter.add(codes[None])
    return counter


@torch.no_grad()
def codebook_health(plan: Plan, codec: Codec, records: Sequence[Record], counter: CodebookCounter) -> dict[str, Any]:
    """What a report says of the codebooks, stage by stage, and of the latents."""
    curves = coverage_curve(stored_codes(plan, len(records)), codec.codebook_size)
    encoded = [record for index, record in enumerate(records) if codes_path(plan, index).exists()]
    latents, residuals = _latent_moments(codec, encoded)
    stages = []
    for index, health in enumerate(counter.stages()):
        stage = vars(health) | {"stage": index + 1, "coverage": curves[index] if index < len(curves) else []}
        stage |= _codebook_dimensions(codec.quantizer, index) | {"codebook_size": codec.codebook_size}
        energy = residuals[index].energy / latents.energy if latents.energy > 0 else None
        stages.append(stage | {"residual_energy": energy})
    width = codec.config.latent_dim
    facts = {"dimension": width, "effective_dimension": latents.effective_dimension, "frames": latents.count}
    return {"stages": stages, "latents": facts, "notes": notes(stages, facts)}


def _latent_moments(codec: Codec, records: Sequence[Record]) -> tuple[Moments, list[Moments]]:
    """Moments of the latents, and of what is left of them after each stage."""
    every = -(-len(records) // UTTERANCES)
    latents = Moments(codec.config.latent_dim)
    residuals = [Moments(codec.config.latent_dim) for _ in range(codec.num_quantizers)]
    for record in records[::every]:
        try:
            reference = Reference(record)
        except (CodecError, OSError):
            continue  # counted as a failure where the utterance was measured
        samples = resample(reference.waveform, reference.record.sample_rate, codec.sample_rate)
        waveform = torch.from_numpy(samples[: LONGEST * codec.sample_rate])[None, None].to(codec.device)
        found = codec.encoder(torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % codec.hop_length)))
        codes = codec.quantizer(found).codes
        latents.add(found[0].t())
        for count in range(1, codec.num_quantizers + 1):
            residuals[count - 1].add((found - codec.quantizer.decode(codes[:, :count]))[0].t())
    return latents, residuals


def _codebook_dimensions(quantizer: Quantizer, index: int) -> dict[str, Any]:
    """Size and effective dimension of a stage's table; None for quantizers without one."""
    stage = quantizer.stages[index] if isinstance(quantizer, ResidualQuantizer) else quantizer
    codebook = getattr(stage, "codebook", None)
    if codebook is None:
        return {"codebook_dimension": None, "codebook_effective_dimension": None}
    moments = Moments(codebook.shape[1])
    moments.add(codebook)
    return {"codebook_dimension": codebook.shape[1], "codebook_effective_dimension": moments.effective_dimension}


def notes(stages: Sequence[dict[str, Any]], latents: dict[str, Any]) -> list[str]:
    """Both collapses of arXiv 2411.16550 in words: tokens (few codes in use), embeddings (latents in few dimensions)."""
    return [_tokens(stages), _embeddings(latents)]


def _tokens(stages: Sequence[dict[str, Any]]) -> str:
    if not stages or stages[0]["frames"] < ENOUGH * stages[0]["codebook_size"]:
        return "Too few frames to tell whether tokens have collapsed."
    poor = [str(stage["stage"]) for stage in stages if stage["normalised_entropy"] < FEW_CODES]
    if poor:
        return f"Token collapse in stage {', '.join(poor)}: the codes say less than half of what their bits could."
    least = min(stage["normalised_entropy"] for stage in stages)
    return f"No token collapse: every stage's codes say at least {100 * least:.0f} % of what their bits could."


def _embeddings(latents: dict[str, Any]) -> str:
    if latents["frames"] < ENOUGH * latents["dimension"]:
        return "Too few frames to tell whether embeddings have collapsed."
    spread = f"{latents['effective_dimension']:.1f} of {latents['dimension']} dimensions"
    if latents["effective_dimension"] / latents["dimension"] < FEW_DIMENSIONS:
        return f"Embedding collapse: the latents spread over {spread} only."
    return f"No embedding collapse by this measure: the latents spread over {spread} (participation ratio)."
