"""The systems to measure: a model at several bitrates, folders of reconstructions, and classical codecs.

A family has ``systems`` that differ only in bitrate. Its ``reconstruct`` turns an utterance, ``waveform [T]`` at
``record.sample_rate``, into one outcome per system, in their order, with the reference's rate, length and time.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import soundfile
from numpy.typing import NDArray
from torch import Tensor

from codec import container
from codec.audio import audio_suffixes, read_samples, resample, to_pcm
from codec.corpus.manifest import Record
from codec.corpus.scan import reason_of
from codec.errors import CodecError
from codec.evaluation.metrics import Waveform
from codec.evaluation.results import Absent, Model, System
from codec.model import Codec

OPUS_KBPS = (6, 8, 12)
CODEC2_MODES = ("700C", "1200", "2400", "3200")  # named by their bit/s
CODEC2_RATE = 8000
ALIGNMENT = (
    "Models and Opus: by construction. Folders and Codec2: one delay a file, up to 200 ms, where the waveforms' correlation "
    "peaks (if it reaches 0.5 there), else where that of their 1 ms envelopes does; then cut, or filled with zeros, to the "
    "reference's length."
)


@dataclass(frozen=True)
class Reconstruction:
    """One system's ``waveform [T]`` of one utterance, with the length and rate of the reference.

    ``coded`` is the coded file, ``seconds`` the time to encode and decode, ``codes [K, N]`` are a model's; None: unknown.
    """

    waveform: Waveform
    coded: bytes | None = None
    seconds: float | None = None
    codes: Tensor | None = None


Outcome = Reconstruction | str  # a string is the reason why there is none


class ModelFamily:
    """A codec of this package with each of ``num_quantizers``; if that is empty, with all, a half, a quarter, and so on.

    ``normalize``: speech is brought to one level before the encoder, as ``codec-encode`` does. With ``refine_steps`` (see
    ``Codec.encode``) it is encoded separately for each number of quantizers.
    """

    def __init__(self, codec: Codec, num_quantizers: Sequence[int], normalize: bool, refine_steps: int) -> None:
        most = codec.num_quantizers
        if odd := [count for count in num_quantizers if not 1 <= count <= most]:
            raise CodecError(f"--num-quantizers {odd[0]}: the model has 1 to {most}")
        self.codec, self.normalize, self.refine_steps = codec, normalize, refine_steps
        self.counts = sorted(set(num_quantizers or [most >> i for i in range(most.bit_length())]), reverse=True)
        label, kbps = Path(codec.name).name, codec.bitrate / most / 1000
        how = "brought to one level and back" if normalize else "encoded at its own level"
        how += f", codes refined in {refine_steps} steps" * (refine_steps > 0)
        how = f"{how}, encoded whole, decoded, cut to the reference's length; other sample rates resampled by soxr"
        names = {k: f"{label}, {k} quantizer{'s' * (k > 1)}" for k in self.counts}
        self.systems = [System(f"model-{k}", name, label, "model", kbps * k, how) for k, name in names.items()]
        shape = codec.sample_rate, codec.frame_rate, most, codec.codebook_size
        self.about = Model(label, codec.fingerprint, codec.num_parameters, *shape)  # the facts for a report

    def gain_of(self, waveform: Tensor | Waveform, sample_rate: int) -> float:
        """The gain in dB with which a waveform ``[T]`` is encoded."""
        return self.codec.gain_of(waveform, sample_rate)[0] if self.normalize else 0.0

    def encode(self, waveform: Tensor | Waveform, sample_rate: int, num_quantizers: int) -> tuple[Tensor, float]:
        """Codes ``[K, N]`` of a waveform ``[T]``, and their gain in dB."""
        gain_db, steps = self.gain_of(waveform, sample_rate), self.refine_steps
        codes = self.codec.encode(waveform, sample_rate, num_quantizers, gain_db=gain_db, refine_steps=steps)
        return codes[0].cpu(), gain_db

    def reconstruct(self, record: Record, waveform: Waveform) -> Iterator[Outcome]:
        for count in self.counts:
            start = time.perf_counter()
            if self.refine_steps or count == self.counts[0]:
                try:
                    codes, gain_db = self.encode(waveform, record.sample_rate, count)
                except CodecError as error:  # the encoder refuses the rate or the level
                    yield from [str(error)] * len(self.systems)
                    return
                encoding = time.perf_counter() - start
                start = time.perf_counter()
            decoded = self.codec.decode(codes[None, :count], gain_db=gain_db)[0, 0].cpu().numpy()
            fitted = fit(resample(decoded, self.codec.sample_rate, record.sample_rate), len(waveform))
            seconds = encoding + time.perf_counter() - start
            header = self.codec.header(record.num_samples, record.sample_rate, count, gain_db)
            yield Reconstruction(fitted, container.dumps(header, codes[:count].numpy()), seconds, codes[:count])


class FolderFamily:
    """Reconstructions made elsewhere: one audio file per utterance, called ``ID.*`` or placed as its audio is."""

    def __init__(self, name: str, folder: Path, kbps: float | None = None) -> None:
        if not folder.is_dir():
            raise CodecError(f"{folder} is no folder of reconstructions")
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "folder"
        how = "files as they are, resampled by soxr where needed; shifted by the delay found (see alignment)"
        self.systems = [System(f"folder-{slug}", name, name, "folder", kbps, how)]
        self.suffixes = audio_suffixes()
        self.files: dict[str, list[Path]] = {}  # by the path below the folder, without suffix
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in self.suffixes and not path.is_fifo():
                self.files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
        self.folders = {name.rpartition("/")[0] for name in self.files} - {""}

    def reconstruct(self, record: Record, waveform: Waveform) -> list[Outcome]:
        files = self._files_of(record)
        if len(files) != 1:
            return [f"{len(files)} files of that name" if files else "no such file in the folder"]
        try:
            samples = resample(*read_samples(files[0]), record.sample_rate)
        except (CodecError, OSError) as error:
            return [f"unreadable: {reason_of(error, files[0])}"]
        if abs(len(samples) - len(waveform)) > max(0.2 * record.sample_rate, 0.05 * len(waveform)):
            return ["another length than the reference"]
        return [Reconstruction(align(waveform, samples, record.sample_rate))]

    def check(self, records: Sequence[Record]) -> None:
        """Raise a CodecError if a file would stand for two recordings, as their names may be alike."""
        taken: dict[Path, Record] = {}
        for path, record in ((path, each) for each in records for path in self._files_of(each)):
            other = taken.setdefault(path, record)
            if (other.path, other.offset) != (record.path, record.offset):
                raise CodecError(
                    f"{path} would stand for both {other.id} and {record.id}; name reconstructions by the ids, or place them "
                    "in folders as the recordings are"
                )

    def _files_of(self, record: Record) -> list[Path]:
        """The files placed as the id (with or without an audio suffix) or else the end of the audio's path says."""
        names = [record.id]
        if Path(record.id).suffix.lower() in self.suffixes:
            names.append(Path(record.id).with_suffix("").as_posix())
        if not record.num_bytes:  # else the path is that of a shard, which names no recording
            parts = Path(record.path).with_suffix("").parts
            tails = ["/".join(parts[start:]) for start in range(1, len(parts))]  # the longest first
            own = next((i for i, tail in enumerate(tails) if tail.rpartition("/")[0] in self.folders), len(tails))
            names += tails[: own + 1]  # if the recording's folder is there, only files in it are the recording's
        return next((self.files[name] for name in names if name in self.files), [])


