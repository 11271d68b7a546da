// Asks the lab's modules what a test wants to know: node lab.mjs COMMAND FOLDER, see node.py.

import fs from "node:fs";
import path from "node:path";

import {gif} from "../../lewm/lab/gif.js";
import {Mind} from "../../lewm/lab/mind.js";
import {Model} from "../../lewm/lab/model.js";
import {
  bill, deformed, dots, eppsPulley, fragmentOf, histogram, normalDensity, projected, quadrature,
  short, sigreg, stateOf, widest,
} from "../../lewm/lab/numbers.js";
import {Agent, Amortised, CEM, Waypoints, gaussian} from "../../lewm/lab/planners.js";
import {World, slide} from "../../lewm/lab/two_room.js";

const [command, folder] = process.argv.slice(2);
const KINDS = {
  uint8: Uint8Array, float32: Float32Array, float64: Float64Array, int32: Int32Array,
};

const task = JSON.parse(fs.readFileSync(path.join(folder, "task.json"), "utf8"));
const {settings} = task;
const given = {};
for (const [name, [kind, ...shape]] of Object.entries(task.arrays)) {
  const {buffer, byteOffset, byteLength} = fs.readFileSync(path.join(folder, `${name}.in`));
  const values = new KINDS[kind](buffer.slice(byteOffset, byteOffset + byteLength));
  values.width = shape.slice(1).reduce((a, b) => a * b, 1);
  given[name] = values;
}

/** Rows of an array, each as an array of numbers. */
function rows(values) {
  const {width} = values;
  return Array.from({length: values.length / width}, (_, i) =>
    values.slice(i * width, (i + 1) * width));
}

const open = (exported = settings.exported) => Model.open(
  fs.readFileSync(exported, "utf8"),
  fs.readFileSync(new URL("../../lewm/lab/kernels.wasm", import.meta.url)));

function refusalOf(act) {
  try {
    act();
  } catch (error) {
    return error.message;
  }
  return null;
}

