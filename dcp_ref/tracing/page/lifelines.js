// Lifelines: a row a token, a band a layer, from the step in which the token was read to the one that dropped it.
// Only the rows in sight are drawn, so that long texts scroll at once.

// A row is a token, or { head }: the heading of a kind. Sizes are read when they change, not at each step.
const lines = { order: [], row: 18, top: 0, width: 0, height: 0 };
const GUTTER = 96;

function sortLines() {
  const trace = front(), layers = shownLayers(trace, view.layer);
  const life = (j) => layers.reduce((sum, l) => sum + trace.lifetime[l][j], 0) / layers.length;
  const orders = {
    position: (a, b) => a - b,
    lifetime: (a, b) => life(b) - life(a) || a - b,
    kind: (a, b) => trace.kinds[a] - trace.kinds[b] || a - b,
  };
  const tokens = [...Array(trace.T).keys()].filter((j) => !view.matches.size || view.matches.has(j));
  tokens.sort(orders[view.sort]);
  lines.order = view.sort === "kind" ? withHeadings(trace, tokens, life) : tokens;
  $("rows-height").style.height = `${Math.max(lines.order.length * lines.row - lines.height, 0)}px`;
  lines.top = $("rows").scrollTop;
  $("sort").value = view.sort;
  $("rows-shown").textContent = view.matches.size ? `Only the ${tokens.length} tokens found.` : "";
}

function withHeadings(trace, tokens, life) {
  return trace.kind_names.flatMap((name, kind) => {
    const some = tokens.filter((j) => trace.kinds[j] === kind);
    if (!some.length) return [];
    const mean = some.reduce((sum, j) => sum + life(j), 0) / some.length;
    const steps = `${number(mean, 1)} steps${some.length > 1 ? " on average" : ""}`;
    return [{ head: `${name}: ${some.length} token${some.length > 1 ? "s" : ""}, held ${steps}` }, ...some];
  });
}

// Steps at round numbers, above the rows.
function drawAxis() {
  const { T } = front(), { width } = lines;
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => T / n <= width / 80) ?? 1000;
  const steps = Array.from({ length: Math.ceil(T / every) }, (_, n) => n * every);
  $("axis").replaceChildren(svg("svg", { class: "chart", viewBox: `0 0 ${width} 18`, "aria-hidden": "true" },
    svg("text", { x: 8, y: 13 }, "step"), ...steps.map((i) => svg("g", { class: "grid" },
      svg("line", { x1: lineX(i), x2: lineX(i), y1: 14, y2: 18 }),
      svg("text", { x: lineX(i), y: 12, "text-anchor": "middle" }, String(i))))));
  $("axis").firstChild.style.width = `${width}px`;
}

function lineX(i) {
  return GUTTER + (i / front().T) * (lines.width - GUTTER - 8);
}

function measureLines() {
  const host = $("rows");
  Object.assign(lines, { width: host.clientWidth, height: host.clientHeight });
}

