// Arrows over the text, from the token that drops to the token dropped, in the layer's colour.
// For the token looked at: solid arrows come in from those that dropped it, dashed ones go out to those it dropped.
// With no token looked at: what the token read last has dropped.

function arrowsToDraw(trace) {
  const layers = new Set(shownLayers(trace, view.layer)), j = looked();
  const { layer, position, dropped_by: by } = trace.drops;
  const arrow = (d, out) => ({ layer: layer[d], from: by[d], to: position[d], out, later: by[d] > view.step });
  const made = (i, out) => trace.dropsBy[i].filter((d) => layers.has(layer[d])).map((d) => arrow(d, out));
  if (j === null) return made(Math.min(view.step, trace.T - 1), false);
  if (j >= trace.T) return [];
  const came = [...layers].map((l) => trace.dropOf[l * trace.T + j]).filter((d) => d >= 0);
  return [...came.map((d) => arrow(d, false)), ...made(j, true)];
}

// Where the middle of a token's upper edge is, in pixels of the text.
function anchor(pane, j) {
  const rects = pane.chips[j].getClientRects(), rect = rects[rects.length - 1];
  const origin = pane.list.getBoundingClientRect();
  return rect ? { x: rect.left - origin.left + rect.width / 2, y: rect.top - origin.top + 1 } : { x: 0, y: 0 };
}

// A curve that leaves upwards and comes down on the token; each layer a little apart from the others.
function curve(from, to, n, count) {
  const spread = (n - (count - 1) / 2) * Math.min(4, 14 / count);
  const a = { x: from.x + spread, y: from.y }, b = { x: to.x + spread, y: to.y - 2 };
  const apart = Math.hypot(a.x - b.x, a.y - b.y);
  const height = Math.min(14 + apart * 0.16, 52) + n * Math.min(5, 24 / count);
  const top = Math.max(Math.min(a.y, b.y) - height, 2), lift = a.y - b.y > 30 ? b.y - Math.min(height, 34) : top;
  const c1 = { x: a.x + (b.x - a.x) * 0.12, y: a.y - b.y > 30 ? a.y - Math.min(apart * 0.4, 60) : top };
  const c2 = { x: b.x + Math.min(Math.max((a.x - b.x) * 0.08, -12), 12), y: Math.max(lift, 1) };
  const round = (p) => `${p.x.toFixed(1)} ${p.y.toFixed(1)}`;
  return { path: `M${round(a)}C${round(c1)} ${round(c2)} ${round(b)}`, a, b, c1, c2 };
}

function drawArrows(pane) {
  const { trace, list, arrows } = pane;
  const wanted = arrowsToDraw(trace).slice(0, 400), incoming = wanted.filter((each) => !each.out).length;
  const size = wanted.length ? [list.offsetWidth, list.offsetHeight] : [0, 0];
  const at = new Map(); // all places are read before anything is drawn, so that the text is laid out once
  for (const { from, to } of wanted) for (const j of [from, to]) if (!at.has(j)) at.set(j, anchor(pane, j));
  arrows.replaceChildren();
  arrows.setAttribute("width", size[0]);
  arrows.setAttribute("height", size[1]);
  for (const each of wanted) {
    const line = curve(at.get(each.from), at.get(each.to), each.layer, trace.L);
    const colour = `var(--layer-${each.layer})`;
    const head = `M${line.b.x.toFixed(1)} ${(line.b.y + 3).toFixed(1)}l-4 -8h8z`;
    const group = svg("g", {
      class: `arrow${each.later ? " later-arrow" : ""}${each.out ? " out" : ""}`, "data-layer": each.layer,
      "data-from": each.from, "data-to": each.to,
    }, svg("path", { class: "halo", d: line.path }), svg("path", { class: "line", d: line.path }),
    svg("path", { class: "head", d: head }));
    group.style.setProperty("--colour", colour);
    arrows.append(group);
    if (!each.out && looked() !== null && incoming <= 6) arrows.append(arrowLabel(line, each));
  }
}

function arrowLabel(line, { layer }) {
  const middle = (name) => 0.125 * line.a[name] + 0.375 * line.c1[name] + 0.375 * line.c2[name] + 0.125 * line.b[name];
  const label = svg("text", { class: "arrow-label", x: middle("x").toFixed(1), y: (middle("y") + 3).toFixed(1) },
    String(layer));
  label.style.setProperty("--colour", `var(--layer-${layer})`);
  return label;
}

// The line under the text says the same in words.
function drawPointed() {
  const trace = front(), j = looked();
  const list = (drops, name) => drops.map((d) => `${name(d)} (layer ${trace.drops.layer[d]})`).join(", ");
  if (j === null || j >= trace.T) {
    const made = trace.dropsBy[view.step];
    const some = made.slice(0, 6), more = made.length > 6 ? ` and ${made.length - 6} more` : "";
    $("pointed").textContent = made.length
      ? `${named(trace, view.step)} drops ${list(some, (d) => quoted(trace, trace.drops.position[d]))}${more}.`
      : `${named(trace, view.step)} drops nothing.`;
    return;
  }
  const layers = [...Array(trace.L).keys()];
  const came = layers.map((l) => trace.dropOf[l * trace.T + j]).filter((d) => d >= 0);
  const kept = layers.filter((l) => trace.dropOf[l * trace.T + j] < 0);
  const dropped = came.length ? `is dropped by ${list(came, (d) => named(trace, trace.drops.dropped_by[d]))}` : "";
  const held = !kept.length ? "" : came.length ? `; held to the end in ${layerNames(kept)}`
    : "is held to the end in all layers";
  const verb = trace.dropsBy[j].length ? `. Its own drops (dashed): ${trace.dropsBy[j].length}` : "";
  $("pointed").textContent = `${named(trace, j)} ${dropped}${held}${verb}.`;
}

function layerNames(layers) {
  return layers.length === 1 ? `layer ${layers[0]}` : `layers ${layers.join(", ")}`;
}
