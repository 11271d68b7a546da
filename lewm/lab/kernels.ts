// The arithmetic of the tiny model, for WebAssembly with SIMD: one thread, float32, no allocation.
//
// An address is a byte offset into the memory that model.js owns; matrices are row-major float32.
// A stride is the bytes from one row to the next; 0 repeats one row, so that what is the same for
// all candidates is kept once. `make kernels` compiles this file to kernels.wasm.

const GELU: i32 = 1;
const SILU: i32 = 2;

// Eight floats: a last panel that is not full is computed here, then copied.
const spare: usize = memory.data(32, 16);

/** Where free memory begins. */
export function free(): usize {
  return __heap_base;
}

// ------------------------------------------------------------------ functions of four numbers each

// @ts-ignore: decorator
@inline
function splat(x: f32): v128 {
  return f32x4.splat(x);
}

// a * x + b
// @ts-ignore: decorator
@inline
function step(a: v128, x: v128, b: f32): v128 {
  return f32x4.add(f32x4.mul(a, x), splat(b));
}

/** e^x: 2^n times the series of the rest, which is at most ln(2) / 2. */
function exp(value: v128): v128 {
  const x = f32x4.max(f32x4.min(value, splat(88)), splat(-87));
  const n = f32x4.nearest(f32x4.mul(x, splat(1.4426950408889634)));
  // ln 2 in two parts: the first has few bits, so that n times it is exact
  let r = f32x4.sub(x, f32x4.mul(n, splat(0.693359375)));
  r = f32x4.sub(r, f32x4.mul(n, splat(-0.00021219444005469057)));
  let p = step(splat(1.0 / 5040.0), r, 1.0 / 720.0);
  p = step(p, r, 1.0 / 120.0);
  p = step(p, r, 1.0 / 24.0);
  p = step(p, r, 1.0 / 6.0);
  p = step(p, r, 0.5);
  p = step(p, r, 1);
  p = step(p, r, 1);
  const power = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.mul(p, power);
}

/**
 * The error function: x P(x^2) / Q(x^2), and 1 from 3.93 on; off by 5e-7 at most.
 *
 * The coefficients are a fit to erf in double precision: least squares, weighted anew until the
 * largest relative error stops falling (2e-8 before rounding).
 */
function erf(value: v128): v128 {
  const x = f32x4.max(f32x4.min(value, splat(3.93)), splat(-3.93));
  const u = f32x4.mul(x, x);
  let p = step(splat(2.0419220163603313e-06), u, 0.0002847729774657637);
  p = step(p, u, 0.0037786923348903656);
  p = step(p, u, 0.05278739333152771);
  p = step(p, u, 0.19076460599899292);
  p = step(p, u, 1.1283791065216064);
  let q = step(splat(3.800170452450402e-05), u, 0.001164962537586689);
  q = step(q, u, 0.014995607547461987);
  q = step(q, u, 0.11424925923347473);
  q = step(q, u, 0.5023934245109558);
  q = step(q, u, 1);
  return f32x4.div(f32x4.mul(x, p), q);
}

// @ts-ignore: decorator
@inline
function activate(x: v128, activation: i32): v128 {
  if (activation == GELU) {
    const half = f32x4.mul(x, splat(0.5));
    return f32x4.add(half, f32x4.mul(half, erf(f32x4.mul(x, splat(0.7071067811865476)))));
  }
  if (activation == SILU) return f32x4.div(x, f32x4.add(splat(1), exp(f32x4.neg(x))));
  return x;
}

// @ts-ignore: decorator
@inline
function sum(x: v128): f32 {
  return (
    f32x4.extract_lane(x, 0) +
    f32x4.extract_lane(x, 1) +
    (f32x4.extract_lane(x, 2) + f32x4.extract_lane(x, 3))
  );
}

function dot(a: usize, b: usize, width: i32): f32 {
  let total = splat(0);
  let i = 0;
  for (; i + 4 <= width; i += 4) {
    const at = (<usize>i) << 2;
    total = f32x4.add(total, f32x4.mul(v128.load(a + at), v128.load(b + at)));
  }
  let rest = sum(total);
  for (; i < width; i++) {
    const at = (<usize>i) << 2;
    rest += load<f32>(a + at) * load<f32>(b + at);
  }
  return rest;
}

