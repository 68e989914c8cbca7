"""The command codec-demo (extra ``demo``): a page on this machine where speech is heard through every shipped model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.pretrained import shipped_models

if TYPE_CHECKING:
    from codec.model import Codec

LONGEST = 60  # seconds: all bitrates of all models are computed and kept as a whole
WIDTH, HEIGHT, RANGE_DB = 640, 128, 80.0  # of a spectrogram [height, width, 3]: pixels, and dB from its loudest point
# anchors of a map whose lightness rises evenly, black over purple and orange to pale yellow
COLOURS = ((0, 0, 4), (79, 18, 123), (181, 54, 122), (251, 135, 97), (252, 253, 191))


def demo_main(argv: Sequence[str] | None = None) -> int:
    """codec-demo: serve the page until ctrl-C. Returns the exit code."""
    description = "A page, for this machine only, to hear speech through every shipped model at every bitrate."
    Parser("codec-demo", description=description).parse_args(argv)
    return run_command("codec-demo", _serve, interrupted="the page is closed")


def _serve() -> int:
    from codec.model import Codec

    with tempfile.TemporaryDirectory() as folder:  # otherwise all audio of the page stays in /tmp/gradio
        os.environ["GRADIO_TEMP_DIR"] = folder
        import gradio

        page = build(gradio, [Codec.from_pretrained(name) for name in shipped_models()])
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # none from the network
        # quiet: without gradio's hint on how to share the page, and without the address, which is printed here
        options = {"server_name": "127.0.0.1", "share": False, "theme": gradio.themes.Default(**fonts), "quiet": True}
        _, address, _ = page.launch(**options, prevent_thread_lock=True)
        print(f"Running on {address}", flush=True)
        page.block_thread()
    return EXIT_OK


def build(gradio: Any, models: Sequence[Codec]) -> Any:
    """The page, a ``gradio.Blocks``; ``gradio`` is the package."""
    with gradio.Blocks(title="Speech through the codec", analytics_enabled=False) as page:
        gradio.Markdown(
            "# How little does speech need?\nOpen a file or record a sentence, and hear it at every bitrate."
        )
        with gradio.Row():
            source = gradio.Audio(sources=["upload", "microphone"], type="filepath", label="Your speech", buttons=[])
            shown = [gradio.Image(label="Spectrogram of the original", buttons=[])]
        for model in models:
            gradio.Markdown(f"## {model.name}")
            shown.append(gradio.Image(label=f"Codes, {model.frame_rate:g} frames a second", buttons=[], format="png"))
            with gradio.Row():
                for count in range(1, model.num_quantizers + 1):
                    with gradio.Column(min_width=260):
                        label = f"{model.bitrate_of(count) / 1000:.4g} kbit/s"
                        shown.append(gradio.Audio(label=label, buttons=["download"]))
                        shown.append(gradio.Image(show_label=False, buttons=[]))

        def answer(path: str | None) -> list[Any]:
            try:
                return hear(models, path) if path else [None] * len(shown)
            except CodecError as error:
                raise gradio.Error(str(error), print_exception=False) from None

        source.change(answer, source, shown)
    return page


def hear(models: Sequence[Codec], path: str) -> list[Any]:
    """The page's contents for a file: its spectrogram; per model the codes, and sound and spectrogram of each bitrate.

    Returns:
        Pictures, and sounds as ``(sample rate, int16 [T])``.

    Raises:
        AudioError: the file cannot be read.
        CodecError: it is longer than a minute.
    """
    from codec.audio import load, measure, resampled_length, to_pcm

    num_samples, rate = measure(path)  # without loading what may be hours
    if num_samples > LONGEST * rate:
        raise CodecError(f"it is longer than {LONGEST} s: cut it, or use codec-encode, which takes any length")
    waveform, rate = load(path)
    shown: list[Any] = [spectrogram(waveform[0].numpy(), rate)]
    for model in models:
        gain_db = model.gain_of(waveform[None], rate)
        codes = model.encode(waveform[None], rate, gain_db=gain_db)
        shown.append(codes_picture(codes[0].numpy()))
        length = resampled_length(waveform.shape[-1], rate, model.sample_rate)
        for count in range(1, model.num_quantizers + 1):
            sound = model.decode(codes, count, [length], gain_db)[0, 0].numpy()
            shown += [(model.sample_rate, to_pcm(sound)), spectrogram(sound, model.sample_rate)]
    return shown


def spectrogram(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.uint8]:
    """Mel power of ``[T]`` in dB, low bands at the bottom."""
    import torch

    from codec.spectral import mel_decibels

    decibels = mel_decibels(torch.from_numpy(samples), sample_rate, WIDTH, HEIGHT).numpy()
    level = (decibels - max(decibels.max(), 0.0)) / RANGE_DB + 1  # silence is dark
    at = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(level, at, channel) for channel in zip(*COLOURS, strict=True)], -1).astype(np.uint8)


def codes_picture(codes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Codes ``[K, N]`` as bars, a row for each quantizer; close shades do not mean close codes."""
    shade = (codes * 0.618034 % 1)[..., None]
    bars = (1 - shade) * (38, 62, 102) + shade * (196, 226, 238)
    return bars.astype(np.uint8).repeat(max(12, 96 // len(codes)), 0).repeat(4, 1)
