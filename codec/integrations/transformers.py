"""The codec as a model of the library transformers (extra ``transformers``), in place of EncodecModel or MimiModel.

Importing this file registers it: ``AutoModel``, ``AutoConfig`` and ``AutoFeatureExtractor`` then read a folder that
``CodecModel.from_codec("speech-24khz").save_pretrained(folder)`` has written. The model has no gradients; ``model.codec`` is
the Codec, for all else.

It was tried with the checks that transformers 5.24.0 runs on its own models (``ModelTesterMixin`` and ``ConfigTester`` of its
source package, with ``all_model_classes = (CodecModel,)`` and a tiny architecture): 66 pass, 95 skip themselves, 5 fail.
``test_hidden_states_output``, ``test_model_outputs_equivalence``, ``test_retain_grad_hidden_states_attentions`` and
``test_model_get_set_embeddings`` need parts that it lacks, ``test_init_weights_can_init_buffers`` no random tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, EncodecFeatureExtractor, PretrainedConfig
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from codec.base import kind_of
from codec.config import CodecConfig, from_dict, to_dict
from codec.errors import CodecError
from codec.model import Codec


class CodecModelConfig(PretrainedConfig):
    """``architecture`` has the values of a CodecConfig, ``codec_name`` is the codec's name in ``.codes`` files."""

    model_type = "simvq_codec"

    def __init__(self, architecture: dict[str, Any] | None = None, codec_name: str = "unnamed", **kwargs: Any) -> None:
        if "quantizer" in kwargs:  # of Codec.save_pretrained: all weights would be random
            raise CodecError("this is the folder of a Codec: CodecModel.from_codec reads it")
        self.architecture = to_dict(from_dict(CodecConfig, architecture or {}))
        self.codec_name = codec_name
        super().__init__(**kwargs)

    @property
    def codec_config(self) -> CodecConfig:
        """The architecture."""
        return from_dict(CodecConfig, self.architecture)

    @property
    def target_bandwidths(self) -> list[float]:
        """Bitrates in kbit/s of one codebook, two, and so on to all."""
        return [k * self.frame_rate * math.log2(self.codebook_size) / 1000 for k in range(1, self.num_quantizers + 1)]

    # names as in the configurations of other codecs
    sampling_rate = property(lambda self: self.codec_config.sample_rate)  # Hz
    hop_length = property(lambda self: self.codec_config.hop_length)  # samples per frame
    frame_rate = property(lambda self: self.sampling_rate / self.hop_length)  # frames per second
    codebook_size = property(lambda self: self.codec_config.quantizer.codebook_size)
    num_quantizers = num_codebooks = property(lambda self: self.codec_config.num_quantizers)
    hidden_size = property(lambda self: self.codec_config.latent_dim)


@dataclass
class CodecModelOutput(ModelOutput):
    """Codes int64 ``[B, K, N]`` and waveforms float ``[B, 1, T]``; zeros follow the shorter items of a batch."""

    audio_codes: Tensor | None = None
    audio_values: Tensor | None = None