// y += share * x
function accumulate(y: usize, x: usize, share: f32, width: i32): void {
  const s = splat(share);
  let i = 0;
  for (; i + 4 <= width; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(y + at, f32x4.add(v128.load(y + at), f32x4.mul(s, v128.load(x + at))));
  }
  for (; i < width; i++) {
    const at = (<usize>i) << 2;
    store<f32>(y + at, load<f32>(y + at) + share * load<f32>(x + at));
  }
}

function softmax(x: usize, n: i32): void {
  let most: f32 = -Infinity;
  for (let i = 0; i < n; i++) most = max<f32>(most, load<f32>(x + ((<usize>i) << 2)));
  const shift = splat(most);
  let total: f32 = 0;
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    const at = x + ((<usize>i) << 2);
    const e = exp(f32x4.sub(v128.load(at), shift));
    v128.store(at, e);
    total += sum(e);
  }
  for (; i < n; i++) {
    const at = x + ((<usize>i) << 2);
    const e = f32x4.extract_lane(exp(splat(load<f32>(at) - most)), 0);
    store<f32>(at, e);
    total += e;
  }
  for (i = 0; i < n; i++) {
    const at = x + ((<usize>i) << 2);
    store<f32>(at, load<f32>(at) / total);
  }
}

// ---------------------------------------------------------------------------------- affine products

function put(y: usize, left: i32, low: v128, high: v128, activation: i32): void {
  if (left >= 8) {
    v128.store(y, activate(low, activation));
    v128.store(y + 16, activate(high, activation));
    return;
  }
  v128.store(spare, activate(low, activation));
  v128.store(spare + 16, activate(high, activation));
  for (let i = 0; i < left; i++) {
    const at = (<usize>i) << 2;
    store<f32>(y + at, load<f32>(spare + at));
  }
}

/**
 * (rows, inner) -> (rows, outer): y = activation(x W^T + b).
 *
 * The weights lie in panels of 8 outputs, (inner, 8) each; the last is filled up with zeros, and so
 * is the bias.
 */
export function linear(
  x: usize, rows: i32, inner: i32, weight: usize, bias: usize, y: usize, outer: i32, activation: i32,
): void {
  const xs = (<usize>inner) << 2;
  const ys = (<usize>outer) << 2;
  for (let o = 0; o < outer; o += 8) {
    const panel = weight + (<usize>o) * xs;
    const b0 = v128.load(bias + ((<usize>o) << 2));
    const b1 = v128.load(bias + ((<usize>o) << 2) + 16);
    const left = outer - o;
    let from = x;
    let to = y + ((<usize>o) << 2);
    let row = 0;
    for (; row + 4 <= rows; row += 4) {
      let a0 = b0, a1 = b1, c0 = b0, c1 = b1, d0 = b0, d1 = b1, e0 = b0, e1 = b1;
      let w = panel;
      const end = from + xs;
      for (let at = from; at < end; at += 4, w += 32) {
        const w0 = v128.load(w), w1 = v128.load(w, 16);
        const p = v128.load32_splat(at);
        a0 = f32x4.add(a0, f32x4.mul(p, w0));
        a1 = f32x4.add(a1, f32x4.mul(p, w1));
        const q = v128.load32_splat(at + xs);
        c0 = f32x4.add(c0, f32x4.mul(q, w0));
        c1 = f32x4.add(c1, f32x4.mul(q, w1));
        const r = v128.load32_splat(at + 2 * xs);
        d0 = f32x4.add(d0, f32x4.mul(r, w0));
        d1 = f32x4.add(d1, f32x4.mul(r, w1));
        const s = v128.load32_splat(at + 3 * xs);
        e0 = f32x4.add(e0, f32x4.mul(s, w0));
        e1 = f32x4.add(e1, f32x4.mul(s, w1));
      }
      put(to, left, a0, a1, activation);
      put(to + ys, left, c0, c1, activation);
      put(to + 2 * ys, left, d0, d1, activation);
      put(to + 3 * ys, left, e0, e1, activation);
      from += 4 * xs;
      to += 4 * ys;
    }
    for (; row < rows; row++) {
      let a0 = b0, a1 = b1;
      let w = panel;
      const end = from + xs;
      for (let at = from; at < end; at += 4, w += 32) {
        const p = v128.load32_splat(at);
        a0 = f32x4.add(a0, f32x4.mul(p, v128.load(w)));
        a1 = f32x4.add(a1, f32x4.mul(p, v128.load(w, 16)));
      }
      put(to, left, a0, a1, activation);
      from += xs;
      to += ys;
    }
  }
}

