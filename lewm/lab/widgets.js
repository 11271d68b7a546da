/**
 * What is seen and touched: the world, SIGReg and the token economy. The model lives in a worker,
 * see mind.js; numbers are made by numbers.js.
 *
 *     start(library);                                      // once, in the page of page.html.j2
 */

import {
  bill, deformed, dots, drawDirections, eppsPulley, fragmentOf, histogram, normalDensity,
  projected, quadrature, short, sigreg, stateOf, widest,
} from "./numbers.js";
import {gif} from "./gif.js";
import {PLANNERS} from "./mind.js";
import {gaussian} from "./planners.js";
import {HIGH_PX, LOW_PX, SUCCESS_PX, WORLD_PX, World} from "./two_room.js";

const STEP_MS = 34; // an env step on the screen
const MOST_STEPS = 250; // after which it rests, if it does not get there
const BARS = 72; // pictures whose surprise is shown
const PAINTED = "009e73"; // the agent's colour, when it is broken
const DIRECTIONS = 64; // of the statistic over all directions
const GIF_FRAMES = 90;
const GIF_PX = 320;
const AT_ONCE = 8; // pictures that the worker encodes before it hears anything else
const WALKS = 12;

const WORDS = {
  waypoints: "Waypoints: the shortest path over latents that the model remembers, each hop short "
    + "enough to trust. The way on the map is dashed.",
  amortised: "Amortised: one pass of a small network that learnt what was done where such a way "
    + "began. Nothing is searched, so a goal behind the wall is often missed.",
  cem: "CEM: 64 plans are imagined at a time. Grey are all candidates of a round; squares end the "
    + "elites, of which the next round is drawn. It thins from round to round.",
};

const at = (id) => document.getElementById(id);
const said = (id, words) => {
  if (at(id).textContent !== words) at(id).textContent = words;
};
const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Colours of the page as they are now: a canvas cannot read variables. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["page", "card", "ink", "muted", "line", "soft", "blue", "warm", "faint", "wall"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** A canvas in CSS pixels, as sharp as the screen; emptied. */
function surface(canvas, ratio = Math.min(3, devicePixelRatio || 1)) {
  const {clientWidth: width, clientHeight: height} = canvas;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return {pen, width, height};
}

function line(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}

/** Put RGB bytes into a canvas, every pixel as it is. */
function picture(canvas, rgb, size) {
  [canvas.width, canvas.height] = [size, size];
  canvas.style.imageRendering = "pixelated";
  const rgba = new Uint8ClampedArray(4 * size * size).fill(255);
  for (let i = 0; i < size * size; i++) rgba.set(rgb.subarray(3 * i, 3 * i + 3), 4 * i);
  canvas.getContext("2d").putImageData(new ImageData(rgba, size, size), 0, 0);
}

/** The model, far away: `ask` gives a promise. */
class Distant {
  constructor(library) {
    const code = `const modules = (${library})();\nmodules["mind.js"].serve(self);\n`;
    const url = URL.createObjectURL(new Blob([code], {type: "text/javascript"}));
    this.worker = new Worker(url);
    this.waiting = new Map();
    this.asked = 0;
    this.worker.onmessage = ({data: {id, refusal, ...answer}}) => {
      const {resolve, reject} = this.waiting.get(id);
      this.waiting.delete(id);
      if (refusal === undefined) resolve(answer);
      else reject(new Error(refusal));
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      for (const {reject} of this.waiting.values()) reject(new Error(event.message));
      this.waiting.clear();
    };
  }

  ask(ask, message = {}) {
    const id = this.asked++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, {resolve, reject});
      this.worker.postMessage({id, ask, ...message});
    });
  }
}

/** Is an element on the screen? Calls back when that changes; a hidden page counts as not. */
function watch(element, changed) {
  let near = true;
  const tell = () => changed(near && !document.hidden);
  new IntersectionObserver(([entry]) => {
    near = entry.isIntersecting;
    tell();
  }).observe(element);
  document.addEventListener("visibilitychange", tell);
}

// -------------------------------------------------------------------------------------- the world

class Scene {
  constructor(mind, data, linked) {
    const {world, map} = data.exported;
    this.mind = mind;
    this.data = data;
    this.world = new World({imageSize: world.image_size, look: world.look});
    this.clean = this.world;
    this.states = data.states;
    this.places = placesOf(map);
    this.canvas = at("scene");
    this.planner = this.world.varied ? "amortised" : "waypoints";
    this.map = true;
    this.visible = true;
    this.playing = !still();
    this.ready = false;
    this.looping = false;
    this.frames = [];
    this.walls = [];
    this.painted = false;
    this.surprises = [];
    this.usual = null;
    this.spokenAt = 0;
    this.layoutOf = this.states[0];
    this.begin([62, 168], [176, 62]);
    this.link(linked);
    this.listen();
    this.controls();
  }

  // ---- what is the case

  /** A new episode. */
  begin(place, goal) {
    this.state = this.world.start(this.legal(place), this.layoutOf);
    this.goal = this.legal(goal);
    this.trail = [this.place];
    this.steps = 0;
    this.thought = null;
    this.resting = false;
    this.met = false;
    this.fresh = true;
  }

  get place() {
    return [this.state[0], this.state[1]];
  }

  get goalState() {
    return this.clean.start(this.goal, this.layoutOf);
  }

