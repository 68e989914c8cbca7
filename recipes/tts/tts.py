"""A small language model of speech on a single codebook: text and codes in, codes out, spoken while they are written.

    python recipes/tts/tts.py prepare RUN --manifest manifests/train.jsonl --speaker NAME
    python recipes/tts/tts.py train RUN
    python recipes/tts/tts.py generate RUN --text "Good morning."     # if the manifest's records have a ``text``
    python recipes/tts/tts.py generate RUN --prompt-seconds 2         # goes on after the start of held-out utterances

An utterance is a sequence: its text as bytes (there may be none), begin, its codes, end. All results are in RUN.
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from codec.audio import AudioWriter
from codec.corpus.manifest import read_manifest, summary
from codec.corpus.scan import read_record
from codec.errors import EXIT_OK, CodecError, Parser, positive, run_command
from codec.files import atomic_write, write_json
from codec.model import Codec
from codec.tokens import TokenLayout, resync

TEXT_IDS, WIDTH, RANK = 256, 256, 64  # the first so many ids are bytes of text
SHAPE = {"hidden_size": WIDTH, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
SHARPNESS = 2.0  # codes are alike up to a distance of the codebook's spread divided by this
HELD_OUT = 20  # one utterance of so many is not trained on
BATCH, LEARNING_RATE = 4, 2e-3
FRAMES_PER_PUSH = 5  # decoded at once; one works as well
LONGEST = 3600  # s


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Write ``tokens.safetensors``: the codes int32 ``[1, N]`` of every utterance by its id; texts and model beside them."""
    refuse_existing(args.run / "tokens.safetensors")
    records = [record for record in read_manifest(args.manifest) if args.speaker in (None, record.speaker)]
    if len(records) < 2:
        whose = f" of speaker {args.speaker}" if args.speaker else ""
        raise CodecError(f"{args.manifest}: {len(records)} utterances{whose}; at least 2 are needed")
    for record in records:  # what cannot be read is told before the long work
        read_record(record)
    codec, codes = Codec.from_pretrained(args.model), {}
    if codec.num_quantizers > 1:
        raise CodecError(f"{args.model} has {codec.num_quantizers} codes per frame; take a model of one")
    for record in tqdm(records, unit=" utt", disable=None):
        samples, rate = read_record(record)
        gain_db = codec.gain_of(samples, rate)  # whoever speaks, one level
        codes[record.id] = codec.encode(samples, rate, gain_db=gain_db, refine_steps=args.refine_steps)[0].int()
    texts = {record.id: record.text for record in records}
    facts = {"model": args.model, "fingerprint": codec.fingerprint, "texts": json.dumps(texts)}
    args.run.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.run / "tokens.safetensors") as temporary:
        save_file(codes, temporary, facts)
    return {"corpus": summary(records), "with_text": sum(map(bool, texts.values()))}


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise CodecError(f"{path} exists; take another RUN, or remove it with all that was made of it")


