/**
 * Two-Room in JavaScript: the moves of lewm/worlds/two_room.py to the bit, its pictures to the byte.
 *
 * Where numpy has float32, numbers are rounded by `Math.fround`; numpy's `rint` rounds half to even.
 * What is not in Python is `walls`: pieces of wall that a user adds in order to break the world.
 *
 *     const world = new World({imageSize: 64, look: "published"});
 *     let state = world.start([60, 100]);                // (2,) or, in the look "walls", (5,)
 *     state = world.step(state, [1, -0.5]);              // an action in [-1, 1]^2
 *     const pixels = world.render(state);                // Uint8Array, (h, w, 3)
 *     world.met(state, goal);                            // closer than 16 px?
 *
 * To break it, without changing the world that the model learnt:
 *
 *     new World({..., walls: [{x0: 20, y0: 95, x1: 100, y1: 105, solid: true, drawn: false}]})
 *     world.start([170, 60], state)                      // a teleport: the layout stays
 *     world.with({look: "agent_color=0000ff"})           // another colour
 */

export const WORLD_PX = 224;
export const SUCCESS_PX = 16;
export const MAX_STEPS = 100;
const BORDER_PX = 14;
const BORDER_LINE_PX = 4;
const WALL_HALF_PX = 5;
const DOOR_HALF_PX = 14;
const DOT_PX = 7;
export const LOW_PX = BORDER_PX + DOT_PX;
export const HIGH_PX = WORLD_PX - BORDER_PX - DOT_PX;
const REACH_PX = WALL_HALF_PX + DOT_PX + 0.5;
const PASSAGE_PX = DOOR_HALF_PX + 1.75;
const WALLS_PX = [64, 160];
const DOORS_PX = [37, 187];
/** A layout: middle of the wall, of the door along it, 1 for an upright wall and 0 for a lying one. */
export const PUBLISHED = [112, 49, 1];
/** A wall of the user's stops the dot's centre so far from itself, as the wall of the world does. */
export const KEPT_AWAY_PX = DOT_PX + 0.5;

const FACTORS = {
  agent_color: "ff0000", wall_color: "000000", floor_color: "ffffff", speed: 5, walls: "published",
};
const NAMED = {published: {}, walls: {walls: "varied"}};
const DIVIDED_PX = 0.5; // longest piece of a motion among the user's walls

const fround = Math.fround;
const clip = (x, low, high) => Math.min(Math.max(x, low), high);

/** Round half to even, as numpy does. */
export function rint(x) {
  const low = Math.floor(x);
  const rest = x - low;
  if (rest < 0.5) return low;
  if (rest > 0.5) return low + 1;
  return low % 2 === 0 ? low : low + 1;
}

