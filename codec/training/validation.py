"""What is measured of a run as it goes: losses and codebook health over whole utterances, and examples to listen to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from codec.audio import AudioReader, resample
from codec.corpus.manifest import Record, audio_source
from codec.health import CodebookCounter
from codec.model import Codec
from codec.training.losses import SpectralLoss
from codec.training.tracking import Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

LONGEST = 60  # seconds of an utterance: the memory that a forward pass takes grows with them


def read_speech(record: Record, sample_rate: int) -> Tensor:
    """An utterance ``[T]``, of a longer one its first ``LONGEST`` seconds."""
    with AudioReader(audio_source(record), record.path) as reader:
        most, samples = LONGEST * reader.sample_rate, np.zeros(0, np.float32)
        for block in reader.blocks():
            samples = np.concatenate([samples, block])[:most]
            if len(samples) == most:
                break
    return torch.from_numpy(resample(samples, reader.sample_rate, sample_rate))


@torch.no_grad()
def validate(
    codec: Codec, records: list[Record], spectral: SpectralLoss, quantize: bool, accelerator: Accelerator
) -> dict[str, float]:
    """Mean losses and codebook health over all utterances; every process takes its share, each utterance counts once."""
    counter = CodebookCounter(codec.num_quantizers, codec.codebook_size)
    sums = torch.zeros(len(spectral.terms) + 1, dtype=torch.float64)  # of each term, and the number of utterances
    for record in records[accelerator.process_index :: accelerator.num_processes]:
        waveform = read_speech(record, codec.sample_rate).to(codec.device)[None, None]
        output = codec(waveform, quantize=quantize)
        bandwidth = torch.tensor([min(record.bandwidth, codec.sample_rate / 2)], device=codec.device)
        terms = spectral(output.waveform, waveform, bandwidth)
        sums += torch.tensor([*map(float, terms.values()), 1.0], dtype=torch.float64)
        if output.codes is not None:
            counter.add(output.codes)
    *totals, count = accelerator.reduce(sums.float().to(accelerator.device), "sum").cpu()
    values = {f"valid/{name}": float(total / count) for name, total in zip(spectral.terms, totals, strict=True)}
    values["valid/utterances"] = float(count)
    if quantize:
        values |= codebook_scalars(counter, accelerator, "valid_codebook")
    return values


def codebook_scalars(counter: CodebookCounter, accelerator: Accelerator, prefix: str) -> dict[str, float]:
    """Usage and perplexity of each quantizer over the frames counted by all processes."""
    counter.counts = accelerator.reduce(counter.counts.to(accelerator.device), "sum").cpu()
    values: dict[str, float] = {}
    for index, stage in enumerate(counter.stages(), start=1):
        values |= {f"{prefix}/usage_{index}": stage.usage, f"{prefix}/perplexity_{index}": stage.perplexity}
        values[f"{prefix}/frames"] = float(stage.frames)
    return values


def mean_over_processes(logged: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Scalars of this step, averaged over processes."""
    stacked = accelerator.reduce(torch.stack([value.float() for value in logged.values()]), "mean")
    return dict(zip(logged, stacked.tolist(), strict=True))


@torch.no_grad()
def show_examples(
    codec: Codec, records: list[Record], tracker: Tracker, quantize: bool, step: int, first: bool
) -> None:
    """Fixed utterances: the reference once, the reconstruction each time."""
    for index, record in enumerate(records):
        waveform = read_speech(record, codec.sample_rate).to(codec.device)
        if first:
            tracker.speech(f"{index}_reference", waveform.cpu(), codec.sample_rate, 0)
        decoded = codec(waveform[None, None], quantize=quantize).waveform[0, 0].clamp(-1, 1)
        tracker.speech(f"{index}_decoded", decoded.cpu(), codec.sample_rate, step)
