"""Results of a made-up evaluation, and the report drawn from them with synthetic audio."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from codec.evaluation import results as schema
from codec.evaluation.page.report import write_report

NASTY = "<b>&\"x'</script><script>alert(1)</script>"  # an utterance's id
SPEAKER = "Žofie 山田"
SOURCE = "read <aloud>"
METRICS = {
    "pesq": schema.Metric("PESQ-WB", "MOS-LQO", "higher", 3, "aligned by PESQ itself", package="pesq 0.0.4"),
    "stoi": schema.Metric("STOI", "", "higher", 3, "at the original's rate", package="pystoi 0.4.1"),
    "si_sdr": schema.Metric("SI-SDR", "dB", "higher", 2, "no alignment"),
    "mel": schema.Metric("Mel distance", "", "lower", 3, "80 bands <of> natural-log magnitudes"),
    "kbps_file": schema.Metric("Bitrate of the files", "kbit/s", "none", 2, "size of the file over its duration"),
}
SYSTEMS = [
    ("model-8", "default, 8 quantizers", "default", "model", 6.0),
    ("model-2", "default, 2 quantizers", "default", "model", 1.5),
    ("model-1", "default, 1 quantizer", "default", "model", 0.75),
    ("opus-6", "Opus 6 kbit/s", "Opus", "opus", 6.0),
    ("opus-12", "Opus 12 kbit/s", "Opus", "opus", 12.0),
    ("codec2-1.3", "Codec 2 <1300>", "Codec 2", "codec2", 1.3),
    ("other", "folder of decoded files", "other", "folder", None),
]
NOTHING = schema.Result(None, None, None, 0)
EXAMPLES = tuple(  # audio files with names that a link must quote
    schema.Example(name, why, 1.5, f"audio/{why}/reference.flac", {k: f"audio/{why}/{k} #1.flac" for k, *_ in SYSTEMS})
    for name, why in ((NASTY, "worst"), ("file-0002", "example"))
)


def make_results(**changes: Any) -> schema.Results:
    """Seven systems, five metrics, every optional part but the examples; ``changes`` replaces fields."""
    systems = [_system(i, *facts) for i, facts in enumerate(SYSTEMS)]
    some = {"failed": 2, "reasons": {"NoUtterancesError": 1, "<too short>": 1}}
    systems[0].results["pesq"] = replace(systems[0].results["pesq"], n=109, **some)
    systems[0].by_source[""] = {"pesq": schema.Result(2.7182, None, None, 3)}
    systems[0].by_source[SOURCE] = {"pesq": schema.Result(2.3456, 2.1, 2.5, 106, failed=2, reasons={"<short>": 2})}
    systems[5].results["stoi"] = replace(NOTHING, failed=111, reasons={"MetricError": 111})
    del systems[6].results["kbps_file"]
    for k in (0, 3):
        systems[k].results["lines"] = schema.Result(k, None, None, 20)
    shares = tuple(0.2 + 0.08 * k for k in range(8))
    results = schema.Results(
        format=1,
        created="2026-11-23T08:00:00Z",
        command="codec-evaluate --model default dev.jsonl -o 'report <1>'",
        software={"codec": "0.2.0", "python": "3.11.7"},
        machine={"processor": "AMD EPYC", "threads_per_worker": 1},
        manifest=schema.Manifest("dev.jsonl", "ab" * 32, utterances=111, seconds=738.1, speakers=44),
        model=schema.Model("default", "0123456789abcdef", 5412345, 24000, 75.0, num_quantizers=8, codebook_size=1024),
        interval=schema.Interval(level=0.95, resamples=2000, unit="speakers", seed=0),
        metrics=METRICS,
        absent=(schema.Absent("metric", "UTMOS", "not installed"), schema.Absent("system", "EnCodec", "too slow")),
        alignment="Folders by the <peak> of correlation.",
        systems=tuple(systems),
        spectra=schema.Spectra(50.0, 20, (-40.0,) * 240, {"model-8": (-45.0,) * 240, "opus-6": (-50.0,) * 240}),
        health=schema.Health(tuple(map(_stage, range(8))), schema.Latents(256, 31.24, 55310), ("Few are <needed>.",)),
        stability=(
            schema.Stability("shift", "input shifted", schema.Result(0.4213, 0.401, 0.44, 111), shares),
            schema.Stability(
                "quiet", "input 6 dB quieter", schema.Result(0.31, None, None, 110, 1, {"too short": 1}), None
            ),
        ),
    )
    return replace(results, **changes)


def make_rows(results: schema.Results, num_files: int) -> list[schema.Row]:
    """Values around each system's means; of the headline system, the file called ``NASTY`` is worst and two have none."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(num_files):
        for system in results.systems:
            noise = 0.1 * float(rng.normal())
            means = {name: system.results.get(name, NOTHING).mean for name in results.metrics}
            values = {name: None if mean is None else mean + noise for name, mean in means.items()}
            if system.id == "model-8" and n in (3, 4, 7):
                values["pesq"] = 1.0321 if n == 7 else None
            failures = "pesq: NoUtterancesError" if system.id == "model-8" and n in (3, 4) else ""
            name = NASTY if n == 7 else f"file-{n:04d}"
            rows.append(schema.Row(name, SPEAKER, "made up", 1.5 + 0.25 * n, system.id, values, failures))
    return rows


def make_report(folder: Path, num_files: int = 2, results: schema.Results | None = None) -> Path:
    """The page of ``results`` in a new ``folder``, with audio files that ``results`` name."""
    results = results or make_results()
    folder.mkdir(parents=True, exist_ok=True)
    for example in results.examples or ():
        for path in (example.reference, *example.systems.values()):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            tone = 0.2 * np.sin(2 * np.pi * 300 * np.arange(int(example.seconds * 24000)) / 24000)
            soundfile.write(folder / path, tone, 24000)
    return write_report(results, make_rows(results, num_files), folder)


def _system(i: int, key: str, name: str, family: str, kind: str, kbps: float | None) -> schema.System:
    quality = 0.25 + 0.1 * float(np.log2(kbps or 4))
    means = {"pesq": 1 + 2.2 * quality, "stoi": 0.5 + 0.4 * quality, "si_sdr": -4.125 + 20 * quality}
    means |= {"mel": 1.2345 - quality, "kbps_file": (kbps or 4) * 1.03}
    means = {metric: round(mean + 0.0011 * i, 4) for metric, mean in means.items()}
    results = {metric: schema.Result(mean, mean - 0.0312, mean + 0.0312, 111) for metric, mean in means.items()}
    return schema.System(id=key, name=name, family=family, kind=kind, kbps=kbps, results=results)


def _stage(k: int) -> schema.Stage:
    usage = 0.993 - 0.01 * k
    coverage = [(n, usage * (1 - float(np.exp(-n / (900 + 150 * k))))) for n in (75, 300, 1200, 4800, 19200, 55310)]
    return schema.Stage(
        stage=k + 1, frames=55310, usage=usage, perplexity=612.4 - 30 * k, normalised_entropy=0.926 - 0.008 * k,
        unseen_mass=0.0001 * (k + 1), codebook_effective_dimension=12.34 - 0.3 * k, codebook_dimension=16,
        residual_energy=0.53 * 0.8**k, coverage=tuple(coverage),
    )  # fmt: skip
