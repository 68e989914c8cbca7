"""Codebook health of an evaluated model: from its stored codes, and from the latents of some of the utterances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from codec import container
from codec.audio import resample
from codec.corpus.manifest import Record
from codec.evaluation.measure import Measured, Plan, read_utterance
from codec.evaluation.results import Health, Latents, Stage
from codec.evaluation.systems import ModelFamily
from codec.health import CodebookCounter, Moments, coverage_curve, effective_dimension
from codec.model import Codec
from codec.quantizers import Quantizer, ResidualQuantizer

UTTERANCES = 200  # whose latents are looked at, spread evenly over the manifest
LONGEST = 20  # seconds of each
FEW_CODES, FEW_DIMENSIONS = 0.5, 0.05  # below these shares collapse is spoken of
ENOUGH = 10  # frames per code, or per dimension, without which it is not


def stored_codes(plan: Plan, utterances: int) -> Iterator[tuple[int, Tensor]]:
    """Index and codes ``[K, N]`` of every utterance that has them, in the manifest's order."""
    for index in range(utterances):
        if plan.codes(index).exists():
            yield index, torch.from_numpy(container.read(plan.codes(index))[1])


@torch.no_grad()
def model_health(plan: Plan, family: ModelFamily, records: Sequence[Record], measured: Sequence[Measured]) -> Health:
    """What a report says of the codebooks, stage by stage, and of the latents; adds the entropy bound to the cells."""
    codec = family.codec
    counter = CodebookCounter(family.counts[0], codec.codebook_size)
    for _, codes in stored_codes(plan, len(records)):
        counter.add(codes[None])
    if "kbps_entropy" in plan.metrics:
        _add_entropy_bound(plan, family, counter, measured)
    curves = coverage_curve((codes for _, codes in stored_codes(plan, len(records))), codec.codebook_size)
    coded = [record for index, record in enumerate(records) if plan.codes(index).exists()]
    latents, residuals = _latent_moments(codec, coded)
    stages = tuple(
        Stage(
            **vars(health),
            **_codebook_dimensions(codec.quantizer, index),
            stage=index + 1,
            coverage=tuple(curves[index]) if curves else (),
            codebook_size=codec.codebook_size,
            residual_energy=residuals[index].energy / latents.energy if latents.energy > 0 else None,
        )
        for index, health in enumerate(counter.stages())
    )
    about = Latents(codec.config.latent_dim, latents.effective_dimension, latents.count)
    return Health(stages, about, (_tokens(stages), _embeddings(about)))


def _add_entropy_bound(plan: Plan, family: ModelFamily, counter: CodebookCounter, measured: Sequence[Measured]) -> None:
    """Each file's bits, where a code takes ``-log2`` of its share among all codes counted of its stage."""
    share = counter.counts.double() / counter.counts.sum(dim=1, keepdim=True).clamp(min=1)
    bits = -share.clamp(min=1e-300).log2()
    for index, codes in stored_codes(plan, len(measured)):
        bits_of_first = bits.gather(1, codes).sum(dim=1).cumsum(dim=0)  # 1, 2, ... K stages
        for system, count in zip(family.systems, family.counts, strict=True):
            kbps = float(bits_of_first[count - 1]) / measured[index].seconds / 1000
            measured[index].cells[system.id]["kbps_entropy"] = kbps


def _latent_moments(codec: Codec, records: Sequence[Record]) -> tuple[Moments, list[Moments]]:
    """Moments of the latents, and of what is left of them after each stage."""
    latents = Moments(codec.config.latent_dim)
    residuals = [Moments(codec.config.latent_dim) for _ in range(codec.num_quantizers)]
    for record in records[:: -(-len(records) // UTTERANCES) or 1]:
        record, reference = read_utterance(record)
        samples = resample(reference, record.sample_rate, codec.sample_rate)[: LONGEST * codec.sample_rate]
        waveform = torch.from_numpy(samples)[None, None].to(codec.device)
        encoded = codec.encoder(torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % codec.hop_length)))
        codes = codec.quantizer(encoded).codes
        latents.add(encoded[0].t())
        for count, moments in enumerate(residuals, start=1):
            moments.add((encoded - codec.quantizer.decode(codes[:, :count]))[0].t())
    return latents, residuals


def _codebook_dimensions(quantizer: Quantizer, index: int) -> dict[str, Any]:
    """Size and effective dimension of a stage's table; none for quantizers without one."""
    stage = quantizer.stages[index] if isinstance(quantizer, ResidualQuantizer) else quantizer
    codebook = getattr(stage, "codebook", None)
    if codebook is None:
        return {}
    return {"codebook_dimension": codebook.shape[1], "codebook_effective_dimension": effective_dimension(codebook)}


def _tokens(stages: Sequence[Stage]) -> str:
    """Whether tokens have collapsed (arXiv 2411.16550): few codes are in use."""
    if not stages or stages[0].frames < ENOUGH * (stages[0].codebook_size or 0):
        return "Too few frames to tell whether tokens have collapsed."
    poor = [str(stage.stage) for stage in stages if stage.normalised_entropy < FEW_CODES]
    if poor:
        return f"Token collapse in stage {', '.join(poor)}: the codes say less than half of what their bits could."
    least = min(stage.normalised_entropy for stage in stages)
    return f"No token collapse: every stage's codes say at least {100 * least:.0f} % of what their bits could."


def _embeddings(latents: Latents) -> str:
    """Whether embeddings have collapsed (arXiv 2411.16550): the latents lie in few dimensions."""
    if latents.frames < ENOUGH * latents.dimension:
        return "Too few frames to tell whether embeddings have collapsed."
    spread = f"{latents.effective_dimension:.1f} of {latents.dimension} dimensions"
    if latents.effective_dimension / latents.dimension < FEW_DIMENSIONS:
        return f"Embedding collapse: the latents spread over {spread} only."
    return f"No embedding collapse by this measure: the latents spread over {spread} (participation ratio)."
