// What if: how the log-probabilities of the tokens that follow would have changed, had a pair been kept. Where the
// trace holds it.

function drawWhatIf() {
  const trace = front(), j = view.lock, host = $("what-if-body"), shown = [];
  const all = trace.counterfactuals ?? [];
  const ofLayer = (each) => view.layer === null || each.layer === view.layer;
  const held = all.filter((each) => each.j === j && ofLayer(each));
  for (const each of held) {
    shown.push(html("h3", {}, swatch(each.layer),
      `Had ${named(trace, each.i)} kept ${named(trace, j)} in layer ${each.layer}`),
    ...changes(trace, each.first + 1, each.delta));
  }
  if (!held.length && all.length) shown.push(html("p", { class: "empty" }, j === null
    ? "Lock one of these tokens to see what keeping it would have changed."
    : "The trace does not hold this pair. It holds these."), offered(trace, all));
  if (trace.everything) {
    shown.push(html("h3", {}, "Had every layer kept everything"), ...changes(trace, 1, trace.everything));
  }
  if (!shown.length) {
    shown.push(html("p", { class: "empty" }, "This trace holds none. In Python, trace.counterfactual(layer, i, j) " +
      "works it out: “Copy the Python” writes the call."));
  }
  host.replaceChildren(...shown);
}

function offered(trace, all) {
  return html("div", { class: "bar" }, ...all.slice(0, 40).map(({ layer, i, j }) => html("button", {
    type: "button", onclick: () => explain(j, layer),
  }, swatch(layer), `${brief(trace, i)} → ${brief(trace, j)}`)));
}

function changes(trace, first, delta) {
  if (!delta.length) return [html("p", { class: "quiet" }, "No token follows.")];
  const sum = delta.reduce((a, b) => a + b, 0);
  const bySize = [...delta.keys()].sort((a, b) => Math.abs(delta[b]) - Math.abs(delta[a]));
  const by = bySize.slice(0, 6).sort((a, b) => a - b);
  const items = by.map((n) => ({ name: `${first + n} ${brief(trace, first + n)}`, value: delta[n] }));
  const better = sum > 0 ? "more" : "less";
  return [
    html("p", {}, `The ${delta.length} tokens that follow would be ${better} likely: ${number(sum)} nats in all. ` +
      "Those that change most:"),
    barChart(items, "Change of the log-probability, in nats", chartWidth("what-if-body")), strip(trace, first, delta),
  ];
}

// All following tokens as thin bars around zero.
function strip(trace, first, delta) {
  const width = chartWidth("what-if-body"), height = 64, unit = width / delta.length;
  const most = delta.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
  const bars = delta.map((value, n) => svg("rect", {
    class: value < 0 ? "negative" : "positive", x: (n * unit).toFixed(2), width: Math.max(unit - 0.5, 0.5).toFixed(2),
    y: (32 - Math.max(value, 0) / most * 30).toFixed(2), height: Math.max(Math.abs(value) / most * 30, 0.3).toFixed(2),
  }));
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${height}`, class: "chart curve", role: "img",
    "aria-label": `Change for each token from ${first} on, at most ${number(most)} nats`,
  }, svg("line", { class: "zero", x1: 0, x2: width, y1: 32, y2: 32 }), ...bars);
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    goTo(first + Math.floor(((event.clientX - box.left) / box.width) * delta.length));
  });
  return picture;
}

panes.push((changed) => {
  if (["front", "layer", "lock", "size"].some((name) => changed.has(name))) drawWhatIf();
});
