"""codec-encode and codec-decode from files to files and through pipes: lengths, formats, bitrates, names."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from loading import SPEECH, Said, encoded
from shell import RATE, Run, Samples, names, write

from codec import Codec, container


@pytest.mark.parametrize(
    ("length", "rate", "channels"), [(1, 16000, 1), (40_959, 16000, 1), (7, 11025, 1), (44_101, 44100, 2)]
)
def test_exactly_as_many_samples(run: Run, length: int, rate: int, channels: int) -> None:
    soundfile.write("in.wav", np.random.default_rng(length).uniform(-0.3, 0.3, (length, channels)), rate)
    assert run("encode", "in.wav", "out.codes") == 0
    assert run("decode", "out.codes", "out.wav") == 0
    info = soundfile.info("out.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (length, rate, 1, "PCM_16")
    assert run("decode", "out.codes", "native.flac", "--native-rate") == 0
    native = soundfile.info("native.flac")
    assert (native.frames, native.samplerate) == (-(-length * RATE // rate), RATE)


@pytest.mark.parametrize("source", [SPEECH[24000], "long.wav"], ids=["speech", "long"])
@pytest.mark.parametrize("options", [[], ["--no-normalize"], ["--no-normalize", "--refine-steps=2"]], ids=str)
def test_files_equal_the_library(run: Run, sound: Samples, source: str, options: list[str], tiny_model: Codec) -> None:
    """Blocks of a long file leave no seam."""
    soundfile.write("long.wav", sound, RATE, subtype="FLOAT")
    assert run("encode", source, "out.codes", *options) == 0
    assert run("decode", "out.codes", "out.wav", "--native-rate") == 0
    samples, rate = soundfile.read(source, dtype="float32")
    gain_db = 0.0 if options else tiny_model.gain_of(samples, rate)[0]
    codes = tiny_model.encode(samples, rate, gain_db=gain_db, refine_steps=2 * ("--refine-steps=2" in options))
    assert codes.equal(tiny_model.encode(samples, rate, gain_db=gain_db)) != ("--refine-steps=2" in options)
    header, stored = container.read("out.codes")
    np.testing.assert_array_equal(stored, codes[0].numpy())
    assert header.model == "tiny" and tiny_model.fingerprint.startswith(header.fingerprint)
    assert header.gain_db == np.float32(gain_db) and (gain_db == 0) == bool(options)
    decoded, _ = soundfile.read("out.wav", dtype="float32")
    expected = tiny_model.decode(codes, gain_db=gain_db)[0, 0].numpy()[: len(decoded)]
    assert np.abs(decoded - np.clip(expected, -1, 1)).max() <= 1.01 / 32768  # 0.5, and 1 at full scale


def test_channels_are_mixed_or_one_is_taken(run: Run, sound: Samples, stderr: Said) -> None:
    sound = sound[:RATE]
    write("a.wav", "b.wav", samples=np.stack([sound, sound], axis=1))
    assert run("encode", "a.wav", "b.wav", "-o", "out") == 0  # said once
    mixed = "codec-encode: channels are mixed down to one; --channel takes one of them"
    assert stderr() == f"{mixed}\ncodec-encode: files done: 2\n"
    write("opposite.wav", samples=np.stack([sound, -sound], axis=1))
    write("second.wav", samples=-sound)
    assert run("encode", "opposite.wav", "a.codes", "--channel", 2) == run("encode", "second.wav", "b.codes") == 0
    assert Path("a.codes").read_bytes() == Path("b.codes").read_bytes() and stderr() == ""


@pytest.mark.parametrize(
    ("option", "num_quantizers", "line"),
    [
        (["--num-quantizers", 1], 1, ""),
        (["--bitrate", 2.99], 2, "using 2 of 3 quantizers, 2 kbit/s\n"),
        (["--bitrate", 3], 3, ""),
        (["--bitrate", 1e308], 3, "using 3 of 3 quantizers, 3 kbit/s\n"),
    ],
    ids=str,
)
def test_bitrates(run: Run, encoded: Path, stderr: Said, option: list[object], num_quantizers: int, line: str) -> None:
    assert run("encode", "in.wav", *option, "some.codes") == 0  # options may stand between INPUT and OUTPUT
    assert stderr() == (line and f"codec-encode: {line}")
    header, codes = container.read("some.codes")
    np.testing.assert_array_equal(codes, container.read(encoded)[1][:num_quantizers])
    assert header.num_quantizers == num_quantizers
    assert run("decode", "some.codes", "some.wav") == 0
    Path("again.codes").write_bytes(encoded.read_bytes())
    assert run("decode", encoded, "again.codes", "-o", "out", *option) == 0
    assert stderr() == (line and f"codec-decode: {line}") + "codec-decode: files done: 2\n"  # once, not per file
    assert Path("some.wav").read_bytes() == Path("out/in.wav").read_bytes() == Path("out/again.wav").read_bytes()


def test_names_that_begin_with_a_dash(run: Run) -> None:
    Path("-x.wav").write_bytes(encoded(np.zeros(100)))
    assert run("encode", "--", "-x.wav", "-x.codes") == 0
    assert names() == ["-x.codes", "-x.wav"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_is_read_as_stdin_is(run: Run, encoded: Path) -> None:
    os.mkfifo("pipe.wav")
    writer = threading.Thread(target=lambda: Path("pipe.wav").write_bytes(Path("in.wav").read_bytes()))
    writer.start()
    Path("pipe.codes").write_text("a pipe cannot be read twice, so what is there is not compared with it")
    assert run("encode", "pipe.wav", "pipe.codes", "--skip-existing", "--force") == 0
    writer.join()
    assert Path("pipe.codes").read_bytes() == encoded.read_bytes()
