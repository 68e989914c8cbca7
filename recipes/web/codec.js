// A model in the browser: the two graphs that codec-export wrote, run by onnxruntime-web on one thread beside the page's own.

import { CodecError } from "./errors.js";

const FATAL_ONLY = { logSeverityLevel: 4 }; // on the console: errors are thrown, too
const ANEW = "write the model's files anew with codec-export";
let ort; // the package

/** What comes of a file of the model; where nothing does, the error's own words would not say what to do. */
async function usable(name, promise) {
  try {
    return await promise;
  } catch (error) {
    const message = String(error?.message ?? error);
    if (message.startsWith("no available backend"))
      throw new CodecError("onnxruntime-web cannot be started: run python recipes/web/fetch.py again"); // it fills the console itself
    throw new CodecError(`${name} cannot be used (${message}): ${ANEW}`);
  }
}

export class Codec {
  /** @param {string} folder with encoder.onnx, decoder.onnx and config.json, and a slash at its end */
  static async load(folder) {
    const file = async (name) => {
      const answer = await fetch(folder + name, { cache: "no-store" }); // codec-export may have written another, even one of an older date
      if (!answer.ok) throw new CodecError(`there is no model/${name}: run codec-export default recipes/web/model`);
      return answer;
    };
    ort ??= await import("./vendor/ort.wasm.bundle.min.mjs").catch(() => {
      throw new CodecError("there is no onnxruntime-web in vendor/: run python recipes/web/fetch.py");
    });
    ort.env.wasm.numThreads = 1; // more would need headers that a plain file server does not send
    ort.env.wasm.proxy = true; // in a worker, so that the page stays alive meanwhile
    const codec = new Codec();
    codec.config = await usable("config.json", (await file("config.json")).json());
    for (const name of ["encoder", "decoder"]) {
      const graph = new Uint8Array(await (await file(`${name}.onnx`)).arrayBuffer());
      codec[name] = await usable(`${name}.onnx`, ort.InferenceSession.create(graph, FATAL_ONLY));
    }
    return codec;
  }

  /** Of the first so many quantizers, in bit/s. */
  bitrate(count) {
    const { sample_rate, hop_length, codebook_size } = this.config;
    return (sample_rate / hop_length) * count * Math.log2(codebook_size);
  }

  /** What a .codes file says of the first so many codes per frame of a signal at the model's rate. */
  header(numSamples, count, gainDb) {
    const { name, fingerprint, sample_rate, hop_length, codebook_size } = this.config;
    const rates = { sampleRate: sample_rate, originalSampleRate: sample_rate, hopLength: hop_length };
    return { model: name, fingerprint: fingerprint.slice(0, 32), ...rates, numSamples, numQuantizers: count, codebookSize: codebook_size, gainDb };
  }

  /**
   * @param {Float32Array} samples at the model's rate
   * @returns {Promise<Uint32Array[]>} K arrays of N codes
   */
  async encode(samples) {
    const waveform = new ort.Tensor("float32", samples.slice(), [1, 1, samples.length]); // a copy, as the worker takes it away
    const { codes } = await usable("encoder.onnx", this.encoder.run({ waveform }, FATAL_ONLY));
    const [, K, N] = codes.dims;
    if (K !== this.config.num_quantizers) throw new CodecError(`encoder.onnx and config.json are of different models: ${ANEW}`);
    return Array.from({ length: K }, (_, k) => Uint32Array.from(codes.data.subarray(k * N, (k + 1) * N), Number));
  }

  /** Samples (a Float32Array, N * hop_length) of the first so many codes per frame. */
  async decode(codes, count) {
    const K = this.config.num_quantizers, N = codes[0].length;
    const all = new BigInt64Array(K * N).fill(-1n); // -1: no code in this stage
    codes.slice(0, count).forEach((stage, k) => all.set(Array.from(stage, BigInt), k * N));
    const feeds = { codes: new ort.Tensor("int64", all, [1, K, N]) };
    return (await usable("decoder.onnx", this.decoder.run(feeds, FATAL_ONLY))).waveform.data;
  }
}