/**
 * What a convolution sees: (size, size, channels) -> (side * side, kernel * kernel * channels).
 *
 * The order within a row is that of the picture: rows, columns, channels. Beyond the edge is 0.
 */
export function unfold(
  x: usize, size: i32, channels: i32, kernel: i32, stride: i32, padding: i32, side: i32, y: usize,
): void {
  const bytes = (<usize>channels) << 2;
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      for (let i = 0; i < kernel; i++) {
        const from = row * stride - padding + i;
        for (let j = 0; j < kernel; j++) {
          const at = column * stride - padding + j;
          if (from >= 0 && from < size && at >= 0 && at < size) {
            memory.copy(y, x + (<usize>(from * size + at)) * bytes, bytes);
          } else {
            memory.fill(y, 0, bytes);
          }
          y += bytes;
        }
      }
    }
  }
}

// -------------------------------------------------------------------------------------- row by row

/** LayerNorm, with weight and bias unless their address is 0, then an activation. */
export function norm(
  x: usize, xs: usize, y: usize, rows: i32, width: i32, eps: f32,
  weight: usize, bias: usize, activation: i32,
): void {
  for (let row = 0; row < rows; row++, x += xs, y += (<usize>width) << 2) {
    standardise(x, y, width, eps);
    if (weight == 0 && activation == 0) continue;
    let i = 0;
    for (; i + 4 <= width; i += 4) {
      const at = (<usize>i) << 2;
      let v = v128.load(y + at);
      if (weight != 0) v = f32x4.add(f32x4.mul(v, v128.load(weight + at)), v128.load(bias + at));
      v128.store(y + at, activate(v, activation));
    }
    for (; i < width; i++) {
      const at = (<usize>i) << 2;
      let v = load<f32>(y + at);
      if (weight != 0) v = v * load<f32>(weight + at) + load<f32>(bias + at);
      store<f32>(y + at, f32x4.extract_lane(activate(splat(v), activation), 0));
    }
  }
}

function standardise(x: usize, y: usize, width: i32, eps: f32): void {
  let total = splat(0);
  let i = 0;
  for (; i + 4 <= width; i += 4) total = f32x4.add(total, v128.load(x + ((<usize>i) << 2)));
  let mean = sum(total);
  for (; i < width; i++) mean += load<f32>(x + ((<usize>i) << 2));
  mean /= <f32>width;
  const m = splat(mean);
  total = splat(0);
  for (i = 0; i + 4 <= width; i += 4) {
    const d = f32x4.sub(v128.load(x + ((<usize>i) << 2)), m);
    total = f32x4.add(total, f32x4.mul(d, d));
  }
  let squares = sum(total);
  for (; i < width; i++) {
    const d = load<f32>(x + ((<usize>i) << 2)) - mean;
    squares += d * d;
  }
  const scale: f32 = 1 / sqrt<f32>(squares / <f32>width + eps);
  const s = splat(scale);
  for (i = 0; i + 4 <= width; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(y + at, f32x4.mul(f32x4.sub(v128.load(x + at), m), s));
  }
  for (; i < width; i++) {
    const at = (<usize>i) << 2;
    store<f32>(y + at, (load<f32>(x + at) - mean) * scale);
  }
}

