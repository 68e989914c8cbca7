// A model in the browser: the two graphs that codec-export wrote, run by onnxruntime-web on one thread beside the page's own.

let ort; // the package

export class Codec {
  /** @param {string} folder with encoder.onnx, decoder.onnx and config.json, and a slash at its end */
  static async load(folder) {
    const file = async (name) => {
      const answer = await fetch(folder + name);
      if (!answer.ok) throw new Error(`there is no model/${name}: run codec-export default recipes/web/model`);
      return answer;
    };
    ort ??= await import("./vendor/ort.wasm.bundle.min.mjs").catch(() => {
      throw new Error("there is no onnxruntime-web in vendor/: run python recipes/web/fetch.py");
    });
    ort.env.wasm.numThreads = 1; // more would need headers that a plain file server does not send
    ort.env.wasm.proxy = true; // in a worker, so that the page stays alive meanwhile
    const codec = new Codec();
    codec.config = await (await file("config.json")).json();
    for (const name of ["encoder", "decoder"])
      codec[name] = await ort.InferenceSession.create(new Uint8Array(await (await file(`${name}.onnx`)).arrayBuffer()));
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
    const { codes } = await this.encoder.run({ waveform });
    const [, K, N] = codes.dims;
    return Array.from({ length: K }, (_, k) => Uint32Array.from(codes.data.subarray(k * N, (k + 1) * N), Number));
  }

  /** Samples (a Float32Array, N * hop_length) of the first so many codes per frame. */
  async decode(codes, count) {
    const K = this.config.num_quantizers, N = codes[0].length;
    const all = new BigInt64Array(K * N).fill(-1n); // -1: no code in this stage
    codes.slice(0, count).forEach((stage, k) => all.set(Array.from(stage, BigInt), k * N));
    return (await this.decoder.run({ codes: new ort.Tensor("int64", all, [1, K, N]) })).waveform.data;
  }
}