/** Read a look as Python's `WorldSpec.look` has it: "walls,agent_color=0000ff". */
export function factorsOf(look) {
  const factors = {...FACTORS};
  for (const word of look.split(",")) {
    const [key, value] = word.split("=").map((part) => part.trim());
    if (value === undefined) {
      if (!Object.hasOwn(NAMED, key)) throw refusal("look of two-room", key, NAMED);
      Object.assign(factors, NAMED[key]);
    } else if (key === "speed") {
      const speed = /^([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?$/i.test(value) ? Number(value) : 0;
      if (!(speed > 0 && Number.isFinite(speed))) {
        throw new Error(`speed must be a positive number of px per step, got '${value}'.`);
      }
      factors.speed = speed;
    } else if (Object.hasOwn(FACTORS, key) && key !== "walls") {
      const digits = value.toLowerCase().replace(/^#/, "");
      if (!/^[0-9a-f]{6}$/.test(digits)) {
        throw new Error(
          `${key} must be six hexadecimal digits such as 0000ff for blue, got '${value}'.`);
      }
      factors[key] = digits;
    } else {
      const {walls, ...free} = FACTORS;
      throw refusal("factor of two-room", key, free);
    }
  }
  return factors;
}

function refusal(what, got, known) {
  return new Error(`expected a ${what} of ${Object.keys(known).join(", ")}, got '${got}'.`);
}

function rgb(digits) {
  return [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
}

/** When a distance is covered, in steps: never at rest or moving away. */
function time(distance, speed) {
  return speed > 0 ? distance / speed : Infinity;
}

/**
 * Move a point through the world, see `slide` of the Python module.
 *
 * @param position x and y in px.
 * @param move the motion of one step in px.
 * @returns x and y, float32 and legal.
 */
export function slide([px, py], [mx, my], layout = PUBLISHED) {
  const [wall, door, vertical] = layout;
  let x = clip(vertical ? px : py, LOW_PX, HIGH_PX) - wall;
  let y = clip(vertical ? py : px, LOW_PX, HIGH_PX) - door;
  let dx = vertical ? mx : my;
  const dy = vertical ? my : mx;
  if (Math.abs(x) < REACH_PX && Math.abs(y) > PASSAGE_PX) x = x < 0 ? -REACH_PX : REACH_PX;
  const left = dx < 0;
  const flip = left ? -1 : 1;
  x *= flip;
  dx = Math.abs(dx);
  const near = x <= -REACH_PX;
  const far = x >= REACH_PX;

  const meetsWall = time(-REACH_PX - x, dx);
  const meetsDoor = Math.abs(y) <= PASSAGE_PX
    ? 0 : time(Math.abs(y) - PASSAGE_PX, -Math.sign(y) * dy);
  const missesDoor = time(PASSAGE_PX - Math.sign(dy) * y, Math.abs(dy));
  let enter = near ? Math.max(meetsWall, meetsDoor) : 0;
  if (near && enter > Math.min(missesDoor, 1)) enter = Infinity;
  const leave = far ? 0 : enter + time(REACH_PX - Math.max(x, -REACH_PX), dx);

  const nearEnd = left ? wall - HIGH_PX : LOW_PX - wall;
  const farEnd = nearEnd + (HIGH_PX - LOW_PX);
  const along = [LOW_PX - door, HIGH_PX - door];
  const stages = [
    [0, enter, near, nearEnd, -REACH_PX, ...along],
    [enter, leave, enter <= 1 && !far, -REACH_PX, REACH_PX, -PASSAGE_PX, PASSAGE_PX],
    [leave, 1, leave <= 1, REACH_PX, farEnd, ...along],
  ];
  for (const [start, stop, visits, x0, x1, y0, y1] of stages) {
    if (!visits) continue;
    const stay = Math.min(stop, 1) - Math.min(start, 1);
    x = clip(x + dx * stay, x0, x1);
    y = clip(y + dy * stay, y0, y1);
  }
  const across = fround(x * flip + wall);
  const down = fround(y + door);
  return vertical ? [across, down] : [down, across];
}

/**
 * The picture of the empty world: (h, w, 3) Float32Array, the published pixels averaged over ours.
 *
 * @param walls the user's, of which those that are `drawn` are solid here.
 */
export function background(factors, imageSize, layout = PUBLISHED, walls = []) {
  const [wall, door, vertical] = layout;
  const solid = new Uint8Array(WORLD_PX * WORLD_PX);
  const inLine = (at) => {
    const depth = Math.min(at, WORLD_PX - 1 - at);
    return depth >= BORDER_PX - BORDER_LINE_PX && depth < BORDER_PX;
  };
  for (let row = 0; row < WORLD_PX; row++) {
    for (let column = 0; column < WORLD_PX; column++) {
      const across = vertical ? column : row;
      const down = vertical ? row : column;
      const divides = Math.abs(across - wall) <= WALL_HALF_PX
        && !(Math.abs(down - door) <= DOOR_HALF_PX);
      solid[row * WORLD_PX + column] = inLine(row) || inLine(column) || divides
        || walls.some((one) => one.drawn && one.x0 <= column && column <= one.x1
          && one.y0 <= row && row <= one.y1) ? 1 : 0;
    }
  }
  // shares[i]: first pixel of the world that pixel i covers, and the part of i that each takes
  const shares = Array.from({length: imageSize}, (_, i) => {
    const from = (i * WORLD_PX) / imageSize;
    const to = ((i + 1) * WORLD_PX) / imageSize;
    const first = Math.floor(from);
    const parts = [];
    for (let at = first; at < to; at++) {
      const overlap = Math.max(Math.min(to, at + 1) - Math.max(from, at), 0);
      parts.push((overlap * imageSize) / WORLD_PX);
    }
    return [first, parts];
  });
  const ink = rgb(factors.wall_color);
  const floor = rgb(factors.floor_color);
  const picture = new Float32Array(imageSize * imageSize * 3);
  const rows = new Float64Array(WORLD_PX);
  for (let i = 0; i < imageSize; i++) {
    const [top, weights] = shares[i];
    rows.fill(0);
    weights.forEach((weight, k) => {
      const at = (top + k) * WORLD_PX;
      for (let column = 0; column < WORLD_PX; column++) rows[column] += weight * solid[at + column];
    });
    for (let j = 0; j < imageSize; j++) {
      const [first, parts] = shares[j];
      const cover = parts.reduce((sum, part, k) => sum + rows[first + k] * part, 0);
      for (let c = 0; c < 3; c++) {
        picture[(i * imageSize + j) * 3 + c] = cover * ink[c] + (1 - cover) * floor[c];
      }
    }
  }
  return picture;
}

export class World {
  /**
   * @param imageSize height and width of the pictures, 16 or more.
   * @param look as in Python; more words of it, such as "agent_color=0000ff", recolour the world.
   * @param walls the user's: {x0, y0, x1, y1, solid, drawn}, px of the 224 world, ends included.
   */
  constructor({imageSize = WORLD_PX, look = "published", walls = []} = {}) {
    if (!Number.isInteger(imageSize) || imageSize < 16) {
      throw new Error(`expected an imageSize of 16 px or more, got ${imageSize}.`);
    }
    this.options = {imageSize, look, walls};
    this.imageSize = imageSize;
    this.factors = factorsOf(look);
    this.varied = this.factors.walls === "varied";
    this.walls = walls;
    const pixel = WORLD_PX / imageSize;
    const spread = Math.sqrt(DOT_PX ** 2 + (pixel ** 2 - 1) / 12);
    this.dotStd = spread / pixel;
    this.dotPeak = DOT_PX / spread;
    this.patch = Math.min(
      imageSize, 2 * Math.ceil(this.dotStd * Math.sqrt(2 * Math.log(2 * 255))) + 1);
    this.ink = rgb(this.factors.agent_color);
    this.empty = new Map();
  }

  /** The same world but for some options: `with({walls: []})`. */
  with(options) {
    const look = [this.options.look, options.look].filter(Boolean).join(",");
    return new World({...this.options, ...options, look});
  }

  /** A state at [x, y]; it has the layout of another state, or the published one. */
  start([x, y], other = null) {
    const layout = this.varied ? this.layout(other ?? [0, 0, ...PUBLISHED]) : [];
    return [fround(x), fround(y), ...layout];
  }

  layout(state) {
    return this.varied ? state.slice(2) : PUBLISHED;
  }

  /** Map two uniform numbers in [0, 1) to a place in one of the two rooms, uniform over both. */
  place(u, v, layout = PUBLISHED) {
    let x = LOW_PX + u * (HIGH_PX - LOW_PX - 2 * REACH_PX);
    const y = LOW_PX + v * (HIGH_PX - LOW_PX);
    if (x > layout[0] - REACH_PX) x += 2 * REACH_PX;
    return layout[2] ? [x, y] : [y, x];
  }

  /** A layout from three uniform numbers in [0, 1), as the look "walls" draws them. */
  drawnLayout(u, v, w) {
    const whole = (share, [low, high]) => low + Math.floor(share * (high - low + 1));
    return [whole(u, WALLS_PX), whole(v, DOORS_PX), w < 0.5 ? 0 : 1];
  }

  /** Room of a state: 0 left of its wall or above it, 1 right of it or below. */
  room(state) {
    const [wall, , vertical] = this.layout(state);
    return (vertical ? state[0] : state[1]) >= wall ? 1 : 0;
  }

  /** The state after an action in [-1, 1]^2, which is clipped; NaN counts as 0. */
  step(state, action) {
    const move = [0, 1].map(
      (i) => this.factors.speed * clip(Number.isNaN(action[i]) ? 0 : action[i], -1, 1));
    const layout = this.layout(state);
    const place = [state[0], state[1]];
    const walls = this.walls.filter((one) => one.solid);
    const next = walls.length ? among(walls, place, move, layout) : slide(place, move, layout);
    return [...next, ...state.slice(2)];
  }

  /** Is the dot closer to the goal than 16 px? In float32, as Python asks it. */
  met(state, goal) {
    const [dx, dy] = [0, 1].map((i) => fround(state[i] - goal[i]));
    return fround(Math.sqrt(fround(fround(dx * dx) + fround(dy * dy)))) < SUCCESS_PX;
  }

  /** Draw a state: (h, w, 3) Uint8Array. */
  render(state) {
    const size = this.imageSize;
    const patch = this.patch;
    const [exact, rounded] = this.emptyWorld(this.layout(state));
    const picture = rounded.slice();
    const profiles = [0, 1].map((axis) => {
      const centre = ((state[axis] + 0.5) * size) / WORLD_PX - 0.5;
      const corner = clip(rint(centre) - Math.floor(patch / 2), 0, size - patch);
      const profile = new Float32Array(patch);
      for (let i = 0; i < patch; i++) {
        const offset = (corner - centre + i) / this.dotStd;
        profile[i] = this.dotPeak * Math.exp(-0.5 * (offset * offset));
      }
      return [corner, profile];
    });
    const [[left, across], [top, down]] = profiles;
    for (let i = 0; i < patch; i++) {
      for (let j = 0; j < patch; j++) {
        const alpha = fround(down[i] * across[j]);
        const at = ((top + i) * size + left + j) * 3;
        for (let c = 0; c < 3; c++) {
          const under = exact[at + c];
          const mixed = fround(under + fround(alpha * fround(this.ink[c] - under)));
          picture[at + c] = Math.trunc(fround(mixed + 0.5));
        }
      }
    }
    return picture;
  }

  emptyWorld(layout) {
    const key = layout.join();
    if (!this.empty.has(key)) {
      if (this.empty.size > 64) this.empty.clear();
      const exact = background(this.factors, this.imageSize, layout, this.walls);
      this.empty.set(key, [exact, Uint8Array.from(exact, rint)]);
    }
    return this.empty.get(key);
  }
}

/**
 * A motion among walls of the user's, in short pieces: what a wall stops is left out of a piece.
 *
 * Ours, and not in Python: it need not be exact, only such that nothing passes a wall. A dot that a
 * wall was put upon may leave it.
 */
function among(walls, place, move, layout) {
  const pieces = Math.max(1, Math.ceil(Math.max(...move.map(Math.abs)) / DIVIDED_PX));
  const piece = move.map((part) => part / pieces);
  const inside = ([x, y]) => walls.filter((one) =>
    x > one.x0 - KEPT_AWAY_PX && x < one.x1 + KEPT_AWAY_PX
    && y > one.y0 - KEPT_AWAY_PX && y < one.y1 + KEPT_AWAY_PX);
  let now = place;
  for (let i = 0; i < pieces; i++) {
    const held = new Set(inside(now));
    const ways = [piece, [piece[0], 0], [0, piece[1]]].map((part) => slide(now, part, layout));
    now = ways.find((next) => inside(next).every((one) => held.has(one))) ?? now;
  }
  return now;
}