  /** The nearest place where the world lets a dot be. */
  legal([x, y]) {
    const inside = [x, y].map((one) => Math.min(Math.max(one, LOW_PX), HIGH_PX));
    const [a, b] = this.clean.step(this.clean.start(inside, this.layoutOf), [0, 0]);
    return [a, b];
  }

  aim(goal) {
    this.goal = this.legal(goal);
    this.wake();
  }

  /** Go on, also if it was there; some pictures at least. */
  wake(least = 0) {
    this.resting = false;
    this.met = false;
    this.steps = 0;
    this.least = least;
    this.draw();
    this.speak();
    this.run();
  }

  /** The same world with what is broken now. */
  rebuild() {
    const look = this.painted ? `agent_color=${PAINTED}` : "";
    this.world = this.clean.with({look, walls: this.walls});
    at("mend").disabled = !this.walls.length && !this.painted;
    document.querySelector("[data-break=colour]").setAttribute("aria-pressed", String(this.painted));
  }

  broken(what) {
    if (!this.ready) return;
    if (what === "colour") this.painted = !this.painted;
    else if (what === "teleport") {
      const away = this.layoutOf;
      let place;
      do place = this.anywhere();
      while (Math.hypot(place[0] - this.state[0], place[1] - this.state[1]) < 50);
      this.sequence = null;
      this.state = this.world.start(place, away);
      this.trail.push(null, this.place);
    } else this.walls = [...this.walls.slice(-5), this.wallAhead(what === "drawn")];
    this.rebuild();
    this.mark = {unseen: "invisible wall", drawn: "drawn wall"}[what] ?? what;
    this.wake(5);
  }

  mend() {
    this.walls = [];
    this.painted = false;
    this.rebuild();
    this.mark = "mended";
    this.wake(5);
  }

  /** A wall across the way that the agent is about to take. */
  wallAhead(drawn) {
    const ahead = this.thought?.path ?? [this.goal];
    const [x, y] = this.state;
    const far = ahead.find(([a, b]) => Math.hypot(a - x, b - y) > 18) ?? this.goal;
    const [dx, dy] = [far[0] - x, far[1] - y];
    const length = Math.max(Math.hypot(dx, dy), 1);
    const [cx, cy] = [x + (22 * dx) / length, y + (22 * dy) / length];
    const [w, h] = Math.abs(dx) > Math.abs(dy) ? [3, 26] : [26, 3];
    return {
      x0: Math.round(cx - w), x1: Math.round(cx + w), y0: Math.round(cy - h), y1: Math.round(cy + h),
      solid: true, drawn,
    };
  }

  anywhere() {
    return this.clean.place(Math.random(), Math.random(), this.clean.layout(this.state));
  }

  /** Start and goal in different rooms; walls that were added go. */
  elsewhere() {
    this.walls = [];
    this.painted = false;
    this.rebuild();
    if (this.world.varied) {
      this.layoutOf = this.states[Math.floor(Math.random() * this.states.length)];
      this.state = this.world.start(this.place, this.layoutOf);
    }
    let [a, b] = [this.anywhere(), this.anywhere()];
    const room = (place) => this.clean.room(this.clean.start(place, this.layoutOf));
    while (room(a) === room(b)) [a, b] = [this.anywhere(), this.anywhere()];
    this.sequence = null;
    this.begin(a, b);
    this.draw();
    this.speak(true);
    this.run();
    this.keep();
  }

  // ---- the loop: observe, plan, act

  async run() {
    if (this.looping || !this.ready) return;
    this.looping = true;
    while (this.playing && this.visible && !this.resting) await this.block();
    this.looping = false;
    this.speak();
  }

  /** One action block; `watched`, its steps are shown one after the other. */
  async block(watched = true) {
    if (this.fresh) await this.mind.ask("forget");
    this.fresh = false;
    const [mark, size] = [this.mark, this.world.imageSize];
    this.mark = null;
    const pixels = this.world.render(this.state);
    const goal = this.clean.render(this.goalState);
    picture(at("seen"), pixels, size);
    picture(at("wanted"), goal, size);
    const thought = await this.mind.ask("block", {pixels, goal, planner: this.planner});
    thought.place = [this.state[0], this.state[1]];
    thought.hoped = this.expected; // what had been predicted for this picture
    this.expected = thought.expected;
    this.thought = thought;
    this.mind.took?.(thought.took);
    if (thought.surprise !== null) {
      this.surprises = [...this.surprises, {value: thought.surprise, mark}].slice(-BARS);
    }
    this.inner();
    const sequence = [this.state];
    const width = thought.actions.length / this.data.exported.model.frameskip;
    for (let i = 0; i < thought.actions.length; i += width) {
      sequence.push(this.world.step(sequence.at(-1), thought.actions.subarray(i, i + width)));
    }
    if (watched && this.playing) await this.shown(sequence);
    else {
      for (const state of sequence.slice(1)) this.take(state);
    }
    this.progress = 1;
    this.least = Math.max(0, (this.least ?? 0) - 1);
    this.resting = !this.least && (this.met || this.steps >= MOST_STEPS);
    this.draw();
    this.record();
    this.speak(this.resting);
  }

  take(state) {
    this.state = state;
    this.trail = [...this.trail, this.place].slice(-400);
    if (!this.met) this.steps += 1;
    if (this.world.met(state, this.goalState)) this.met = true;
  }

