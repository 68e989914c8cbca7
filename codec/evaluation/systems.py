"""What is measured: a model at several bitrates, folders of reconstructions, and classical codecs beside them.

A family turns one utterance into one reconstruction a system, all at the reference's rate and length.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec import container
from codec.audio import AudioReader, audio_suffixes, resample
from codec.corpus.manifest import Record
from codec.errors import CodecError
from codec.evaluation.alignment import aligned
from codec.evaluation.metrics import Waveform
from codec.model import Codec

OPUS_KBPS = (6, 8, 12)
CODEC2_MODES = ("700C", "1200", "2400", "3200")  # names that are also bit/s, but for the C
CODEC2_RATE = 8000
PROGRAM_SECONDS = 600  # no program needs as long for an utterance


@dataclass(frozen=True)
class System:
    """One row of a report.

    Attributes:
        id: unique in a report, the same in every report of the same system.
        name: for people.
        family: systems that differ in bitrate only share it.
        kind: model, folder, opus or codec2.
        kbps: nominal bitrate in kbit/s, None where unknown.
    """

    id: str
    name: str
    family: str
    kind: str
    kbps: float | None


@dataclass(frozen=True)
class Reconstruction:
    """One system's version of one utterance: ``waveform [T]`` as long as the reference, bytes stored, seconds taken."""

    system: System
    waveform: Waveform
    num_bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Failure:
    """A system that gave nothing for an utterance, and why."""

    system: System
    reason: str


class Family(ABC):
    """Systems that differ in bitrate only. ``how`` says what was run, for the report."""

    systems: Sequence[System]
    how: str

    @abstractmethod
    def reconstruct(self, record: Record, waveform: Waveform) -> Iterator[Reconstruction | Failure]:
        """Every system's version of ``waveform [T]`` at ``record.sample_rate``."""


class ModelFamily(Family):
    """A codec of this package, with each of several numbers of quantizers."""

    def __init__(self, codec: Codec, stages: Sequence[int]) -> None:
        self.codec, self.stages = codec, sorted(set(stages), reverse=True)
        one = codec.bitrate / codec.num_quantizers / 1000
        label = Path(codec.name).name
        self.systems = [
            System(f"model-{k}", f"{label}, {k} quantizer{'s' * (k > 1)}", label, "model", one * k) for k in self.stages
        ]
        self.how = "encoded whole, decoded, cut to the reference's length; other sample rates resampled by soxr"

    def reconstruct(self, record: Record, waveform: Waveform) -> Iterator[Reconstruction | Failure]:
        start = time.perf_counter()
        try:
            codes = self.encode(waveform, record.sample_rate)
        except CodecError as error:  # a rate or a level that no speech has
            yield from (Failure(system, str(error)) for system in self.systems)
            return
        encoding = time.perf_counter() - start
        for system, count in zip(self.systems, self.stages, strict=True):
            start = time.perf_counter()
            decoded = self.codec.decode(codes[None, :count])[0, 0].cpu().numpy()
            made = resample(decoded, self.codec.sample_rate, record.sample_rate)
            seconds = encoding + time.perf_counter() - start
            yield Reconstruction(system, fitted(made, len(waveform)), len(self.stored(codes[:count], record)), seconds)

    def encode(self, waveform: Waveform, sample_rate: int) -> Tensor:
        """Codes ``[K, N]`` with the most stages asked for."""
        return self.codec.encode(torch.from_numpy(waveform), sample_rate, self.stages[0])[0].cpu()

    def stored(self, codes: Tensor, record: Record) -> bytes:
        """The ``.codes`` file of codes ``[k, N]``."""
        header = self.codec.header(record.num_samples, record.sample_rate, len(codes))
        return container.dumps(header, codes.numpy())


class FolderFamily(Family):
    """Reconstructions that somebody else made: one audio file an utterance, ``ID.*`` below the folder or like its audio."""

    def __init__(self, name: str, folder: Path, kbps: float | None = None) -> None:
        if not folder.is_dir():
            raise CodecError(f"{folder} is no folder of reconstructions")
        self.folder = folder
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "folder"
        self.systems = [System(f"folder-{slug}", name, name, "folder", kbps)]
        self.how = "files as they are, resampled by soxr where needed; shifted by the delay found (see alignment)"
        self.suffixes = audio_suffixes()
        self.files: dict[str, list[Path]] = {}  # by the path below the folder, without suffix
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in self.suffixes:
                self.files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)

    def reconstruct(self, record: Record, waveform: Waveform) -> Iterator[Reconstruction | Failure]:
        (system,) = self.systems
        found = self._files_of(record)
        if len(found) != 1:
            yield Failure(system, "no such file in the folder" if not found else f"{len(found)} files of that name")
            return
        try:
            with AudioReader(found[0]) as reader:
                made = np.concatenate([*reader.blocks(), np.zeros(0, np.float32)])
                rate = reader.sample_rate
        except (CodecError, OSError) as error:
            yield Failure(system, f"unreadable: {type(error).__name__}")
            return
        made = resample(made, rate, record.sample_rate)
        if abs(len(made) - len(waveform)) > max(0.2 * record.sample_rate, 0.05 * len(waveform)):
            yield Failure(system, "another length than the reference")
            return
        yield Reconstruction(system, aligned(waveform, made, record.sample_rate))

    def _files_of(self, record: Record) -> list[Path]:
        """Files at the place that the id names (with or without an audio suffix of its own), or named like the audio."""
        names = [record.id]
        if Path(record.id).suffix.lower() in self.suffixes:
            names.append(Path(record.id).with_suffix("").as_posix())
        if not record.num_bytes and "/" not in record.id:  # a shard's name is nobody's; a path in the id says enough
            names.append(Path(record.path).stem)
        return next((self.files[name] for name in names if name in self.files), [])


