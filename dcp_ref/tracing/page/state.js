// What is shown now. Panes register a function; `change` calls each with the names of what changed.
// The address holds the part of it that another person needs to see the same.

const view = {
  front: 0, // which trace is shown; the other one is beside it
  step: 0, // the token that was read last
  layer: null, // the layer chosen; null is all
  lock: null, // the token that was clicked
  point: null, // the token under the pointer or the keys
  matches: new Set(), // tokens found
  show: "both", // of two traces: "one", "both" or "differ"
};
const panes = [];

function front() {
  return traces[view.front];
}

// The token to explain: under the pointer, else the locked one.
function looked() {
  return view.point ?? view.lock;
}

function change(patch) {
  const changed = new Set(Object.keys(patch).filter((name) => view[name] !== patch[name]));
  if (!changed.size) return;
  Object.assign(view, patch);
  for (const draw of panes) draw(changed);
  if (!changed.has("point") || changed.size > 1) writeAddressSoon();
}

function drawAll() {
  const everything = new Set([...Object.keys(view), "size"]);
  for (const draw of panes) draw(everything);
}

function goTo(step) {
  change({ step: Math.min(Math.max(step, 0), front().T - 1) });
}

function lockToken(j, layer = view.layer) {
  change({ lock: j, layer, point: null });
}

function swap() {
  if (traces.length < 2) return;
  const next = traces[1 - view.front];
  const inside = (j) => (j !== null && j < next.T ? j : null);
  change({
    front: 1 - view.front, step: Math.min(view.step, next.T - 1), lock: inside(view.lock), point: null,
    layer: view.layer !== null && view.layer < next.L ? view.layer : null,
  });
}

function address() {
  const parts = { step: view.step };
  if (view.layer !== null) parts.layer = view.layer;
  if (view.lock !== null) parts.lock = view.lock;
  if (view.front) parts.front = view.front;
  if (traces.length > 1 && view.show !== "both") parts.show = view.show;
  return "#" + new URLSearchParams(parts);
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const whole = (name, most) => {
    const text = parts.get(name);
    return text !== null && /^\d{1,9}$/.test(text) && Number(text) < most ? Number(text) : null;
  };
  const shown = whole("front", traces.length) ?? 0, { T, L } = traces[shown];
  return {
    front: shown, step: whole("step", T) ?? T - 1, layer: whole("layer", L), lock: whole("lock", T),
    show: ["one", "both", "differ"].includes(parts.get("show")) ? parts.get("show") : "both",
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
