// The page's only script. It reads what the page holds, draws it, and writes text (never markup) into it; what is shown
// stands in the address's fragment, so that a link to it can be shared and the browser's own back leads back.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const byId = (id) => document.getElementById(id);
const rounded = Object.keys(facts.scales).length > 0;
const feedForward = ["gate_proj", "up_proj", "down_proj"];
const longest = 20; // neurons of a list
const kept = new Map(); // blocks whose numbers are unpacked, the last ones used

// What the map can show; of each the layers, which are its columns within a projection.
const kinds = {
  own: {
    title: `neurons of one language: ${facts.times} times as important as in any other`,
    layers: facts.languages,
    say: (value) => `${whole(value)} ${value === 1 ? "neuron" : "neurons"} of its own`,
  },
  sets: { title: "neurons of the sets", layers: facts.sets, say: (value) => `${whole(value)} in the set` },
  largest: {
    title: "importance of the most important neuron", layers: facts.languages, log: true,
    say: (value) => `largest importance ${number(value)}`,
  },
  mean: {
    title: "importance, mean over neurons", layers: facts.languages, log: true,
    say: (value) => `mean importance ${number(value)}`,
  },
  inspected: { title: "neurons that were looked into", layers: ["inspected"], say: (value) => `${whole(value)} looked into` },
};
const shown = ["own", "sets", "largest", "mean", "inspected"].filter((kind) => facts.map[kind].length > 0);
let state = { show: shown[0], only: -1, by: "", at: null };
let cursor = { block: 0, projection: 0 };
let map = null; // where cells of the map are, in pixels
let strip = null;

// text and elements

function language() { return kinds[state.show].layers === facts.languages ? state.only : -1; }

function whole(value) { return value.toLocaleString("en-US"); }

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size >= 1000 && size < 1e6 ? whole(Math.round(value)) : String(Number(value.toPrecision(3)));
  return text.replaceAll("-", "−");
}

function signed(value) { return (value >= 0 ? "+" : "") + number(value); }

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function exact(value) { return element("data", { value: String(value), title: String(value) }, number(value)); }

function single(value) {
  if (value === null) return "–";
  return rounded ? `≈${number(value)}` : exact(value);
}

function short(projection) { return projection.replace("_proj", ""); }

function name(at) {
  const index = at.index === null ? "" : `.${at.index}`;
  return `${facts.blocks[at.block]}.${facts.projections[at.projection]}${index}`;
}

function width(block, projection) { return facts.widths[block][projection]; }

function exists(at) {
  const neurons = width(at.block, at.projection);
  return neurons !== -1 && (at.index === null || neurons === null || at.index < neurons);
}

// the fragment

function fragment(changed) {
  const next = { ...state, ...changed };
  const fields = new URLSearchParams();
  if (next.at) fields.set("at", name(next.at));
  if (next.show !== shown[0]) fields.set("show", next.show);
  if (next.only >= 0) fields.set("only", kinds[next.show].layers[next.only]);
  if (next.by) fields.set("by", next.by);
  return `#${fields}`;
}

function go(changed) { location.hash = fragment(changed); }

function readFragment() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const show = shown.includes(fields.get("show")) ? fields.get("show") : shown[0];
  const found = fields.get("at") ? parse(fields.get("at")) : { at: null };
  say(found.problem || "");
  const by = fields.get("by") === "importance" ? "importance" : "";
  return { show, only: kinds[show].layers.indexOf(fields.get("only")), by, at: found.at || null };
}

// "12.down:345", "12.down_proj.345", "12 down 345", "encoder.3.q_proj": where that is, or what is wrong with it.
function parse(text) {
  const found = /^\s*((?:(?:en|de)coder\.)?\d+(?:\.cross|\.shared)?)[.:\s]+([a-z]+)(?:_proj)?(?:[.:\s]+(\d{1,9}))?\s*$/i.exec(text);
  if (!found) return { problem: `“${text}”: expected block, projection and number, such as ${example()}` };
  const block = facts.blocks.indexOf(found[1]);
  const projection = facts.projections.findIndex((one) => short(one) === found[2].toLowerCase());
  if (block < 0) return { isAddress: true, problem: `“${found[1]}”: no such block; from ${facts.blocks[0]} to ${facts.blocks.at(-1)}` };
  if (projection < 0) return { isAddress: true, problem: `“${found[2]}”: not shown here; one of ${facts.projections.map(short).join(", ")}` };
  const at = { block, projection, index: found[3] === undefined ? null : Number(found[3]) };
  if (exists(at)) return { at };
  const neurons = width(block, projection);
  const has = neurons === -1 ? "the model has none" : `from 0 to ${whole(neurons - 1)}`;
  return { isAddress: true, problem: `${name(at)}: no such neuron; ${name({ ...at, index: null })}: ${has}` };
}

