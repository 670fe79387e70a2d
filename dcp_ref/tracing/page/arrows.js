// Arrows over the text, from the token that drops to the token dropped, in the layer's colour.
// For the token looked at: solid arrows come in from those that dropped it; where asked for, dashed ones go out to
// those that it dropped. With no token looked at: what the token read last has dropped, unless that is a crowd.

const CROWD = 12;

// The drops that the token read last made in the layers shown.
function lastDrops(trace) {
  const layers = new Set(shownLayers(trace, view.layer));
  return trace.dropsBy[Math.min(view.step, trace.T - 1)].filter((d) => layers.has(trace.drops.layer[d]));
}

// A page opens at the last step: all layers' arrows would bury the text before anyone asked for them.
function quietStep(trace) {
  return view.layer === null && (view.step >= trace.T - 1 || lastDrops(trace).length > CROWD);
}

function arrowsToDraw(trace) {
  const layers = new Set(shownLayers(trace, view.layer)), j = looked();
  const { layer, position, dropped_by: by } = trace.drops;
  const arrow = (d, out) => ({ layer: layer[d], from: by[d], to: position[d], out, later: by[d] > view.step });
  if (j === null) return quietStep(trace) ? [] : lastDrops(trace).map((d) => arrow(d, false));
  if (j >= trace.T || (!paired && trace !== lookedTrace())) return [];
  const came = [...layers].map((l) => trace.dropOf[l * trace.T + j]).filter((d) => d >= 0);
  const made = view.own ? trace.dropsBy[j].filter((d) => layers.has(layer[d])) : [];
  return [...came.map((d) => arrow(d, false)), ...made.map((d) => arrow(d, true))];
}

// A curve that leaves upwards and comes down on the token; each layer a little apart from the others.
function curve(from, to, n, count) {
  const spread = (n - (count - 1) / 2) * Math.min(4, 14 / count);
  const a = { x: from.x + spread, y: from.y }, b = { x: to.x + spread, y: to.y - 5 };
  const apart = Math.hypot(a.x - b.x, a.y - b.y);
  const height = Math.min(14 + apart * 0.16, 52) + n * Math.min(5, 24 / count);
  const top = Math.max(Math.min(a.y, b.y) - height, 2), lift = a.y - b.y > 30 ? b.y - Math.min(height, 34) : top;
  const c1 = { x: a.x + (b.x - a.x) * 0.12, y: a.y - b.y > 30 ? a.y - Math.min(apart * 0.4, 60) : top };
  const c2 = { x: b.x + Math.min(Math.max((a.x - b.x) * 0.08, -12), 12), y: Math.max(lift, 1) };
  const round = (p) => `${p.x.toFixed(1)} ${p.y.toFixed(1)}`;
  return { path: `M${round(a)}C${round(c1)} ${round(c2)} ${round(b)}`, a, b, c1, c2 };
}

function drawArrows(pane) {
  const { trace, arrows } = pane;
  const wanted = arrowsToDraw(trace).slice(0, 400), incoming = wanted.filter((each) => !each.out).length;
  if (!wanted.length) {
    arrows.replaceChildren();
    return;
  }
  const { tokens, size } = placesOf(pane);
  const heads = []; // on top of all lines, so that none hides where another one points
  const drawn = wanted.map((each, n) => {
    const line = curve(tokens[each.from], tokens[each.to], each.layer, trace.L);
    const head = `M${line.b.x.toFixed(1)} ${(line.b.y + 5).toFixed(1)}l-4 -8h8z`;
    const looks = `${each.later ? " later-arrow" : ""}${each.out ? " out" : ""}`;
    const parts = [
      svg("g", { class: `arrow${looks}`, "data-layer": each.layer, "data-from": each.from, "data-to": each.to },
        svg("path", { class: "halo", d: line.path }), svg("path", { class: "line", d: line.path })),
      svg("path", { class: `head${looks}`, "data-layer": each.layer, d: head }),
      !each.out && looked() !== null && incoming <= 6 ? arrowLabel(line, each, n - (incoming - 1) / 2) : null,
    ].filter(Boolean);
    for (const part of parts) part.style.setProperty("--colour", `var(--layer-${each.layer})`);
    heads.push(...parts.slice(1));
    return parts[0];
  });
  arrows.setAttribute("width", size[0]);
  arrows.setAttribute("height", size[1]);
  arrows.replaceChildren(...drawn, ...heads);
}

// The layer's number on its arrow; the numbers of arrows that lie on each other stand `apart`, lest 1 and 3 read as 13.
function arrowLabel(line, { layer }, apart) {
  const middle = (name) => 0.125 * line.a[name] + 0.375 * line.c1[name] + 0.375 * line.c2[name] + 0.125 * line.b[name];
  const x = middle("x") + 14 * apart, y = middle("y") + 3;
  return svg("text", { class: "arrow-label", x: x.toFixed(1), y: y.toFixed(1) }, String(layer));
}

// The line under the text says the same in words.
function drawPointed() {
  const trace = lookedTrace(), j = looked(), at = letter(trace) ? `${letter(trace)}: ` : "";
  $("pointed").textContent = at + (j === null || j >= trace.T ? lastInWords(trace) : inWords(trace, j));
}

function inLayers(trace, drops, name) {
  return drops.map((d) => `${name(d)} (layer ${trace.drops.layer[d]})`).join(", ");
}

function lastInWords(trace) {
  const made = lastDrops(trace), step = Math.min(view.step, trace.T - 1);
  const where = view.layer === null ? "" : ` in layer ${view.layer}`;
  if (!made.length) return `${named(trace, step)} drops nothing${where}.`;
  const some = inLayers(trace, made.slice(0, 6), (d) => quoted(trace, trace.drops.position[d]));
  const more = made.length > 6 ? ` and ${made.length - 6} more` : "";
  const hint = quietStep(trace) ? " Point at a token, or choose a layer, to see arrows." : "";
  return `${named(trace, step)} drops ${some}${more}.${hint}`;
}

function inWords(trace, j) {
  const layers = shownLayers(trace, view.layer), dropOf = (l) => trace.dropOf[l * trace.T + j];
  const came = layers.map(dropOf).filter((d) => d >= 0), kept = layers.filter((l) => dropOf(l) < 0);
  const dropped = came.length ? `is dropped by ${inLayers(trace, came, (d) => named(trace, trace.drops.dropped_by[d]))}`
    : "";
  const where = view.layer === null && !came.length ? "all layers" : layerNames(kept);
  const held = !kept.length ? "" : `${came.length ? "; held" : "is held"} to the end in ${where}`;
  const own = trace.dropsBy[j].filter((d) => layers.includes(trace.drops.layer[d])).length;
  return `${named(trace, j)} ${dropped}${held}.${own ? ` It drops ${own} itself.` : ""}`;
}

function layerNames(layers) {
  return layers.length === 1 ? `layer ${layers[0]}` : `layers ${layers.join(", ")}`;
}