class Corpus:
    """What ``prepare`` wrote, and the codec it is of."""

    def __init__(self, run: Path) -> None:
        path = run / "tokens.safetensors"
        if not path.exists():
            raise CodecError(f"{run} has no tokens yet: tts.py prepare makes them")
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        self.codes, self.texts = load_file(path), json.loads(facts["texts"])
        self.codec = Codec.from_pretrained(facts["model"])
        if self.codec.fingerprint != facts["fingerprint"]:
            raise CodecError(f"{path} holds codes of another {facts['model']}; run tts.py prepare again")
        self.layout = TokenLayout(1, self.codec.codebook_size, TEXT_IDS)
        names = sorted(self.codes, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        self.held_out, self.train = names[::HELD_OUT], [name for i, name in enumerate(names) if i % HELD_OUT]

    def prompt(self, text: str) -> Tensor:
        """Ids ``[L]`` of what stands before the codes."""
        return torch.tensor([*text.encode(), self.layout.special_ids["begin"]])

    def batch(self, names: list[str]) -> tuple[Tensor, Tensor]:
        """Ids ``[B, L]``, padded at the end, and for each the next one to learn, -100 where there is none."""
        spoken = [self.layout.to_tokens(self.codes[name].long())[1:] for name in names]
        both = list(zip((self.prompt(self.texts[name]) for name in names), spoken, strict=True))
        ids = [torch.cat([prompt, codes[:-1]]) for prompt, codes in both]
        targets = [F.pad(codes, (len(prompt) - 1, 0), value=-100) for prompt, codes in both]
        padded = nn.utils.rnn.pad_sequence
        return padded(ids, True, self.layout.special_ids["pad"]), padded(targets, True, -100)


def build(corpus: Corpus) -> Any:
    """A LlamaForCausalLM with random weights, in which embedding and head share ``RANK`` numbers for each id.

    An hour of speech meets few of 262,144 codes often enough to learn them from nothing. So the numbers of a code start as
    functions of the codec's own vector that make near codes alike: random Fourier features (Rahimi and Recht 2007).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    size, every_code = corpus.layout.vocab_size, torch.arange(corpus.codec.codebook_size)
    vectors = corpus.codec.embed(every_code[None, None])[0].detach().T  # [V, D]
    table, head = nn.Embedding(size, RANK), nn.Linear(RANK, size)
    head.weight = table.weight
    waves = vectors @ torch.randn(vectors.shape[1], RANK) * (SHARPNESS / vectors.std(dim=0).norm())
    table.weight.data[TEXT_IDS + every_code] = math.sqrt(2) * (waves + 2 * math.pi * torch.rand(RANK)).cos()
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=size, **SHAPE))
    lm.set_input_embeddings(nn.Sequential(table, nn.Linear(RANK, WIDTH)))
    lm.set_output_embeddings(nn.Sequential(nn.Linear(WIDTH, RANK, bias=False), head))
    nn.init.zeros_(lm.lm_head[0].weight)  # at first ids are as likely as the bias says
    return lm


def bits(lm: Any, ids: Tensor, targets: Tensor) -> Tensor:
    """What each of the M targets costs: ``[M]``; the head sees only the places that have one."""
    hidden = lm.model(input_ids=ids).last_hidden_state[targets >= 0]
    return F.cross_entropy(lm.lm_head(hidden), targets[targets >= 0], reduction="none") / math.log(2)


@torch.no_grad()
def mean_bits(lm: Any, corpus: Corpus, names: list[str]) -> float:
    return float(torch.cat([bits(lm, *corpus.batch([name])) for name in names]).mean())


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Write the model, ``lm.safetensors``."""
    refuse_existing(args.run / "lm.safetensors")
    torch.manual_seed(0)
    corpus = Corpus(args.run)
    lm, start = build(corpus), time.process_time()
    seen, unseen = (targets[targets >= 0] for _, targets in map(corpus.batch, (corpus.train, corpus.held_out)))
    counts = seen.bincount(minlength=corpus.layout.vocab_size)
    smooth = (counts + 1) / (counts + 1).sum()
    lm.lm_head[1].bias.data.copy_(smooth.log())  # the first step knows the frequencies
    optimizer = torch.optim.AdamW(lm.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, args.steps, pct_start=0.1)
    for _ in tqdm(range(args.steps), unit=" steps", disable=None):
        chosen = [corpus.train[i] for i in torch.randperm(len(corpus.train))[:BATCH]]
        optimizer.zero_grad()
        bits(lm, *corpus.batch(chosen)).mean().backward()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with atomic_write(args.run / "lm.safetensors") as temporary:
        save_model(lm, str(temporary))
    return {
        "parameters": sum(tensor.numel() for tensor in lm.parameters()),
        "ids_trained_on": len(seen),
        "held_out_ids": len(unseen),
        "share_never_trained_on": float((counts[unseen] == 0).float().mean()),
        "bits_entropy_of_frequencies": float(torch.special.entr(counts / len(seen)).sum()) / math.log(2),
        "bits_held_out_by_frequencies": -float(smooth[unseen].log2().mean()),
        "bits_held_out": mean_bits(lm, corpus, corpus.held_out),
        "bits_trained_on": mean_bits(lm, corpus, corpus.train[: len(corpus.held_out)]),
        "cpu_seconds": time.process_time() - start,
    }


class Speaker:
    """A streamer of ``generate``: what it is handed is spoken into a file at once, and what is no code is passed over."""

    def __init__(self, codec: Codec, writer: AudioWriter, prompt_samples: int) -> None:
        self.codec, self.writer, self.decoder = codec, writer, codec.streaming_decoder()
        self.waiting, self.before = torch.zeros(1, 0, dtype=torch.int64), prompt_samples
        self.start, self.busy, self.first_sound = time.process_time(), 0.0, math.inf  # CPU seconds

    def put(self, ids: Tensor, last: bool = False) -> None:
        """Take ids ``[1, L]``, the prompt, and ``[1]``, one by one."""
        start = time.process_time()
        codes = resync(ids.flatten(), 1, self.codec.codebook_size, TEXT_IDS)  # [1, n]
        self.waiting = torch.cat([self.waiting, codes], dim=-1)
        if last or self.waiting.shape[-1] >= FRAMES_PER_PUSH:
            samples = [self.decoder.push(self.waiting[None])] + ([self.decoder.flush()] if last else [])
            self.waiting = self.waiting[:, :0]
            self.writer.write(torch.cat(samples, dim=-1).flatten().numpy())
            self.before -= sum(block.shape[-1] for block in samples)
        self.busy += time.process_time() - start
        if self.before < 0:
            self.first_sound = min(self.first_sound, time.process_time() - self.start)

    def end(self) -> None:
        self.put(self.waiting[0, :0], last=True)


def generate(args: argparse.Namespace) -> dict[str, Any]:
    """Write ``0.wav``, ``1.wav``, ..."""
    torch.manual_seed(0)
    corpus, rows = Corpus(args.run), []
    if args.text and not any(corpus.texts.values()):
        raise CodecError("--text: the corpus had no texts, so the model cannot read; leave it out")
    if not (0 < args.seconds <= LONGEST and 0 <= args.prompt_seconds <= LONGEST):
        raise CodecError(f"--seconds must be above 0, --prompt-seconds not negative, and both at most {LONGEST}")
    if args.count > len(corpus.held_out):
        raise CodecError(f"--count {args.count}: only {len(corpus.held_out)} utterances are held out")
    if not (args.run / "lm.safetensors").exists():
        raise CodecError(f"{args.run} has no language model yet: tts.py train makes it")
    lm, rate = build(corpus), corpus.codec.frame_rate
    load_model(lm, args.run / "lm.safetensors")
    begin, end, pad = corpus.layout.special_ids.values()
    for number, name in enumerate(corpus.held_out[: args.count]):
        codes = corpus.codes[name][0, : round(args.prompt_seconds * rate)].long() + TEXT_IDS
        prompt = torch.cat([corpus.prompt(args.text or corpus.texts[name]), codes])[None]
        sound = args.run / f"{number}.wav"
        with atomic_write(sound) as file, AudioWriter(file, corpus.codec.sample_rate, name=str(sound)) as writer:
            speaker = Speaker(corpus.codec, writer, len(codes) * corpus.codec.hop_length)
            written = lm.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max(1, round(args.seconds * rate)),
                do_sample=True, top_k=0, eos_token_id=end, pad_token_id=pad, streamer=speaker,  # from all ids
            )[0, prompt.shape[1] :]  # fmt: skip
            valid, ended = int(((written >= TEXT_IDS) & (written < begin)).sum()), int((written == end).any())
            seconds = time.process_time() - speaker.start
        rows.append((len(written), valid, ended, seconds, speaker.busy, speaker.first_sound))
    ids, frames, ended, seconds, decoding, _ = map(sum, zip(*rows, strict=True))
    median = statistics.median(row[-1] for row in rows)
    if not frames:
        raise CodecError("not one code was written; train for more steps")
    return {
        "audio_seconds": frames / rate,
        "valid_ids": (frames + ended) / ids,
        "ended_by_itself": ended / len(rows),
        "cpu_seconds_per_second": seconds / frames * rate,
        "of_it_decoding": decoding / frames * rate,
        "median_cpu_seconds_to_first_sound": median if math.isfinite(median) else None,  # most gave no sound
    }


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for work in (prepare, train, generate):
        command = commands.add_parser(work.__name__, help=work.__doc__)
        command.set_defaults(work=work)
        command.add_argument("run", type=Path, metavar="RUN")
        if work is prepare:
            command.add_argument("--manifest", type=Path, required=True)
            command.add_argument("--speaker", help="default: all of the manifest")
            command.add_argument("--model", default="speech-24khz-single")
            command.add_argument("--refine-steps", type=positive, default=0, help="as for codec-encode")
        elif work is train:
            command.add_argument("--steps", type=positive, default=200, help=f"of {BATCH} utterances")
        else:
            command.add_argument("--text", help="default: that of held-out utterances")
            command.add_argument("--prompt-seconds", type=float, default=0.0, help="of theirs, to go on from")
            command.add_argument("--count", type=positive, default=1, help="files to write")
            command.add_argument("--seconds", type=float, default=5.0, help="the most to write after the prompt")
    args = parser.parse_args(argv)

    def work_and_report() -> int:
        report = args.work(args)
        write_json(args.run / f"{args.work.__name__}.json", report)
        print(json.dumps(report, indent=1))
        return EXIT_OK

    return run_command("tts.py", work_and_report)


if __name__ == "__main__":
    sys.exit(main())
