/**
 * Write a GIF: frames of one size, in one palette, for ever again.
 *
 *     gif([{pixels, delay}, ...], width, height);         // pixels: RGBA bytes; delay in ms
 */

const LEVELS = 6; // a colour: 6 x 6 x 6, and greys between them
const GREYS = 40;
const BITS = 8;

/** 256 colours, three bytes each. */
export function palette() {
  const colours = [];
  const level = (i) => Math.round((255 * i) / (LEVELS - 1));
  for (let r = 0; r < LEVELS; r++) {
    for (let g = 0; g < LEVELS; g++) {
      for (let b = 0; b < LEVELS; b++) colours.push(level(r), level(g), level(b));
    }
  }
  for (let i = 0; i < GREYS; i++) colours.push(...Array(3).fill(Math.round((255 * i) / (GREYS - 1))));
  return Uint8Array.from(colours);
}

/** RGBA bytes -> numbers of the nearest colours of the palette. */
export function indexed(rgba) {
  const step = 255 / (LEVELS - 1);
  return Uint8Array.from({length: rgba.length / 4}, (_, i) => {
    const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (Math.max(r, g, b) - Math.min(r, g, b) < 10) {
      return LEVELS ** 3 + Math.round((((r + g + b) / 3) * (GREYS - 1)) / 255);
    }
    return (Math.round(r / step) * LEVELS + Math.round(g / step)) * LEVELS + Math.round(b / step);
  });
}

/** Lempel, Ziv and Welch as GIF has it: codes of growing width, lowest bit first. */
export function packed(values) {
  const clear = 1 << BITS;
  const bytes = [];
  let held = 0;
  let count = 0;
  let width = BITS + 1;
  const put = (code) => {
    held |= code << count;
    count += width;
    while (count >= 8) {
      bytes.push(held & 255);
      held >>>= 8;
      count -= 8;
    }
  };
  let known = new Map();
  let next = clear + 2;
  put(clear);
  let prefix = values[0];
  for (let i = 1; i < values.length; i++) {
    const key = (prefix << BITS) | values[i];
    const code = known.get(key);
    if (code !== undefined) {
      prefix = code;
      continue;
    }
    put(prefix);
    if (next === 4096) {
      put(clear);
      known = new Map();
      next = clear + 2;
      width = BITS + 1;
    } else {
      if (next === 1 << width) width += 1;
      known.set(key, next++);
    }
    prefix = values[i];
  }
  put(prefix);
  put(clear + 1);
  if (count) bytes.push(held & 255);
  return bytes;
}

export function gif(frames, width, height) {
  const word = (x) => [x & 255, x >> 8];
  const text = (words) => [...words].map((one) => one.charCodeAt(0));
  const bytes = [
    ...text("GIF89a"), ...word(width), ...word(height), 0xf7, 0, 0, ...palette(),
    0x21, 0xff, 11, ...text("NETSCAPE2.0"), 3, 1, 0, 0, 0,
  ];
  for (const {pixels, delay} of frames) {
    bytes.push(0x21, 0xf9, 4, 0, ...word(Math.max(2, Math.round(delay / 10))), 0, 0);
    bytes.push(0x2c, 0, 0, 0, 0, ...word(width), ...word(height), 0, BITS);
    const data = packed(indexed(pixels));
    for (let i = 0; i < data.length; i += 255) {
      const block = data.slice(i, i + 255);
      bytes.push(block.length, ...block);
    }
    bytes.push(0);
  }
  bytes.push(0x3b);
  return Uint8Array.from(bytes);
}
