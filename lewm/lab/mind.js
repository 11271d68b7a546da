/**
 * The model's side of the page, in a worker: it is shown pictures, and answers with actions and with
 * what it thought. So planning never holds up a drag.
 *
 *     serve(self);                                         // in the worker
 *     const mind = new Mind(model);
 *     mind.block({pixels, goal, planner: "waypoints"});    // once per action block
 *
 * A message is {id, ask, ...}, its answer {id, ...} or {id, refusal: words}.
 */

import {Model} from "./model.js";
import {Agent, Amortised, CEM, Waypoints} from "./planners.js";
import {World} from "./two_room.js";

export const PLANNERS = ["waypoints", "amortised", "cem"];
const MOST_AT_ONCE = 128; // candidates of the bill that are imagined together

export class Mind {
  constructor(model) {
    this.model = model;
    this.planners = {};
    this.agent = new Agent(model, this.planner("amortised"));
    this.forget();
  }

  planner(name) {
    const kinds = {waypoints: Waypoints, amortised: Amortised, cem: CEM};
    this.planners[name] ??= new kinds[name](this.model);
    return this.planners[name];
  }

  /** A new episode. */
  forget() {
    this.agent.reset();
    this.expected = null;
  }

  /**
   * Observe, be surprised, plan if it is time to, and say what is done until the next picture.
   *
   * @returns actions (frameskip, a); latent; surprise, the mean squared error of what was predicted
   *   for this picture, null for a first one; here and next, places as the probe reads them; path,
   *   the same of the plan; `way`, `aims` and `rounds` of planners that have them; seconds.
   */
  block({pixels, goal, planner}) {
    const {model, agent} = this;
    agent.planner = this.planner(planner);
    const past = agent.done.slice();
    const began = performance.now();
    const first = agent.act(pixels, goal);
    const took = performance.now() - began;
    const actions = new Float32Array(model.blockDim);
    actions.set(first);
    for (let i = 1; i < model.frameskip; i++) actions.set(agent.act(null, goal), i * first.length);

    const latent = agent.frames.at(-1);
    const surprise = this.expected === null ? null : squared(this.expected, latent);
    const before = joined(past, model.blockDim);
    this.expected = model.rollout(agent.frames, before, model.normalised(actions));
    const {last} = agent;
    const ahead = model.rollout(agent.frames, before, last.blocks);
    return {
      actions, latent, surprise, took,
      expected: this.expected,
      here: model.read(latent)[0],
      next: model.read(this.expected)[0],
      path: model.read(ahead),
      steps: last.total ?? last.steps,
      found: last.found ?? true,
      way: last.way ?? [],
      aims: (last.aims ?? []).map(({place, weight}) => ({place, weight})),
      rounds: (last.rounds ?? []).map((round) => this.drawn(round)),
    };
  }

  /** A round of the search: where the candidates lead, and which of them are kept. */
  drawn({latents, elites, costs}) {
    const places = Float32Array.from(this.model.read(latents).flatMap(([x, y]) => [x, y]));
    return {places, elites, best: costs[elites[0]] ?? null, number: costs.length};
  }

  /** Latents of states, drawn in the world as it was trained. */
  cloud({states}) {
    const {model} = this;
    const {image_size: imageSize, look} = model.data.world;
    const world = new World({imageSize, look});
    const latents = new Float32Array(states.length * model.latentDim);
    states.forEach((state, i) => {
      latents.set(model.encode(world.render(state)), i * model.latentDim);
    });
    return {latents};
  }

  /**
   * How surprised it is in the world as it was trained: it goes from some states to others.
   *
   * @param pairs [[state, goal], ...], both in one layout.
   * @returns `surprises`, of all pictures that a whole context stood before.
   */
  usual({pairs, blocks = 6}) {
    const {image_size: imageSize, look} = this.model.data.world;
    const world = new World({imageSize, look});
    const surprises = [];
    for (const [begun, wanted] of pairs) {
      const other = new Mind(this.model);
      const goal = world.render(wanted);
      let state = begun;
      for (let j = 0; j <= blocks + this.model.context; j++) {
        const pixels = world.render(state);
        const {actions, surprise} = other.block({pixels, goal, planner: "amortised"});
        if (j >= this.model.context) surprises.push(surprise);
        const width = this.model.actionDim;
        for (let i = 0; i < actions.length; i += width) {
          state = world.step(state, actions.subarray(i, i + width));
        }
      }
    }
    return {surprises};
  }

  /** Imagine a round of the bill: seconds for so many candidates and blocks, once. */
  round({candidates, horizon}) {
    const {model} = this;
    const began = performance.now();
    const context = [this.agent.frames.at(-1) ?? new Float32Array(model.latentDim)];
    for (let done = 0; done < candidates; done += MOST_AT_ONCE) {
      const number = Math.min(MOST_AT_ONCE, candidates - done);
      model.rollout(context, null, new Float32Array(number * horizon * model.blockDim), number);
    }
    return {seconds: (performance.now() - began) / 1000};
  }
}

/** Answer messages. The first opens the model: {ask: "open", exported, wasm}. */
export function serve(scope) {
  let mind = null;
  const answers = {
    async open({exported, wasm, map}) {
      if (typeof DecompressionStream === "undefined") {
        throw new Error(
          "expected a browser with DecompressionStream (every one since 2023), got one without. "
          + "Update it, or use another one.");
      }
      const began = performance.now();
      const model = await Model.open(exported, wasm);
      const check = model.check();
      mind = new Mind(model);
      if (map) mind.planner("waypoints");
      return {check, took: performance.now() - began};
    },
    block: (message) => mind.block(message),
    cloud: (message) => mind.cloud(message),
    usual: (message) => mind.usual(message),
    round: (message) => mind.round(message),
    forget: () => mind.forget() ?? {},
  };
  scope.onmessage = async ({data: {id, ask, ...message}}) => {
    try {
      scope.postMessage({id, ...await answers[ask](message)});
    } catch (error) {
      scope.postMessage({id, refusal: error.message});
    }
  };
}

function squared(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return sum / a.length;
}

function joined(blocks, width) {
  const all = new Float32Array(blocks.length * width);
  blocks.forEach((block, i) => all.set(block, i * width));
  return all;
}
