// The facts of the trace, the choice of a layer, the curve of live tokens, and the player.

let chooseLayer = () => {};

function buildHeader() {
  const trace = front();
  const facts = [
    letter(trace) ? ["trace", letter(trace)] : null, ["model", trace.model], ["rule", trace.policy],
    isLearned(trace) ? ["threshold", number(trace.threshold, 2)] : null,
    ["tokens", `${trace.T}${trace.prompt_tokens < trace.T ? ` (${trace.prompt_tokens} of the prompt)` : ""}`],
    ["kept", percent(trace.shareKept.reduce((sum, x) => sum + x, 0) / trace.L)],
    trace.int_delay ? ["safe for", `${trace.int_delay} steps`] : null,
    trace.propagate_in_depth ? ["dropped in one layer", "dropped in all later ones"] : null,
    ["backend", trace.backend], trace.note ? ["note", trace.note] : null,
  ];
  $("facts").replaceChildren(...facts.filter(Boolean).map(([name, value]) => {
    return html("span", { class: "fact" }, html("span", { class: "quiet" }, name), " ", String(value));
  }));
  setLayerColours(Math.max(...traces.map((each) => each.L)));
  const choices = percents(trace.shareKept).map((share, l) => {
    return { value: l, label: [swatch(l), `layer ${l}`, html("small", {}, `${share} kept`)] };
  });
  chooseLayer = radios($("layer-choice"), [{ value: null, label: "all layers" }, ...choices],
    (layer) => change({ layer }));
  $("step").max = trace.T - 1;
}

// Headings say which of two traces they are of.
function nameTrace(places, trace) {
  for (const each of places) each.textContent = letter(trace) && ` · ${letter(trace)}`;
}

// What the legend says is of the layers shown.
function drawLegend() {
  const layers = shownLayers(front(), view.layer), one = view.layer !== null;
  for (const [id, on] of [["sample-held", layers], ["sample-some", layers.slice(0, 1)]]) {
    $(id).style.setProperty("--bands", bands(layers.map((l) => Number(on.includes(l))).join(""), layers));
    $(id).style.setProperty("--held", on.length / layers.length);
  }
  $("legend-some").hidden = one;
  $("legend-pinned").hidden = !traces.some((trace) => trace.pinned?.length);
  $("legend-held").textContent = one ? `by layer ${view.layer}` : "by all layers";
  $("legend-gone").textContent = one ? `from layer ${view.layer}` : "from all layers";
}

const CURVE = { height: 190, left: 38, right: 52, top: 12, bottom: 30 };

function buildCurve() {
  const trace = front(), { T } = trace, { height, left, right, top, bottom } = CURVE;
  const width = Math.max($("curve").clientWidth, 220);
  const most = Math.max(1, ...trace.live_counts.map((row) => row.reduce((a, b) => Math.max(a, b), 0)));
  const x = (i) => left + (i / Math.max(T - 1, 1)) * (width - left - right);
  const y = (n) => height - bottom - (n / most) * (height - top - bottom);
  const lines = trace.live_counts.map((row, l) => svg("path", {
    class: "line", "data-layer": l, stroke: `var(--layer-${l})`,
    d: "M" + row.map((n, i) => `${x(i).toFixed(1)} ${y(n).toFixed(1)}`).join("L"),
  }));
  const grid = [0, most / 2, most].map(Math.round).map((n) => svg("g", { class: "grid" },
    svg("line", { x1: left, x2: width - right, y1: y(n), y2: y(n) }),
    svg("text", { x: left - 6, y: y(n) + 4, "text-anchor": "end" }, String(n))));
  const axis = [0, T - 1].map((i) => svg("text", { x: x(i), y: height - 8, "text-anchor": "middle" }, String(i)));
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom });
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", class: "chart curve",
    "aria-label": `Live tokens in each layer after each step; at the end: ${trace.live_counts
      .map((row, l) => `layer ${l} ${row[T - 1]}`).join(", ")}`,
  }, ...grid, ...axis, svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, "step"),
  ...lines, ...endLabels(trace, x(T - 1) + 6, y), cursor);
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * width;
    goTo(Math.round(((at - left) / (width - left - right)) * (T - 1)));
  });
  $("curve").replaceChildren(picture);
  return (step) => {
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
  };
}

// How many tokens each layer holds at the end, next to its line; moved apart where they would overlap.
function endLabels(trace, x, y) {
  const labels = trace.live_counts.map((row, l) => ({ l, n: row[trace.T - 1], at: y(row[trace.T - 1]) + 4 }));
  labels.sort((a, b) => a.at - b.at || b.l - a.l);
  const apart = trace.L <= 10 ? 13 : 10;
  for (let k = labels.length - 1, below = CURVE.height - 4; k >= 0; k--) {
    labels[k].at = Math.min(labels[k].at, below);
    below = labels[k].at - apart;
  }
  return labels.map(({ l, n, at }) => svg("g", { class: trace.L > 10 ? "tiny" : "" },
    svg("rect", { x, y: at - 8, width: 8, height: 8, rx: 2, fill: `var(--layer-${l})` }),
    svg("text", { x: x + 12, y: at }, `${l}: ${n}`)));
}

let moveCursor = () => {};
let playing = null;

function play(on = !playing) {
  clearInterval(playing);
  playing = null;
  if (on) {
    if (view.step === front().T - 1) goTo(0);
    playing = setInterval(() => (view.step < front().T - 1 ? goTo(view.step + 1) : play(false)), 180);
  }
  $("play").textContent = on ? "⏸ Pause" : "▶ Play";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
  $("play").setAttribute("aria-pressed", String(on));
}

$("play").addEventListener("click", () => play());
$("first").addEventListener("click", () => goTo(0));
$("last").addEventListener("click", () => goTo(front().T - 1));
$("back").addEventListener("click", () => goTo(view.step - 1));
$("on").addEventListener("click", () => goTo(view.step + 1));
$("step").addEventListener("input", () => goTo(Number($("step").value)));

panes.push((changed) => {
  if (changed.has("front")) {
    buildHeader();
    nameTrace(document.querySelectorAll(".which"), front());
  }
  if (changed.has("front") || changed.has("layer")) drawLegend();
  if (changed.has("front") || changed.has("size")) moveCursor = buildCurve();
  if (changed.has("front") || changed.has("layer") || changed.has("size")) {
    chooseLayer(view.layer);
    const shown = new Set(shownLayers(front(), view.layer));
    for (const line of $("curve").querySelectorAll(".line")) {
      line.classList.toggle("faint", !shown.has(Number(line.dataset.layer)));
    }
  }
  if (changed.has("front") || changed.has("step") || changed.has("size")) {
    moveCursor(view.step);
    $("step").value = view.step;
    $("step").setAttribute("aria-valuetext", named(front(), view.step));
    $("step-name").textContent = `step ${view.step} of ${front().T - 1}: ${quoted(front(), view.step)}`;
  }
});