function drawLines() {
  const trace = front(), { row, order, top: scrolled, width, height } = lines, x = lineX;
  const context = cleared($("rows").querySelector("canvas"), width, height);
  const layers = shownLayers(trace, view.layer), band = (row - (row > 9 ? 4 : 1)) / layers.length;
  const colours = layers.map((l) => layerColour(l, trace.L)), ink = cssColour("--ink"), quiet = cssColour("--quiet");
  context.font = `${Math.min(13, row - 2)}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const first = Math.floor(scrolled / row), last = Math.min(order.length, first + Math.ceil(height / row) + 1);
  for (let n = first; n < last; n++) {
    const j = order[n], y = n * row - scrolled;
    if (j.head) {
      context.fillStyle = quiet;
      context.fillText(j.head, 8, y + row / 2, width - 16);
      continue;
    }
    if (j === view.lock || j === view.point) {
      context.fillStyle = cssColour(j === view.lock ? "--lock-tint" : "--point-tint");
      context.fillRect(0, y, width, row);
    }
    if (view.matches.has(j)) {
      context.fillStyle = cssColour("--found");
      context.fillRect(0, y, 4, row);
    }
    layers.forEach((l, k) => {
      const end = trace.end[l * trace.T + j], top = y + (row > 9 ? 2 : 0) + k * band;
      context.fillStyle = colours[k];
      context.fillRect(x(j), top, Math.max(x(end) - x(j), 1.5), Math.max(band - (band > 3 ? 1 : 0), 0.5));
      if (end < trace.T && band >= 9) {
        context.fillStyle = quiet;
        context.fillText(`${visible(trace.texts[end])}`, x(end) + 4, top + band / 2);
      }
    });
    if (row >= 11) {
      context.fillStyle = ink;
      context.fillText(visible(trace.texts[j]).slice(0, 14), 8, y + row / 2, GUTTER - 14);
    }
  }
  context.fillStyle = ink;
  context.globalAlpha = 0.55;
  context.fillRect(x(Math.min(view.step, trace.T - 1) + 0.5) - 0.75, 0, 1.5, height);
  context.globalAlpha = 1;
}

function nameRow() {
  const trace = front(), j = lookedTrace() === trace || paired ? looked() : view.lock;
  if (j === null || j >= trace.T) {
    $("row-name").textContent = "Point at a row to see when the token was read, when it left, and who dropped it.";
    return;
  }
  const life = shownLayers(trace, view.layer).map((l) => {
    const end = trace.end[l * trace.T + j];
    return `layer ${l}: ${end < trace.T ? `to step ${end}, ${quoted(trace, end)}` : "to the end"}`;
  });
  $("row-name").textContent = `${quoted(trace, j)} (${trace.kind_names[trace.kinds[j]]}), read in step ${j}. ` +
    `${life.join("; ")}.`;
}

function rowAt(event) {
  const host = $("rows"), y = event.clientY - host.getBoundingClientRect().top + host.scrollTop;
  const j = lines.order[Math.floor(y / lines.row)] ?? null;
  return j?.head ? null : j;
}

function layerAt(event) {
  const host = $("rows"), y = event.clientY - host.getBoundingClientRect().top + host.scrollTop;
  const layers = shownLayers(front(), view.layer), share = (y % lines.row) / lines.row;
  return lines.row / layers.length >= 4 ? layers[Math.min(Math.floor(share * layers.length), layers.length - 1)]
    : view.layer;
}

function scrollToRow(j) {
  const y = lines.order.indexOf(j) * lines.row;
  if (y < 0) return; // not among those found
  if (y >= lines.top && y + lines.row <= lines.top + lines.height) return;
  $("rows").scrollTop = y - lines.height / 2;
  lines.top = $("rows").scrollTop;
}

$("rows").addEventListener("scroll", () => {
  lines.top = $("rows").scrollTop;
  drawLines();
});
$("rows").addEventListener("pointermove", (event) => event.pointerType !== "touch" && pointAt(rowAt(event)));
$("rows").addEventListener("pointerleave", () => pointAt(null));
$("rows").addEventListener("click", (event) => {
  const j = rowAt(event);
  if (j !== null) explain(j, layerAt(event));
});
$("rows").addEventListener("keydown", (event) => pointByKeys(event, view.front, (by) => {
  const order = lines.order.filter((j) => !j.head), at = looked() === null ? -by : order.indexOf(looked());
  const j = order[Math.min(Math.max(at + by, 0), order.length - 1)];
  scrollToRow(j);
  return j;
}));
$("sort").addEventListener("change", () => {
  $("rows").scrollTop = 0;
  change({ sort: $("sort").value });
});
$("zoom").addEventListener("input", () => {
  const middle = (lines.top + lines.height / 2) / lines.row;
  lines.row = Number($("zoom").value);
  sortLines();
  $("rows").scrollTop = middle * lines.row - lines.height / 2;
  lines.top = $("rows").scrollTop;
  drawLines();
});

panes.push((changed) => {
  const has = (...names) => names.some((name) => changed.has(name));
  const elsewhere = !$("rows").matches(":hover"); // a row that was clicked stays under the pointer
  if (has("size")) measureLines();
  if (has("front", "sort", "matches", "size") || (has("layer") && elsewhere)) sortLines();
  if (has("front", "size")) drawAxis();
  if (has("lock") && view.lock !== null && elsewhere) scrollToRow(view.lock);
  drawLines();
  nameRow();
});
