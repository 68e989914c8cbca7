// Sound in and out: files that the browser can read, the microphone, and WAV.

import { CodecError } from "./errors.js";

/** Mono samples of an audio file at a sample rate. */
export async function samplesOf(buffer, sampleRate) {
  const audio = await new OfflineAudioContext(1, 1, sampleRate).decodeAudioData(buffer).catch(() => {
    throw new CodecError("this browser does not read it as audio");
  });
  const mono = new Float32Array(audio.length);
  for (let c = 0; c < audio.numberOfChannels; c++)
    audio.getChannelData(c).forEach((x, i) => { mono[i] += x / audio.numberOfChannels; });
  return mono;
}

/** By how many dB mono samples are louder than speech as it is encoded: gain_of in codec/level.py. */
export function gainOf(samples, sampleRate) {
  const size = Math.floor(sampleRate / 50), powers = new Float64Array(Math.ceil(samples.length / size));
  let peak = 0;
  samples.forEach((x, i) => {
    powers[Math.floor(i / size)] += (x * x) / size;
    peak = Math.max(peak, Math.abs(x));
  });
  if (!(peak <= 8)) throw new CodecError("its samples are no sound: NaN, infinity, or far beyond full scale; repair it first");
  const loudest = Math.max(...powers), active = powers.filter((power) => power >= loudest / 1000);
  const level = 10 * Math.log10(active.reduce((sum, power) => sum + power) / active.length);
  return peak ? Math.max(level + 28, 20 * Math.log10(peak), -60) : 0;
}

/** Record the microphone as it is, without what browsers do to calls; returns a function that stops and gives the file. */
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { autoGainControl: false, echoCancellation: false, noiseSuppression: false } });
  const recorder = new MediaRecorder(stream, { audioBitsPerSecond: 256000 }), parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  const stopped = new Promise((done) => { recorder.onstop = done; });
  recorder.start();
  return async () => {
    recorder.stop();
    await stopped;
    stream.getTracks().forEach((track) => track.stop()); // or the browser goes on listening
    return new Blob(parts);
  };
}

/** A WAV file of 16 bits. */
export function wav(samples, sampleRate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"), text(8, "WAVEfmt "), text(36, "data");
  for (const [at, value] of [[4, view.byteLength - 8], [16, 16], [24, sampleRate], [28, 2 * sampleRate], [40, 2 * samples.length]])
    view.setUint32(at, value, true);
  for (const [at, value] of [[20, 1], [22, 1], [32, 2], [34, 16]]) view.setUint16(at, value, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, x))), true));
  return new Blob([view], { type: "audio/wav" });
}
