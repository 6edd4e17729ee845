"use strict";

// == The network: modules, groups, wires, as the page holds them ==

const SEGMENTS = 40000; // edges between neurons that are drawn at once
const DOTS = 4096; // neurons of a group that are drawn
const START = 40; // boxes that a large network starts with

function unpack(text, kind) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer), result = new kind(bytes.length / 4);
  for (let i = 0; i < result.length; i++) result[i] = kind === Int32Array ? view.getInt32(4 * i, true) : view.getFloat32(4 * i, true);
  return result;
}

function load(data) {
  const modules = data.modules.map((module, id) => ({ ...module, id, children: [], groups: [], every: [] }));
  const groups = data.groups.map((group, id) => ({ ...group, id, start: 0 }));
  let nodes = 0;
  for (const group of groups) {
    group.start = nodes;
    nodes += group.size;
    modules[group.module].groups.push(group.id);
  }
  for (const module of modules.slice(1)) modules[module.parent].children.push(module.id);
  for (let id = modules.length - 1; id >= 0; id--) {  // children come after their parents
    const module = modules[id];
    module.every = [...module.groups, ...module.children.flatMap((child) => modules[child].every)];
  }
  for (const module of modules) module.children = module.children.filter((child) => modules[child].every.length);
  const wires = data.wires.map((wire, id) => ({ ...wire, id }));
  return { ...data, modules, groups, wires, nodes };
}

// A module that holds nothing but one other is shown as that one.
function innermost(network, id) {
  let module = network.modules[id];
  while (!module.groups.length && module.children.length === 1) module = network.modules[module.children[0]];
  return module.id;
}

// The neurons of groups laid end to end, in an order.
function ordered(network, ids, order) {
  const joined = ids.flatMap((id) => Array.from({ length: network.groups[id].size }, (_, i) => network.groups[id].start + i));
  return order ? Array.from(unpack(order, Int32Array), (place) => joined[place]) : joined;
}

function groupOf(network, node) {
  let low = 0, high = network.groups.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (network.groups[middle].start <= node) low = middle; else high = middle - 1;
  }
  return network.groups[low];
}

// Edges of a wire: source and target neuron of each, and its weights. Every target reads the sources of its block.
function edgesOf(network, wire) {
  if (wire.edges) return wire.edges;
  const sources = ordered(network, wire.sources, wire.source_order), targets = ordered(network, wire.targets, wire.target_order);
  const read = sources.length / wire.blocks, written = targets.length / wire.blocks, count = targets.length * read * wire.parallel;
  const from = new Int32Array(count), to = new Int32Array(count);
  let at = 0;
  targets.forEach((target, t) => {
    const first = Math.floor(t / written) * read;
    for (let s = 0; s < read; s++) {
      for (let p = 0; p < wire.parallel; p++) {
        from[at] = sources[first + s];
        to[at++] = target;
      }
    }
  });
  const values = wire.values === undefined ? null : unpack(wire.values, Float32Array);
  wire.edges = { from, to, values, count };
  wire.edges.looks = looks(wire);
  return wire.edges;
}

// Edges by how they are drawn: blue where positive, orange where negative, wider where larger, compared within a wire.
// Of a kernel, the position counts where it is largest.
function looks(wire) {
  const { values, count } = wire.edges;
  if (!values) return [{ colour: "#8a949e", width: 0.5, edges: Array.from({ length: count }, (_, i) => i) }];
  const strong = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    for (let p = 0; p < wire.positions; p++) {
      const value = values[i * wire.positions + p];
      if (Math.abs(value) > Math.abs(strong[i])) strong[i] = value;
    }
  }
  const largest = strong.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-12);
  const kinds = ["#0072B2", "#D55E00"].flatMap((colour) => [0.15, 0.5, 1, 1.8].map((width) => ({ colour, width, edges: [] })));
  strong.forEach((value, i) => kinds[(value < 0 ? 4 : 0) + Math.min(3, Math.floor(4 * Math.abs(value) / largest))].edges.push(i));
  return kinds.filter((kind) => kind.edges.length);
}

function countEdges(wire) {
  return wire.ends[0] * wire.ends[1];
}

// == What is unfolded ==