/** y = a + g * x; g is 1 where its address is 0. */
export function combine(
  a: usize, as_: usize, g: usize, gs: usize, x: usize, xs: usize, y: usize, rows: i32, width: i32,
): void {
  for (let row = 0; row < rows; row++, a += as_, g += gs, x += xs, y += (<usize>width) << 2) {
    let i = 0;
    for (; i + 4 <= width; i += 4) {
      const at = (<usize>i) << 2;
      let v = v128.load(x + at);
      if (g != 0) v = f32x4.mul(v128.load(g + at), v);
      v128.store(y + at, f32x4.add(v128.load(a + at), v));
    }
    for (; i < width; i++) {
      const at = (<usize>i) << 2;
      let v = load<f32>(x + at);
      if (g != 0) v = load<f32>(g + at) * v;
      store<f32>(y + at, load<f32>(a + at) + v);
    }
  }
}

/** AdaLN: the norm of shift + scale * norm(x). The 1 of "1 + scale" is in the scale already. */
export function modulate(
  x: usize, xs: usize, shift: usize, scale: usize, ms: usize, y: usize, rows: i32, width: i32,
): void {
  const ys = (<usize>width) << 2;
  for (let row = 0; row < rows; row++, x += xs, shift += ms, scale += ms, y += ys) {
    standardise(x, y, width, 1e-6);
    combine(shift, 0, scale, 0, y, 0, y, 1, width);
    standardise(y, y, width, 1e-5);
  }
}

// --------------------------------------------------------------------------------------- attention

/**
 * Tokens of one picture: the first `wanted` ask, all answer.
 *
 * Queries, keys and values of a token lie side by side, (tokens, 3 inner); the scale is in the
 * queries. `scores` has room for one number a token. The answer is (wanted, inner).
 */
export function attend(
  qkv: usize, tokens: i32, wanted: i32, heads: i32, width: i32, scores: usize, y: usize,
): void {
  const inner = (<usize>(heads * width)) << 2;
  const stride = inner + 2 * inner;
  memory.fill(y, 0, (<usize>wanted) * inner);
  for (let i = 0; i < wanted; i++) {
    for (let h = 0; h < heads; h++) {
      const offset = (<usize>(h * width)) << 2;
      const query = qkv + (<usize>i) * stride + offset;
      const out = y + (<usize>i) * inner + offset;
      for (let j = 0; j < tokens; j++) {
        const key = qkv + (<usize>j) * stride + inner + offset;
        store<f32>(scores + ((<usize>j) << 2), dot(query, key, width));
      }
      softmax(scores, tokens);
      for (let j = 0; j < tokens; j++) {
        const value = qkv + (<usize>j) * stride + 2 * inner + offset;
        accumulate(out, value, load<f32>(scores + ((<usize>j) << 2)), width);
      }
    }
  }
}

/**
 * One token of each candidate asks itself and those before it, whose keys and values were kept.
 *
 * `kept` lists the `tokens`: addresses of key and value, and the stride of both, as three u32.
 * `scores` has room for one number a token. The answer is (rows, inner).
 */
export function recall(
  query: usize, qs: usize, kept: usize, tokens: i32, heads: i32, width: i32, scores: usize,
  y: usize, rows: i32,
): void {
  const inner = (<usize>(heads * width)) << 2;
  memory.fill(y, 0, (<usize>rows) * inner);
  for (let row = 0; row < rows; row++, query += qs, y += inner) {
    for (let h = 0; h < heads; h++) {
      const offset = (<usize>(h * width)) << 2;
      for (let j = 0; j < tokens; j++) {
        const one = kept + (<usize>j) * 12;
        const key = <usize>load<u32>(one) + (<usize>row) * <usize>load<u32>(one, 8) + offset;
        store<f32>(scores + ((<usize>j) << 2), dot(query + offset, key, width));
      }
      softmax(scores, tokens);
      for (let j = 0; j < tokens; j++) {
        const one = kept + (<usize>j) * 12;
        const value = <usize>load<u32>(one, 4) + (<usize>row) * <usize>load<u32>(one, 8) + offset;
        accumulate(y + offset, value, load<f32>(scores + ((<usize>j) << 2)), width);
      }
    }
  }
}
