// The page: what is recorded, opened or dropped becomes a clip; a clip is heard at a chosen bitrate, or as it was.

import { gainOf, record, samplesOf, wav } from "./audio.js";
import { Codec } from "./codec.js";
import { read, write } from "./container.js";
import { CodecError } from "./errors.js";
import { codesPicture, spectrogram } from "./pictures.js";

const LONGEST = 60; // seconds: a page computes a clip in one piece
const $ = (id) => document.getElementById(id);
const player = $("player"), inputs = [$("record"), $("file"), $("example")];
const say = (text) => { $("status").textContent = text; };
const size = (bytes) => (bytes < 1e3 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const kbps = (count) => String(Number((codec.bitrate(count) / 1000).toFixed(2)));

let codec; // the model
let clip; // { title, samples (null of a .codes file), codes, numSamples, gainDb, sounds: by number of quantizers, 0 the original }
let stopRecording = null;
let busy = 0; // how many things are being done or wait for their turn
let last = Promise.resolve(); // the latest of them

/** Do what a person asked for, after all that was asked for before; what they can mend is said on the page. */
function work(task) {
  const focused = document.activeElement;
  busy += 1;
  inputs.forEach((input) => { input.disabled = true; });
  last = last.then(task).catch((error) => {
    say(`That did not work: ${error.message}`);
    if (!(error instanceof CodecError || error instanceof DOMException)) reportError(error);
  }).finally(() => {
    busy -= 1;
    inputs.forEach((input) => { input.disabled = !codec || busy > 0; });
    $("result").inert = false;
    if (document.activeElement === document.body) focused?.focus({ preventScroll: true }); // a button that is disabled loses it
  });
}

function tooLong(seconds) {
  if (seconds > LONGEST) throw new CodecError(`it is longer than ${LONGEST} s; the command line takes any length`);
}

async function openFile(blob, title) {
  player.pause();
  $("result").inert = true; // it is the clip before until all of the new one is there
  say("Reading …");
  if (!blob.size) throw new CodecError("it holds no sound");
  const buffer = await blob.arrayBuffer();
  const isCodes = new TextDecoder().decode(buffer.slice(0, 4)) === "SVQC";
  await (isCodes ? openCodes(buffer, title) : openAudio(buffer, title));
}

async function openAudio(buffer, title) {
  const rate = codec.config.sample_rate, samples = await samplesOf(buffer, rate);
  if (!samples.length) throw new CodecError("it holds no sound");
  tooLong(samples.length / rate);
  say("Encoding …");
  const start = performance.now(), gainDb = gainOf(samples, rate), gain = 10 ** (gainDb / 20);
  const codes = await codec.encode(samples.map((x) => x / gain));
  await show({ title, samples, codes, numSamples: samples.length, gainDb, encoding: (performance.now() - start) / 1000 });
}

async function openCodes(buffer, title) {
  const { header, codes } = read(buffer), { config } = codec;
  if (!config.fingerprint.startsWith(header.fingerprint))
    throw new CodecError(`its codes are those of the model ${header.model}; this page has ${config.name}`);
  if (header.sampleRate !== config.sample_rate || header.hopLength !== config.hop_length
      || header.codebookSize !== config.codebook_size || codes.length > config.num_quantizers)
    throw new CodecError("its header contradicts the model that it names");
  if (!codes[0].length) throw new CodecError("it holds no sound");
  tooLong(header.numSamples / header.originalSampleRate);
  const numSamples = Math.ceil((header.numSamples * header.sampleRate) / header.originalSampleRate);
  await show({ title, samples: null, codes, numSamples, gainDb: header.gainDb });
}

/** Put a new clip on the page once it can be heard. */
async function show(next) {
  const choices = next.codes.map((_, k) => k + 1), sounds = new Map([[choices.length, await decoded(next, choices.length)]]);
  for (const { url } of clip?.sounds.values() ?? []) URL.revokeObjectURL(url);
  clip = { ...next, sounds };
  $("rates").replaceChildren(...[...(clip.samples ? [0] : []), ...choices].map((count) => {
    const label = document.createElement("label"), radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "rate", value: count, checked: count === choices.length });
    radio.addEventListener("change", () => work(() => listen(count)));
    label.append(radio, count ? kbps(count) : "original");
    return label;
  }));
  $("original").hidden = !clip.samples;
  if (clip.samples) spectrogram($("original").querySelector("canvas"), clip.samples, codec.config.sample_rate);
  player.removeAttribute("src");
  player.load(); // at its beginning
  await listen(choices.length);
  $("result").hidden = false;
}

/** What is heard of a clip from its first so many codes per frame, and how many seconds that took; 0 is the original. */
async function decoded({ codes, samples: original, numSamples, gainDb }, count) {
  say("Decoding …");
  const start = performance.now(), gain = 10 ** (gainDb / 20);
  const samples = count ? (await codec.decode(codes, count)).slice(0, numSamples).map((x) => gain * x) : original;
  return { samples, url: URL.createObjectURL(wav(samples, codec.config.sample_rate)), decoding: (performance.now() - start) / 1000 };
}

