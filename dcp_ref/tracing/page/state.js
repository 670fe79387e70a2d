// What is shown now. Panes register a function; `change` calls each with the names of what changed.
// The address holds the part of it that another person needs to see the same.

const START = { // what the address leaves out
  layer: null, // the layer chosen; null is all
  lock: null, // the token that was clicked
  front: 0, // the trace that the panes explain: 0 is A, 1 is B
  show: "both", // of two traces: "one", "both" or "differ"
  own: false, // whether arrows go to what the token itself dropped
  find: "", regex: false, kind: null, least: null, most: null, // what is searched for
  sort: "position", // the order of the lifelines
  mask: null, // the layer whose mask is enlarged
  scored: false, // whether masks are coloured by score
};
const view = {
  ...START,
  step: 0, // the token that was read last
  point: null, // the token under the pointer or the keys
  pointIn: null, // in which trace it is; null is the front
  matches: new Set(), // tokens found
};
const panes = [];

function front() {
  return traces[view.front];
}

// The token to explain: under the pointer, else the locked one. And the trace that it is in.
function looked() {
  return view.point ?? view.lock;
}

function lookedTrace() {
  return view.point === null ? front() : traces[view.pointIn ?? view.front];
}

// "A" or "B" where there are two traces.
function letter(trace) {
  return traces.length > 1 ? "AB"[traces.indexOf(trace)] : "";
}

function change(patch) {
  const changed = new Set(Object.keys(patch).filter((name) => view[name] !== patch[name]));
  if (!changed.size) return;
  Object.assign(view, patch);
  for (const draw of panes) draw(changed);
  if ([...changed].some((name) => name === "step" || name in START)) writeAddressSoon();
}

function drawAll() {
  const everything = new Set([...Object.keys(view), "size"]);
  for (const draw of panes) draw(everything);
}

function goTo(step) {
  change({ step: Math.min(Math.max(step, 0), front().T - 1) });
}

// What changes when trace n comes to the front: what it does not have is let go.
function toFront(n) {
  const { T, L } = traces[n], inside = (value, most) => (value !== null && value < most ? value : null);
  return {
    front: n, step: Math.min(view.step, T - 1), lock: inside(view.lock, T), point: null, pointIn: null,
    layer: inside(view.layer, L), mask: inside(view.mask, L),
  };
}

function pointAt(j, n = null) {
  change({ point: j, pointIn: n });
}

function lockToken(j, n = view.pointIn ?? view.front) {
  change({ ...toFront(n), lock: j });
}

function explain(j, layer) {
  change({ lock: j, layer, point: null });
}

function swap() {
  if (traces.length > 1) change(toFront(1 - view.front));
}

function address() {
  const parts = { step: view.step };
  for (const [name, value] of Object.entries(START)) {
    if (view[name] !== value) parts[name] = view[name] === true ? 1 : view[name];
  }
  return "#" + new URLSearchParams(parts);
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const whole = (name, most = 1e9) => {
    const text = parts.get(name);
    return text !== null && /^\d{1,9}$/.test(text) && Number(text) < most ? Number(text) : null;
  };
  const oneOf = (name, values) => (values.includes(parts.get(name)) ? parts.get(name) : START[name]);
  const shown = whole("front", traces.length) ?? 0, { T, L, kind_names: kinds } = traces[shown];
  return {
    front: shown, step: whole("step", T) ?? T - 1, layer: whole("layer", L), lock: whole("lock", T),
    show: oneOf("show", shows()), own: whole("own") === 1, find: parts.get("find") ?? "",
    regex: whole("regex") === 1, kind: whole("kind", kinds.length), least: whole("least"), most: whole("most"),
    sort: oneOf("sort", ["position", "lifetime", "kind"]), mask: whole("mask", L), scored: whole("scored") === 1,
  };
}

let timer = null;
let written = location.hash;

// Browsers slow down pages that rewrite their address many times a second.
function writeAddressSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    written = address();
    history.replaceState(null, "", written);
  }, 200);
}

window.addEventListener("hashchange", () => {
  if (location.hash !== written && location.hash.includes("step=")) change(readAddress());
});