class ProgramFamily(ABC):
    """A codec whose programs, of a Debian package, are run for each utterance in a temporary folder."""

    systems: Sequence[System]
    programs: ClassVar[tuple[str, str]]
    package: ClassVar[str]
    delayed: ClassVar[bool]  # whether the decoded speech has to be aligned

    @abstractmethod
    def run(self, system: System, folder: Path, record: Record, waveform: Waveform) -> tuple[Waveform, Path]:
        """The decoded speech ``[T]`` at ``record.sample_rate``, and the path of the coded file."""

    def reconstruct(self, record: Record, waveform: Waveform) -> Iterator[Outcome]:
        # floats may exceed full scale, the integers that programs read cannot
        peak = max(np.abs(waveform).max(), np.float32(1))
        for system in self.systems:
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                try:
                    decoded, path = self.run(system, Path(folder), record, waveform / peak)
                    seconds = time.perf_counter() - start
                    coded = path.read_bytes()
                except (CodecError, OSError, subprocess.SubprocessError) as error:
                    yield " ".join(str(error).split()).replace(f"{folder}/", "")
                    continue
            decoded = peak * decoded
            aligned = align(waveform, decoded, record.sample_rate) if self.delayed else fit(decoded, len(waveform))
            yield Reconstruction(aligned, coded, seconds)


