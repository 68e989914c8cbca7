// Pictures of a signal and of its codes on canvases.

const FFT = 1024, WIDTH = 960, HEIGHT = 192, RANGE_DB = 70;
// a map whose lightness rises evenly, black over purple and orange to pale yellow; the reports use it too
const ANCHORS = [[0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122], [229, 80, 100], [251, 135, 97], [254, 194, 135], [252, 253, 191]];
const HANN = Float32Array.from({ length: FFT }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / FFT));

const toMel = (hz) => 2595 * Math.log10(1 + hz / 700), toHz = (mel) => 700 * (10 ** (mel / 2595) - 1);

/** Discrete Fourier transform in place, radix 2. */
function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]]; }
  }
  for (let size = 2; size <= n; size *= 2)
    for (let k = 0; k < size / 2; k++) {
      const c = Math.cos((2 * Math.PI * k) / size), s = -Math.sin((2 * Math.PI * k) / size);
      for (let a = k; a < n; a += size) {
        const b = a + size / 2, x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c;
        re[b] = re[a] - x; im[b] = im[a] - y; re[a] += x; im[a] += y;
      }
    }
}

/** Draw the spectrogram on a mel scale; the brightest is what a sine 12 dB below full scale has, as loud vowels do. */
export function spectrogram(canvas, samples, sampleRate) {
  [canvas.width, canvas.height] = [WIDTH, HEIGHT];
  const context = canvas.getContext("2d"), image = context.createImageData(WIDTH, HEIGHT);
  const top = toMel(sampleRate / 2);
  const bins = Array.from({ length: HEIGHT + 1 }, (_, y) => (toHz((top * (HEIGHT - y)) / HEIGHT) / sampleRate) * FFT);
  for (let x = 0; x < WIDTH; x++) {
    const start = Math.round(((x + 0.5) / WIDTH) * samples.length) - FFT / 2;
    const re = HANN.map((h, i) => h * (samples[start + i] ?? 0)), im = new Float32Array(FFT);
    fft(re, im);
    for (let y = 0; y < HEIGHT; y++) {
      let power = 1e-12;
      for (let bin = Math.floor(bins[y + 1]); bin <= bins[y]; bin++) power = Math.max(power, re[bin] ** 2 + im[bin] ** 2);
      const level = (10 * Math.log10(power) - 36 + RANGE_DB) / RANGE_DB; // a sine of full scale has 48 dB here
      const place = Math.max(0, Math.min(0.999, level)) * (ANCHORS.length - 1), low = Math.floor(place);
      const colour = ANCHORS[low].map((value, c) => value + (place - low) * (ANCHORS[low + 1][c] - value));
      image.data.set([...colour, 255], 4 * (y * WIDTH + x));
    }
  }
  context.putImageData(image, 0, 0);
}

/** Draw every code as a cell: frames from left to right, stages from top to bottom, those beyond count pale. */
export function codesPicture(canvas, codes, count) {
  const [stages, frames] = [codes.length, codes[0].length];
  [canvas.width, canvas.height] = [frames, stages];
  const context = canvas.getContext("2d");
  for (let k = 0; k < stages; k++)
    for (let n = 0; n < frames; n++) {
      const mix = (codes[k][n] * 0.618034) % 1; // neighbouring codes have nothing in common, so their colours are far apart
      context.fillStyle = `hsl(${225 - 35 * mix} 45% ${28 + 55 * mix}% / ${k < count ? 1 : 0.15})`;
      context.fillRect(n, k, 1, 1);
    }
}
