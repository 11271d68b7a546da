/**
 * The forward pass of a tiny LeWM, by hand: WebAssembly does the arithmetic, this file the order.
 *
 * `lewm.lab.export` wrote the weights, folded as the engine folds them. What is computed is what
 * `LeWM.encode`, the float32 engine's rollout and the heads compute, but for rounding.
 *
 *     const model = await Model.open(exported, wasm);    // exported: the object, or its JSON
 *     const {sentence} = model.check();                  // throws unless it agrees with PyTorch
 *     const latent = model.encode(pixels);               // (h, w, 3) uint8 -> (D,)
 *     model.rollout([latent], null, blocks, N);          // (N, H, A) -> (N, H, D)
 *     model.distance(latent, goal);                      // env steps, by the temporal head
 *     model.plan(latent, goal, steps);                   // (H, A), by the amortised head
 *     model.read(latent);                                // state, by the linear probe: [x, y]
 *
 * Arrays are flat Float32Arrays, row-major, and belong to the caller. Blocks are normalised; `units`
 * and `normalised` go to the world's units and back.
 */

export const FORMAT = 1;

const NONE = 0;
const GELU = 1;
const SILU = 2;
const PAGE = 65536;
const fround = Math.fround;

/** Decode base64, in a browser and in node. */
export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Decode float32 in base64. */
export function floatsOf(base64) {
  return new Float32Array(bytesOf(base64).buffer);
}

/** Undo `lewm.lab.export`: base64 of deflated planes, of all first bytes, all second bytes, ... */
async function unpacked(base64, width) {
  const deflated = new Blob([bytesOf(base64)]).stream();
  const stream = deflated.pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const bytes = new Uint8Array(planes.length);
  const count = planes.length / width;
  for (let plane = 0; plane < width; plane++) {
    for (let i = 0, at = plane * count; i < count; i++, at++) bytes[i * width + plane] = planes[at];
  }
  return bytes;
}

/**
 * Widen IEEE half precision, little-endian. A half's bits, moved to where float32 has its own, are
 * the number over 2^112, subnormal ones as well. Infinity and NaN, which no export has, come out as
 * numbers above 65504.
 */
export function widened(bytes) {
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 1);
  const values = new Float32Array(halves.length);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < halves.length; i++) {
    bits[i] = ((halves[i] & 0x8000) << 16) | ((halves[i] & 0x7fff) << 13);
  }
  for (let i = 0; i < values.length; i++) values[i] *= 2 ** 112;
  return values;
}

