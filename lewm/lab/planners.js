/**
 * Three ways to plan, and the loop that observes, plans and acts as `lewm.Agent` does.
 *
 *     const agent = new Agent(model, new Waypoints(model));
 *     const action = agent.act(agent.observes ? world.render(state) : null, goalPixels);
 *     agent.last;                                        // the plan, and how it was made
 *     agent.reset();                                     // a new episode
 *
 * A planner has `plan(situation)`. A situation is {context, past, goal}: up to K latents, oldest
 * first; the blocks between them; the goal's latent. Of a planner that searches it also has `start`,
 * sequences left of the plan before. The answer holds
 *
 *     blocks    (H, A) Float32Array, normalised, within the box
 *     actions   (H * frameskip, a) Float32Array in the world's units, clipped
 *     aim       the latent that was aimed at: the goal, or the best waypoint
 *     steps     env steps to it, as the temporal head estimates them
 *     way       of `Waypoints`: numbers of the places between here and the goal, nearest first
 *     aims      likewise: {place, latent, steps, weight} of all that have a say; place -1 is the goal
 *     total     likewise: env steps to the goal, and `found`, whether the map knows a way
 *     rounds    of `CEM`: what was tried, round by round
 */

const fround = Math.fround;

/** What planners share: the box, and sequences as an agent carries them out. */
class Planner {
  constructor(model) {
    const {planning} = model.data;
    this.model = model;
    this.planning = planning;
    this.held = planning.hold_actions;
    this.free = this.held ? model.actionDim : model.blockDim; // numbers a block that are chosen
  }

  /** Put sequences into the box, which is that of one action, again and again. */
  clamped(values) {
    const {low, high} = this.planning;
    return Float32Array.from(values, (x, i) =>
      Math.min(Math.max(x, fround(low[i % low.length])), fround(high[i % high.length])));
  }

  /** Sequences as they are searched -> action blocks. */
  blocksOf(sequences) {
    if (!this.held) return sequences;
    const {actionDim, blockDim} = this.model;
    const blocks = new Float32Array((sequences.length / actionDim) * blockDim);
    for (let i = 0; i < blocks.length; i++) {
      blocks[i] = sequences[Math.floor(i / blockDim) * actionDim + (i % actionDim)];
    }
    return blocks;
  }

  /** Action blocks -> sequences: of a block that is held, its mean action. */
  sequencesOf(blocks) {
    if (!this.held) return blocks;
    const {actionDim, blockDim, frameskip} = this.model;
    const sequences = new Float32Array((blocks.length / blockDim) * actionDim);
    for (let i = 0; i < blocks.length; i++) {
      sequences[Math.floor(i / blockDim) * actionDim + (i % actionDim)] += blocks[i] / frameskip;
    }
    return sequences;
  }

  /** What every answer has. */
  answer(sequences, rest) {
    const blocks = this.blocksOf(sequences);
    const {action_low: low, action_high: high} = this.planning;
    const actions = this.model.units(blocks).map((x, i) =>
      Math.min(Math.max(x, low[i % low.length]), high[i % high.length]));
    return {sequences, blocks, actions, ...rest};
  }
}

/** What was done where such a way began: one pass, nothing is searched. */
export class Amortised extends Planner {
  plan({context, goal}) {
    const now = context.at(-1);
    const steps = this.model.distance(now, goal);
    const blocks = this.model.plan(now, goal, steps);
    return this.answer(this.clamped(this.sequencesOf(blocks)), {aim: goal, steps});
  }
}

/**
 * Shortest paths over a map of stored latents, as `planning/solvers/waypoints.py` goes by them.
 *
 * Places are connected where the temporal distance is at most `limit` env steps, short enough to be
 * trusted. A goal that is near is aimed at itself. Else the amortised head is asked for the way to
 * each of the best few places that are near, and told `pace` of the steps to it. The plan is the
 * mean of its answers, weighted by how much longer the way over each place is. Where the map knows
 * no way the goal is aimed at itself.
 */
