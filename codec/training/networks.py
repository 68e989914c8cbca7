"""The networks that a run trains: how they are built, optimized, started from an exported model, and averaged as they go."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from codec.autoencoder import Decoder, DepthwiseConv
from codec.config import CodecConfig, ConfigError
from codec.model import Codec, CodecOutput
from codec.pretrained import DISCRIMINATORS, find_model
from codec.quantizers.simvq import ResidualQuantizer
from codec.training.config import OptimizerConfig, TrainConfig
from codec.training.data import SegmentDataset
from codec.training.discriminators import Discriminators

if TYPE_CHECKING:
    from accelerate import Accelerator

MATCHING_BATCHES = 8  # batches of latents to which the codebooks are matched
MATCHING_INDEX = 2**40  # index of the first of their segments: training never gets there
MUON_ITERATIONS = 3  # of Newton and Schulz; 5 are usual, but on a CPU they take a good part of a step
ENDS = ("stages.0.0.linear.weight", "head.output.weight")  # the layers next to the waveform


class JointCodec(Codec):
    """A codec in training, with further decoders of the same codes that look other numbers of frames ahead.

    The encoder learns from all decoders: codes that suit one with little look-ahead hardly make the others worse. In
    training mode the waveform of ``forward`` is ``[decoders * B, 1, T]``, that of the codec's own decoder first.
    """

    def __init__(self, config: CodecConfig, look_aheads: tuple[int, ...] = ()) -> None:
        super().__init__(config)
        self.others = nn.ModuleList(Decoder(looking_ahead(config, look_ahead)) for look_ahead in look_aheads)

    def forward(self, waveform: Tensor, *args: Any, **settings: Any) -> CodecOutput:
        output = super().forward(waveform, *args, **settings)
        if self.training:
            others = [decoder(output.quantized)[..., : waveform.shape[-1]] for decoder in self.others]
            output.waveform = torch.cat([output.waveform, *others])
        return output


def looking_ahead(config: CodecConfig, look_ahead: int) -> CodecConfig:
    """The configuration of a codec whose decoder looks ``look_ahead`` frames ahead."""
    return replace(config, decoder=replace(config.decoder, look_ahead=look_ahead))


@dataclass
class Networks:
    """What is trained, and how."""

    codec: JointCodec
    average: JointCodec
    discriminators: Discriminators
    optimizers: dict[str, Optimizer]  # those of codec_optimizers, then "discriminator_optimizer"
    codec_step: nn.Module  # the codec, prepared for many processes
    discriminators_step: nn.Module
    quantizer_matched: bool  # whether the codebooks came with the encoder's weights, so that they fit its latents

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"codec": self.codec, "average": self.average, "discriminators": self.discriminators}


def build_networks(config: TrainConfig, accelerator: Accelerator, init: str | None) -> Networks:
    """Build networks and optimizers, the same on every process; ``init`` names an exported model to start from.

    Of a model with another quantizer only the encoder and the decoder are taken. Its discriminators are taken if they
    were exported.

    Raises:
        ConfigError: ``init`` is of another architecture, or lacks what ``config.train`` holds fixed.
        ModelError: there is no such model.
    """
    torch.manual_seed(config.seed)
    codec = JointCodec(config.model, config.look_aheads)
    source = None if init is None else Codec.from_pretrained(init)
    quantizer_matched = source is not None and start_codec(codec, source, str(init))
    discriminators = Discriminators(config.discriminator)
    if init is not None and config.phases.adversarial >= 0:
        start_discriminators(discriminators, find_model(init) / DISCRIMINATORS)
    codec, discriminators = codec.to(accelerator.device).train(), discriminators.to(accelerator.device).train()
    if config.train == "decoder":
        if source is None or not quantizer_matched:
            raise ConfigError("train: decoder needs --init with a model of the configuration's encoder and quantizer")
        if codec.fingerprint != source.fingerprint:
            raise ConfigError(
                f"train: decoder would give the codes of {init} another meaning: the encoder must be the same, and a decoder "
                "of another size needs model.first_decoder"
            )
        for fixed in (codec.encoder, codec.quantizer):
            fixed.requires_grad_(False).eval()
        # dropout goes on; its stages stay fixed
        codec.quantizer.training = isinstance(codec.quantizer, ResidualQuantizer)
    average = copy.deepcopy(codec).eval().requires_grad_(False)
    if accelerator.num_processes > 1:
        # the averaging over processes would warn of the strides of a depthwise filter's gradient, which are channels-last;
        # in memory they do not differ from the usual ones, as all but two dimensions have size 1
        for filters in (p for p in codec.parameters() if p.ndim == 4 and p.requires_grad):
            filters.register_hook(lambda gradient: gradient.flatten().view(gradient.shape))
    optimizers = codec_optimizers(codec, config.optimizer)
    rate = config.optimizer.discriminator_learning_rate
    optimizers["discriminator_optimizer"] = adamw(discriminators.parameters(), config.optimizer, rate)
    forward = torch.compile(codec) if config.compile else codec
    codec_step, discriminators_step, *prepared = accelerator.prepare(forward, discriminators, *optimizers.values())
    optimizers = dict(zip(optimizers, prepared, strict=True))
    return Networks(codec, average, discriminators, optimizers, codec_step, discriminators_step, quantizer_matched)


def codec_optimizers(codec: Codec, settings: OptimizerConfig) -> dict[str, Optimizer]:
    """AdamW under "optimizer"; with a Muon learning rate "matrix_optimizer" beside it, for the matrices between layers.

    Raises:
        ConfigError: this torch has no Muon.
    """
    trained = {name: p for name, p in codec.named_parameters() if p.requires_grad}
    if not settings.muon_learning_rate:
        return {"optimizer": adamw(trained.values(), settings, settings.learning_rate)}
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"optimizer.muon_learning_rate needs torch >= 2.9, not {torch.__version__}; set it to 0")
    inside = {name: p for name, p in trained.items() if p.ndim == 2 and not name.startswith("quantizer.")}
    hidden = {name: p for name, p in inside.items() if not name.endswith(ENDS)}
    muon = torch.optim.Muon(  # its steps scaled to the size of AdamW's: Liu et al., arXiv 2502.16982, section 2.2
        hidden.values(),
        lr=settings.muon_learning_rate,
        weight_decay=settings.weight_decay,
        ns_steps=MUON_ITERATIONS,
        adjust_lr_fn="match_rms_adamw",
    )
    others = [p for name, p in trained.items() if name not in hidden]
    return {"optimizer": adamw(others, settings, settings.learning_rate), "matrix_optimizer": muon}


def adamw(parameters: Iterable[nn.Parameter], settings: OptimizerConfig, learning_rate: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and filters, not on biases, norms and scales."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=settings.betas)


def set_learning_rates(optimizers: dict[str, Optimizer], share: float) -> None:
    """Set every learning rate to this share of its peak; there is no scheduler, so no state to restore."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]