class OpusFamily(ProgramFamily):
    """Opus by Debian's opus-tools: ``opusenc`` at the given bitrates, otherwise with its defaults, and ``opusdec``."""

    programs, package, delayed = ("opusenc", "opusdec"), "opus-tools", False

    def __init__(self, kbps: Sequence[int] = OPUS_KBPS) -> None:
        how = f"{run_program('opusenc', '--version').splitlines()[0]}: opusenc --bitrate B --padding 0 (which leaves out the "
        how += "room that it keeps for tags), opusdec; they take the encoder's delay out themselves"
        self.systems = [System(f"opus-{b}", f"Opus {b} kbit/s", "Opus", "opus", float(b), how) for b in kbps]

    def run(self, system: System, folder: Path, record: Record, waveform: Waveform) -> tuple[Waveform, Path]:
        write_pcm(folder / "in.wav", waveform, record.sample_rate)
        options = ("--quiet", "--padding", "0", "--bitrate", f"{system.kbps:g}")
        run_program("opusenc", *options, folder / "in.wav", folder / "out.opus")
        run_program("opusdec", "--quiet", "--rate", "48000", folder / "out.opus", folder / "out.wav")
        return resample(*read_samples(folder / "out.wav"), record.sample_rate), folder / "out.opus"


class Codec2Family(ProgramFamily):
    """Codec2 by Debian's package codec2: ``c2enc`` and ``c2dec`` at 8 kHz (it loses all above 4 kHz)."""

    programs, package, delayed = ("c2enc", "c2dec"), "codec2", True

    def __init__(self, modes: Sequence[str] = CODEC2_MODES) -> None:
        how = "c2enc, c2dec at 8 kHz (soxr); shifted by the delay found (see alignment)"
        kbps = {mode: float(mode.rstrip("C")) / 1000 for mode in modes}
        self.systems = [System(f"codec2-{m}", f"Codec2 {m}", "Codec2", "codec2", kbps[m], how) for m in modes]

    def run(self, system: System, folder: Path, record: Record, waveform: Waveform) -> tuple[Waveform, Path]:
        mode = system.id.removeprefix("codec2-")
        narrow = np.concatenate([resample(waveform, record.sample_rate, CODEC2_RATE), np.zeros(800, np.float32)])
        to_pcm(narrow).tofile(folder / "in.raw")
        run_program("c2enc", mode, folder / "in.raw", folder / "out.c2")
        run_program("c2dec", mode, folder / "out.c2", folder / "out.raw")
        samples = np.fromfile(folder / "out.raw", dtype="<i2").astype(np.float32) / np.float32(2**15)
        return resample(samples, CODEC2_RATE, record.sample_rate), folder / "out.c2"