export class Waypoints extends Planner {
  /** @param settings limit, pace, aims and temperature, in place of the run's. */
  constructor(model, settings = {}) {
    super(model);
    Object.assign(this, model.data.map.settings, settings);
    const {shape: [count], values} = model.tensors.map;
    this.count = count;
    this.latents = values;
    this.places = model.embed(values);
    // edges[i * count + j]: steps from place i to place j, or Infinity
    this.edges = new Float64Array(count * count);
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < count; j++) {
        this.edges[i * count + j] = this.trusted(model.between(this.places, i, this.places, j));
      }
    }
    this.map = null;
  }

  trusted(steps) {
    return steps <= this.limit ? steps : Infinity;
  }

  latent(place) {
    const D = this.model.latentDim;
    return this.latents.slice(place * D, (place + 1) * D);
  }

  /**
   * Steps from every place to a goal, and the next place of each (-1: the goal itself). By Dijkstra.
   */
  search(goal) {
    const {count, edges, model} = this;
    const there = model.embed(goal);
    const onwards = new Float64Array(count);
    const next = new Int32Array(count).fill(-1);
    for (let i = 0; i < count; i++) {
      onwards[i] = this.trusted(model.between(this.places, i, there, 0));
    }
    const open = new Set(onwards.keys());
    while (open.size) {
      let nearest = -1;
      for (const i of open) if (nearest < 0 || onwards[i] < onwards[nearest]) nearest = i;
      if (onwards[nearest] === Infinity) break;
      open.delete(nearest);
      for (const i of open) {
        const through = edges[i * count + nearest] + onwards[nearest];
        if (through < onwards[i]) {
          onwards[i] = through;
          next[i] = nearest;
        }
      }
    }
    return {goal: goal.slice(), there, onwards, next};
  }

  plan({context, goal}) {
    const {model, count} = this;
    const now = context.at(-1);
    if (!this.map || this.map.goal.some((x, i) => x !== goal[i])) this.map = this.search(goal);
    const {there, onwards, next} = this.map;
    const here = model.embed(now);
    const direct = model.between(here, 0, there, 0);
    const near = Float64Array.from({length: count}, (_, i) =>
      this.trusted(model.between(here, 0, this.places, i)));
    const over = near.map((steps, i) => steps + onwards[i]);
    const first = [...over.keys()].filter((i) => over[i] < Infinity)
      .sort((a, b) => over[a] - over[b]).slice(0, this.aims);
    const byMap = !(direct <= this.limit) && first.length > 0;
    let aims = [{place: -1, latent: goal, steps: direct, weight: 1}];
    if (byMap) {
      aims = first.map((place) => ({
        place, latent: this.latent(place), steps: near[place],
        weight: Math.exp((over[first[0]] - over[place]) / this.temperature),
      }));
      const all = aims.reduce((sum, {weight}) => sum + weight, 0);
      for (const aim of aims) aim.weight /= all;
    }
    const blocks = new Float32Array(model.horizon * model.blockDim);
    for (const {latent, steps, weight} of aims) {
      model.plan(now, latent, this.pace * steps).forEach((x, i) => { blocks[i] += weight * x; });
    }
    const way = [];
    for (let i = byMap ? first[0] : -1; i >= 0; i = next[i]) way.push(i);
    return this.answer(this.clamped(this.sequencesOf(blocks)), {
      aim: aims[0].latent, steps: aims[0].steps, aims, way,
      total: byMap ? over[first[0]] : direct, found: byMap || direct <= this.limit,
    });
  }
}

/**
 * The cross-entropy method, to look at: sample plans from a Gaussian, refit it to the cheapest.
 *
 * As `planning/solvers/cem.py`, with other random numbers. Costs are env steps from the end of the
 * plan to the goal, by the temporal head.
 */
export class CEM extends Planner {
  constructor(model, {candidates = 64, elites = 8, iterations = 5, seed = 0} = {}) {
    super(model);
    if (!(elites >= 2 && elites <= candidates && iterations >= 1)) {
      throw new Error(
        `expected 2 to ${candidates} elites and an iteration or more, got ${elites} and `
        + `${iterations}. A tenth of the candidates is usual.`);
    }
    Object.assign(this, {candidates, elites, iterations});
    this.normal = gaussian(seed);
  }

  /** Costs of (N, H, free) sequences, and their (N, H, D) latents. */
  scored({context, past}, aim, sequences, number) {
    const {model} = this;
    const latents = model.rollout(context, past, this.blocksOf(sequences), number);
    const D = model.latentDim;
    const horizon = latents.length / (number * D);
    const ends = new Float32Array(number * D);
    for (let n = 0; n < number; n++) {
      const from = (n * horizon + horizon - 1) * D;
      ends.set(latents.subarray(from, from + D), n * D);
    }
    const places = model.embed(ends);
    const costs = Float32Array.from({length: number}, (_, n) => {
      const cost = model.between(places, n, aim, 0);
      return Number.isNaN(cost) ? Infinity : cost;
    });
    return {costs, latents};
  }