  /** Take the states one by one as time goes by, and draw what lies between. */
  shown(sequence) {
    this.sequence = sequence;
    return new Promise((resolve) => {
      let began = null;
      let taken = 0;
      const frame = (now) => {
        if (this.sequence !== sequence) return resolve();
        began ??= now;
        const passed = Math.min((now - began) / STEP_MS, sequence.length - 1);
        while (taken < Math.floor(passed)) this.take(sequence[++taken]);
        const rest = passed - taken;
        const next = sequence[taken + 1] ?? sequence[taken];
        this.progress = passed / (sequence.length - 1);
        this.draw(this.place.map((x, i) => x + rest * (next[i] - x)));
        if (passed < sequence.length - 1) return requestAnimationFrame(frame);
        this.sequence = null;
        return resolve();
      };
      requestAnimationFrame(frame);
    });
  }

  // ---- what is seen

  draw(place = this.place) {
    const {pen, width} = surface(this.canvas);
    const ink = colours();
    const scale = width / WORLD_PX;
    pen.scale(scale, scale);
    pen.fillStyle = ink.soft;
    pen.fillRect(0, 0, WORLD_PX, WORLD_PX);
    pen.fillStyle = ink.wall;
    pen.fillRect(10, 10, 204, 204);
    pen.fillStyle = ink.card;
    pen.fillRect(14, 14, 196, 196);
    pen.fillStyle = ink.wall;
    const [wall, door, upright] = this.clean.layout(this.state);
    const bar = (from, to) => (upright
      ? pen.fillRect(wall - 5, from, 11, to - from) : pen.fillRect(from, wall - 5, to - from, 11));
    bar(14, door - 14);
    bar(door + 15, 210);
    for (const one of this.walls) this.drawWall(pen, one, ink);
    pen.lineJoin = pen.lineCap = "round";
    if (this.map && this.planner === "waypoints") this.drawMap(pen, ink);
    this.drawSwarm(pen, ink);
    this.drawTrail(pen, ink, place);
    this.drawGoal(pen, ink);
    this.drawImagined(pen, ink, place);
    pen.fillStyle = this.painted ? `#${PAINTED}` : ink.warm;
    pen.strokeStyle = ink.card;
    pen.lineWidth = 1.6;
    pen.beginPath();
    pen.arc(...place, 6.2, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }

  drawWall(pen, {x0, y0, x1, y1, drawn}, ink) {
    if (drawn) return pen.fillRect(x0, y0, x1 - x0 + 1, y1 - y0 + 1);
    pen.save();
    pen.strokeStyle = ink.wall;
    pen.lineWidth = 0.9;
    pen.setLineDash([3, 2.4]);
    pen.strokeRect(x0, y0, x1 - x0 + 1, y1 - y0 + 1);
    return pen.restore();
  }

  drawMap(pen, ink) {
    pen.fillStyle = ink.faint;
    pen.globalAlpha = 0.55;
    for (const [x, y] of this.places) pen.fillRect(x - 0.9, y - 0.9, 1.8, 1.8);
    pen.globalAlpha = 1;
    if (!this.thought?.way.length) return;
    const way = [this.place, ...this.thought.way.map((i) => this.places[i]), this.goal];
    pen.strokeStyle = ink.blue;
    pen.lineWidth = 1.3;
    pen.setLineDash([3.5, 3]);
    line(pen, way);
    pen.setLineDash([]);
    pen.fillStyle = ink.card;
    for (const [x, y] of way.slice(1, -1)) {
      pen.beginPath();
      pen.rect(x - 2.2, y - 2.2, 4.4, 4.4);
      pen.fill();
      pen.stroke();
    }
  }

  /** Where the candidates of a round lead; the rounds follow each other while the block lasts. */
  drawSwarm(pen, ink) {
    const rounds = this.thought?.rounds ?? [];
    if (!rounds.length) return;
    const shown = Math.min(rounds.length - 1, Math.floor((this.progress ?? 1) * rounds.length));
    const {places, elites, number} = rounds[shown];
    const horizon = places.length / (2 * number);
    const way = (n) => Array.from({length: horizon}, (_, h) => [
      places[2 * (n * horizon + h)], places[2 * (n * horizon + h) + 1]]);
    pen.lineWidth = 0.6;
    pen.strokeStyle = ink.faint;
    pen.globalAlpha = 0.6;
    for (let n = 0; n < number; n++) line(pen, [this.place, ...way(n)]);
    pen.globalAlpha = 1;
    pen.strokeStyle = pen.fillStyle = ink.blue;
    pen.lineWidth = 0.8;
    for (const n of elites) {
      const one = way(n);
      line(pen, [this.place, ...one]);
      pen.fillRect(one.at(-1)[0] - 1.6, one.at(-1)[1] - 1.6, 3.2, 3.2);
    }
  }

  drawTrail(pen, ink, place) {
    pen.strokeStyle = ink.warm;
    pen.globalAlpha = 0.35;
    pen.lineWidth = 2;
    let piece = [];
    for (const one of [...this.trail, place]) {
      if (one) piece.push(one);
      else {
        line(pen, piece);
        piece = [];
      }
    }
    line(pen, piece);
    pen.globalAlpha = 1;
  }

  drawGoal(pen, ink) {
    const [x, y] = this.goal;
    pen.strokeStyle = ink.blue;
    pen.globalAlpha = 0.35;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.arc(x, y, SUCCESS_PX, 0, 2 * Math.PI);
    pen.stroke();
    pen.globalAlpha = 1;
    pen.lineWidth = 2.4;
    pen.beginPath();
    pen.arc(x, y, 7, 0, 2 * Math.PI);
    pen.stroke();
    pen.fillStyle = ink.blue;
    pen.beginPath();
    pen.arc(x, y, 2.2, 0, 2 * Math.PI);
    pen.fill();
  }

  drawImagined(pen, ink, place) {
    if (!this.thought || this.met) return;
    pen.strokeStyle = pen.fillStyle = ink.warm;
    pen.lineWidth = 1.2;
    pen.setLineDash([0.1, 3.2]);
    line(pen, [place, ...this.thought.path]);
    pen.setLineDash([]);
    for (const [x, y] of this.thought.path) {
      pen.beginPath();
      pen.arc(x, y, 1.8, 0, 2 * Math.PI);
      pen.fill();
    }
  }

  /** What the model sees, remembers and is surprised by. */
  inner() {
    const {latent, hoped, place, here, surprise} = this.thought;
    const ink = colours();
    const [x, y] = here;
    const off = Math.hypot(x - place[0], y - place[1]);
    said("seen-said", `${this.world.imageSize} x ${this.world.imageSize} pixels. A linear probe reads `
      + `the agent from the latent at (${x.toFixed(0)}, ${y.toFixed(0)}), ${off.toFixed(1)} px off.`);
    const bars = surface(at("latent"));
    const step = bars.width / latent.length;
    const middle = bars.height / 2;
    const high = (value) => Math.max(-1, Math.min(1, value / 3)) * (middle - 3);
    bars.pen.fillStyle = ink.line;
    bars.pen.fillRect(0, middle, bars.width, 1);
    latent.forEach((value, i) => {
      bars.pen.fillStyle = ink.blue;
      bars.pen.fillRect(i * step, middle, Math.max(0.8, step * 0.7), -high(value));
      if (surprise === null) return;
      bars.pen.fillStyle = ink.warm;
      bars.pen.fillRect(i * step, middle - high(hoped[i]) - 0.8, Math.max(1, step), 1.6);
    });
    said("latent-said", "Blue bars: what it saw. Orange ticks: what it had predicted.");
    this.drawSurprise(ink);
  }

  drawSurprise(ink) {
    const {pen, width, height} = surface(at("surprise"));
    const [low, high] = [-4.5, 0.7];
    const up = (value) => (height - 14) * (1 - (Math.log10(Math.max(value, 1e-9)) - low) / (high - low));
    const step = width / BARS;
    const threshold = this.usual?.high ?? null;
    let free = 0; // where the next name has room
    this.surprises.forEach(({value, mark}, i) => {
      const x = (BARS - this.surprises.length + i) * step;
      const loud = threshold !== null && value > threshold;
      pen.fillStyle = loud ? ink.warm : ink.blue;
      const top = Math.max(2, Math.min(height - 15, up(value)));
      pen.fillRect(x, top, step * 0.7, height - 14 - top);
      if (loud) pen.fillRect(x - 0.5, top - 1, step * 0.7 + 1, 3); // a cap, besides the colour
      if (mark) {
        pen.fillStyle = ink.muted;
        pen.font = "10px system-ui, sans-serif";
        pen.fillRect(x, height - 13, 1, 4);
        const long = pen.measureText(mark).width;
        const from = Math.min(x, width - long);
        if (from >= free) {
          pen.fillText(mark, from, height - 2);
          free = from + long + 5;
        }
      }
    });
    if (threshold === null) return;
    pen.strokeStyle = ink.muted;
    pen.lineWidth = 1;
    pen.setLineDash([4, 3]);
    line(pen, [[0, up(threshold)], [width, up(threshold)]]);
    const newest = this.surprises.at(-1);
    if (!newest) return said("surprise-said", "Nothing was predicted yet.");
    const times = newest.value / this.usual.median;
    said("surprise-said", `${newest.value.toPrecision(2)}, ${times >= 10 ? times.toFixed(0)
      : times.toFixed(1)} times the usual${newest.value > threshold ? ": surprised" : ""}. Above the `
      + "line lies one picture in twenty of the unbroken world.");
  }

  speak(now = false) {
    const time = performance.now();
    if (this.met || this.met !== this.spokenMet) now = true;
    this.spokenMet = this.met;
    if (!now && this.playing && !this.resting && time - this.spokenAt < 900) return;
    this.spokenAt = time;
    const {thought} = this;
    let words;
    if (!this.ready) words = "Not ready yet.";
    else if (this.met) words = `There, after ${this.steps} steps.`;
    else if (this.steps >= MOST_STEPS) words = `Not there after ${this.steps} steps. It rests.`;
    else if (!this.playing && !thought) words = "Ready. Press Step or Play, or drag the goal.";
    else {
      const left = thought ? `about ${Math.round(thought.steps)} steps left, it thinks` : "looking";
      const over = thought?.way.length ? `, over ${thought.way.length} waypoints` : "";
      const lost = thought && !thought.found ? ". Its map knows no way" : "";
      words = `${this.playing ? "Going" : "Paused"}: step ${this.steps}, ${left}${over}${lost}.`;
    }
    said("said", words);
    at("play").textContent = this.resting ? "Again" : this.playing ? "Pause" : "Play";
  }

  // ---- hands

  controls() {
    at("play").onclick = () => this.toggle();
    at("step").onclick = () => this.step();
    at("elsewhere").onclick = () => this.elsewhere();
    at("mend").onclick = () => this.mend();
    for (const button of document.querySelectorAll("[data-break]")) {
      button.onclick = () => this.broken(button.dataset.break);
    }
    for (const radio of document.getElementsByName("planner")) {
      radio.onchange = () => this.choose(radio.value);
    }
    at("map").onchange = () => {
      this.map = at("map").checked;
      this.draw();
      this.keep();
    };
    at("link").onclick = () => this.copy();
    at("png").onclick = () => this.canvas.toBlob((blob) => save(blob, "lewm.png"));
    at("gif").onclick = () => this.animation();
    watch(this.canvas, (visible) => {
      this.visible = visible;
      this.run();
    });
    this.shownPlanner();
  }

  shownPlanner() {
    for (const radio of document.getElementsByName("planner")) {
      radio.checked = radio.value === this.planner;
    }
    at("map").checked = this.map;
    said("planner-words", WORDS[this.planner]);
  }

  choose(planner) {
    this.planner = planner;
    this.shownPlanner();
    this.thought = null;
    this.wake();
    this.keep();
  }

  toggle() {
    if (!this.ready) return;
    if (this.resting) {
      this.playing ||= !still();
      this.elsewhere();
    } else this.playing = !this.playing;
    this.speak(true);
    this.run();
  }

  async step() {
    if (!this.ready) return;
    this.playing = false;
    if (this.looping || this.stepping) return;
    this.stepping = true;
    this.resting = false;
    await this.block(false);
    this.stepping = false;
    this.speak(true);
  }

  listen() {
    const {canvas} = this;
    const where = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top].map(
        (x) => (x * WORLD_PX) / box.width);
    };
    const near = ([x, y]) => Math.hypot(x - this.goal[0], y - this.goal[1]) < 30;
    let held = false;
    // a finger on the goal drags it; elsewhere it scrolls the page, and a tap calls the goal
    canvas.addEventListener("touchstart", (event) => {
      if (near(where(event.touches[0]))) event.preventDefault();
    }, {passive: false});
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" && !near(where(event))) return;
      held = true;
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({preventScroll: true});
      this.aim(where(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (held) this.aim(where(event));
    });
    canvas.addEventListener("click", (event) => this.aim(where(event)));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => {
        held = false;
        this.keep();
      });
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    addEventListener("hashchange", () => this.link(location.hash));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = {
      ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
    };
    const others = {
      " ": () => this.toggle(), Enter: () => this.step(), i: () => this.broken("unseen"),
      d: () => this.broken("drawn"), t: () => this.broken("teleport"),
      c: () => this.broken("colour"), m: () => this.mend(), n: () => this.elsewhere(),
    };
    const arrow = arrows[event.key];
    const other = others[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!arrow && !other) return;
    event.preventDefault();
    if (other) return other();
    return this.move(arrow, event.shiftKey ? 24 : 6);
  }

  /** Move the goal by keys; through a wall in one go, since nothing can be within. */
  move(arrow, step) {
    const axis = arrow[0] ? 0 : 1;
    for (let length = step; length <= step + 42; length += 6) {
      const goal = this.legal(this.goal.map((x, i) => x + length * arrow[i]));
      if ((goal[axis] - this.goal[axis]) * arrow[axis] > 0.5) {
        this.aim(goal);
        this.keep();
        return;
      }
    }
  }

  // ---- what can be taken away

  keep() {
    const fragment = fragmentOf({
      agent: this.place, goal: this.goal, planner: this.planner, map: this.map ? "on" : "off",
      layout: this.world.varied ? this.clean.layout(this.state) : null,
    });
    try {
      history.replaceState(null, "", `#${fragment}`);
    } catch {
      // some browsers keep the address of a file as it is
    }
  }

  link(fragment) {
    const kinds = {agent: 2, goal: 2, layout: 3, planner: PLANNERS, map: ["on", "off"]};
    const linked = stateOf(fragment, kinds);
    if (linked.planner) this.planner = linked.planner;
    if (linked.map) this.map = linked.map === "on";
    if (linked.layout && this.world.varied) this.layoutOf = [0, 0, ...linked.layout];
    if (linked.agent || linked.goal || linked.layout) {
      this.sequence = null;
      this.begin(linked.agent ?? this.place, linked.goal ?? this.goal);
    }
    this.shownPlanner();
    if (!this.ready) return;
    this.draw();
    this.speak(true);
    this.run();
  }

  async copy() {
    this.keep();
    try {
      await navigator.clipboard.writeText(location.href);
      said("saved", "Copied.");
    } catch {
      said("saved", "The link is in the address bar.");
    }
  }

  /** Remember what the scene looks like, for the GIF. */
  record() {
    const small = document.createElement("canvas");
    small.width = small.height = GIF_PX;
    const pen = small.getContext("2d", {willReadFrequently: true});
    pen.drawImage(this.canvas, 0, 0, GIF_PX, GIF_PX);
    this.frames = [...this.frames, small].slice(-GIF_FRAMES);
  }

  animation() {
    if (!this.frames.length) return said("saved", "Nothing has moved yet.");
    const frames = this.frames.map((small, i) => ({
      pixels: small.getContext("2d").getImageData(0, 0, GIF_PX, GIF_PX).data,
      delay: i === this.frames.length - 1 ? 1500 : 120,
    }));
    save(new Blob([gif(frames, GIF_PX, GIF_PX)], {type: "image/gif"}), "lewm.gif");
    return said("saved", `Saved ${frames.length} pictures.`);
  }
}

