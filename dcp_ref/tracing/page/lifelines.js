// Lifelines: a row a token, a band a layer, from the step in which the token was read to the one that dropped it.
// Only the rows in sight are drawn, so that long texts scroll at once.

const lines = { order: [], row: 18 };
const GUTTER = 96;

function sortLines() {
  const trace = front(), by = $("sort").value;
  const life = (j) => trace.lifetime.reduce((sum, row) => sum + row[j], 0);
  const orders = {
    position: (a, b) => a - b,
    lifetime: (a, b) => life(b) - life(a) || a - b,
    kind: (a, b) => trace.kinds[a] - trace.kinds[b] || a - b,
  };
  lines.order = [...Array(trace.T).keys()].sort(orders[by]);
}

function drawLines() {
  const trace = front(), host = $("rows"), canvas = host.querySelector("canvas");
  const width = host.clientWidth, height = host.clientHeight, { row, order } = lines;
  $("rows-height").style.height = `${Math.max(order.length * row - height, 0)}px`;
  const context = cleared(canvas, width, height);
  const x = (i) => GUTTER + (i / trace.T) * (width - GUTTER - 8);
  const layers = shownLayers(trace, view.layer), band = (row - (row > 9 ? 4 : 1)) / layers.length;
  const colours = layers.map((l) => layerColour(l, trace.L)), ink = cssColour("--ink"), quiet = cssColour("--quiet");
  context.font = `${Math.min(13, row - 2)}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const first = Math.floor(host.scrollTop / row), last = Math.min(order.length, first + Math.ceil(height / row) + 1);
  for (let n = first; n < last; n++) {
    const j = order[n], y = n * row - host.scrollTop;
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
  const trace = front(), j = looked();
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
  return lines.order[Math.floor(y / lines.row)] ?? null;
}

function layerAt(event) {
  const host = $("rows"), y = event.clientY - host.getBoundingClientRect().top + host.scrollTop;
  const layers = shownLayers(front(), view.layer), share = (y % lines.row) / lines.row;
  return lines.row / layers.length >= 4 ? layers[Math.min(Math.floor(share * layers.length), layers.length - 1)]
    : view.layer;
}

function scrollToRow(j) {
  const host = $("rows"), y = lines.order.indexOf(j) * lines.row;
  if (y < host.scrollTop || y + lines.row > host.scrollTop + host.clientHeight) {
    host.scrollTop = y - host.clientHeight / 2;
  }
}

$("rows").addEventListener("scroll", drawLines);
$("rows").addEventListener("pointermove", (event) => event.pointerType !== "touch" && change({ point: rowAt(event) }));
$("rows").addEventListener("pointerleave", () => change({ point: null }));
$("rows").addEventListener("click", (event) => {
  const j = rowAt(event);
  if (j !== null) explain(j, layerAt(event));
});
$("rows").addEventListener("keydown", (event) => pointByKeys(event, (by) => {
  const { order } = lines, at = looked() === null ? -by : order.indexOf(looked());
  const j = order[Math.min(Math.max(at + by, 0), order.length - 1)];
  scrollToRow(j);
  return j;
}));
$("sort").addEventListener("change", () => {
  sortLines();
  $("rows").scrollTop = 0;
  drawLines();
});
$("zoom").addEventListener("input", () => {
  const host = $("rows"), middle = (host.scrollTop + host.clientHeight / 2) / lines.row;
  lines.row = Number($("zoom").value);
  drawLines();
  host.scrollTop = middle * lines.row - host.clientHeight / 2;
  drawLines();
});

panes.push((changed) => {
  if (changed.has("front")) sortLines();
  drawLines();
  const elsewhere = !$("rows").matches(":hover"); // a row that was clicked stays under the pointer
  if (changed.has("lock") && view.lock !== null && elsewhere) scrollToRow(view.lock);
  nameRow();
});
