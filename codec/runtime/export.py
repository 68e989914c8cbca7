"""The command codec-export: a model as ONNX files, for other languages and machines."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from codec.config import to_dict
from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.files import atomic_write, refuse_existing

EXAMPLES = """examples:
  codec-export default out/                   encoder.onnx, decoder.onnx and config.json
  codec-export default out/ --bits 8          smaller and faster, the sound nearly the same
  codec-export my_model out/ --streaming      also the graphs that take a signal chunk by chunk
  codec-export default out/ --golden in.wav   also what every block gives of two seconds, to check a port against
"""
FILES = ("encoder.onnx", "decoder.onnx", "config.json")
STREAMING = ("encoder_stream.onnx", "decoder_stream.onnx")
GOLDEN = ("golden.safetensors", "golden.json")
GOLDEN_SECONDS = 2
GOLDEN_MODULES = re.compile(
    r"encoder\.(stages\.\d+\.\d+|norm|output)|quantizer(\.stages\.\d+)?|decoder\.(input|blocks\.\d+|norm|head(\.output)?)"
)
TOLERANCE = 1e-4  # as a share of a tensor's largest value: differences by rounding in float32
CHANGED_CODES = 0.0005  # share of the codes that rounding may change


def export_main(argv: Sequence[str] | None = None) -> int:
    """codec-export: a model to ONNX files. Returns the exit code."""
    parser = Parser(
        "codec-export",
        description="Write a model as ONNX graphs with all their weights: standard operators, any length and batch.",
        epilog=EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="shipped name, model folder, or hub id owner/name")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the files")
    parser.add_argument(
        "--bits",
        type=int,
        choices=(32, 8),
        default=32,
        help="of the inner matrix products (default: 32); 8-bit codes depend on what is computed together: "
        "encode one item at a time, as OnnxCodec does",
    )
    parser.add_argument(
        "--golden", metavar="AUDIO", type=Path, help="also write golden tensors of its first 2 s (torch)"
    )
    parser.add_argument("--streaming", action="store_true", help="also write graphs with state, for chunk after chunk")
    parser.add_argument("--force", action="store_true", help="replace all files of an export that is there")
    args = parser.parse_args(argv)
    return run_command("codec-export", lambda: _export(args), "run it again: OUT may hold files of two models")


def _export(args: argparse.Namespace) -> int:
    from codec.runtime import OnnxCodec

    folder: Path = args.output
    refuse_existing(folder, () if args.force else FILES + STREAMING + GOLDEN)
    if (folder / "model.safetensors").exists():
        raise CodecError(f"{folder} holds a model, whose config.json would be lost; choose another OUT")
    codec = OnnxCodec.from_pretrained(args.model, args.bits)
    files = {"encoder.onnx": codec.encoder_graph(), "decoder.onnx": codec.decoder_graph()}
    facts = describe(codec)
    if args.streaming:
        for name, (graph, delay), unit in zip(STREAMING, codec.streaming_graphs(), ("frames", "samples"), strict=True):
            files[name] = graph
            facts[name.removesuffix(".onnx")] = {f"delay_{unit}": delay}
    files["config.json"] = _json(facts)
    if args.golden:
        files |= golden_files(args.model, args.golden)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(data)
        print(f"{folder / name}  {len(data) / 1e6:.2f} MB")
    for name in {*FILES, *STREAMING, *GOLDEN} - files.keys():  # files of an earlier export
        (folder / name).unlink(missing_ok=True)
    return EXIT_OK


def describe(codec: Any) -> dict[str, Any]:
    """What a program must know beside the graphs; ``codec`` is an ``OnnxCodec``."""
    from codec.runtime.proto import OPSET

    facts = ("name", "fingerprint", "sample_rate", "hop_length", "num_quantizers", "codebook_size", "bits")
    return {
        **{fact: getattr(codec, fact) for fact in facts},
        "opset": OPSET,
        "encoder": {"waveform": "float32 [B, 1, T], in [-1, 1]", "codes": "int64 [B, K, ceil(T / hop_length)]"},
        "decoder": {
            "codes": "int64 [B, K, N]; -1 in all later quantizers decodes a lower bitrate",
            "waveform": "float32 [B, 1, N * hop_length]",
        },
        "architecture": to_dict(codec.config),
    }


def golden_files(model: str, audio: Path) -> dict[str, bytes]:
    """The output of every block of the torch model for the first two seconds of ``audio``, and its description.

    Raises:
        AudioError: the file is not audio, or is shorter.
    """
    import numpy as np
    import torch
    from safetensors.numpy import save

    from codec.audio import AudioError, AudioReader, resample
    from codec.model import Codec
    from codec.quantizers.base import QuantizerOutput

    codec = Codec.from_pretrained(model)
    with AudioReader(audio) as reader:
        samples = resample(np.concatenate(list(reader.blocks())), reader.sample_rate, codec.sample_rate)
    length = GOLDEN_SECONDS * codec.sample_rate // codec.hop_length * codec.hop_length
    if len(samples) < length:
        raise AudioError(f"{audio} is shorter than {GOLDEN_SECONDS} s; give a longer one")
    tensors: dict[str, torch.Tensor] = {}

    def keep(name: str, module: object, inputs: object, output: torch.Tensor | QuantizerOutput) -> None:
        if isinstance(output, QuantizerOutput):
            tensors[name], tensors[f"{name}.codes"] = output.quantized, output.codes
        else:
            tensors[name] = output

    for name, module in codec.named_modules():
        if GOLDEN_MODULES.fullmatch(name):
            module.register_forward_hook(partial(keep, name))
    with torch.no_grad():
        waveform = torch.from_numpy(samples[:length])[None, None]
        output = codec(waveform)
    tensors |= {"input.waveform": waveform, "output.codes": output.codes, "output.waveform": output.waveform}
    arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
    entries = {}
    for name, array in arrays.items():
        limit = {"largest_difference": TOLERANCE * float(np.abs(array).max())}
        limit = {"share_of_differing": CHANGED_CODES} if array.dtype == np.int64 else limit
        entries[name] = {"dtype": array.dtype.name, "shape": list(array.shape), **limit}
    description = {"model": codec.name, "fingerprint": codec.fingerprint, "tensors": entries}
    return {"golden.safetensors": save(arrays), "golden.json": _json(description)}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
