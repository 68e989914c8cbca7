"""The networks that a run trains, their optimizers and losses, and the start of the codebooks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codec.model import Codec
from codec.pretrained import DISCRIMINATORS, find_model
from codec.training.config import TrainConfig
from codec.training.data import SegmentDataset
from codec.training.discriminators import Discriminators
from codec.training.losses import SpectralLoss
from codec.training.optimizers import adamw, codec_optimizers
from codec.training.warm_start import take_codec, take_discriminators

if TYPE_CHECKING:
    from accelerate import Accelerator

MATCHING_BATCHES = 8  # batches of latents that the codebooks are matched to
MATCHING_INDEX = 2**40  # where those segments lie in the stream: training never gets there


@dataclass
class Networks:
    """What is trained. ``codec`` and ``judges`` are the bare modules, the ``*_step`` ones are prepared for many processes.

    ``optimizers`` are those of the codec, "optimizer" and perhaps "matrix_optimizer", and "judge_optimizer".
    ``quantizer_given`` says that the codebooks came with the weights and fit their latents already.
    """

    codec: Codec
    average: Codec
    judges: Discriminators
    optimizers: dict[str, torch.optim.Optimizer]
    codec_step: nn.Module
    judges_step: nn.Module
    quantizer_given: bool

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"codec": self.codec, "average": self.average, "judges": self.judges}

    @property
    def codec_optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer for name, optimizer in self.optimizers.items() if name != "judge_optimizer"]


def build_networks(config: TrainConfig, accelerator: Accelerator, init: str | None) -> Networks:
    """Networks and optimizers, the same on every process; ``init`` starts from an exported model.

    Of a model with another quantizer it takes the encoder and the decoder; its discriminators where they were exported too.

    Raises:
        ConfigError: ``init`` is of another architecture.
        ModelError: there is no such model.
    """
    torch.manual_seed(config.seed)
    codec = Codec(config.model)
    quantizer_given = False
    if init is not None:
        quantizer_given = take_codec(codec, Codec.from_pretrained(init), init)
    judges = Discriminators(config.discriminator)
    if init is not None and config.phases.adversarial >= 0:
        take_discriminators(judges, find_model(init) / DISCRIMINATORS)
    codec, judges = codec.to(accelerator.device).train(), judges.to(accelerator.device).train()
    average = copy.deepcopy(codec).eval().requires_grad_(False)
    if accelerator.num_processes > 1:
        for filters in (p for p in codec.parameters() if p.ndim == 4):
            filters.register_hook(_plainly_strided)
    optimizers = codec_optimizers(codec, config.optimizer) | {"judge_optimizer": adamw(judges, config.optimizer)}
    forward = torch.compile(codec) if config.compile else codec
    codec_step, judges_step, *prepared = accelerator.prepare(forward, judges, *optimizers.values())
    optimizers = dict(zip(optimizers, prepared, strict=True))
    return Networks(codec, average, judges, optimizers, codec_step, judges_step, quantizer_given)


def build_spectral(config: TrainConfig) -> SpectralLoss:
    """The reconstruction losses of a configuration, without those of weight 0."""
    losses = config.losses
    return SpectralLoss(
        config.model.sample_rate,
        windows=losses.windows,
        mels=losses.mels,
        phase_windows=losses.phase_windows if losses.weights["stft"] else (),
        exponent=losses.phase_exponent,
        scale=losses.phase_scale,
        envelope_windows=losses.envelope_windows if losses.weights["envelope"] else (),
        envelope_bands=losses.envelope_bands,
    )


def _plainly_strided(gradient: Tensor) -> Tensor:
    """The same values with the usual strides.

    A depthwise filter's gradient takes those of its channels-last activations. In memory the two are one, as all but
    two dimensions have size 1, but the averaging over processes would warn of it.
    """
    return gradient.flatten().view(gradient.shape)


@torch.no_grad()
def start_quantizer(networks: Networks, dataset: SegmentDataset, batch_size: int, device: torch.device) -> None:
    """Match the codebooks to the latents of segments that training does not see; the same on every process."""
    from accelerate.utils import broadcast

    latents = []
    for batch in range(MATCHING_BATCHES):
        indices = range(MATCHING_INDEX + batch * batch_size, MATCHING_INDEX + (batch + 1) * batch_size)
        waveform = torch.stack([dataset[index]["waveform"] for index in indices]).to(device)
        latents.append(networks.codec.encoder(waveform))
    networks.codec.quantizer.initialize(torch.cat(latents))
    for tensor in networks.codec.quantizer.state_dict().values():
        broadcast(tensor)
    networks.average.quantizer.load_state_dict(networks.codec.quantizer.state_dict())


@torch.no_grad()
def update_average(networks: Networks, config: TrainConfig, step: int) -> None:
    """Exponential moving average of the weights, quicker at the beginning."""
    decay = min(config.optimizer.ema_decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(networks.average.parameters()), list(networks.codec.parameters()), 1 - decay)
    for kept, moved in zip(networks.average.quantizer.buffers(), networks.codec.quantizer.buffers(), strict=True):
        kept.copy_(moved)  # tables that are running averages already
