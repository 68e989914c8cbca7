// The .codes file: versions 1 and 2 are read, version 2 is written. The bytes are described in codec/container.py.

import { CodecError } from "./errors.js";

const UNKNOWN = 2n ** 64n - 1n; // samples, where they are not known before the end
const BLOCK_FRAMES = 256;
const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let i = 0; i < 8; i++) byte = (byte >>> 1) ^ (byte & 1 && 0xedb88320);
  return byte;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC[(crc ^ byte) & 255];
  return ~crc >>> 0;
}

const bitsPerCode = (header) => 32 - Math.clz32(header.codebookSize - 1);

/** Frames of so many samples (a BigInt) of the original. */
function framesOf({ sampleRate, originalSampleRate, hopLength }, samples) {
  const up = (a, b) => (a + b - 1n) / b;
  return Number(up(up(samples * BigInt(sampleRate), BigInt(originalSampleRate)), BigInt(hopLength)));
}

/**
 * Header and codes of a file.
 * @param {ArrayBuffer} buffer
 * @returns {{header: object, codes: Uint32Array[]}} K arrays of N codes
 * @throws {CodecError} not a .codes file, of a newer version, truncated or damaged
 */
export function read(buffer) {
  const bytes = new Uint8Array(buffer), view = new DataView(buffer);
  let at = 0;
  const take = (count) => {
    if (at + count > bytes.length) throw new CodecError("the file is truncated");
    return bytes.subarray(at, (at += count));
  };
  const checked = (start, what) => { // that the bytes from start on are followed by their checksum
    const body = bytes.subarray(start, at);
    take(4);
    if (crc32(body) !== view.getUint32(at - 4, true)) throw new CodecError(`${what} is damaged (its checksum is wrong)`);
    return body;
  };

  if (String.fromCharCode(...bytes.subarray(0, 4)) !== "SVQC") throw new CodecError("this is not a .codes file");
  const version = bytes[4] ?? 2; // of a file that ends there
  if (version !== 1 && version !== 2) throw new CodecError(`this is a .codes file of version ${version}; this page reads 1 and 2`);
  take(version === 1 ? 45 : 51);
  const nameLength = bytes[at - 1], nameStart = at;
  take(nameLength + (version === 1 ? 0 : view.getUint16(48, true)));
  checked(0, "the header");
  const header = {
    model: new TextDecoder().decode(bytes.subarray(nameStart, nameStart + nameLength)),
    fingerprint: Array.from(bytes.subarray(5, 21), (byte) => byte.toString(16).padStart(2, "0")).join(""),
    sampleRate: view.getUint32(21, true),
    originalSampleRate: view.getUint32(25, true),
    numSamples: view.getBigUint64(29, true),
    hopLength: view.getUint16(37, true),
    numQuantizers: bytes[39],
    codebookSize: view.getUint32(40, true),
    gainDb: version === 1 ? 0 : view.getFloat32(44, true),
  };
  if (![header.sampleRate, header.originalSampleRate, header.hopLength, header.numQuantizers].every(Boolean) || header.codebookSize < 2
      || !(Math.abs(header.gainDb) <= 200))
    throw new CodecError("the header holds numbers that cannot be");

  const flat = []; // frame by frame, and within a frame stage by stage
  const block = (frames) => {
    const start = at, bits = bitsPerCode(header), count = frames * header.numQuantizers;
    take(Math.ceil((count * bits) / 8));
    const packed = checked(start, "a block");
    const bit = (i) => (packed[i >> 3] >> (7 - (i & 7))) & 1;
    for (let i = 0; i < count; i++) {
      let code = 0;
      for (let j = 0; j < bits; j++) code = 2 * code + bit(i * bits + j);
      if (code >= header.codebookSize) throw new CodecError("a block holds codes beyond the codebook");
      flat.push(code);
    }
    for (let i = count * bits; i < 8 * packed.length; i++) if (bit(i)) throw new CodecError("a block holds bits beyond its codes");
  };
  if (version === 2 && header.numSamples === UNKNOWN) {
    for (;;) {
      const [a, b, c] = take(3), frames = a === b || a === c ? a : b;
      if (frames !== a && b !== c) throw new CodecError("the head of a block is damaged");
      if (!frames) break;
      block(frames);
    }
    const start = at;
    take(8);
    checked(start, "the end");
    header.numSamples = view.getBigUint64(start, true);
  }
  const total = framesOf(header, header.numSamples), size = version === 1 ? 1024 : BLOCK_FRAMES;
  let frames = flat.length / header.numQuantizers;
  if (frames > total) throw new CodecError("the end is damaged (it says less than there was)");
  for (; frames < total; frames += size) block(Math.min(size, total - frames));
  if (at < bytes.length) throw new CodecError("bytes follow the last block");
  header.numSamples = Number(header.numSamples);
  const K = header.numQuantizers;
  return { header, codes: Array.from({ length: K }, (_, k) => Uint32Array.from({ length: total }, (_, n) => flat[n * K + k])) };
}

/**
 * The bytes of a file.
 * @param {object} header as read() gives it; numQuantizers and codes must agree
 * @param {Uint32Array[]} codes K arrays of N codes, N as the header's samples say
 */
export function write(header, codes) {
  const name = new TextEncoder().encode(header.model), bits = bitsPerCode(header), N = framesOf(header, BigInt(header.numSamples));
  const head = new Uint8Array(51 + name.length), view = new DataView(head.buffer);
  head.set([0x53, 0x56, 0x51, 0x43, 2, ...header.fingerprint.match(/../g).map((hex) => parseInt(hex, 16))]);
  view.setUint32(21, header.sampleRate, true);
  view.setUint32(25, header.originalSampleRate, true);
  view.setBigUint64(29, BigInt(header.numSamples), true);
  view.setUint16(37, header.hopLength, true);
  head[39] = header.numQuantizers;
  view.setUint32(40, header.codebookSize, true);
  view.setFloat32(44, header.gainDb, true);
  head[50] = name.length;
  head.set(name, 51);
  const parts = [head];
  for (let start = 0; start < N; start += BLOCK_FRAMES) {
    const stop = Math.min(start + BLOCK_FRAMES, N);
    const packed = new Uint8Array(Math.ceil(((stop - start) * codes.length * bits) / 8));
    let i = 0;
    for (let n = start; n < stop; n++)
      for (const stage of codes) for (let j = bits - 1; j >= 0; j--, i++) packed[i >> 3] |= ((stage[n] >>> j) & 1) << (7 - (i & 7));
    parts.push(packed);
  }
  const file = new Uint8Array(parts.reduce((total, part) => total + part.length + 4, 0)), out = new DataView(file.buffer);
  let at = 0;
  for (const part of parts) {
    file.set(part, at);
    out.setUint32((at += part.length), crc32(part), true);
    at += 4;
  }
  return file;
}