function placesOf({states, width}) {
  const bytes = Uint8Array.from(atob(states), (one) => one.charCodeAt(0));
  const values = new Float32Array(bytes.buffer);
  return Array.from({length: values.length / width}, (_, i) => [
    values[i * width], values[i * width + 1]]);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  said("saved", `Saved ${name}.`);
}

// ----------------------------------------------------------------------------------------- SIGReg

class Cloud {
  constructor(latents, D, rule) {
    Object.assign(this, {latents, D, angle: 0.5, turning: false, visible: true});
    this.rule = quadrature(rule);
    this.normal = gaussian(7);
    this.directions = drawDirections(D, DIRECTIONS, this.normal);
    this.axes = this.drawn();
    this.plane = "a plane by chance";
    this.spoilt = {squash: 0, shift: 0, collapse: 0};
    for (const name of Object.keys(this.spoilt)) {
      at(name).oninput = () => {
        this.spoilt[name] = Number(at(name).value);
        this.changed();
      };
    }
    at("angle").oninput = () => {
      this.angle = (Number(at("angle").value) * Math.PI) / 180;
      this.turning = false;
      this.draw();
    };
    at("turn").onclick = () => this.toggle();
    at("turn-step").onclick = () => this.turn(Math.PI / 12);
    at("plane").onclick = () => this.show(this.drawn(), "a plane by chance");
    at("widest").onclick = () => this.show(widest(latents, D), "the plane in which it is widest");
    at("undo").onclick = () => {
      for (const name of Object.keys(this.spoilt)) at(name).value = this.spoilt[name] = 0;
      this.changed();
    };
    at("cloud").addEventListener("keydown", (event) => {
      const turn = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1}[event.key];
      if (turn) this.turn((turn * Math.PI) / 36);
      else if (event.key === " ") this.toggle();
      else return;
      event.preventDefault();
    });
    for (const id of ["turn", "turn-step", "plane", "widest", "undo"]) at(id).disabled = false;
    watch(at("cloud"), (visible) => {
      this.visible = visible;
      this.go();
    });
    this.changed();
    if (!still()) this.toggle();
  }

  /** Two directions by chance, made orthogonal. */
  drawn() {
    const [first, second] = drawDirections(this.D, 2, this.normal);
    const along = first.reduce((sum, x, i) => sum + x * second[i], 0);
    const rest = second.map((x, i) => x - along * first[i]);
    const length = Math.hypot(...rest);
    return [first, rest.map((x) => x / length)];
  }

  show(axes, plane) {
    this.axes = axes;
    this.plane = plane;
    this.changed();
  }

  toggle() {
    this.turning = !this.turning;
    this.draw();
    this.go();
  }

  turn(by) {
    this.turning = false;
    this.angle = (this.angle + by + Math.PI) % Math.PI;
    this.draw();
  }

  /** Turn as long as somebody looks. */
  go() {
    if (this.going || !this.turning || !this.visible) return;
    this.going = true;
    let before = null;
    const frame = (now) => {
      if (!this.turning || !this.visible) {
        this.going = false;
        return;
      }
      this.angle = (this.angle + Math.min(now - (before ?? now), 50) / 4000) % Math.PI;
      before = now;
      this.draw();
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  changed() {
    const {D} = this;
    this.now = deformed(this.latents, D, this.axes[0], this.spoilt);
    this.flat = this.axes.map((axis) => projected(this.now, D, axis));
    const trained = this.axes.map((axis) => projected(this.latents, D, axis));
    this.reach = Math.max(4, Math.ceil(1.05 * Math.max(...trained.flatMap((one) => [...one.map(
      Math.abs)]))));
    this.all = sigreg(this.now, D, this.directions, this.rule);
    this.trained ??= this.all;
    said("all-directions", `Mean over ${DIRECTIONS} directions by chance, which is SIGReg: `
      + `${this.all.toPrecision(3)}. As it was trained: ${this.trained.toPrecision(3)}. A Gaussian `
      + `cloud: about 1, however many points; else it grows with them (${this.latents.length / D} `
      + "here).");
    for (const [name, value] of Object.entries(this.spoilt)) {
      at(name).parentElement.querySelector("output").textContent = value.toFixed(2);
    }
    this.draw();
  }

  draw() {
    const ink = colours();
    const [first, second] = this.flat;
    const [cos, sin] = [Math.cos(this.angle), Math.sin(this.angle)];
    const values = first.map((x, b) => cos * x + sin * second[b]);
    const statistic = eppsPulley(values, this.rule);
    this.drawCloud(ink, cos, sin);
    this.drawShadow(ink, values);
    const degrees = Math.round((this.angle * 180) / Math.PI);
    at("turn").textContent = this.turning ? "Stop" : "Turn";
    at("angle").value = degrees;
    at("angle").parentElement.querySelector("output").textContent = `${degrees}°`;
    said("statistic", statistic.toPrecision(3));
    said("cloud-said", `${values.length} points in ${this.plane}, of ${this.D} dimensions. The `
      + `direction stands at ${degrees} degrees.`);
    const middle = values.reduce((a, b) => a + b, 0) / values.length;
    const spread = Math.sqrt(values.reduce((a, x) => a + (x - middle) ** 2, 0) / values.length);
    said("shadow-said", `Mean ${middle.toFixed(2)}, standard deviation ${spread.toFixed(2)}; those of `
      + "the bell are 0 and 1.");
  }

  drawCloud(ink, cos, sin) {
    const {pen, width, height} = surface(at("cloud"));
    const {reach} = this;
    const place = (x, y) => [width / 2 + (x / reach) * (width / 2), height / 2 - (y / reach) * (height / 2)];
    pen.strokeStyle = ink.line;
    pen.lineWidth = 1;
    for (const r of [1, 2]) {
      pen.beginPath();
      pen.arc(width / 2, height / 2, (r / reach) * (width / 2), 0, 2 * Math.PI);
      pen.stroke();
    }
    pen.strokeStyle = ink.warm;
    pen.lineWidth = 2;
    line(pen, [place(-reach * cos, -reach * sin), place(reach * cos, reach * sin)]);
    const [tip, left, right] = [
      place(0.93 * reach * cos, 0.93 * reach * sin),
      place(reach * (0.87 * cos - 0.04 * sin), reach * (0.87 * sin + 0.04 * cos)),
      place(reach * (0.87 * cos + 0.04 * sin), reach * (0.87 * sin - 0.04 * cos))];
    line(pen, [left, tip, right]);
    pen.fillStyle = ink.blue;
    const [first, second] = this.flat;
    first.forEach((x, b) => {
      const [px, py] = place(x, second[b]);
      pen.globalAlpha = 0.75;
      pen.beginPath();
      pen.arc(px, py, 2.4, 0, 2 * Math.PI);
      pen.fill();
      pen.globalAlpha = 0.5;
      const along = cos * x + sin * second[b];
      const [sx, sy] = place(along * cos, along * sin);
      pen.fillStyle = ink.warm;
      pen.fillRect(sx - 1, sy - 1, 2, 2);
      pen.fillStyle = ink.blue;
    });
    pen.globalAlpha = 1;
  }

  drawShadow(ink, values) {
    const {pen, width, height} = surface(at("shadow"));
    const [low, high, bins, foot] = [-this.reach, this.reach, 40, 18];
    const heights = histogram(values, bins, low, high);
    const top = Math.max(0.6, Math.min(1.5, 1.1 * Math.max(...heights)));
    const x = (value) => ((value - low) / (high - low)) * width;
    const y = (value) => (height - foot) * (1 - Math.min(value / top, 1));
    pen.fillStyle = ink.blue;
    pen.globalAlpha = 0.6;
    heights.forEach((value, i) => {
      const from = x(low + (i * (high - low)) / bins);
      pen.fillRect(from, y(value), width / bins - 1, height - foot - y(value));
    });
    pen.globalAlpha = 1;
    pen.strokeStyle = ink.ink;
    pen.lineWidth = 2;
    pen.setLineDash([6, 4]);
    line(pen, Array.from({length: 121}, (_, i) => {
      const value = low + (i * (high - low)) / 120;
      return [x(value), y(normalDensity(value))];
    }));
    pen.setLineDash([]);
    pen.fillStyle = ink.muted;
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "center";
    const every = Math.ceil(this.reach / 5);
    for (let value = -every * 4; value < high; value += every) {
      if (value > low) pen.fillText(String(value), x(value), height - 4);
    }
  }
}

// ---------------------------------------------------------------------------------- token economy

class Economy {
  constructor(mind, data) {
    this.mind = mind;
    this.models = data.economy.models;
    this.search = data.economy.search;
    const [candidates, horizon, iterations] = this.search;
    this.plan = {candidates, horizon, iterations};
    this.choices = [1, 10, 30, 64, 100, 200, 300, 500, 800, 1000, 2000];
    at("candidates").max = this.choices.length - 1;
    at("candidates").value = this.choices.indexOf(candidates);
    at("horizon").value = horizon;
    at("iterations").value = iterations;
    for (const name of ["candidates", "horizon", "iterations"]) at(name).oninput = () => this.changed();
    at("measure").onclick = () => this.measure();
    this.changed();
  }

  changed() {
    this.plan = {
      candidates: this.choices[Number(at("candidates").value)],
      horizon: Number(at("horizon").value), iterations: Number(at("iterations").value),
    };
    for (const [name, value] of Object.entries(this.plan)) {
      at(name).parentElement.querySelector("output").textContent = value;
    }
    const bills = bill(this.models, this.plan);
    const own = bills[0];
    const [least, most] = [own.tokens, Math.max(...bills.map((one) => one.tokens))];
    said("bill-said", `${this.plan.candidates} x ${this.plan.horizon} x ${this.plan.iterations} = `
      + `${own.frames.toLocaleString("en")} imagined frames a plan. From ${short(least)} tokens to `
      + `${short(most)}.`);
    const rows = bills.map((one, i) => {
      const {kind, tokens, seconds, search, hardware} = this.models[i];
      const row = document.createElement("tr");
      if (!i) row.className = "own";
      for (const text of [
        one.name, (kind === "estimated" ? "~ " : "") + tokens.toLocaleString("en"), short(one.tokens),
        one.gflop === null ? "–" : short(one.gflop / 1000), seconds ?? "–",
        seconds === null ? "–" : `${search.join(" x ")}, ${hardware}`]) {
        const cell = document.createElement("td");
        cell.textContent = text;
        row.append(cell);
      }
      return row;
    });
    at("bill").tBodies[0].replaceChildren(...rows);
    this.draw();
  }

  draw() {
    const ink = colours();
    const canvas = at("dots");
    const gap = 12;
    const columns = canvas.clientWidth < 560 ? 3 : this.models.length;
    const side = (canvas.clientWidth - gap * (columns - 1)) / columns;
    const high = side + 40;
    canvas.style.height = `${Math.ceil(this.models.length / columns) * high}px`;
    const {pen} = surface(canvas);
    this.models.forEach(({name, tokens, kind}, i) => {
      const left = (i % columns) * (side + gap);
      const top = Math.floor(i / columns) * high;
      pen.fillStyle = ink.soft;
      pen.fillRect(left, top, side, side);
      const {columns: across, spacing} = dots(tokens, side);
      pen.fillStyle = i ? ink.blue : ink.warm;
      const size = Math.max(0.7, Math.min(7, spacing * 0.6));
      for (let n = 0; n < tokens; n++) {
        const [x, y] = [(n % across) + 0.5, Math.floor(n / across) + 0.5];
        pen.fillRect(left + x * spacing - size / 2, top + y * spacing - size / 2, size, size);
      }
      pen.fillStyle = ink.ink;
      pen.font = "600 13px system-ui, sans-serif";
      pen.fillText(name, left, top + side + 16);
      pen.fillStyle = ink.muted;
      pen.font = "12px system-ui, sans-serif";
      pen.fillText(
        `${kind === "estimated" ? "~ " : ""}${tokens.toLocaleString("en")}`, left, top + side + 32);
    });
    const seen = this.models.map(({name, tokens}) => `${name} ${tokens.toLocaleString("en")}`);
    const fine = this.models.filter(({tokens}) => !dots(tokens, side).drawn).map(({name}) => name);
    said("dots-said", `Tokens of one frame: ${seen.join(", ")}.${fine.length
      ? ` Dots of ${fine.join(" and ")} are closer than two pixels, which is beyond what can be drawn.`
      : ""}`);
  }

  /** Imagine such a plan here: its rounds one after the other, so that the world goes on between. */
  async measure() {
    at("measure").disabled = true;
    const {candidates, horizon, iterations} = this.plan;
    let total = 0;
    for (let i = 0; i < iterations; i++) {
      const {seconds} = await this.mind.ask("round", {candidates, horizon});
      total += seconds;
      said("measured", `round ${i + 1} of ${iterations}: ${total.toFixed(2)} s`);
    }
    said("measured", `${candidates} x ${horizon} x ${iterations} imagined by this page's model: `
      + `${total < 0.1 ? total.toPrecision(2) : total.toFixed(2)} s on one thread of this machine. `
      + "It is smaller than the published one.");
    at("measure").disabled = false;
  }

  /** What the loop of the world costs here. */
  loop(times) {
    const sorted = [...times].sort((a, b) => a - b);
    said("loop", `The loop above, measured here: ${sorted[sorted.length >> 1].toFixed(1)} ms to see `
      + `and to plan (median of the last ${sorted.length}), for an action block.`);
  }
}

// ----------------------------------------------------------------------------------------- opening

/** Open the page: the model first, then what shows it. */
export async function start(library) {
  const refuse = (words) => {
    at("check").hidden = true;
    at("refusal").hidden = false;
    said("refusal", `This page cannot run its model: ${words}`);
  };
  const data = JSON.parse(at("data").textContent);
  const began = performance.now();
  let mind;
  let scene;
  try {
    mind = new Distant(library);
    scene = new Scene(mind, data, location.hash);
    scene.draw();
    const {exported, wasm} = data;
    const {check} = await mind.ask("open", {exported, wasm, map: scene.planner === "waypoints"});
    said("check", `Checked against golden frames: ${check.sentence}.`);
  } catch (error) {
    refuse(error.message);
    return;
  }
  const economy = new Economy(mind, data);
  for (const button of document.querySelectorAll("button:disabled")) {
    if (button.id !== "mend") button.disabled = false;
  }
  scene.ready = true;
  document.body.dataset.ready = Math.round(performance.now());
  document.body.dataset.opened = Math.round(performance.now() - began);
  scene.speak(true);
  scene.run();
  let cloud = null;
  try {
    cloud = new Cloud(await cloudOf(mind, data), data.exported.model.latent_dim, data.rule);
    scene.usual = await usualOf(mind, data);
  } catch (error) {
    refuse(error.message);
    return;
  }
  const times = [];
  mind.took = (ms) => {
    times.push(ms);
    if (times.length > 50) times.shift();
    economy.loop(times);
  };
  const redraw = () => {
    scene.draw();
    if (scene.thought) scene.inner();
    cloud.draw();
    economy.draw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(document.querySelector("main"));
  document.body.dataset.complete = "yes";
}

/** Latents of the training frames, a few at a time, so that the loop goes on meanwhile. */
async function cloudOf(mind, {states, exported}) {
  const D = exported.model.latent_dim;
  const all = new Float32Array(states.length * D);
  for (let i = 0; i < states.length; i += AT_ONCE) {
    const {latents} = await mind.ask("cloud", {states: states.slice(i, i + AT_ONCE)});
    all.set(latents, i * D);
  }
  return all;
}

/** How surprised it is where nothing is broken: the median, and above `high` one in twenty. */
async function usualOf(mind, {states}) {
  const all = [];
  for (let i = 0; i < WALKS; i++) {
    const [state, other] = [states[i % states.length], states[(7 * i + 3) % states.length]];
    const goal = [...other.slice(0, 2), ...state.slice(2)];
    all.push(...(await mind.ask("usual", {pairs: [[state, goal]]})).surprises);
  }
  all.sort((a, b) => a - b);
  return {median: all[all.length >> 1], high: all[Math.floor(0.95 * all.length)]};
}