function startState(network) {
  const state = { open: new Set([0]), neurons: new Set() };
  if (network.small) {
    network.modules.forEach((module) => state.open.add(module.id));
    network.groups.forEach((group) => state.neurons.add(group.id));
    return state;
  }
  for (;;) {
    const closed = visible(network, state).items.filter((item) => item.kind === "module");
    if (!closed.length) return state;
    const further = { open: new Set([...state.open, ...closed.map((item) => item.id)]), neurons: state.neurons };
    if (visible(network, further).items.length > START) return state;
    state.open = further.open;
  }
}

// The boxes that are shown, and the frames around those of one unfolded module.
function visible(network, state) {
  const items = [], frames = [];
  const show = (id) => items.push({ kind: state.neurons.has(id) ? "neurons" : "group", id, groups: [id] });
  const walk = (module) => {
    module.groups.forEach(show);
    for (const child of module.children) {
      const inner = network.modules[innermost(network, child)];
      if (inner.every.length === 1) show(inner.every[0]);
      else if (!state.open.has(inner.id)) items.push({ kind: "module", id: inner.id, groups: inner.every });
      else {
        const frame = { id: inner.id, first: items.length };
        walk(inner);
        frames.push({ ...frame, last: items.length - 1 });  // inner frames come before the outer ones
      }
    }
  };
  walk(network.modules[0]);
  return { items, frames };
}

function ancestors(network, id) {
  const result = [];
  for (let module = network.modules[id]; module.parent >= 0; module = network.modules[module.parent]) result.push(module.id);
  return [...result, 0];
}

// == Where everything lies: from the inputs at the top to the outputs at the bottom ==

function layout(network, state, measure) {
  const { items, frames } = visible(network, state);
  const itemOf = new Int32Array(network.groups.length);
  items.forEach((item, i) => item.groups.forEach((group) => { itemOf[group] = i; }));
  const bundles = new Map();
  for (const wire of network.wires) {
    for (const source of wire.sources) {
      for (const target of wire.targets) {
        const a = itemOf[source], b = itemOf[target];
        if (a === b) continue;
        const key = a * items.length + b;
        if (!bundles.has(key)) bundles.set(key, { from: a, to: b, wires: new Set() });
        bundles.get(key).wires.add(wire.id);
      }
    }
  }
  items.forEach((item) => {
    item.first = item.groups.reduce((least, group) => Math.min(least, network.groups[group].level), Infinity);
    item.level = 0;
    sizeOf(network, item, measure);
  });
  const order = items.map((_, i) => i).sort((a, b) => items[a].first - items[b].first || a - b);
  const rank = new Int32Array(items.length), after = items.map(() => []), before = items.map(() => []);
  order.forEach((i, place) => { rank[i] = place; });
  for (const { from, to } of bundles.values()) {
    if (rank[from] < rank[to]) {
      after[from].push(to);
      before[to].push(from);
    }
  }
  for (const i of order) for (const next of after[i]) items[next].level = Math.max(items[next].level, items[i].level + 1);
  // What no input leads to, such as a state, a constant and what is made of them, lies close above what reads it.
  const isInput = (item) => item.groups.some((group) => network.groups[group].role === "input");
  const reached = items.map(isInput);
  for (const i of order) if (reached[i]) for (const next of after[i]) reached[next] = true;
  for (const i of [...order].reverse()) {
    if (!reached[i] && after[i].length) items[i].level = Math.min(...after[i].map((next) => items[next].level)) - 1;
  }
  const levels = [];
  for (const i of order) (levels[items[i].level] ||= []).push(i);
  let y = 0;
  for (const level of levels) {
    const wished = new Map(level.map((i) => [i, mean(before[i].map((j) => items[j].x + items[j].width / 2))]));
    level.sort((a, b) => wished.get(a) - wished.get(b) || a - b);
    const gap = 36, total = level.reduce((sum, i) => sum + items[i].width + gap, -gap);
    let x = mean(level.map((i) => wished.get(i))) - total / 2;
    let height = 0;
    for (const i of level) {
      Object.assign(items[i], { x, y });
      x += items[i].width + gap;
      height = Math.max(height, items[i].height);
    }
    y += height + (level.some((i) => items[i].kind === "neurons") ? 110 : 44);
  }
  frames.forEach((frame, i) => boundsOf(items, frames, frame, i));
  for (const bundle of bundles.values()) {
    const line = bundle.line = curve(items[bundle.from], items[bundle.to]);
    const [across, down] = [0, 1].map((axis) => line.map((each) => each[axis]));
    bundle.box = [Math.min(...across), Math.min(...down), Math.max(...across), Math.max(...down)];
  }
  const points = new Float32Array(2 * network.nodes);  // of neurons that are shown
  for (const item of items) {
    if (item.kind !== "neurons") continue;
    const group = network.groups[item.id];
    for (let i = 0; i < Math.min(group.size, DOTS); i++) points.set(dot(network, item, i), 2 * (group.start + i));
  }
  return { items, frames, bundles: [...bundles.values()], itemOf, points, bounds: union(items, frames) };
}