class OpusFamily(Family):
    """Opus by Debian's opus-tools: ``opusenc`` at the given bitrates, else as it comes, and ``opusdec``."""

    def __init__(self, kbps: Sequence[int] = OPUS_KBPS) -> None:
        self.systems = [System(f"opus-{rate}", f"Opus {rate} kbit/s", "Opus", "opus", float(rate)) for rate in kbps]
        self.how = (
            f"{program_version('opusenc')}: opusenc --bitrate B --padding 0 (which leaves out the room that it keeps for "
            "tags), opusdec; they take the encoder's delay out themselves"
        )

    def reconstruct(self, record: Record, waveform: Waveform) -> Iterator[Reconstruction | Failure]:
        for system in self.systems:
            yield run_program(system, record, waveform, self._code)

    def _code(self, system: System, folder: Path, record: Record, waveform: Waveform) -> tuple[Waveform, int]:
        write_wav(folder / "in.wav", waveform, record.sample_rate)
        options = ("--quiet", "--padding", "0", "--bitrate", f"{system.kbps:g}")
        run("opusenc", *options, folder / "in.wav", folder / "out.opus")
        run("opusdec", "--quiet", "--rate", "48000", folder / "out.opus", folder / "out.wav")
        with AudioReader(folder / "out.wav") as reader:
            made = resample(np.concatenate(list(reader.blocks())), reader.sample_rate, record.sample_rate)
        return fitted(made, len(waveform)), (folder / "out.opus").stat().st_size


class Codec2Family(Family):
    """Codec2 by Debian's package codec2: ``c2enc`` and ``c2dec``, 8 kHz (nothing above 4 kHz comes back)."""

    def __init__(self, modes: Sequence[str] = CODEC2_MODES) -> None:
        self.systems = [
            System(f"codec2-{mode}", f"Codec2 {mode}", "Codec2", "codec2", float(mode.rstrip("C")) / 1000)
            for mode in modes
        ]
        self.how = "c2enc, c2dec at 8 kHz (soxr); shifted by the delay found (see alignment)"

    def reconstruct(self, record: Record, waveform: Waveform) -> Iterator[Reconstruction | Failure]:
        for system in self.systems:
            made = run_program(system, record, waveform, self._code)
            if isinstance(made, Reconstruction):
                made = replace(made, waveform=aligned(waveform, made.waveform, record.sample_rate))
            yield made

    def _code(self, system: System, folder: Path, record: Record, waveform: Waveform) -> tuple[Waveform, int]:
        mode = system.id.removeprefix("codec2-")
        narrow = np.concatenate([resample(waveform, record.sample_rate, CODEC2_RATE), np.zeros(800, np.float32)])
        (folder / "in.raw").write_bytes(to_pcm(narrow).tobytes())
        run("c2enc", mode, folder / "in.raw", folder / "out.c2")
        run("c2dec", mode, folder / "out.c2", folder / "out.raw")
        made = np.frombuffer((folder / "out.raw").read_bytes(), dtype="<i2").astype(np.float32) / np.float32(2**15)
        return resample(made, CODEC2_RATE, record.sample_rate), (folder / "out.c2").stat().st_size


def classical_families(names: Sequence[str]) -> tuple[list[Family], dict[str, str]]:
    """Families of the classical codecs asked for whose programs are here, and why the others are absent."""
    families: list[Family] = []
    absent = {}
    for name, programs, package, make in (
        ("opus", ("opusenc", "opusdec"), "opus-tools", OpusFamily),
        ("codec2", ("c2enc", "c2dec"), "codec2", Codec2Family),
    ):
        if name not in names:
            continue
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            absent[name] = f"{' and '.join(missing)} not found; Debian's package {package} has them"
        else:
            families.append(make())
    return families, absent


def fitted(waveform: Waveform, length: int) -> Waveform:
    """Cut, or followed by zeros, to ``length``."""
    return np.pad(waveform[:length], (0, max(0, length - len(waveform)))).astype(np.float32)


Coding = Callable[[System, Path, Record, Waveform], tuple[Waveform, int]]


def run_program(system: System, record: Record, waveform: Waveform, code: Coding) -> Reconstruction | Failure:
    """One utterance through other programs in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            made, num_bytes = code(system, Path(folder), record, waveform)
        except (CodecError, OSError, subprocess.SubprocessError) as error:
            return Failure(system, " ".join(str(error).split()).replace(f"{folder}/", ""))
        return Reconstruction(system, made, num_bytes, time.perf_counter() - start)


def run(*command: str | Path) -> None:
    """Run a program; its complaint becomes the error."""
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=PROGRAM_SECONDS)
    if done.returncode != 0:
        complaint = done.stderr.decode(errors="replace").strip().splitlines()
        raise CodecError(f"{command[0]} failed: {complaint[-1] if complaint else done.returncode}")


def program_version(program: str) -> str:
    """What a program says of its version, in one line."""
    said = subprocess.run([program, "--version"], capture_output=True, timeout=PROGRAM_SECONDS)
    first_line = (said.stdout or said.stderr).decode(errors="replace").partition("\n")[0].strip()
    return first_line or f"{program}, version unknown"


def write_wav(path: Path, waveform: Waveform, sample_rate: int) -> None:
    """16-bit WAV."""
    soundfile.write(path, to_pcm(waveform), sample_rate, subtype="PCM_16")


def to_pcm(waveform: Waveform) -> NDArray[np.int16]:
    """16-bit samples, clipped at full scale."""
    return np.clip(np.round(waveform * 2**15), -(2**15), 2**15 - 1).astype("<i2")