CLASSICAL: dict[str, type[OpusFamily | Codec2Family]] = {"opus": OpusFamily, "codec2": Codec2Family}
Family = ModelFamily | FolderFamily | ProgramFamily


def present_programs(names: Sequence[str]) -> tuple[tuple[str, ...], list[Absent]]:
    """The entries of CLASSICAL whose programs are on this machine, and why the others are absent."""
    absent = []
    for name in names:
        if missing := " and ".join(program for program in CLASSICAL[name].programs if shutil.which(program) is None):
            reason = f"{missing} not found; Debian's package {CLASSICAL[name].package} has them"
            absent.append(Absent("system", name, reason))
    return tuple(name for name in names if name not in {each.name for each in absent}), absent


def run_program(*command: str | Path) -> str:
    """Run a program and return its output; its failure is a CodecError."""
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=600)
    output = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode != 0:
        raise CodecError(f"{command[0]} failed: {output.splitlines()[-1] if output else done.returncode}")
    return output


def write_pcm(path: Path, waveform: Waveform, sample_rate: int) -> None:
    """Write WAV or FLAC of 16 bits; libsndfile itself takes only paths in UTF-8, and does not say that a disk is full."""
    data = io.BytesIO()
    soundfile.write(data, to_pcm(waveform), sample_rate, format=path.suffix[1:])
    path.write_bytes(data.getvalue())


def fit(waveform: Waveform, length: int) -> Waveform:
    """Cut ``waveform [T]``, or fill it with zeros, to ``length``."""
    return np.pad(waveform[:length], (0, max(0, length - len(waveform)))).astype(np.float32)


def align(reference: Waveform, estimate: Waveform, sample_rate: int) -> Waveform:
    """``estimate`` shifted by :func:`find_delay` and cut, or filled with zeros, to the reference's length."""
    delay = find_delay(reference, estimate, sample_rate)
    return fit(estimate[delay:] if delay >= 0 else np.pad(estimate, (-delay, 0)), len(reference))


def find_delay(reference: Waveform, estimate: Waveform, sample_rate: int) -> int:
    """Samples that ``estimate`` comes after ``reference``, both ``[T]``; negative if it comes before. At most 200 ms.

    For a codec that keeps the waveform it is exact, from the correlation of the waveforms, if that reaches 0.5 (0.9 upside
    down). For one that makes new phases (a vocoder) it is that of the 1 ms envelopes, 0 if they fit nearly as well unshifted.
    """
    most = int(0.2 * sample_rate)
    delay, peak, _ = _peak(reference, estimate, most)
    turned, opposite, _ = _peak(reference, -estimate, most)
    if opposite > max(peak, 0.9):  # less is uncertain: the other sign also fits half a period of the voice away
        return turned
    if peak >= 0.5:
        return delay
    step = max(1, round(sample_rate / 1000))
    delay, peak, unshifted = _peak(_envelope(reference, step), _envelope(estimate, step), most // step)
    return delay * step if peak > unshifted + 0.02 else 0


def _peak(a: NDArray[np.float32], b: NDArray[np.float32], most: int) -> tuple[int, float, float]:
    """The lag of b against a with the highest normalised correlation, that correlation, and the one without a lag."""
    size = 1 << (len(a) + len(b) + 2 * most).bit_length()
    product = np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size)
    correlation = np.fft.irfft(product, size) / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-12)
    lags = np.arange(-most, most + 1)
    best = int(np.argmax(correlation[lags]))
    return int(lags[best]), float(correlation[lags[best]]), float(correlation[0])


def _envelope(waveform: Waveform, step: int) -> NDArray[np.float32]:
    """The mean level of every ``step`` samples, minus the mean of all."""
    whole = waveform[: len(waveform) // step * step]
    level = np.sqrt(np.abs(whole).reshape(-1, step).mean(axis=1))
    return (level - level.mean()).astype(np.float32) if len(level) else np.zeros(1, np.float32)