function mean(numbers) {
  return numbers.length ? numbers.reduce((sum, each) => sum + each, 0) / numbers.length : 0;
}

// Boxes hold their captions; of neurons, the captions stand at the left, and the dots are in the middle.
function sizeOf(network, item, measure) {
  item.lines = captions(network, item);
  item.caption = Math.max(...item.lines.map((line, i) => measure(line, i === 0))) + 20;
  item.width = item.caption;
  item.height = 12 + 15 * item.lines.length;
  if (item.kind !== "neurons") return;
  const size = Math.min(network.groups[item.id].size, DOTS);
  item.columns = Math.min(size, size > 256 ? 64 : 40);
  item.step = size > 256 ? 9 : 15;
  item.width = item.columns * item.step + 2 * (item.caption + 8);
  item.height = Math.max(item.height, Math.ceil(size / item.columns) * item.step);
}

function dot(network, item, index) {
  const row = Math.floor(index / item.columns), column = index % item.columns;
  const rows = Math.ceil(Math.min(network.groups[item.id].size, DOTS) / item.columns);
  return [
    item.x + item.width / 2 + (column - (item.columns - 1) / 2) * item.step,
    item.y + item.height / 2 + (row - (rows - 1) / 2) * item.step,
  ];
}

function boundsOf(items, frames, frame, at) {
  let box = null;
  const add = (x, y, right, bottom) => {
    box = box ? [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], right), Math.max(box[3], bottom)] : [x, y, right, bottom];
  };
  items.slice(frame.first, frame.last + 1).forEach((item) => add(item.x, item.y, item.x + item.width, item.y + item.height));
  frames.slice(0, at).forEach((inner) => {
    if (inner.first >= frame.first && inner.last <= frame.last) add(inner.x, inner.y, inner.x + inner.width, inner.y + inner.height);
  });
  Object.assign(frame, { x: box[0] - 8, y: box[1] - 20, width: box[2] - box[0] + 16, height: box[3] - box[1] + 28 });
}

function union(items, frames) {
  const boxes = [...items, ...frames];
  const x = Math.min(...boxes.map((box) => box.x)), y = Math.min(...boxes.map((box) => box.y));
  const right = Math.max(...boxes.map((box) => box.x + box.width)), bottom = Math.max(...boxes.map((box) => box.y + box.height));
  return { x, y, width: right - x, height: bottom - y };
}

// == In words ==