function example() { return `${facts.blocks.at(-1)}.${short(facts.projections.at(-1))}:3`; }

function say(text) { byId("message").textContent = text; }

// numbers of single neurons

function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text).buffer;
  const letters = atob(text), made = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place += 1) made[place] = letters.charCodeAt(place);
  return made.buffer;
}

// What a block's piece holds, by projection: of every language means and logs, of every set indices and importances.
function unpack(block) {
  if (kept.has(block)) return kept.get(block);
  const buffer = bytes(byId(`piece-${block}`).textContent);
  let offset = 0;
  const take = (Kind, length) => {
    const values = new Kind(buffer, offset, length);
    offset += Math.ceil((length * Kind.BYTES_PER_ELEMENT) / 4) * 4;
    return values;
  };
  const numbers = (length, scale, zero) => {
    if (!rounded) return take(Float32Array, length);
    return Float64Array.from(take(Uint16Array, length), (code) => {
      const log = scale.low + scale.step * (code - 1);
      return zero ? (code === 0 ? 0 : Math.exp(log)) : log;
    });
  };
  const found = facts.projections.map((_, projection) => {
    const neurons = width(block, projection);
    if (neurons === -1) return null;
    const means = [], logs = [];
    if (facts.scored[block][projection]) {
      for (const language of facts.languages) {
        const scale = rounded ? facts.scales[facts.keys[means.length]] : {};
        means.push(numbers(neurons, scale.mean, true));
        if (facts.relative) logs.push(numbers(neurons, scale.log, false));
      }
    }
    const sets = facts.map.sets.map((grid) => {
      const length = grid[block][projection];
      return { indices: take(Int32Array, length), importance: take(Float32Array, length) };
    });
    return { neurons, means, logs, sets };
  });
  kept.set(block, found);
  if (kept.size > 4) kept.delete(kept.keys().next().value);
  return found;
}

function inSet(set, index) {
  let low = 0, high = set.indices.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (set.indices[middle] < index) low = middle + 1;
    else high = middle;
  }
  return set.indices[low] === index ? set.importance[low] : null;
}

// How many times as important a neuron is in one language (or in that where it is most so) as in the next.
function contrast(logs, index, only) {
  if (logs.length < 2) return null;
  let own = only;
  if (own < 0) own = logs.reduce((best, one, place) => (one[index] > logs[best][index] ? place : best), 0);
  let next = -Infinity;
  logs.forEach((one, place) => { if (place !== own) next = Math.max(next, one[index]); });
  return { own, times: Math.exp(logs[own][index] - next), above: logs[own][index] > 0 };
}

// colours

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (key) => style.getPropertyValue(key).trim();
  const ramp = ["--m0", "--m1", "--m2"].map((key) => {
    const text = read(key).slice(1);
    return [0, 2, 4].map((place) => parseInt(text.slice(place, place + 2), 16));
  });
  return { ramp, ink: read("--ink"), quiet: read("--quiet"), line: read("--line"), link: read("--link") };
}

function shade(ramp, part) {
  const place = Math.max(0, Math.min(1, part)) * 2, first = Math.min(1, Math.floor(place)), rest = place - first;
  const mixed = ramp[first].map((low, channel) => Math.round(low + (ramp[first + 1][channel] - low) * rest));
  return `rgb(${mixed.join(" ")})`;
}

// From a number of the map to a part of the ramp: by logarithms, 0 at its beginning.
function ramped(values, log) {
  const positive = values.filter((value) => value > 0);
  const high = positive.reduce((most, value) => Math.max(most, value), 0);
  const low = positive.reduce((least, value) => Math.min(least, value), high);
  const part = (value) => {
    if (!(value > 0)) return 0;
    if (!log) return 0.15 + 0.85 * (Math.log1p(value) / Math.log1p(high));
    return high === low ? 1 : 0.08 + 0.92 * (Math.log(value / low) / Math.log(high / low));
  };
  return { low, high, part };
}