export class Model {
  /**
   * @param exported what `lewm.lab.export.export` gives, as an object or as JSON.
   * @param wasm bytes of kernels.wasm, as an array or in base64.
   * @throws where there is no SIMD, or for an export of another version.
   */
  static async open(exported, wasm) {
    const data = typeof exported === "string" ? JSON.parse(exported) : exported;
    if (data.format !== FORMAT) {
      throw new Error(
        `expected an export of format ${FORMAT}, got ${data.format}. Make the page anew.`);
    }
    const code = typeof wasm === "string" ? bytesOf(wasm) : wasm;
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(code)) {
      throw new Error(
        "expected a browser with WebAssembly SIMD (every one since 2023), got one without. "
        + "Update it, or use another one.");
    }
    const memory = new WebAssembly.Memory({initial: 16});
    const env = {memory, abort: () => { throw new Error("the kernels stopped"); }};
    const {instance} = await WebAssembly.instantiate(code, {env});
    const half = data.precision === "float16";
    const bytes = await unpacked(data.weights, half ? 2 : 4);
    const weights = half ? widened(bytes) : new Float32Array(bytes.buffer);
    return new Model(data, weights, instance.exports, memory);
  }

  /** For `open`. */
  constructor(data, weights, kernels, memory) {
    this.data = data;
    this.kernels = kernels;
    this.memory = memory;
    this.at = 16 * Math.ceil(kernels.free() / 16);
    const sizes = data.model;
    this.imageSize = sizes.image_size;
    this.context = sizes.context;
    this.latentDim = sizes.latent_dim;
    this.frameskip = sizes.frameskip;
    this.actionDim = sizes.action_dim;
    this.blockDim = sizes.frameskip * sizes.action_dim;
    this.load(weights);
    this.floor = this.at; // what lies above is scratch, and void at the next call
  }

  // ---------------------------------------------------------------------------------- the weights

  load(weights) {
    const {data} = this;
    this.tensors = {};
    for (const [name, [offset, ...shape]] of Object.entries(data.tensors)) {
      const length = shape.reduce((a, b) => a * b, 1);
      this.tensors[name] = {shape, values: weights.subarray(offset, offset + length)};
    }
    const {stem, encoder_depth, encoder_heads, predictor_depth, predictor_heads} = data.model;
    const {pixel_mean, pixel_std} = data.statistics;
    // normalised(v) per colour; PyTorch's order of roundings
    this.levels = pixel_mean.map((mean, c) => Float32Array.from({length: 256}, (_, v) =>
      fround(fround(fround(v / 255) - fround(mean)) / fround(pixel_std[c]))));
    this.stem = stem.map((one, i) => ({...one, map: this.linear(`encoder.stem.${i}`)}));
    this.encoderHeads = encoder_heads;
    this.encoderPosition = this.vector("encoder.position");
    this.encoderBlocks = Array.from({length: encoder_depth}, (_, i) => ({
      qkv: this.linear(`encoder.blocks.${i}.qkv`),
      out: this.linear(`encoder.blocks.${i}.out`),
      up: this.linear(`encoder.blocks.${i}.up`),
      down: this.linear(`encoder.blocks.${i}.down`),
    }));
    this.projector = this.projectorOf("projector");
    this.heads = predictor_heads;
    this.position = this.vector("predictor.position");
    this.inward = this.linear("predictor.inward");
    this.expand = this.linear("actions.expand");
    this.contract = this.linear("actions.contract");
    this.modulation = this.linear("predictor.modulation");
    this.layers = Array.from({length: predictor_depth}, (_, i) => this.layerOf(i));
    this.width = this.layers[0].down.outer;
    this.predictorProjector = this.projectorOf("predictor_projector");
    this.temporal = this.has("temporal.0.weight") ? {
      first: this.linear("temporal.0"), firstNorm: this.normOf("temporal.1"),
      second: this.linear("temporal.3"), secondNorm: this.normOf("temporal.4"),
      last: this.linear("temporal.6"), metric: data.model.metric_dim, all: data.model.embedding_dim,
    } : null;
    this.amortised = this.has("amortised.0.weight")
      ? [0, 2, 4].map((i) => this.linear(`amortised.${i}`)) : null;
    this.probe = {
      names: data.probe.names, weight: floatsOf(data.probe.weight), bias: floatsOf(data.probe.bias),
    };
    this.horizon = this.amortised ? this.amortised[2].outer / this.blockDim : data.planning.horizon;
  }

  has(name) {
    return Object.hasOwn(this.tensors, name);
  }

  layerOf(i) {
    const name = `predictor.blocks.${i}`;
    const layer = {
      alone: this.linear(`${name}.alone`), // with K = 1 there may be one map in place of all others
      out: this.linear(`${name}.out`),
      up: this.linear(`${name}.up`),
      down: this.linear(`${name}.down`),
    };
    if (layer.alone) return layer;
    const rows = (from) => this.linear(`${name}.qkv`, from * layer.out.inner, 3 * layer.out.inner);
    const kept = this.context > 1 ? {qkv: rows(0), keyValue: rows(1)} : {};
    return {...layer, value: rows(2), ...kept};
  }

  projectorOf(name) {
    return {
      hidden: this.linear(`${name}.hidden`),
      norm: this.has(`${name}.norm.weight`) ? this.normOf(`${name}.norm`) : null,
      project: this.linear(`${name}.project`),
    };
  }

  normOf(name) {
    return {weight: this.vector(`${name}.weight`), bias: this.vector(`${name}.bias`)};
  }

  /** A tensor in the memory of the kernels. */
  vector(name) {
    const {values} = this.tensors[name];
    const at = this.room(values.length);
    this.floats.set(values, at >> 2);
    return at;
  }

  /** Some rows of a Linear, in panels of 8 outputs as the kernel reads them; null if there is none. */
  linear(name, first = 0, end = null) {
    if (!this.has(`${name}.weight`)) return null;
    const {shape: [all, inner], values} = this.tensors[`${name}.weight`];
    const biases = this.has(`${name}.bias`) ? this.tensors[`${name}.bias`].values : null;
    const outer = (end ?? all) - first;
    const padded = 8 * Math.ceil(outer / 8);
    const weight = this.room(padded * inner);
    const bias = this.room(padded);
    const {floats} = this;
    floats.fill(0, weight >> 2, (weight >> 2) + padded * inner);
    floats.fill(0, bias >> 2, (bias >> 2) + padded);
    for (let o = 0; o < outer; o++) {
      const panel = (weight >> 2) + (o >> 3) * 8 * inner + (o & 7);
      const row = (first + o) * inner;
      for (let i = 0; i < inner; i++) floats[panel + 8 * i] = values[row + i];
      if (biases) floats[(bias >> 2) + o] = biases[first + o];
    }
    return {weight, bias, inner, outer};
  }

  // ----------------------------------------------------------------------------------- the memory

  /** All memory as float32; ask again after `room`, which may move it. */
  get floats() {
    if (this.view?.buffer !== this.memory.buffer) this.view = new Float32Array(this.memory.buffer);
    return this.view;
  }

  /** The address of so many floats, of any content. */
  room(length) {
    const at = this.at;
    this.at += 16 * Math.ceil(length / 4);
    const missing = this.at - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / PAGE) + 16);
    return at;
  }

  put(values) {
    const at = this.room(values.length);
    this.floats.set(values, at >> 2);
    return at;
  }

  taken(at, length) {
    return this.floats.slice(at >> 2, (at >> 2) + length);
  }

  /** y = activation(map(x)), in new memory unless told where. */
  apply(map, x, rows, activation = NONE, y = this.room(rows * map.outer)) {
    const {weight, bias, inner, outer} = map;
    this.kernels.linear(x, rows, inner, weight, bias, y, outer, activation);
    return y;
  }

  /** LayerNorm of rows. */
  norm(x, rows, width, eps, norm = null, activation = NONE, y = this.room(rows * width)) {
    const {weight, bias} = norm ?? {weight: 0, bias: 0};
    this.kernels.norm(x, 4 * width, y, rows, width, eps, weight, bias, activation);
    return y;
  }

  project({hidden, norm, project}, x, rows, y = this.room(rows * project.outer)) {
    let between = this.apply(hidden, x, rows, norm ? NONE : GELU);
    if (norm) between = this.norm(between, rows, hidden.outer, 1e-5, norm, GELU);
    return this.apply(project, between, rows, NONE, y);
  }

  // ---------------------------------------------------------------------------------- the encoder

  /** (h, w, 3) uint8 picture -> (D,) latent. */
  encode(pixels) {
    const size = this.imageSize;
    if (pixels.length !== size * size * 3) {
      throw new Error(
        `expected a picture of ${size} x ${size} x 3 bytes, as the model was trained, got `
        + `${pixels.length} bytes. Draw the world in that size.`);
    }
    this.at = this.floor;
    const {kernels} = this;
    let x = this.room(pixels.length);
    const {floats} = this;
    const [red, green, blue] = this.levels;
    for (let i = 0, to = x >> 2; i < pixels.length; i += 3, to += 3) {
      floats[to] = red[pixels[i]];
      floats[to + 1] = green[pixels[i + 1]];
      floats[to + 2] = blue[pixels[i + 2]];
    }
    let channels = 3;
    let side = size;
    let tokens = 0;
    for (const {kernel, stride, padding, gelu, map} of this.stem) {
      const last = side / stride; // every stem halves or divides the picture
      const seen = this.room(last * last * map.inner);
      kernels.unfold(x, side, channels, kernel, stride, padding, last, seen);
      // one row is left for CLS
      const y = this.room((1 + last * last) * map.outer);
      x = y;
      const first = y + (gelu ? 0 : 4 * map.outer);
      this.apply(map, seen, last * last, gelu ? GELU : NONE, first);
      [channels, side, tokens] = [map.outer, last, 1 + last * last];
    }
    const width = channels;
    this.floats.fill(0, x >> 2, (x >> 2) + width);
    const row = 4 * width;
    kernels.combine(this.encoderPosition, row, 0, 0, x, row, x, tokens, width);
    const scores = this.room(tokens);
    this.encoderBlocks.forEach((block, i) => {
      const wanted = i === this.encoderBlocks.length - 1 ? 1 : tokens; // CLS alone is read
      const qkv = this.apply(block.qkv, this.norm(x, tokens, width, 1e-12), tokens);
      const mixed = this.room(wanted * width);
      kernels.attend(
        qkv, tokens, wanted, this.encoderHeads, width / this.encoderHeads, scores, mixed);
      this.add(x, this.apply(block.out, mixed, wanted), wanted, width);
      const up = this.apply(block.up, this.norm(x, wanted, width, 1e-12), wanted, GELU);
      this.add(x, this.apply(block.down, up, wanted), wanted, width);
    });
    const latent = this.project(this.projector, this.norm(x, 1, width, 1e-12), 1);
    return this.taken(latent, this.latentDim);
  }

  /** x += y. */
  add(x, y, rows, width) {
    this.kernels.combine(x, 4 * width, 0, 0, y, 4 * width, x, rows, width);
  }

  // -------------------------------------------------------------------------------- the predictor

  /**
   * Predict the latents that follow a context if candidates are executed.
   *
   * @param context k <= K latents, oldest first, (D,) each.
   * @param past (k-1, A) the blocks between them; null for one latent.
   * @param actions (N, H, A) candidates.
   * @param candidates N.
   * @returns (N, H, D).
   */
  rollout(context, past, actions, candidates = 1) {
    const {blockDim: A, latentDim: D} = this;
    const between = (past?.length ?? 0) / A;
    const horizon = actions.length / (candidates * A);
    if (!context.length || context.length > this.context || between !== context.length - 1) {
      throw new Error(
        `expected 1 to ${this.context} latents and a block between each two, got `
        + `${context.length} latents and ${between} blocks. Give the newest ones alone.`);
    }
    if (!Number.isInteger(horizon) || horizon < 1) {
      throw new Error(
        `expected ${candidates} candidates of whole blocks of ${A} numbers, got `
        + `${actions.length} numbers. Say how many candidates there are.`);
    }
    this.at = this.floor;
    const given = context.length;
    const latents = context.map((latent) => ({at: this.put(latent), rows: 1}));
    const ahead = Array.from({length: horizon}, () => this.room(candidates * D));
    const blocks = [];
    for (let i = 0; i < between; i++) {
      blocks.push({at: this.put(past.subarray(i * A, (i + 1) * A)), rows: 1});
    }
    for (let h = 0; h < horizon; h++) {
      const at = this.room(candidates * A);
      for (let n = 0; n < candidates; n++) {
        const from = (n * horizon + h) * A;
        this.floats.set(actions.subarray(from, from + A), (at >> 2) + n * A);
      }
      blocks.push({at, rows: candidates});
    }
    const answer = new Float32Array(candidates * horizon * D);
    let window = [];
    let memory = this.layers.map(() => []);
    const mark = this.at;
    blocks.forEach((block, newest) => {
      if (this.context === 1) this.at = mark; // nothing is kept: use memory that is in the cache
      window.push([latents[newest], this.modulations(block)]);
      let first = window.length - 1;
      if (window.length > this.context) { // it slides: what was kept is void
        window = window.slice(1);
        memory = this.layers.map(() => []);
        first = 0;
      }
      // the next token joins this window only if there is one, and room for it
      const grows = window.length < this.context && newest + 1 < blocks.length;
      for (let place = first; place < window.length; place++) {
        const isNewest = place === window.length - 1;
        const asked = isNewest && newest >= given - 1;
        const hidden = this.advance(...window[place], place, memory, asked, grows || !isNewest);
        if (hidden) {
          const at = this.leave(hidden, ahead[latents.length - given]);
          latents.push({at, rows: candidates});
        }
      }
    });
    latents.slice(given).forEach(({at}, h) => {
      for (let n = 0; n < candidates; n++) {
        const from = (at >> 2) + n * D;
        answer.set(this.floats.subarray(from, from + D), (n * horizon + h) * D);
      }
    });
    return answer;
  }

  /** Shift, scale and gate of attention, then of the MLP, of all layers side by side. */
  modulations({at, rows}) {
    const condition = this.apply(this.contract, this.apply(this.expand, at, rows, SILU), rows, SILU);
    return {at: this.apply(this.modulation, condition, rows), rows};
  }

  /** Take a token through all layers; unless it is asked for an answer, what it leaves is all. */
  advance(latent, modulations, place, memory, asked, remembered) {
    const {kernels, width, latentDim: D} = this;
    const stride = ({rows}, floats) => (rows === 1 ? 0 : 4 * floats);
    let x = this.room(latent.rows * D);
    kernels.combine(
      latent.at, 4 * D, 0, 0, this.position + 4 * D * place, 0, x, latent.rows, D);
    if (this.inward) x = this.apply(this.inward, x, latent.rows);
    let token = {at: x, rows: latent.rows};
    const rows = Math.max(latent.rows, modulations.rows);
    const ms = stride(modulations, this.modulation.outer);
    const modulated = ({at, rows: own}, shift) => {
      const y = this.room(rows * width);
      kernels.modulate(
        at, stride({rows: own}, width), shift, shift + 4 * width, ms, y, rows, width);
      return y;
    };
    const gated = ({at, rows: own}, gate, y) => {
      const sum = this.room(rows * width);
      kernels.combine(
        at, stride({rows: own}, width), gate, ms, y, 4 * width, sum, rows, width);
      return {at: sum, rows};
    };
    for (let i = 0; i < this.layers.length; i++) {
      const layer = this.layers[i];
      const of = modulations.at + 4 * width * 6 * i;
      const y = modulated(token, of);
      if (!asked && i === this.layers.length - 1) {
        memory[i].push(this.remember(layer, y, rows));
        return null;
      }
      token = gated(token, of + 8 * width, this.attend(layer, y, rows, memory[i], remembered));
      const up = this.apply(layer.up, modulated(token, of + 12 * width), rows, GELU);
      token = gated(token, of + 20 * width, this.apply(layer.down, up, rows));
    }
    return token;
  }

  remember(layer, y, rows) {
    const inner = layer.out.inner;
    const key = this.apply(layer.keyValue, y, rows);
    return [key, key + 4 * inner, rows === 1 ? 0 : 8 * inner];
  }

  attend(layer, y, rows, before, remembered) {
    if (!before.length) {
      if (remembered) before.push(this.remember(layer, y, rows));
      if (layer.alone) return this.apply(layer.alone, y, rows);
      return this.apply(layer.out, this.apply(layer.value, y, rows), rows);
    }
    const inner = layer.out.inner;
    const qkv = this.apply(layer.qkv, y, rows);
    before.push([qkv + 4 * inner, qkv + 8 * inner, rows === 1 ? 0 : 12 * inner]);
    const kept = this.room(3 * before.length);
    new Uint32Array(this.memory.buffer).set(before.flat(), kept >> 2);
    const scores = this.room(before.length);
    const mixed = this.room(rows * inner);
    this.kernels.recall(
      qkv, 12 * inner, kept, before.length, this.heads, inner / this.heads, scores, mixed, rows);
    return this.apply(layer.out, mixed, rows);
  }

  leave({at, rows}, y) {
    const x = this.norm(at, rows, this.width, 1e-5);
    return this.project(this.predictorProjector, x, rows, y);
  }

  // ------------------------------------------------------------------------------ heads and probe

  /** What the temporal head makes of latents, (n, D) -> (n, M): distances are between these. */
  embed(latents) {
    if (!this.temporal) throw lacking("temporal");
    this.at = this.floor;
    const {first, firstNorm, second, secondNorm, last} = this.temporal;
    const rows = latents.length / this.latentDim;
    let y = this.apply(first, this.put(latents), rows);
    y = this.norm(y, rows, first.outer, 1e-5, firstNorm, GELU);
    y = this.apply(second, y, rows);
    y = this.norm(y, rows, second.outer, 1e-5, secondNorm, GELU);
    return this.taken(this.apply(last, y, rows), rows * last.outer);
  }

  /** Env steps from row i of some embeddings to row j of others. */
  between(from, i, to, j) {
    const {metric, all} = this.temporal;
    const a = i * all;
    const b = j * all;
    let squares = 0;
    for (let k = 0; k < metric; k++) {
      const difference = from[a + k] - to[b + k];
      squares += difference * difference;
    }
    let ascent = 0;
    for (let k = metric; k < all; k++) {
      const rise = to[b + k] - from[a + k];
      if (!(rise <= ascent)) ascent = rise; // NaN stays
    }
    return Math.sqrt(squares) + ascent;
  }

  /** Env steps from one latent to another. */
  distance(now, goal) {
    return this.between(this.embed(now), 0, this.embed(goal), 0);
  }

  /** What was done where such a way began: (H, A) blocks, normalised and not clipped. */
  plan(now, goal, steps) {
    if (!this.amortised) throw lacking("amortised");
    this.at = this.floor;
    const left = Math.max(fround(steps), 1);
    const given = new Float32Array(2 * this.latentDim + 2);
    given.set(now);
    given.set(goal, this.latentDim);
    given.set([Math.log(left), 1 / left], 2 * this.latentDim);
    const [first, second, last] = this.amortised;
    const hidden = this.apply(second, this.apply(first, this.put(given), 1, GELU), 1, GELU);
    return this.taken(this.apply(last, hidden, 1), last.outer);
  }

  /** States of latents by the linear probe, (n, D) -> n arrays, in the order of `probe.names`. */
  read(latents) {
    const {latentDim: D, probe: {weight, bias}} = this;
    return Array.from({length: latents.length / D}, (_, n) => Array.from(bias, (start, s) => {
      let sum = start;
      for (let i = 0; i < D; i++) sum += latents[n * D + i] * weight[i * bias.length + s];
      return sum;
    }));
  }

  // -------------------------------------------------------------------------------------- actions

  /** Blocks to actions in the world's units, a row of `actionDim` each, not clipped. */
  units(blocks) {
    const {action_mean: mean, action_std: std} = this.data.statistics;
    return Float32Array.from(blocks, (x, i) =>
      fround(fround(x * fround(std[i % std.length]))) + fround(mean[i % mean.length]));
  }

  /** Actions in the world's units to blocks. */
  normalised(actions) {
    const {action_mean: mean, action_std: std} = this.data.statistics;
    return Float32Array.from(actions, (x, i) =>
      fround(x - fround(mean[i % mean.length])) / fround(std[i % std.length]));
  }

  // ------------------------------------------------------------------------------------ the check

  /**
   * Encode the golden frames, imagine and plan from them, and compare with what PyTorch said.
   *
   * @returns the largest difference of each, and a sentence.
   * @throws where one of them is larger than the tolerance of the weights' precision.
   */
  check() {
    const {golden, precision} = this.data;
    const D = this.latentDim;
    const pictures = bytesOf(golden.frames);
    const size = this.imageSize ** 2 * 3;
    const number = pictures.length / size;
    const latents = new Float32Array(number * D);
    for (let i = 0; i < number; i++) {
      latents.set(this.encode(pictures.subarray(i * size, (i + 1) * size)), i * D);
    }
    // the last frame is the goal; from here on what PyTorch encoded, so that errors do not add up
    const exact = floatsOf(golden.latents);
    const each = Array.from({length: number}, (_, i) => exact.subarray(i * D, (i + 1) * D));
    const goal = each.pop();
    const now = each.at(-1);
    const differences = {latents: largest(latents, exact)};
    const plan = floatsOf(golden.plan);
    const past = floatsOf(golden.past);
    const ahead = this.rollout(each, past, plan);
    differences.rollout = largest(ahead, floatsOf(golden.rollout));
    if (this.temporal) {
      const steps = this.distance(now, goal);
      differences.distance = Math.abs(steps - golden.distance) / Math.max(1, golden.distance);
    }
    if (this.amortised) {
      differences.plan = largest(this.plan(now, goal, golden.distance), floatsOf(golden.proposal));
    }
    const worst = Math.max(...Object.values(differences));
    const bits = precision === "float16" ? 16 : 32;
    if (!(worst <= golden.tolerance)) {
      throw new Error(
        `expected what PyTorch computes to within ${golden.tolerance}, got a difference of `
        + `${worst.toPrecision(2)}. Use another browser, or make the page anew.`);
    }
    const sentence = `equal to PyTorch to ${worst.toExponential(1)}, with weights of ${bits} bits`;
    return {...differences, worst, tolerance: golden.tolerance, sentence};
  }
}

function largest(a, b) {
  if (a.length !== b.length) return NaN;
  let most = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i] - b[i]);
    if (!(difference <= most)) most = difference; // NaN stays
  }
  return most;
}

function lacking(head) {
  return new Error(
    `expected a run with a head '${head}', got one without. Make it with: lewm fit RUN ${head}`);
}