const number = (value) => value.toLocaleString("en");
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const shortened = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}\u2026` : text);
const weighed = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(5))) : String(value));

function moduleName(network, module) {
  if (module.name) return module.name;
  const above = module.parent < 0 ? "" : moduleName(network, network.modules[module.parent]);
  return module.parent < 0 ? "" : above ? `${above}.${module.label}` : module.label;
}

function captions(network, item) {
  if (item.kind === "module") {
    const module = network.modules[item.id], alike = module.alike ? `, ${module.alike} alike` : "";
    const name = moduleName(network, module);
    return [shortened(name, 48), `${counted(module.every.length, "group")}, ${counted(module.parameters, "parameter")}${alike}`];
  }
  const group = network.groups[item.id];
  const size = counted(group.size, "neuron"), first = item.kind === "neurons" && group.size > DOTS ? `the first ${number(DOTS)} of ` : "";
  const about = [first + size, group.operators].filter(Boolean).join(", ");
  return [shortened(group.name, 48), shortened(about, 48), shortened(symmetryOf(group), 48)];
}

function symmetryOf(group) {
  return group.why ? `in fixed order (${group.why})` : group.symmetry;
}

function describeGroup(network, group) {
  const permuted = group.permuted ? [`permuted with ${group.permuted}`] : [];
  return [group.name, counted(group.size, "neuron"), ...(group.operators ? [`then ${group.operators}`] : []), symmetryOf(group), ...permuted];
}

function describeItem(network, item) {
  if (item.kind !== "module") {
    const more = item.kind === "group" ? "Click to show its neurons." : "Click its name to fold it.";
    return [...describeGroup(network, network.groups[item.id]), more];
  }
  const module = network.modules[item.id];
  const kinds = new Map();
  item.groups.forEach((id) => {
    const symmetry = symmetryOf(network.groups[id]);
    kinds.set(symmetry, (kinds.get(symmetry) || 0) + 1);
  });
  const told = Array.from(kinds, ([symmetry, count]) => `${counted(count, "group")}: ${symmetry}`);
  return [...captions(network, item), ...told.slice(0, 6), "Click to unfold it."];
}

function describeNeuron(network, node) {
  const group = groupOf(network, node), lines = [`${group.name}, neuron ${node - group.start}`, symmetryOf(group)];
  if (group.permuted) lines.push(`permuted with ${group.permuted}`);
  for (const feature of network.features) {
    if (!feature.targets.includes(group.id)) continue;
    const place = ordered(network, feature.targets, feature.target_order).indexOf(node);
    if (place < 0) continue;
    const value = feature.values === undefined ? "" : ` ${weighed(unpack(feature.values, Float32Array)[place])}`;
    lines.push(`${feature.kind}${value} (${feature.parameter})`);
  }
  return lines;
}

function describeEdge(network, wire, index) {
  const { from, to, values } = edgesOf(network, wire);
  const ends = [from[index], to[index]].map((node) => {
    const group = groupOf(network, node);
    return `${group.name}[${node - group.start}]`;
  });
  const lines = [`${ends[0]} \u2192 ${ends[1]}`];
  if (!wire.parameter) return [...lines, `${wire.kind} (no weight)`];
  lines.push(`${wire.parameter}, ${wire.shape}`);
  if (!values) return [...lines, network.weighted ? "weights of this layer are not in the page" : "no weights were given"];
  const kernel = Array.from(values.slice(index * wire.positions, (index + 1) * wire.positions));
  lines.push(`weight ${weighed(kernel.reduce((sum, each) => sum + each, 0))}${kernel.length > 1 ? `, the sum of ${kernel.length} positions` : ""}`);
  if (kernel.length > 1) lines.push(kernel.slice(0, 9).map(weighed).join("  ") + (kernel.length > 9 ? "  \u2026" : ""));
  return lines;
}

function describeBundle(network, scene, bundle) {
  const name = (item) => captions(network, item)[0];
  const wires = Array.from(bundle.wires, (id) => network.wires[id]);
  const told = wires.slice(0, 8).map((wire) => wire.text || `${wire.name}: ${wire.kind}`);
  const more = wires.length > 8 ? [`and ${wires.length - 8} more`] : [];
  return [`${name(scene.items[bundle.from])} \u2192 ${name(scene.items[bundle.to])}`, ...told, ...more];
}

// == What lies under a point ==

// Wires between groups whose neurons are all shown are drawn edge by edge, as many as can be told apart.
function drawnWires(network, state) {
  let left = SEGMENTS;
  const result = new Set();
  const shown = (id) => state.neurons.has(id) && network.groups[id].size <= DOTS;
  const fine = network.wires.filter((wire) => [...wire.sources, ...wire.targets].every(shown));
  for (const wire of fine.sort((a, b) => countEdges(a) - countEdges(b))) {
    if (countEdges(wire) > left) break;
    left -= countEdges(wire);
    result.add(wire.id);
  }
  return result;
}

function place(scene, node) {
  return [scene.points[2 * node], scene.points[2 * node + 1]];
}

function curve(a, b) {
  const back = b.level <= a.level, side = Math.abs(b.level - a.level) > 1 || back;
  const start = [a.x + a.width / 2, back ? a.y : a.y + a.height], stop = [b.x + b.width / 2, back ? b.y + b.height : b.y];
  if (!side) {
    const bend = (stop[1] - start[1]) / 2;
    return [start, [start[0], start[1] + bend], [stop[0], stop[1] - bend], stop];
  }
  // Those over several levels go round what lies between.
  start[0] = a.x + a.width; start[1] = a.y + a.height / 2;
  stop[0] = b.x + b.width; stop[1] = b.y + b.height / 2;
  const out = Math.max(start[0], stop[0]) + 30 + 12 * Math.min(Math.abs(b.level - a.level), 12);
  return [start, [out, start[1]], [out, stop[1]], stop];
}

function along([p, q, r, s], t) {
  const u = 1 - t;
  return [0, 1].map((i) => u * u * u * p[i] + 3 * u * u * t * q[i] + 3 * u * t * t * r[i] + t * t * t * s[i]);
}

function distance(x, y, [ax, ay], [bx, by]) {
  const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
  const t = length ? Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
  return Math.hypot(x - ax - t * dx, y - ay - t * dy);
}

function hit(network, scene, fine, x, y, reach) {
  for (const item of scene.items) {
    if (x < item.x || x > item.x + item.width || y < item.y || y > item.y + item.height) continue;
    if (item.kind !== "neurons" || x < item.x + item.caption) return { kind: "item", item };
    const group = network.groups[item.id], [left, top] = dot(network, item, 0);
    const column = Math.round((x - left) / item.step), row = Math.round((y - top) / item.step), index = row * item.columns + column;
    if (column >= 0 && column < item.columns && index >= 0 && index < Math.min(group.size, DOTS)) {
      return { kind: "neuron", node: group.start + index, item };
    }
  }
  for (const frame of scene.frames) {
    if (x >= frame.x && x <= frame.x + frame.width && y >= frame.y && y <= frame.y + 18) return { kind: "frame", frame };
  }
  let best = null, least = reach;
  for (const id of fine) {
    const { from, to, count } = edgesOf(network, network.wires[id]);
    for (let i = 0; i < count; i++) {
      const away = distance(x, y, place(scene, from[i]), place(scene, to[i]));
      if (away < least) {
        least = away;
        best = { kind: "edge", wire: network.wires[id], index: i };
      }
    }
  }
  for (const bundle of scene.bundles) {
    const [left, top, right, bottom] = bundle.box, { line } = bundle;
    if (x < left - reach || x > right + reach || y < top - reach || y > bottom + reach) continue;
    if (Array.from(bundle.wires).every((id) => fine.has(id))) continue;
    for (let i = 0; i < 24; i++) {
      const away = distance(x, y, along(line, i / 24), along(line, (i + 1) / 24));
      if (away < least) {
        least = away;
        best = { kind: "bundle", bundle };
      }
    }
  }
  return best;
}

function describe(network, scene, found) {
  if (found.kind === "neuron") return describeNeuron(network, found.node);
  if (found.kind === "item") return describeItem(network, found.item);
  if (found.kind === "edge") return describeEdge(network, found.wire, found.index);
  if (found.kind === "bundle") return describeBundle(network, scene, found.bundle);
  return [moduleName(network, network.modules[found.frame.id]), "Click to fold it."];
}

// == The page ==

function start(document) {
  const network = load(JSON.parse(document.getElementById("data").textContent));
  const canvas = document.getElementById("graph"), context = canvas.getContext("2d"), tip = document.getElementById("tip");
  const tree = document.getElementById("tree"), report = document.getElementById("report");
  const camera = { x: 0, y: 0, scale: 1 };
  let state = startState(network), scene = null, fine = new Set(), pointed = null, marked = null, waiting = false;

  const font = (bold) => `${bold ? "600 " : ""}12px system-ui, sans-serif`;
  const measure = (text, bold) => {
    context.font = font(bold);
    return context.measureText(text).width;
  };

  function arrange() {
    scene = layout(network, state, measure);
    fine = drawnWires(network, state);
    pointed = null;
    tip.hidden = true;
    listModules();
    redraw();
  }

  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  }

  function fit(box = scene.bounds) {
    const width = canvas.clientWidth, height = canvas.clientHeight, margin = 24;
    camera.scale = Math.min(1.5, (width - 2 * margin) / box.width, (height - 2 * margin) / box.height);
    camera.x = width / 2 - (box.x + box.width / 2) * camera.scale;
    camera.y = height / 2 - (box.y + box.height / 2) * camera.scale;
    redraw();
  }

  // Deep networks are taller than the window: they start at a size that can be read.
  function begin() {
    fit();
    if (camera.scale >= 0.6) return;
    camera.scale = 0.6;
    camera.x = canvas.clientWidth / 2 - (scene.bounds.x + scene.bounds.width / 2) * camera.scale;
    camera.y = 24 - scene.bounds.y * camera.scale;
    redraw();
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(ratio * camera.scale, 0, 0, ratio * camera.scale, ratio * camera.x, ratio * camera.y);
    for (const frame of [...scene.frames].reverse()) drawFrame(frame);
    const seen = [-camera.x, -camera.y, width - camera.x, height - camera.y].map((each) => each / camera.scale);
    const isSeen = ([left, top, right, bottom]) => left < seen[2] && right > seen[0] && top < seen[3] && bottom > seen[1];
    for (const bundle of scene.bundles) if (isSeen(bundle.box.map((each, i) => each + (i < 2 ? -9 : 9)))) drawBundle(bundle);
    for (const id of fine) drawEdges(network.wires[id], null);
    if (pointed && pointed.kind === "neuron") for (const id of fine) drawEdges(network.wires[id], pointed.node);
    if (pointed && pointed.kind === "edge") drawEdge(pointed.wire, pointed.index);
    for (const item of scene.items) if (isSeen([item.x, item.y, item.x + item.width, item.y + item.height])) drawItem(item);
  }

  function drawFrame(frame) {
    context.fillStyle = "rgba(0, 60, 110, 0.035)";
    context.strokeStyle = "#c3ccd5";
    context.lineWidth = 1;
    context.beginPath();
    context.roundRect(frame.x, frame.y, frame.width, frame.height, 6);
    context.fill();
    context.stroke();
    context.fillStyle = "#5b6570";
    context.font = font(true);
    context.textAlign = "left";
    context.fillText(`\u2212 ${shortened(moduleName(network, network.modules[frame.id]), 60)}`, frame.x + 6, frame.y + 14, frame.width - 10);
  }

  function drawBundle(bundle) {
    const wires = Array.from(bundle.wires, (id) => network.wires[id]);
    if (wires.every((wire) => fine.has(wire.id))) return;
    const { line } = bundle, bright = pointed && (pointed.bundle === bundle ||
      (pointed.kind === "item" && (scene.items[bundle.from] === pointed.item || scene.items[bundle.to] === pointed.item)));
    context.strokeStyle = context.fillStyle = bright ? "#0072B2" : "#8a949e";
    context.lineWidth = bright ? 2.4 : 1.1;
    context.setLineDash(wires.some((wire) => wire.parameter) ? [] : [5, 4]);
    context.beginPath();
    context.moveTo(...line[0]);
    context.bezierCurveTo(...line[1], ...line[2], ...line[3]);
    context.stroke();
    context.setLineDash([]);
    const [x, y] = along(line, 0.97), [tx, ty] = line[3], angle = Math.atan2(ty - y, tx - x);
    context.beginPath();
    context.moveTo(tx, ty);
    context.lineTo(tx - 8 * Math.cos(angle - 0.4), ty - 8 * Math.sin(angle - 0.4));
    context.lineTo(tx - 8 * Math.cos(angle + 0.4), ty - 8 * Math.sin(angle + 0.4));
    context.fill();
  }

  // All edges of a wire, or those of one neuron in full colour.
  function drawEdges(wire, node) {
    const { from, to, looks: kinds } = edgesOf(network, wire), { points } = scene;
    context.globalAlpha = node === null ? 0.5 : 1;
    for (const { colour, width, edges } of kinds) {
      context.strokeStyle = colour;
      context.lineWidth = node === null ? width : width + 0.6;
      context.beginPath();
      for (const i of edges) {
        if (node !== null && from[i] !== node && to[i] !== node) continue;
        context.moveTo(points[2 * from[i]], points[2 * from[i] + 1]);
        context.lineTo(points[2 * to[i]], points[2 * to[i] + 1]);
      }
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  function drawEdge(wire, index) {
    const { from, to } = edgesOf(network, wire);
    context.strokeStyle = "#1a1e23";
    context.lineWidth = 2.5;
    context.beginPath();
    context.moveTo(...place(scene, from[index]));
    context.lineTo(...place(scene, to[index]));
    context.stroke();
  }

  function drawItem(item) {
    const grouped = item.kind === "module", colour = grouped ? "#5b6570" : network.groups[item.id].colour;
    const middle = item.y + item.height / 2;
    const isMarked = marked && marked.kind === item.kind && marked.id === item.id;
    context.fillStyle = grouped ? "#f0f3f6" : "#ffffff";
    context.strokeStyle = isMarked ? "#d81b60" : colour;
    context.lineWidth = isMarked ? 4 : pointed && pointed.item === item ? 2.4 : 1.5;
    context.beginPath();
    context.roundRect(item.x, middle - 6 - 7.5 * item.lines.length, item.caption, 12 + 15 * item.lines.length, 5);
    context.fill();
    context.stroke();
    context.textAlign = "center";
    item.lines.forEach((line, i) => {
      context.font = font(i === 0);
      context.fillStyle = i === 0 ? "#1a1e23" : "#5b6570";
      context.fillText(line, item.x + item.caption / 2, middle - 7.5 * item.lines.length + 12 + 15 * i, item.caption - 8);
    });
    if (item.kind !== "neurons") return;
    const group = network.groups[item.id], radius = item.step > 10 ? 4.5 : 3;
    context.fillStyle = colour;
    for (let i = 0; i < Math.min(group.size, DOTS); i++) {
      const [x, y] = dot(network, item, i), lit = pointed && pointed.kind === "neuron" && pointed.node === group.start + i;
      context.beginPath();
      context.arc(x, y, lit ? radius + 2 : radius, 0, 2 * Math.PI);
      context.fill();
    }
  }

  // -- Folding --

  function change(alter) {
    alter();
    arrange();
  }

  // What was clicked stays where it is on the screen.
  function toggle(found) {
    const anchor = found.kind === "frame" ? found.frame : found.item;
    const before = [(anchor.x + anchor.width / 2) * camera.scale + camera.x, anchor.y * camera.scale + camera.y];
    change(() => {
      if (found.kind === "frame") state.open.delete(found.frame.id);
      else if (found.item.kind === "module") state.open.add(found.item.id);
      else if (state.neurons.has(found.item.id)) state.neurons.delete(found.item.id);
      else state.neurons.add(found.item.id);
    });
    const module = found.kind === "frame" ? found.frame.id : found.item.kind === "module" ? found.item.id : -1;
    const now = module < 0 ? scene.items.find((item) => item.kind !== "module" && item.id === found.item.id)
      : scene.frames.find((frame) => frame.id === module) || scene.items.find((item) => item.kind === "module" && item.id === module);
    if (!now) return;
    camera.x = before[0] - (now.x + now.width / 2) * camera.scale;
    camera.y = before[1] - now.y * camera.scale;
    redraw();
  }

  function go(kind, id) {
    const home = kind === "module" ? network.modules[id].parent : network.groups[id].module;
    change(() => ancestors(network, Math.max(home, 0)).forEach((module) => state.open.add(module)));
    const inner = kind === "module" ? innermost(network, id) : -1;
    const box = kind === "module" ? scene.frames.find((frame) => frame.id === inner) || itemOf("module", inner) : itemOf("group", id);
    if (!box) return;
    marked = box;
    fit({ x: box.x - 200, y: box.y - 120, width: box.width + 400, height: box.height + 240 });
  }

  function itemOf(kind, id) {
    const found = scene.items.find((item) => item.kind === kind && item.id === id);
    return found || scene.items[scene.itemOf[kind === "group" ? id : network.modules[id].every[0]]];
  }

  function listModules() {
    const focus = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.module : undefined;
    const list = (ids) => {
      const rows = document.createElement("ul");
      for (const id of ids) {
        const inner = innermost(network, id), module = network.modules[inner], row = document.createElement("li");
        const label = inner === id ? module.label : [id, ...between(id, inner)].map((each) => network.modules[each].label).join(".");
        const folds = module.every.length > 1, open = folds && state.open.has(inner);
        const button = document.createElement("button"), name = document.createElement("button"), count = document.createElement("span");
        button.textContent = !folds ? "\u00b7" : open ? "\u2212" : "+";
        button.disabled = !folds;
        button.dataset.module = String(inner);
        button.setAttribute("aria-label", `${open ? "Fold" : "Unfold"} ${label}`);
        button.setAttribute("aria-expanded", String(open));
        button.addEventListener("click", () => change(() => (open ? state.open.delete(inner) : state.open.add(inner))));
        name.textContent = label + (module.alike ? ` (${module.alike} alike)` : "");
        name.className = "name";
        name.addEventListener("click", () => (folds ? go("module", inner) : go("group", module.every[0])));
        count.textContent = number(module.parameters);
        row.append(button, name, count);
        if (open) row.append(list(module.children));
        rows.append(row);
      }
      return rows;
    };
    tree.replaceChildren(list(network.modules[0].children));
    const again = focus === undefined ? null : tree.querySelector(`button[data-module="${focus}"]`);
    if (again) again.focus();
  }

  function between(outer, inner) {
    const path = [];
    for (let id = inner; id !== outer; id = network.modules[id].parent) path.unshift(id);
    return path;
  }

  // -- Pointing, dragging, zooming --

  const pointers = new Map();
  let moved = 0, apart = 0;
  const world = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left - camera.x) / camera.scale, (event.clientY - box.top - camera.y) / camera.scale];
  };

  function zoom(factor, px = canvas.clientWidth / 2, py = canvas.clientHeight / 2) {
    const scale = Math.max(0.02, Math.min(12, camera.scale * factor)), by = scale / camera.scale;
    camera.x = px - (px - camera.x) * by;
    camera.y = py - (py - camera.y) * by;
    camera.scale = scale;
    redraw();
  }

  function point(event) {
    const [x, y] = world(event), found = hit(network, scene, fine, x, y, 5 / camera.scale);
    pointed = found;
    canvas.style.cursor = found && (found.kind === "item" || found.kind === "frame") ? "pointer" : "grab";
    tip.hidden = !found;
    if (found) {
      tip.replaceChildren(...describe(network, scene, found).map((line) => {
        const row = document.createElement("div");
        row.textContent = line;
        return row;
      }));
      const box = canvas.getBoundingClientRect();
      const left = event.clientX - box.left + 14, top = event.clientY - box.top + 14;
      tip.style.left = `${Math.max(0, Math.min(left, box.width - tip.offsetWidth - 8))}px`;
      tip.style.top = `${Math.max(0, top + tip.offsetHeight > box.height ? top - tip.offsetHeight - 24 : top)}px`;
    }
    redraw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    moved = 0;
    apart = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) {
      point(event);
      return;
    }
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (pointers.size === 2) {
      const [[ax, ay], [bx, by]] = [...pointers.values()], now = Math.hypot(ax - bx, ay - by), box = canvas.getBoundingClientRect();
      if (apart) zoom(now / apart, (ax + bx) / 2 - box.left, (ay + by) / 2 - box.top);
      apart = now;
      moved = 100;
      return;
    }
    camera.x += event.clientX - last[0];
    camera.y += event.clientY - last[1];
    moved += Math.abs(event.clientX - last[0]) + Math.abs(event.clientY - last[1]);
    tip.hidden = true;
    redraw();
  });
  const lift = (event) => {
    const clicked = pointers.has(event.pointerId) && moved < 5 && event.type === "pointerup";
    pointers.delete(event.pointerId);
    if (!clicked) return;
    const found = hit(network, scene, fine, ...world(event), 5 / camera.scale);
    if (found && (found.kind === "item" || found.kind === "frame")) toggle(found);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => {
    pointed = null;
    tip.hidden = true;
    redraw();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.03 : 0.0012)), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (steps) {
      camera.x += steps[0];
      camera.y += steps[1];
      redraw();
    } else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });

  const press = (id, action) => document.getElementById(id).addEventListener("click", action);
  press("fit", () => fit());
  press("in", () => zoom(1.25));
  press("out", () => zoom(0.8));
  press("fold", () => {
    change(() => { state = { open: new Set([0]), neurons: new Set() }; });
    begin();
  });
  press("groups", () => {
    change(() => { state = { open: new Set(network.modules.map((module) => module.id)), neurons: new Set() }; });
    begin();
  });
  document.getElementById("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const sought = document.getElementById("sought").value.trim().toLowerCase(), answer = document.getElementById("answer");
    if (!sought) return;
    const named = network.groups.filter((group) => group.name.toLowerCase().includes(sought));
    const within = network.modules.filter((module) => module.name.toLowerCase() === sought && module.every.length);
    const read = [...network.features, ...network.wires].filter((wire) => wire.parameter.toLowerCase().includes(sought));
    answer.textContent = "";
    if (within.length) go("module", within[0].id);
    else if (named.length) go("group", named[0].id);
    else if (read.length) go("group", read[0].targets[0]);
    else answer.textContent = "Nothing is called so.";
  });
  report.replaceChildren(...network.report.map((line) => {
    const row = document.createElement("p");
    row.textContent = line;
    return row;
  }));
  window.addEventListener("resize", redraw);
  arrange();
  begin();
}

if (typeof module === "object" && module.exports) {
  module.exports = { load, startState, visible, layout, edgesOf, drawnWires, groupOf, hit, describe, describeNeuron, describeEdge, place };
} else start(document);