const chosen = (count) => $("rates").querySelector(":checked").value === String(count);

/** Play the clip from its first so many codes per frame, from where it is, unless something else is chosen meanwhile. */
async function listen(count) {
  if (chosen(count) && !clip.sounds.has(count)) clip.sounds.set(count, await decoded(clip, count));
  if (!chosen(count)) return;
  const rate = codec.config.sample_rate, seconds = clip.numSamples / rate;
  const { samples, url, decoding } = clip.sounds.get(count), { currentTime, paused } = player;
  player.src = url;
  player.currentTime = currentTime;

  const pcm = 2 * clip.numSamples, faster = (time) => `${(seconds / time).toPrecision(2)} × real time`;
  const file = count ? write(codec.header(clip.numSamples, count, clip.gainDb), clip.codes.slice(0, count)) : null;
  const facts = { Length: `${seconds.toFixed(1)} s`, "as 16-bit WAV": size(pcm) };
  if (file) facts["as .codes"] = size(file.length);
  if (file?.length < pcm) facts.smaller = `${Math.round(pcm / file.length)} ×`;
  $("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const [fact, dt, dd] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
    dt.textContent = name;
    dd.textContent = value;
    fact.append(dt, dd);
    return fact;
  }));
  $("decoded").hidden = $("codes").hidden = !count;
  $("decoded").querySelector("figcaption").textContent = `Decoded from ${kbps(count)} kbit/s`;
  if (count) spectrogram($("decoded").querySelector("canvas"), samples, rate);
  const frameRate = rate / codec.config.hop_length, bits = Math.log2(codec.config.codebook_size);
  $("codes").querySelector("figcaption").textContent = `Codes: ${frameRate} frames a second, ${count} × ${bits} bits each`;
  codesPicture($("codes").querySelector("canvas"), clip.codes, count);
  $("save-codes").hidden = !file;
  if (file) {
    URL.revokeObjectURL($("save-codes").href);
    const name = `${clip.title}-${kbps(count)}kbps.codes`;
    Object.assign($("save-codes"), { href: URL.createObjectURL(new Blob([file])), download: name, textContent: `Download .codes, ${size(file.length)}` });
  }
  Object.assign($("save-wav"), { href: url, download: `${clip.title}${count ? `-${kbps(count)}kbps` : ""}.wav` });
  const speeds = [clip.encoding && `encoded at ${faster(clip.encoding)}`, count && `decoded at ${faster(decoding)}`];
  say(`${clip.title}: ${speeds.filter(Boolean).join(", ")}`);
  if (!paused) await player.play().catch((error) => { if (error.name !== "AbortError") throw error; }); // that is a pause meanwhile
}

$("record").addEventListener("click", () => {
  const recording = (on) => {
    $("record").textContent = on ? "Stop" : "Record";
    $("record").classList.toggle("on", on);
  };
  if (stopRecording) { stopRecording(); return; }
  work(async () => {
    player.pause(); // or the microphone hears it,
    $("result").inert = true; // and so that nobody starts it again
    const stop = await record();
    recording(true);
    say("Recording … speak, then press Stop");
    $("record").disabled = false;
    $("record").focus();
    const pressed = new Promise((resolve) => { stopRecording = resolve; });
    const limit = setTimeout(stopRecording, (LONGEST - 1) * 1000);
    await pressed;
    clearTimeout(limit);
    stopRecording = null;
    recording(false);
    $("record").disabled = true;
    await openFile(await stop(), "recording");
  });
});
$("example").addEventListener("click", () => work(async () => {
  const answer = await fetch("vendor/example.wav");
  if (!answer.ok) throw new CodecError("there is no vendor/example.wav: run python recipes/web/fetch.py");
  await openFile(await answer.blob(), "example");
}));
function openOnly(files) {
  const [file] = files;
  if (busy) say("The page is busy: open the file again afterwards.");
  else if (files.length !== 1) say("Please drop one file at a time, audio or .codes.");
  else if (codec) work(() => openFile(file, file.name.replace(/\.[^.]*$/, ""))); // or the status says why there is none
}
$("file").addEventListener("change", ({ target }) => { openOnly(target.files); target.value = ""; });
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  openOnly(event.dataTransfer.files);
});

for (const picture of document.querySelectorAll(".picture"))
  picture.addEventListener("click", (event) => {
    player.currentTime = (event.offsetX / picture.clientWidth) * (clip.numSamples / codec.config.sample_rate); // it may not know its duration yet
  });
(function follow() {
  $("result").style.setProperty("--at", player.currentTime / player.duration || 0);
  requestAnimationFrame(follow);
})();

$("record").hidden = !navigator.mediaDevices; // browsers give it to the loopback and to https only
work(async () => {
  codec = await Codec.load("model/");
  $("model").textContent = codec.config.name;
  say("Ready.");
});