class CodecModel(PreTrainedAudioTokenizerBase):
    """A Codec, ``model.codec``, with the methods of transformers' own codecs.

    Waveforms are float in [-1, 1] at ``config.sampling_rate``, ``[B, C, T]``. A ``padding_mask``, ``[B, T]`` or
    ``[B, 1, T]``, has ones, then zeros where an item was padded: every item gets the codes that it has alone.
    ``bandwidth``, one of ``config.target_bandwidths`` in kbit/s, may be given in place of ``num_quantizers``. With
    ``return_dict=False`` all return tuples. They raise the CodecErrors of ``Codec.encode`` and ``Codec.decode``.

    There are no scales: recordings are encoded at their own level. ``codec-encode`` and ``recipes/tokenize`` bring all to one
    level: for codes like theirs divide each waveform by ``10 ** (g / 20)``, where g is its gain by
    ``model.codec.gain_of``.
    """

    config_class = CodecModelConfig
    base_model_prefix = "codec_model"
    main_input_name = "input_values"
    input_modalities = "audio"
    _no_split_modules = ("Codec",)
    _keep_in_fp32_modules_strict = ("codec",)  # half precision gives other codes

    def __init__(self, config: CodecModelConfig) -> None:
        super().__init__(config)
        self.codec = Codec(config.codec_config, config.codec_name).float()
        self.post_init()

    @classmethod
    def from_codec(cls, codec: Codec | str | Path) -> CodecModel:
        """The model of a Codec, or of one that ``Codec.from_pretrained`` loads by this name or path, in eval mode."""
        codec = codec if isinstance(codec, Codec) else Codec.from_pretrained(codec)
        with torch.device("meta"):  # without weights of its own, for the codec to be put in
            model = cls(CodecModelConfig(to_dict(codec.config), codec.name))
        model.codec, model._is_hf_initialized = codec, True  # or a model around this one would draw it again
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write ``config.json``, ``model.safetensors``, and ``preprocessor_config.json`` for AutoFeatureExtractor."""
        EncodecFeatureExtractor(sampling_rate=self.config.sampling_rate).save_pretrained(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    @can_return_tuple
    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        *,  # the third argument of EncodecModel is the bandwidth, of MimiModel the number of codebooks
        bandwidth: float | None = None,
        num_quantizers: int | None = None,
    ) -> CodecModelOutput:
        """``audio_codes [B, K, N]`` of waveforms."""
        if getattr(input_values, "ndim", 0) != 3:
            raise CodecError(f"input_values must be a tensor [B, C, T], not {kind_of(input_values)}")
        if bandwidth is not None and num_quantizers is not None:
            raise CodecError("bandwidth and num_quantizers say the same thing: give one of them")
        count, lengths = num_quantizers if bandwidth is None else self._count(bandwidth), _lengths(padding_mask)
        if padding_mask is not None and padding_mask.shape[-1] != input_values.shape[-1]:
            raise CodecError(f"padding_mask is for {padding_mask.shape[-1]} samples, not {input_values.shape[-1]}")
        codes = self.codec.encode(input_values, self.config.sampling_rate, count, lengths)
        return CodecModelOutput(audio_codes=codes)

    @can_return_tuple
    def decode(self, audio_codes: Tensor, padding_mask: Tensor | None = None) -> CodecModelOutput:
        """``audio_values [B, 1, T]`` of the codes ``[B, k, N]`` of the first k codebooks.

        T is that of ``padding_mask``, the mask of the waveforms that were encoded, or else ``N * hop_length``.
        """
        lengths = _lengths(padding_mask)
        if lengths and getattr(audio_codes, "ndim", 0) == 3:
            batch, _, frames = audio_codes.shape
            if len(lengths) != batch or self.codec.num_frames(max(lengths)) > frames:
                raise CodecError(f"padding_mask is not that of what was encoded to {kind_of(audio_codes)}")
        audio = self.codec.decode(audio_codes, lengths=lengths)
        if padding_mask is not None:
            audio = F.pad(audio, (0, padding_mask.shape[-1] - audio.shape[-1]))
        return CodecModelOutput(audio_values=audio)

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        *,
        bandwidth: float | None = None,
        num_quantizers: int | None = None,
    ) -> CodecModelOutput:
        """Codes of waveforms ``[B, C, T]``, and the waveforms ``[B, 1, T]`` that these decode to."""
        codes = self.encode(
            input_values, padding_mask, bandwidth=bandwidth, num_quantizers=num_quantizers, return_dict=True
        ).audio_codes
        audio = self.decode(codes, padding_mask, return_dict=True).audio_values
        return CodecModelOutput(codes, audio[..., : input_values.shape[-1]])

    def get_audio_codes_mask(self, padding_mask: Tensor) -> Tensor:
        """Bool ``[B, N]``: which frames of ``audio_codes`` belong to the items, by the mask of the waveforms."""
        samples = torch.tensor(_lengths(padding_mask), device=padding_mask.device)[:, None]  # [B, 1]
        frames = -(-samples // self.config.hop_length)
        return torch.arange(int(frames.max()), device=frames.device) < frames

    def _count(self, bandwidth: float) -> int:
        bandwidths = self.config.target_bandwidths
        for count, target in enumerate(bandwidths, start=1):
            if isinstance(bandwidth, Real) and math.isclose(bandwidth, target, rel_tol=1e-3):
                return count
        targets = ", ".join(f"{target:g}" for target in bandwidths)
        raise CodecError(f"bandwidth must be one of {targets} kbit/s, not {bandwidth!r}")

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw what no checkpoint has, as a new Codec does: all of a new model, of a loaded one what is not stored."""
        if getattr(self, "_is_hf_initialized", False):
            return
        own = [*self.codec.parameters(), *self.codec.buffers()]
        given = [getattr(tensor, "_is_hf_initialized", False) for tensor in own]
        with torch.random.fork_rng([], any(given)):  # who loads a model draws nothing
            new = Codec(self.codec.config)
        for tensor, value, there in zip(own, [*new.parameters(), *new.buffers()], given, strict=True):
            if not there:
                tensor.copy_(value)
        self._is_hf_initialized = True

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        if module is self:  # in a model that holds this one, which asks for each module of it
            self.initialize_weights()


def _lengths(padding_mask: Tensor | None) -> list[int] | None:
    """Samples of each item."""
    if padding_mask is None:
        return None
    three_axes = getattr(padding_mask, "ndim", 0) == 3 and padding_mask.shape[1] == 1
    mask = padding_mask[:, 0] if three_axes else padding_mask
    if getattr(mask, "ndim", 0) != 2:
        raise CodecError(f"padding_mask must be [B, T] or [B, 1, T], not {kind_of(padding_mask)}")
    mask = torch.as_tensor(mask).bool()
    if not mask[:, :1].all() or (mask[:, 1:] > mask[:, :-1]).any():
        raise CodecError("padding_mask must be ones, at least one, and then zeros per item: pad on the right")
    lengths: list[int] = mask.sum(dim=-1).tolist()
    return lengths


AutoConfig.register(CodecModelConfig.model_type, CodecModelConfig)
AutoModel.register(CodecModelConfig, CodecModel)
AutoFeatureExtractor.register(CodecModelConfig, EncodecFeatureExtractor)