const COMMANDS = {
  statistics() {
    const directions = rows(given.directions);
    const D = directions[0].length;
    const cloud = deformed(given.cloud, D, directions[0], settings.spoilt);
    const rule = quadrature(settings.rule);
    return {
      cloud, mean: sigreg(cloud, D, directions, rule),
      slices: Float64Array.from(directions, (one) => eppsPulley(projected(cloud, D, one), rule)),
    };
  },

  plane() {
    const D = given.cloud.width;
    const {bins, low, high} = settings;
    return {
      axes: Float64Array.from(widest(given.cloud, D).flatMap((axis) => [...axis])),
      density: histogram(given.values, bins, low, high),
      normal: Float64Array.from([-1, 0, 2], normalDensity),
    };
  },

  async mind() {
    const model = await open();
    const mind = new Mind(model);
    const world = new World({imageSize: model.imageSize, look: model.data.world.look});
    let state = world.start([...rows(given.starts)[0]]);
    const goal = world.render(world.start([...rows(given.goals)[0]]));
    const blocks = [];
    for (let j = 0; j < settings.blocks; j++) {
      const block = mind.block({pixels: world.render(state), goal, planner: settings.planner});
      blocks.push(block);
      for (let i = 0; i < block.actions.length; i += 2) {
        state = world.step(state, block.actions.subarray(i, i + 2));
      }
    }
    const last = blocks.at(-1);
    const plan = mind.agent.last.blocks;
    return {
      first: blocks[0].surprise, plan,
      latents: Float32Array.from(blocks.flatMap(({latent}) => [...latent])),
      actions: Float32Array.from(blocks.flatMap(({actions}) => [...actions])),
      surprises: Float64Array.from(blocks.slice(1), ({surprise}) => surprise),
      path: Float64Array.from(last.path.flat()),
      ahead: model.context === 1 ? model.rollout([last.latent], null, plan) : new Float32Array(1),
      rounds: last.rounds.map(({places, ...round}) => ({...round, points: places.length})),
    };
  },

  bill: () => ({bills: bill(settings.models, settings.plan)}),

  small: () => ({
    short: settings.numbers.map(short), dots: settings.dots.map(([n, side]) => dots(n, side)),
  }),

  links() {
    const fragment = fragmentOf(settings.state);
    return {
      fragment, again: stateOf(fragment, settings.kinds),
      read: settings.damaged.map((one) => stateOf(one, settings.kinds)),
    };
  },

  gif() {
    const frames = rows(given.frames).map((pixels, i) => ({pixels, delay: settings.delays[i]}));
    return {gif: gif(frames, settings.size, settings.size)};
  },

  slide() {
    const moves = rows(given.moves);
    const layouts = rows(given.layouts);
    const ends = rows(given.positions).flatMap((place, i) => slide(place, moves[i], [...layouts[i]]));
    return {ends: Float32Array.from(ends)};
  },

  render() {
    const world = new World(settings.world);
    const pictures = rows(given.states).map((state) => world.render([...state]));
    return {pictures: Uint8Array.from(Buffer.concat(pictures))};
  },

  walk() {
    const world = new World(settings.world);
    const actions = rows(given.actions);
    let state = [...given.state];
    const states = actions.flatMap((action) => (state = world.step(state, action)));
    return {states: Float64Array.from(states)};
  },

  facts() {
    const world = new World(settings.world);
    const [states, goals] = [rows(given.states), rows(given.goals)];
    return {
      met: Uint8Array.from(states, (state, i) => world.met(state, goals[i])),
      rooms: Uint8Array.from(states, (state) => world.room(state)),
      places: Float64Array.from(rows(given.uniform).flatMap(([u, v]) =>
        world.place(u, v, settings.layout))),
    };
  },

  looks() {
    return {refusals: settings.looks.map((look) => refusalOf(() => new World({look})))};
  },

  edits() {
    const {look, imageSize, state, place, other} = settings;
    const world = new World({imageSize, look, walls: [settings.wall]});
    const painted = world.with({look: other, walls: []});
    const moved = world.start(place, state);
    return {
      pictures: Uint8Array.from(Buffer.concat([world.with({walls: []}), painted].map(
        (one) => one.render(moved)))),
      moved: Float64Array.from(moved),
      layouts: Float64Array.from(rows(given.uniform).flatMap((one) => world.drawnLayout(...one))),
      untouched: world.walls.length,
    };
  },

  async model() {
    const model = await open();
    const blocks = given.actions.width;
    const answer = {
      check: model.check(),
      latents: Float32Array.from(rows(given.pixels).flatMap((one) => [...model.encode(one)])),
      read: Float64Array.from(model.read(given.contexts).flat()),
    };
    const contexts = rows(given.contexts);
    const past = rows(given.past);
    for (let k = 1; k <= model.context; k++) {
      const done = Float32Array.from(past.slice(0, k - 1).flatMap((one) => [...one]));
      answer[`rollout${k}`] = model.rollout(
        contexts.slice(0, k), done, given.actions, given.actions.length / blocks);
    }
    answer.distances = Float64Array.from(contexts, (one) => model.distance(contexts[0], one));
    answer.plans = Float32Array.from(contexts.flatMap((one, i) =>
      [...model.plan(contexts[0], one, settings.steps[i])]));
    return answer;
  },

  async refusals() {
    const model = await open();
    const picture = new Uint8Array(3 * model.imageSize ** 2);
    const latent = new Float32Array(model.latentDim);
    const blocks = new Float32Array(model.blockDim);
    const newer = {...model.data, format: 99};
    const none = Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0, 99]);
    return {
      picture: refusalOf(() => model.encode(picture.subarray(1))),
      past: refusalOf(() => model.rollout([latent, latent], null, blocks)),
      candidates: refusalOf(() => model.rollout([latent], null, blocks, 3)),
      format: await Model.open(newer, none).catch((error) => error.message),
      simd: await Model.open(model.data, none).catch((error) => error.message),
      check: await open(settings.wrong).then((wrong) => refusalOf(() => wrong.check())),
    };
  },

  async loop() {
    const model = await open();
    const world = new World(model.data.world.image_size && {
      imageSize: model.imageSize, look: model.data.world.look,
    });
    const planner = settings.waypoints ? new Waypoints(model) : new Amortised(model);
    const agent = new Agent(model, planner, settings.agent);
    const goals = rows(given.goals);
    const paths = [];
    const plans = [];
    const met = [];
    const contexts = [];
    const past = [];
    rows(given.starts).forEach((start, i) => {
      agent.reset();
      let state = [...start];
      const goal = [...goals[i]];
      const goalPixels = world.render(goal);
      let first = -1;
      for (let step = 0; step < settings.budget; step++) {
        const {replans} = agent;
        const action = agent.act(agent.observes ? world.render(state) : null, goalPixels);
        if (replans && step === 0) plans.push(...agent.last.blocks);
        state = world.step(state, action);
        paths.push(state[0], state[1]);
        if (first < 0 && world.met(state, goal)) first = step + 1;
      }
      met.push(first);
      contexts.push(...agent.frames.flatMap((one) => [...one]));
      past.push(...agent.done.flatMap((one) => [...one]));
    });
    return {
      contexts: Float32Array.from(contexts), past: Float32Array.from(past),
      paths: Float32Array.from(paths), plans: Float32Array.from(plans), met: Int32Array.from(met),
    };
  },

  async cem() {
    const model = await open();
    const planner = new CEM(model, settings.cem);
    const situation = {
      context: rows(given.context), past: given.past, goal: given.goal, start: null,
    };
    const {rounds, blocks, actions} = planner.plan(situation);
    const again = new CEM(model, settings.cem).plan(situation).blocks;
    const draw = gaussian(settings.cem.seed);
    const all = (field) => Float32Array.from(rounds.flatMap((round) => [...round[field]]));
    return {
      blocks, actions, again,
      draws: Float64Array.from({length: all("sequences").length}, draw),
      sequences: all("sequences"),
      tried: planner.blocksOf(all("sequences")), costs: all("costs"), elites: all("elites"),
      ends: Float32Array.from([planner.scored(
        situation, model.embed(given.goal), planner.sequencesOf(blocks), 1).costs[0]]),
    };
  },

  async waypoints() {
    const model = await open();
    const planner = new Waypoints(model, settings.planner);
    const goals = rows(given.goals);
    const answers = rows(given.nows).map((now, i) => planner.plan({context: [now], goal: goals[i]}));
    return {
      edges: planner.edges,
      totals: Float64Array.from(answers, ({total}) => total),
      plans: Float32Array.from(answers.flatMap(({blocks}) => [...blocks])),
      aims: Float32Array.from(answers.flatMap(({aim}) => [...aim])),
      ways: answers.map(({way}) => way),
    };
  },
};

const answer = {arrays: {}};
for (const [name, value] of Object.entries(await COMMANDS[command]())) {
  if (ArrayBuffer.isView(value)) {
    const kind = Object.keys(KINDS).find((one) => value instanceof KINDS[one]);
    answer.arrays[name] = kind;
    fs.writeFileSync(path.join(folder, `${name}.out`), value);
  } else {
    answer[name] = value;
  }
}
fs.writeFileSync(path.join(folder, "answer.json"), JSON.stringify(answer));