function sized(canvas, wide, high) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(wide * ratio);
  canvas.height = Math.round(high * ratio);
  canvas.style.width = `${wide}px`;
  canvas.style.height = `${high}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = '12px system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif';
  pen.textBaseline = "middle";
  return pen;
}

// the map

function layersShown() {
  const every = kinds[state.show].layers.map((_, place) => place);
  return state.only < 0 ? every : [state.only];
}

function drawMap() {
  const box = byId("map-box"), canvas = byId("map"), grids = facts.map[state.show], layers = layersShown();
  const { ramp, ink, quiet, link } = colours();
  const room = box.clientWidth, columns = facts.projections.length, rows = facts.blocks.length;
  const labels = Math.max(...facts.blocks.map((block) => block.length)) * 7 + 8;
  const gap = layers.length > 1 ? 5 : 2, group = Math.max(layers.length * 3, 24, (room - labels) / columns - gap);
  const cell = Math.min(28, group / layers.length), high = Math.max(7, Math.min(18, Math.floor(540 / rows)));
  const step = Math.min(group, cell * layers.length) + gap, top = 20;
  map = { labels, top, step, cell, high, gap, columns, rows, layers };
  const pen = sized(canvas, Math.max(labels + columns * Math.max(step, 34), 120), top + rows * high + 2);
  map.step = Math.max(step, 34);
  const every = layers.flatMap((layer) => grids[layer].flat()).filter((value) => value !== null);
  const scale = ramped(every, kinds[state.show].log);
  pen.fillStyle = quiet;
  facts.projections.forEach((one, column) => pen.fillText(short(one), labels + column * map.step, 9));
  pen.textAlign = "right";
  const stride = Math.ceil(12 / high);
  facts.blocks.forEach((block, row) => {
    if (row % stride === 0) pen.fillText(block, labels - 6, top + (row + 0.5) * high);
  });
  layers.forEach((layer, place) => {
    grids[layer].forEach((line, row) => line.forEach((value, column) => {
      if (value === null) return;
      pen.fillStyle = shade(ramp, scale.part(value));
      pen.fillRect(labels + column * map.step + place * cell, top + row * high, Math.max(1, cell - 0.5), high - 1);
    }));
  });
  const frame = (at, colour, thick) => {
    pen.strokeStyle = colour;
    pen.lineWidth = thick;
    pen.strokeRect(labels + at.projection * map.step - 1.5, top + at.block * high - 1, cell * layers.length + 2, high + 1);
  };
  if (state.at) frame(state.at, link, 2);
  if (document.activeElement === canvas) frame(cursor, ink, 2);
  drawLegend(scale);
}

function drawLegend(scale) {
  const layers = layersShown().map((layer) => kinds[state.show].layers[layer]);
  const order = layers.length > 1 ? `within a projection, from left to right: ${layers.join(", ")}` : layers[0] || "";
  const low = kinds[state.show].log ? number(scale.low) : "0";
  const ramp = element("span", { class: "ramp", role: "img", "aria-label": "from few to many, by logarithms" });
  const blank = facts.map[state.show].some((grid) => grid.flat().includes(null)) ? "; blank: nothing is known" : "";
  byId("legend").replaceChildren(low, ramp, number(scale.high), element("span", {}, `${order}${blank}`));
}

function cellAt(event) {
  const box = byId("map").getBoundingClientRect();
  const projection = Math.floor((event.clientX - box.left - map.labels) / map.step);
  const block = Math.floor((event.clientY - box.top - map.top) / map.high);
  if (projection < 0 || block < 0 || projection >= map.columns || block >= map.rows) return null;
  return width(block, projection) === -1 ? null : { block, projection };
}

function describe(cell) {
  const at = { ...cell, index: null }, neurons = width(cell.block, cell.projection);
  if (neurons === -1) return `${name(at)}: the model has none`;
  const said = layersShown().map((layer) => {
    const value = facts.map[state.show][layer][cell.block][cell.projection];
    const layerName = state.show === "inspected" ? "" : `${kinds[state.show].layers[layer]}: `;
    return value === null ? `${layerName}–` : `${layerName}${kinds[state.show].say(value)}`;
  });
  return `${name(at)}${neurons === null ? "" : `, ${whole(neurons)} neurons`}. ${said.join("; ")}`;
}

function moveCursor(event) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    if (width(cursor.block, cursor.projection) !== -1) go({ at: { ...cursor, index: null } });
    return;
  }
  if (!moves[event.key]) return;
  event.preventDefault();
  const [down, right] = moves[event.key];
  cursor.block = Math.max(0, Math.min(map.rows - 1, cursor.block + down));
  cursor.projection = Math.max(0, Math.min(map.columns - 1, cursor.projection + right));
  byId("where").textContent = describe(cursor);
  drawMap();
}

function mapTable() {
  const box = byId("table"), layer = Math.max(0, state.only);
  if (!box.open) return;
  const caption = kinds[state.show].layers[layer];
  const head = element("tr", {}, element("th", { scope: "col" }, "block"),
    ...facts.projections.map((one) => element("th", { scope: "col", class: "number" }, short(one))));
  const rows = facts.map[state.show][layer].map((line, block) => element("tr", {},
    element("th", { scope: "row" }, facts.blocks[block]),
    ...line.map((value, projection) => element("td", { class: "number" }, value === null ? "–" : element("a",
      { href: fragment({ at: { block, projection, index: null } }) }, number(value))))));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  const said = element("p", { class: "quiet" }, `${kinds[state.show].title}; ${caption}`);
  box.replaceChildren(box.firstElementChild, said, scrolled(table, "the map as a table"));
}

function scrolled(table, label) {
  return element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label }, table);
}

// choices

function choices() {
  byId("show").replaceChildren(...shown.map((kind) => element("option", { value: kind }, kinds[kind].title)));
  byId("show").addEventListener("change", (event) => go({ show: event.target.value, only: -1 }));
}

function layerChoices() {
  byId("show").value = state.show;
  const made = ["all", ...kinds[state.show].layers].map((text, place) => {
    const input = element("input", { type: "radio", name: "layer" });
    input.checked = place - 1 === state.only;
    input.addEventListener("change", () => go({ only: place - 1 }));
    return element("label", {}, input, element("span", {}, text));
  });
  byId("layers").replaceChildren(...made);
  byId("layers").hidden = made.length < 3;
}

// lists of neurons

function link(at) { return element("a", { href: fragment({ at }) }, name(at)); }

function heading(text) { return element("h2", { tabindex: "-1" }, text); }

function placed(address, index) {
  const dot = address.lastIndexOf(".");
  return { block: facts.blocks.indexOf(address.slice(0, dot)), projection: facts.projections.indexOf(address.slice(dot + 1)), index };
}

function drawTop() {
  const ofSets = state.show === "sets", lists = ofSets ? facts.top.sets : facts.top.languages;
  const box = byId("top"), layers = ofSets ? facts.sets : facts.languages;
  box.hidden = lists.length === 0;
  if (box.hidden) return;
  const only = ofSets ? state.only : language(), many = only >= 0 ? longest : 6;
  const parts = lists.flatMap((list, layer) => {
    if (only >= 0 && only !== layer) return [];
    const lines = list.slice(0, many).map(([address, index, value]) => element("tr", {},
      element("th", { scope: "row" }, link(placed(address, index))), element("td", { class: "number" }, exact(value))));
    const empty = element("p", { class: "quiet" }, "no neuron");
    const header = element("tr", {}, element("th", { scope: "col" }, "neuron"),
      element("th", { scope: "col", class: "number" }, ofSets ? "importance" : "excess"));
    const table = element("table", {}, element("thead", {}, header), element("tbody", {}, ...lines));
    return [element("div", { class: "language" }, element("h3", {}, layers[layer]), lines.length ? table : empty)];
  });
  const about = ofSets ? "The neurons of each set whose importance there is largest."
    : `The first neurons of plnd select --against: those at least ${facts.times} times as important as in any other language, of largest excess over that.`;
  box.replaceChildren(heading(ofSets ? "The sets' most important neurons" : "Most specific neurons of the model"),
    element("p", { class: "quiet" }, about), element("div", { class: "columns" }, ...parts));
}

function drawProjection() {
  const box = byId("projection");
  box.hidden = !state.at;
  strip = null;
  if (!state.at) return;
  const at = { ...state.at, index: null }, here = unpack(at.block)[at.projection];
  const title = heading(name(at));
  const about = here.neurons === null ? "" : `${whole(here.neurons)} neurons. `;
  box.replaceChildren(title);
  if (here.means.length || here.sets.some((set) => set.indices.length)) {
    const canvas = element("canvas", {
      tabindex: "0", role: "application",
      "aria-label": `All neurons of ${name(at)} from left to right. Left and right move, Enter opens one.`,
    });
    const where = element("p", { class: "quiet", role: "status", "aria-live": "polite" }, here.means.length
      ? `${about}From left to right all neurons; a row for each language: ${facts.relative ? "times the median" : "importance"}, by logarithms; and for each set. Where several share a place, the most important.`
      : `${about}From left to right all neurons, a row for each set.`);
    box.append(element("div", { class: "drawn" }, canvas), where);
    drawStrip(canvas, here, at, where);
  }
  if (here.means.length) box.append(...rankedList(here, at));
  else box.append(...memberList(here, at));
}

function drawStrip(canvas, here, at, where) {
  const languages = language() < 0 ? facts.languages.map((_, place) => place) : [language()];
  const values = here.logs.length ? here.logs : here.means.map((one) => Float64Array.from(one, Math.log));
  const chosen = here.means.length ? languages : [];
  const sets = here.sets.map((_, place) => place).filter((place) => here.sets[place].indices.length);
  const names = [...chosen.map((place) => facts.languages[place]), ...sets.map((place) => facts.sets[place])];
  const labels = Math.min(110, Math.max(...names.map((text) => text.length)) * 7 + 8), high = 16;
  const room = canvas.parentElement.clientWidth - labels - 2;
  const neurons = here.neurons, bins = Math.max(1, Math.min(Math.floor(room), neurons)), wide = room / bins;
  const { ramp, ink, quiet, link: chosenColour } = colours();
  const pen = sized(canvas, labels + room, names.length * high + 8);
  let low = here.logs.length ? 0 : Infinity, most = -Infinity;
  for (const place of chosen) {
    for (const value of values[place]) {
      if (value > most) most = value;
      if (!here.logs.length && value > -Infinity && value < low) low = value;
    }
  }
  const bin = (index) => Math.min(bins - 1, Math.floor((index * bins) / neurons));
  const best = Array.from({ length: bins }, () => -1); // the neuron that stands for a place
  names.forEach((text, row) => {
    pen.fillStyle = quiet;
    pen.fillText(text, 0, row * high + high / 2, labels - 6);
    const peaks = new Float64Array(bins).fill(-Infinity);
    if (row < chosen.length) {
      const one = values[chosen[row]];
      for (let index = 0; index < neurons; index += 1) peaks[bin(index)] = Math.max(peaks[bin(index)], one[index]);
    } else {
      for (const index of here.sets[sets[row - chosen.length]].indices) peaks[bin(index)] = most > low ? most : 1;
    }
    peaks.forEach((value, place) => {
      pen.fillStyle = shade(ramp, row < chosen.length ? (value - low) / (most - low || 1) : value > -Infinity ? 1 : 0);
      pen.fillRect(labels + place * wide, row * high, wide + 0.3, high - 2);
    });
  });
  for (let index = 0; index < neurons; index += 1) {
    const other = best[bin(index)], size = (which) => Math.max(...chosen.map((place) => values[place][which]));
    if (other < 0 || (chosen.length && size(index) > size(other))) best[bin(index)] = index;
  }
  for (const place of sets) for (const index of chosen.length ? [] : here.sets[place].indices) best[bin(index)] = index;
  const mark = (index, colour) => {
    pen.fillStyle = colour;
    const x = labels + bin(index) * wide;
    pen.fillRect(x, names.length * high, Math.max(2, wide), 6);
  };
  if (state.at.index !== null) mark(state.at.index, chosenColour);
  strip = { index: state.at.index ?? 0, neurons };
  const nearest = (event) => {
    const place = Math.floor((event.clientX - canvas.getBoundingClientRect().left - labels) / wide);
    return place < 0 || place >= bins ? -1 : best[place];
  };
  const tell = (index) => { where.textContent = sentence(here, { ...at, index }); };
  canvas.addEventListener("pointermove", (event) => { if (nearest(event) >= 0) tell(nearest(event)); });
  canvas.addEventListener("click", (event) => { if (nearest(event) >= 0) go({ at: { ...at, index: nearest(event) } }); });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -100, PageDown: 100 }[event.key];
    if (event.key === "Enter") go({ at: { ...at, index: strip.index } });
    if (move === undefined) return;
    event.preventDefault();
    pen.clearRect(0, names.length * high, labels + room, 8);
    strip.index = Math.max(0, Math.min(neurons - 1, strip.index + move));
    mark(strip.index, ink);
    tell(strip.index);
  });
}

function sentence(here, at) {
  const said = here.means.map((one, place) => `${facts.languages[place]} ${rounded ? "≈" : ""}${number(one[at.index])}`);
  const sets = facts.sets.filter((_, place) => inSet(here.sets[place], at.index) !== null);
  const member = sets.length ? ` In ${sets.join(", ")}.` : "";
  return `${name(at)}${said.length ? `: importance ${said.join(", ")}.` : "."}${member}`;
}

function rankedList(here, at) {
  const only = language(), comparable = here.logs.length > 1;
  const by = comparable && state.by !== "importance" ? "times" : "importance";
  const largest = (index) => Math.max(...here.means.map((one) => one[index]));
  const size = new Float64Array(here.neurons);
  for (let index = 0; index < here.neurons; index += 1) {
    const found = by === "times" ? contrast(here.logs, index, only) : null;
    size[index] = found ? (found.above ? found.times : 0) : only >= 0 ? here.means[only][index] : largest(index);
  }
  const order = Array.from(size.keys()).sort((one, other) => size[other] - size[one] || one - other)
    .filter((index) => size[index] > 0).slice(0, longest);
  const places = facts.languages.map((_, place) => place);
  const columns = only < 0 ? places : [only, ...places.filter((place) => place !== only)];
  const header = ["neuron", ...(comparable ? ["times the next"] : []), ...columns.map((place) => facts.languages[place]), ...(here.sets.length ? ["in sets"] : [])];
  const rows = order.map((index) => {
    const numbers = columns.map((place) => here.means[place][index]), most = Math.max(...numbers), found = contrast(here.logs, index, only);
    const cells = numbers.map((value) => element("td", { class: "number shade", "--shade": String(most ? Math.round((10 * value) / most) : 0) }, single(value)));
    const sets = facts.sets.filter((_, place) => inSet(here.sets[place], index) !== null).join(", ") || "–";
    return element("tr", {}, element("th", { scope: "row" }, link({ ...at, index })),
      comparable ? element("td", { class: "number" }, only < 0 ? `${facts.languages[found.own]} ` : "", single(found.times)) : null, ...cells,
      here.sets.length ? element("td", {}, sets) : null);
  });
  const head = element("tr", {}, ...header.map((text, place) =>
    element("th", { scope: "col", class: place === 0 || text === "in sets" ? null : "number" }, text)));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  const whose = only >= 0 ? `for ${facts.languages[only]}` : "for any language";
  const titled = by === "times" ? `Most specific ${whose}` : `Most important ${whose}`;
  const other = element("a", { href: fragment({ by: by === "times" ? "importance" : "" }) },
    by === "times" ? "order by importance" : "order by how specific they are");
  return [element("h3", {}, titled), element("p", { class: "steps" }, `The first ${order.length}, with their importance in each language.`, comparable ? other : null),
    scrolled(table, titled)];
}

function memberList(here, at) {
  const parts = here.sets.flatMap((set, place) => {
    const order = Array.from(set.indices.keys()).sort((one, other) => set.importance[other] - set.importance[one] || one - other).slice(0, longest);
    if (!order.length) return [];
    const rows = order.map((which) => element("tr", {}, element("th", { scope: "row" }, link({ ...at, index: set.indices[which] })),
      element("td", { class: "number" }, exact(set.importance[which]))));
    return [element("div", { class: "language" }, element("h3", {}, facts.sets[place]), element("table", {}, element("tbody", {}, ...rows)))];
  });
  const known = Object.values(facts.profiles).flat().filter((one) => one.name.startsWith(`${name(at)}.`))
    .map((one) => element("li", {}, link({ ...at, index: Number(one.name.slice(one.name.lastIndexOf(".") + 1)) })));
  const seen = known.length ? element("ul", {}, ...known) : null;
  return [element("div", { class: "columns" }, ...parts), ...(seen ? [element("h3", {}, "Looked into"), seen] : [])];
}

// one neuron

function drawNeuron() {
  const box = byId("neuron");
  box.hidden = !state.at || state.at.index === null;
  if (box.hidden) return;
  const at = state.at, here = unpack(at.block)[at.projection], index = at.index;
  const close = (step) => ({ ...at, index: index + step });
  const steps = element("p", { class: "steps" },
    index > 0 ? element("a", { href: fragment({ at: close(-1) }), rel: "prev" }, `← ${index - 1}`) : null,
    exists(close(1)) && here.neurons !== null ? element("a", { href: fragment({ at: close(1) }), rel: "next" }, `${index + 1} →`) : null,
    element("a", { href: fragment({ at: null }) }, "close"));
  const parts = [heading(name(at)), steps, ...importance(here, index), ...membership(here, index), ...sameNeuron(at)];
  for (const profile of profiles(at)) parts.push(...profileParts(profile));
  if (!profiles(at).length) parts.push(element("p", { class: "quiet" }, "The tokens on which it fires, and those it writes: ",
    element("code", {}, `plnd neuron --neuron ${name(at)} --json FILE.json`), ", and give the file to plnd explore, too."));
  box.replaceChildren(element("article", { class: "neuron" }, ...parts));
}

function importance(here, index) {
  if (!here.means.length) return [];
  const numbers = here.means.map((one) => one[index]), most = Math.max(...numbers);
  const relative = here.logs.map((one) => Math.exp(one[index])), top = Math.max(...relative);
  const header = ["language", "importance", ...(relative.length ? ["times the median"] : []), "rank", ""];
  const rows = numbers.map((value, place) => {
    let rank = 1;
    for (const other of here.means[place]) if (other > value) rank += 1;
    const part = relative.length ? relative[place] / top : most ? value / most : 0;
    return element("tr", {}, element("th", { scope: "row" }, facts.languages[place]), element("td", { class: "number" }, single(value)),
      relative.length ? element("td", { class: "number" }, single(relative[place])) : null,
      element("td", { class: "number" }, `${rounded ? "≈" : ""}${whole(rank)}`),
      element("td", { class: "bar", "aria-hidden": "true" }, element("i", { "--part": String(100 * part) })));
  });
  const head = element("tr", {}, ...header.map((text, place) => element("th", { scope: "col", class: place && text ? "number" : null }, text)));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return [scrolled(table, "importance by language"), element("p", { class: "quiet" }, `Rank: 1 is the most important of the ${whole(here.neurons)} neurons here, by mean importance.`)];
}

function membership(here, index) {
  if (!here.sets.length) return [];
  const found = here.sets.map((set, place) => [facts.sets[place], inSet(set, index)]).filter(([, value]) => value !== null);
  if (!found.length) return [element("p", {}, "In none of the sets.")];
  const items = found.map(([set, value]) => element("span", { class: "chip" }, `${set}, importance `, exact(value)));
  return [element("p", {}, found.length === 1 ? "In the set " : `In ${found.length} of ${here.sets.length} sets: `, ...items.flatMap((item) => [item, " "]))];
}

function sameNeuron(at) {
  if (!feedForward.includes(facts.projections[at.projection])) return [];
  const others = facts.projections.map((one, projection) => ({ ...at, projection }))
    .filter((one) => one.projection !== at.projection && feedForward.includes(facts.projections[one.projection]) && exists(one));
  if (!others.length) return [];
  return [element("p", { class: "quiet" }, "The same feed-forward neuron: ", ...others.flatMap((one) => [link(one), " "]))];
}

function profiles(at) {
  const projection = facts.projections[at.projection];
  const site = feedForward.includes(projection) ? "down_proj" : projection;
  return facts.profiles[`${facts.blocks[at.block]}.${site}.${at.index}`] || [];
}

function profileParts(profile) {
  const about = `${profile.file}: value of the ${profile.value}; ${profile.large ? `large: |value| from ${number(profile.large)}` : "0 at every token"}`;
  const columns = profile.languages.map((one) => element("section", { class: "language" }, element("h4", {}, one.name),
    element("p", { class: "measures" },
      ...(profile.measure === "importance" ? [measure("importance", number(one.number))] : []),
      measure("mean |value|", number(one.size)), measure("mean", signed(one.mean)), measure("large", `${(100 * one.large).toFixed(1)}%`)),
    element("ol", { class: "firings" }, ...(one.firings.length ? one.firings.map(firing) : [element("li", { class: "quiet" }, element("span"), "never fires")]))));
  const written = [["plus", "where value > 0", profile.promoted], ["minus", "where value < 0", profile.suppressed]];
  const list = written.flatMap(([sign, text, tokens]) => [element("dt", { class: sign }, text), element("dd", {}, ...tokens.map(chip))]);
  return [element("h3", {}, "Fires on"), element("p", { class: "quiet" }, about), element("div", { class: "columns" }, ...columns),
    element("section", { class: "writing" }, element("h3", {}, "Writes"), element("p", { class: "quiet" }, profile.how),
      profile.promoted.length ? element("dl", {}, ...list) : null)];
}

function measure(text, value) { return element("span", {}, `${text} `, element("b", {}, value)); }

function firing([value, before, token, after, document_, position]) {
  return element("li", {}, element("span", { class: `value ${value < 0 ? "minus" : "plus"}` }, signed(value)),
    element("span", { class: "text", dir: "auto", title: `document ${document_}, token ${position}` }, before, element("mark", {}, token), after));
}

function chip([text, logit, id]) { return element("bdi", { class: "chip", dir: "auto", title: `${signed(logit)}, token ${id}` }, text); }

// finding

function find(event) {
  event.preventDefault();
  const text = byId("query").value.trim();
  if (!text) return;
  const found = parse(text);
  if (found.at) {
    const target = fragment({ at: found.at });
    if (location.hash === target) focusOn(found.at);
    else location.hash = target;
    return;
  }
  const keys = Object.keys(facts.profiles), wanted = text.toLowerCase();
  const hits = keys.filter((key) => facts.profiles[key].some((one) => tokensOf(one).some((token) => token.toLowerCase().includes(wanted))));
  if (!hits.length) {
    say(keys.length && !found.isAddress ? `“${text}”: no address, such as ${example()}, and no token of a neuron that was looked into` : found.problem);
    return;
  }
  const links = hits.slice(0, longest).map((key) => {
    const one = facts.profiles[key][0].name, dot = one.lastIndexOf(".");
    return link(placed(one.slice(0, dot), Number(one.slice(dot + 1))));
  });
  byId("message").replaceChildren(`“${text}”, fired on or written by ${hits.length} of ${keys.length} neurons that were looked into: `,
    ...links.flatMap((one) => [one, " "]));
}

function tokensOf(profile) {
  const written = [...profile.promoted, ...profile.suppressed].map(([token]) => token);
  return [...written, ...profile.languages.flatMap((one) => one.firings.map(([, , token]) => token))];
}

// all of it

function focusOn(at) {
  if (!at) return;
  const title = byId(at.index === null ? "projection" : "neuron").querySelector("h2");
  title.scrollIntoView({ block: "nearest" });
  title.focus({ preventScroll: true });
}

function draw() {
  layerChoices();
  drawMap();
  mapTable();
  drawTop();
  drawNeuron();
  drawProjection();
}

function changed() {
  const before = state.at && name(state.at);
  state = readFragment();
  if (state.at) {
    cursor = { block: state.at.block, projection: state.at.projection };
    byId("where").textContent = describe(cursor);
  }
  draw();
  if (state.at && name(state.at) !== before) focusOn(state.at);
}

function start() {
  const canvas = byId("map");
  canvas.addEventListener("keydown", moveCursor);
  canvas.addEventListener("focus", drawMap);
  canvas.addEventListener("blur", drawMap);
  canvas.addEventListener("pointermove", (event) => { const cell = cellAt(event); if (cell) byId("where").textContent = describe(cell); });
  canvas.addEventListener("click", (event) => { const cell = cellAt(event); if (cell) { cursor = cell; go({ at: { ...cell, index: null } }); } });
  byId("table").addEventListener("toggle", mapTable);
  byId("search").addEventListener("submit", find);
  addEventListener("hashchange", changed);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let wide = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; draw(); } });
}

choices();
state = { ...readFragment(), at: null };
layerChoices();
drawMap(); // before the numbers of single neurons, which follow in the page, are read
drawTop();
start();
document.addEventListener("DOMContentLoaded", changed);
