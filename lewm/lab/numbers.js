/**
 * What the page's widgets compute of numbers alone: SIGReg's statistic, the bill of a plan, dots, and
 * the state that a link holds. No picture, no page: node tests it.
 *
 *     const rule = quadrature({knots: 17, last: 3});
 *     eppsPulley(projected(cloud, D, direction), rule);    // of one direction
 *     sigreg(cloud, D, directions, rule);                  // mean over directions
 *     deformed(cloud, D, axis, {squash: 0, shift: 0, collapse: 0.5});
 */

/** Knots, N(0, 1)'s characteristic function there, and trapezoid weights times it; see sigreg.py. */
export function quadrature({knots, last}) {
  const at = Float64Array.from({length: knots}, (_, k) => (k * last) / (knots - 1));
  const phi = at.map((t) => Math.exp((-t * t) / 2));
  const weights = phi.map((p, k) =>
    p * ((2 * last) / (knots - 1)) * (k === 0 || k === knots - 1 ? 0.5 : 1));
  return {at, phi, weights};
}

/** The statistic of one direction: about 1 for numbers from N(0, 1), and more the less they are. */
export function eppsPulley(values, {at, phi, weights}) {
  let sum = 0;
  for (let k = 0; k < at.length; k++) {
    let real = 0;
    let imaginary = 0;
    for (const value of values) {
      real += Math.cos(at[k] * value);
      imaginary += Math.sin(at[k] * value);
    }
    real = real / values.length - phi[k];
    imaginary /= values.length;
    sum += weights[k] * (real * real + imaginary * imaginary);
  }
  return values.length * sum;
}

/** (B, D) cloud on a direction (D,): (B,). */
export function projected(cloud, D, direction) {
  return Float64Array.from({length: cloud.length / D}, (_, b) => {
    let sum = 0;
    for (let i = 0; i < D; i++) sum += cloud[b * D + i] * direction[i];
    return sum;
  });
}

/** SIGReg of a (B, D) cloud: the mean of the statistics of its directions, each (D,). */
export function sigreg(cloud, D, directions, rule) {
  return mean(directions.map((one) => eppsPulley(projected(cloud, D, one), rule)));
}

/** Directions, uniform on the sphere; `normal` gives standard normal numbers. */
export function drawDirections(D, number, normal) {
  return Array.from({length: number}, () => unit(Float64Array.from({length: D}, normal)));
}

/**
 * A cloud that somebody spoils.
 *
 * @param axis (D,) of length 1, along which it is squashed and shifted.
 * @param squash 0 leaves it, 1 makes it flat along the axis.
 * @param shift is added along the axis.
 * @param collapse 0 leaves it, 1 puts all points upon their mean.
 */
export function deformed(cloud, D, axis, {squash = 0, shift = 0, collapse = 0}) {
  const rows = cloud.length / D;
  const middle = new Float64Array(D);
  cloud.forEach((x, i) => { middle[i % D] += x / rows; });
  const result = new Float64Array(cloud.length);
  for (let b = 0; b < rows; b++) {
    let along = 0;
    for (let i = 0; i < D; i++) along += (cloud[b * D + i] - middle[i]) * axis[i];
    for (let i = 0; i < D; i++) {
      const apart = cloud[b * D + i] - middle[i] - squash * along * axis[i];
      result[b * D + i] = middle[i] + (1 - collapse) * apart + shift * axis[i];
    }
  }
  return result;
}

/** The two directions in which a cloud is widest, by power iteration: unit, orthogonal. */
export function widest(cloud, D) {
  const rows = cloud.length / D;
  const middle = new Float64Array(D);
  cloud.forEach((x, i) => { middle[i % D] += x / rows; });
  const found = [];
  for (let n = 0; n < 2; n++) {
    let axis = unit(Float64Array.from({length: D}, (_, i) => 1 + Math.sin(1 + i * (n + 1))));
    for (let round = 0; round < 100; round++) {
      const next = new Float64Array(D);
      for (let b = 0; b < rows; b++) {
        let along = 0;
        for (let i = 0; i < D; i++) along += (cloud[b * D + i] - middle[i]) * axis[i];
        for (let i = 0; i < D; i++) next[i] += along * (cloud[b * D + i] - middle[i]);
      }
      for (const one of found) {
        const along = dot(next, one);
        one.forEach((x, i) => { next[i] -= along * x; });
      }
      if (!(dot(next, next) > 0)) break; // no width is left
      axis = unit(next);
    }
    found.push(axis);
  }
  return found;
}

