"""Codebook health of an evaluated model: from its stored codes, and from the latents of some of the utterances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from codec import container
from codec.corpus.manifest import Record
from codec.evaluation.measure import Measured, Plan, read_utterance
from codec.evaluation.results import Health, Latents, Stage
from codec.evaluation.systems import ModelFamily
from codec.health import CodebookCounter, Moments, coverage_curve, effective_dimension
from codec.level import factor

UTTERANCES = 200  # whose latents are computed, spread evenly over the manifest
LONGEST = 20  # seconds of each
FEW_CODES = 0.5  # normalised entropy below which a note speaks of collapse
ENOUGH = 10  # frames per code, or per dimension, that such a note needs


def model_health(plan: Plan, family: ModelFamily, records: Sequence[Record], measured: Sequence[Measured]) -> Health:
    """The health of codebooks, stage by stage, and latents for a report; also adds the entropy bound to the cells."""
    codec, paths = family.codec, {index: plan.codes(index) for index in range(len(records))}
    codes = {i: torch.from_numpy(container.read(path)[1]) for i, path in paths.items() if path.exists()}  # [K, N]
    counter = CodebookCounter(family.counts[0], codec.codebook_size)
    for each in codes.values():
        counter.add(each[None])
    _add_entropy_bound(family, counter, codes, measured)
    every_code = torch.cat([*codes.values()], dim=1) if codes else None
    encoded = not family.refine_steps  # by the encoder alone: refined codes leave other residuals
    latents, residuals = _latent_moments(family, [records[index] for index in codes])
    tables: list[Any] = [stage.codebook for stage in getattr(codec.quantizer, "stages", [codec.quantizer])]
    stages = tuple(
        Stage(
            **vars(health),
            stage=index + 1,
            coverage=() if every_code is None else tuple(coverage_curve(every_code[index], codec.codebook_size)),
            codebook_dimension=tables[index].shape[1],
            codebook_effective_dimension=effective_dimension(tables[index]),
            codebook_size=codec.codebook_size,
            residual_energy=residuals[index].energy / latents.energy if encoded and latents.energy > 0 else None,
        )
        for index, health in enumerate(counter.stages())
    )
    about = Latents(codec.config.latent_dim, latents.effective_dimension, latents.count)
    return Health(stages, about, _notes(stages, about))


def _add_entropy_bound(
    family: ModelFamily, counter: CodebookCounter, codes: Mapping[int, Tensor], measured: Sequence[Measured]
) -> None:
    """Add each file's kbit/s to its cells, if a code takes ``-log2`` of its share in all codes counted in its stage."""
    share = counter.counts.double() / counter.counts.sum(dim=1, keepdim=True).clamp(min=1)
    bits = -share.clamp(min=1e-300).log2()
    own = 1 if family.refine_steps else None  # refined codes differ by number of stages; only the first ones are kept
    for index, each in codes.items():
        bits_of_first = bits.gather(1, each).sum(dim=1).cumsum(dim=0)  # 1, 2, ... K stages
        for system, count in zip(family.systems[:own], family.counts, strict=False):
            kbps = float(bits_of_first[count - 1]) / measured[index].seconds / 1000
            measured[index].cells[system.id]["kbps_entropy"] = kbps


@torch.no_grad()
def _latent_moments(family: ModelFamily, records: Sequence[Record]) -> tuple[Moments, list[Moments]]:
    """Moments of the latents, and of what is left of them after each stage."""
    codec = family.codec
    latents, *residuals = (Moments(codec.config.latent_dim) for _ in range(1 + codec.num_quantizers))
    for record in records[:: -(-len(records) // UTTERANCES) or 1]:
        record, samples = read_utterance(record)
        waveform = torch.from_numpy(samples[: LONGEST * record.sample_rate])
        gain = factor(family.gain_of(waveform, record.sample_rate))
        encoded = codec.latents(waveform / gain, record.sample_rate)
        codes = codec.quantizer(encoded).codes
        latents.add(encoded[0].t())
        for count, moments in enumerate(residuals, start=1):
            moments.add((encoded - codec.quantizer.decode(codes[:, :count]))[0].t())
    return latents, residuals


def _notes(stages: Sequence[Stage], latents: Latents) -> tuple[str, str]:
    """Whether tokens have collapsed (few codes are in use), and how many dimensions embeddings spread over: arXiv 2411.16550.

    No number of dimensions says by itself that embeddings have collapsed: good models of speech use a handful of hundreds.
    """
    poor = [str(stage.stage) for stage in stages if stage.normalised_entropy < FEW_CODES]
    least = min(stage.normalised_entropy for stage in stages)
    tokens = f"No token collapse: every stage's codes say at least {100 * least:.0f} % of what their bits could."
    if poor:
        tokens = f"Token collapse in stage {', '.join(poor)}: the codes say less than half of what their bits could."
    if stages[0].frames < ENOUGH * (stages[0].codebook_size or 0):
        tokens = "Too few frames to tell whether tokens have collapsed."
    spread = f"{latents.effective_dimension:.1f} of {latents.dimension} dimensions (participation ratio)"
    embeddings = f"The latents spread over {spread}."
    if latents.frames < ENOUGH * latents.dimension:
        embeddings = "Too few frames to tell over how many dimensions the latents spread."
    return tokens, embeddings