  /**
   * @returns `rounds` besides: {sequences (N, H, free), latents (N, H, D), costs (N,), elites: their
   *   numbers, cheapest first}.
   */
  plan(situation) {
    const {goal, start} = situation;
    const width = this.model.horizon * this.free;
    let mean = start ? this.clamped(start) : new Float32Array(width);
    let std = new Float32Array(width).fill(this.planning.initial_std);
    const aim = this.model.embed(goal);
    const rounds = [];
    let best = {cost: Infinity, sequence: mean};
    for (let i = 0; i < this.iterations; i++) {
      const drawn = new Float32Array(this.candidates * width);
      for (let k = 0; k < drawn.length; k++) {
        // candidate 0 is the mean itself
        drawn[k] = mean[k % width] + (k < width ? 0 : std[k % width] * this.normal());
      }
      const sequences = this.clamped(drawn);
      const {costs, latents} = this.scored(situation, aim, sequences, this.candidates);
      const ranks = [...costs.keys()].filter((n) => costs[n] < Infinity)
        .sort((a, b) => costs[a] - costs[b]);
      const elites = ranks.slice(0, this.elites);
      rounds.push({sequences, latents, costs, elites});
      if (!elites.length) continue; // all diverged: nothing is learnt
      const of = (n) => sequences.subarray(n * width, (n + 1) * width);
      if (costs[elites[0]] < best.cost) best = {cost: costs[elites[0]], sequence: of(elites[0])};
      const chosen = elites.map(of);
      mean = this.clamped(mean.map((_, k) => average(chosen.map((one) => one[k]))));
      if (elites.length === this.elites) {
        std = std.map((_, k) => deviation(chosen.map((one) => one[k])));
      }
    }
    // a mean of good plans can be a bad plan
    const kept = this.scored(situation, aim, mean, 1).costs[0] <= rounds[0].costs[0];
    const steps = this.model.distance(situation.context.at(-1), goal);
    return this.answer(kept ? mean : best.sequence.slice(), {aim: goal, steps, rounds});
  }
}

/** Receding-horizon control of one environment, step by step as `lewm.planning.agent.Agent`. */
export class Agent {
  /** @param receding blocks carried out before the next plan; by default as the run plans. */
  constructor(model, planner, {receding = model.data.planning.receding} = {}) {
    Object.assign(this, {model, planner, receding});
    this.reset();
  }

  reset() {
    this.frames = [];
    this.done = [];
    this.taken = 0;
    this.queue = new Float32Array(this.receding * this.model.blockDim);
    this.goal = null;
    this.last = null;
  }

  /** Does the next `act` begin a block? Only then is it shown a picture. */
  get observes() {
    return this.taken % this.model.frameskip === 0;
  }

  /** Does the next `act` make a plan? */
  get replans() {
    return this.taken % (this.receding * this.model.frameskip) === 0;
  }

  /** The next action, in the world's units; to be called at every env step. */
  act(pixels, goalPixels) {
    const {model} = this;
    const {actionDim, blockDim, context: K} = model;
    const first = (this.taken % (this.receding * model.frameskip)) * actionDim;
    if (this.observes) {
      this.frames = [...this.frames, model.encode(pixels)].slice(-K);
      if (this.replans) this.replan(goalPixels);
      const block = this.queue.subarray(first, first + blockDim);
      this.done = K > 1 ? [...this.done, model.normalised(block)].slice(1 - K) : [];
    }
    this.taken += 1;
    return this.queue.slice(first, first + actionDim);
  }

  replan(goalPixels) {
    const {model} = this;
    if (!this.goal || this.goal.pixels.some((x, i) => x !== goalPixels[i])) {
      this.goal = {pixels: goalPixels.slice(), latent: model.encode(goalPixels)};
    }
    this.last = this.planner.plan(this.situation());
    this.queue = this.last.actions.slice(0, this.receding * model.blockDim);
  }

  /** What is planned for now: the last frames, the blocks between them, and the goal. */
  situation() {
    const past = new Float32Array(this.done.length * this.model.blockDim);
    this.done.forEach((block, i) => past.set(block, i * this.model.blockDim));
    return {context: this.frames, past, goal: this.goal.latent};
  }
}

function average(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

/** Of a sample, as PyTorch's `std`. */
function deviation(values) {
  const mean = average(values);
  return Math.sqrt(values.reduce((a, x) => a + (x - mean) ** 2, 0) / (values.length - 1));
}

/** Standard normal numbers, the same for the same seed: mulberry32, and Box and Muller. */
export function gaussian(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  let other = null;
  return () => {
    if (other !== null) {
      const kept = other;
      other = null;
      return kept;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    other = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}