/** Densities of values in equal bins from low to high; what lies outside counts in no bin. */
export function histogram(values, bins, low, high) {
  const width = (high - low) / bins;
  const density = new Float64Array(bins);
  for (const value of values) {
    const bin = Math.floor((value - low) / width);
    if (bin >= 0 && bin < bins) density[bin] += 1 / (values.length * width);
  }
  return density;
}

export function normalDensity(x) {
  return Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
}

// --------------------------------------------------------------------------------- token economy

/**
 * What a plan costs each model: candidates x horizon x iterations latents, of so many tokens each.
 *
 * @param models {name, tokens, predict, encode}: GFLOP to predict a frame and to encode one, or null.
 * @returns of each {name, frames, tokens, gflop}; gflop counts the two pictures as well, or is null.
 */
export function bill(models, {candidates, horizon, iterations}) {
  const frames = candidates * horizon * iterations;
  return models.map(({name, tokens, predict, encode}) => ({
    name, frames, tokens: tokens * frames,
    gflop: predict === null ? null : predict * frames + 2 * encode,
  }));
}

/**
 * So many dots in a square: how far apart, and whether they can be told apart.
 *
 * @returns {columns, spacing, drawn, each}: dots a row, px between them, false where they are closer
 *   than `least` px, and how many stand on one px of area.
 */
export function dots(number, side, least = 2) {
  const columns = Math.ceil(Math.sqrt(number));
  const spacing = side / columns;
  return {columns, spacing, drawn: spacing >= least, each: number / side ** 2};
}

/** A number for people: 3 digits, and k, M, G, T from a thousand on. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(size * 1.0005) / 3)));
  const digits = size / 1000 ** power;
  const places = Math.max(0, 2 - Math.max(0, Math.floor(Math.log10(digits))));
  const text = (value / 1000 ** power).toFixed(digits < 1 ? 3 : places);
  const plain = text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  return power ? `${plain} ${["", "k", "M", "G", "T"][power]}` : plain;
}

// ------------------------------------------------------------------------------------------- link

/** What a link holds, as a fragment: numbers are rounded to a tenth. */
export function fragmentOf(state) {
  return Object.entries(state)
    .filter(([, value]) => value !== null && value !== "")
    .map(([key, value]) => {
      const text = Array.isArray(value) ? value.map((x) => Math.round(10 * x) / 10).join(",") : value;
      return `${key}=${encodeURIComponent(text).replaceAll("%2C", ",")}`;
    })
    .join("&");
}

/**
 * Read a fragment. What is damaged or unknown is left out.
 *
 * @param kinds key -> "words", a list of allowed words, or how many numbers: {goal: 2, planner: [..]}.
 */
export function stateOf(fragment, kinds) {
  const state = {};
  for (const part of fragment.replace(/^#/, "").split("&")) {
    const [key, value] = part.split("=");
    if (value === undefined || !Object.hasOwn(kinds, key)) continue;
    let text;
    try {
      text = decodeURIComponent(value);
    } catch {
      continue;
    }
    const kind = kinds[key];
    if (Array.isArray(kind)) {
      if (kind.includes(text)) state[key] = text;
      continue;
    }
    const numbers = text.split(",").map((one) => (one.trim() === "" ? NaN : Number(one)));
    if (numbers.length === kind && numbers.every(Number.isFinite)) state[key] = numbers;
  }
  return state;
}

export function mean(values) {
  let sum = 0;
  for (const value of values) sum += value;
  return sum / values.length;
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function unit(values) {
  const length = Math.sqrt(dot(values, values));
  return values.map((x) => x / length);
}