def start_codec(codec: JointCodec, source: Codec, name: str) -> bool:
    """Copy the weights of ``source``; return whether the quantizer's are among them, which fit only an equal quantizer.

    Blocks that ``source`` lacks begin as the identity, so that at first the deeper codec gives the same output.

    Raises:
        ConfigError: the codecs differ in more than quantizer, depth and look-ahead; ``name`` is that of ``source``.
    """
    if not _can_grow(source.config, codec.config):
        raise ConfigError(f"{name} has another architecture; only quantizer, look_ahead and added blocks may differ")
    copy_blocks(codec.encoder, source.encoder)
    for decoder in (codec.decoder, *codec.others):
        copy_blocks(decoder, source.decoder)
    same_quantizer = source.config.quantizer == codec.config.quantizer
    if same_quantizer:
        codec.quantizer.load_state_dict(source.quantizer.state_dict())
    return same_quantizer


def _can_grow(source: CodecConfig, target: CodecConfig) -> bool:
    """Whether ``target`` differs from ``source`` only in quantizer, look-ahead, and more blocks of the same width."""
    free = dict.fromkeys(("encoder", "decoder", "first_decoder", "quantizer", "depths", "depth", "look_ahead"))
    parts = [(vars(c) | free, vars(c.encoder) | free, vars(c.decoder) | free) for c in (source, target)]
    depths = [(c.decoder.depth, *c.encoder.depths) for c in (source, target)]
    return parts[0] == parts[1] and all(old <= new for old, new in zip(*depths, strict=True))


def copy_blocks(module: nn.Module, source: nn.Module) -> None:
    """Copy the weights of ``source``; blocks that it does not have begin as the identity.

    In a filter that looks less far ahead (or further) every tap keeps its offset in time; taps beyond its reach are lost,
    and new ones are zero.
    """
    state = source.state_dict()
    for name, layer in source.named_modules():
        if isinstance(layer, DepthwiseConv):
            target = module.get_submodule(name)
            assert isinstance(target, DepthwiseConv)
            later = target.left - layer.left
            state[f"{name}.conv.weight"] = F.pad(layer.conv.weight, (later, -later))  # a negative pad crops
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    for name in missing:
        if name.endswith(".scale"):
            nn.init.zeros_(module.get_parameter(name))


def start_discriminators(discriminators: Discriminators, path: Path) -> None:
    """Read the discriminators' weights from a file, if there is one.

    Raises:
        ConfigError: the file is damaged or holds other discriminators.
    """
    if not path.is_file():
        return
    try:
        discriminators.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError):  # RuntimeError of load_state_dict: names or shapes differ
        raise ConfigError(
            f"{path} is damaged or holds other discriminators than the configuration's; remove it to begin with new ones"
        ) from None


@torch.no_grad()
def start_quantizer(networks: Networks, dataset: SegmentDataset) -> None:
    """Match the codebooks to the latents of segments that training does not use; the same on every process.

    Raises:
        CodecError: the latents do not vary, so there is nothing to match.
    """
    latents, batch_size = [], dataset.config.batch_size
    for first in range(MATCHING_INDEX, MATCHING_INDEX + MATCHING_BATCHES * batch_size, batch_size):
        waveform = torch.stack([dataset[index]["waveform"] for index in range(first, first + batch_size)])
        latents.append(networks.codec.encoder(waveform.to(networks.codec.device)))
    networks.codec.quantizer.initialize(torch.cat(latents))
    networks.average.quantizer.load_state_dict(networks.codec.quantizer.state_dict())


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Move the running average of a module's weights by ``1 - decay`` of the way, more at the beginning."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


@torch.no_grad()
def update_average(networks: Networks, decay: float, step: int) -> None:
    """Let the running average of the codec follow it by one step; its buffers are copied."""
    follow(networks.average, networks.codec, decay, step)
    for average, moved in zip(networks.average.quantizer.buffers(), networks.codec.quantizer.buffers(), strict=True):
        average.copy_(moved)  # copied: tables in buffers are running averages already
