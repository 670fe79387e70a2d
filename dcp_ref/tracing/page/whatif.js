// What if: how the log-probabilities of the tokens that follow would have changed, had a drop not been made. Where the
// file does not hold the answer, the call that works it out.

function drawWhatIf() {
  const trace = front(), j = view.lock;
  $("what-if-token").textContent = j === null ? "…" : quoted(trace, j);
  $("what-if-body").replaceChildren(...(j === null ? ofAll(trace) : ofLocked(trace, pairOf(trace))));
}

// With no token locked: what the file holds.
function ofAll(trace) {
  const all = trace.counterfactuals ?? [], shown = [];
  if (all.length) {
    shown.push(html("p", { class: "quiet" }, "The file holds the answer for these drops:"), offered(trace, all));
  }
  if (trace.everything) {
    shown.push(html("h3", {}, "Had every layer kept everything"), ...changes(trace, 1, trace.everything));
  }
  return [...shown, html("p", { class: "quiet" }, "Lock a token to see what keeping that one would have changed.")];
}

function ofLocked(trace, pair) {
  const { l, d, i, j } = pair, all = trace.counterfactuals ?? [];
  const others = all.filter((each) => each.j === j && each.layer !== l);
  const more = others.length ? [html("p", { class: "quiet" }, "Of this token, the file holds:"), offered(trace, others)]
    : [];
  if (d < 0) return [html("p", {}, swatch(l), `Layer ${l} does keep ${named(trace, j)} to the end.`), ...more];
  const held = all.find((each) => each.layer === l && each.i === i && each.j === j);
  const heading = html("h3", {}, swatch(l), `Had ${named(trace, i)} kept ${named(trace, j)} in layer ${l}`);
  if (held) return [heading, ...changes(trace, held.first + 1, held.delta), ...more];
  const said = html("output", { "aria-live": "polite" });
  return [heading, html("p", {}, "This file does not hold the answer. In Python, this call works it out:"),
    html("pre", { tabindex: "0" }, counterfactualOf(pair)),
    html("div", { class: "bar" }, html("button", {
      type: "button", onclick: () => copy(pythonOf(trace), "the Python", said),
    }, "Copy it, with the lines that make the trace"), said), ...more];
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
    html("p", {}, `The ${delta.length} tokens that follow would be ${better} likely, by ${number(Math.abs(sum))} ` +
      `nats in all.${delta.length > by.length ? ` The ${by.length} that change most, in the order of the text:` : ""}`),
    barChart(items, "Change of the log-probability, in nats", chartWidth("what-if-body")),
    html("h4", {}, "All of them: up is more likely, in nats"), strip(trace, first, delta),
  ];
}

// All following tokens as thin bars around zero.
function strip(trace, first, delta) {
  const width = chartWidth("what-if-body"), left = 44, middle = 36, half = 30, unit = (width - left) / delta.length;
  const most = delta.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
  const bars = delta.map((value, n) => svg("rect", {
    class: value < 0 ? "negative" : "positive", x: (left + n * unit).toFixed(2),
    width: Math.max(unit - 0.5, 0.5).toFixed(2), height: Math.max(Math.abs(value) / most * half, 0.3).toFixed(2),
    y: (middle - Math.max(value, 0) / most * half).toFixed(2),
  }));
  const scale = [[most, middle - half + 8], [0, middle + 4], [-most, middle + half]].map(([value, y]) => svg("text", {
    x: left - 6, y, "text-anchor": "end" }, number(value, 2)));
  const ends = [first, first + delta.length - 1].slice(0, delta.length).map((i, n) => svg("text", {
    x: n ? width : left, y: middle + half + 18, "text-anchor": n ? "end" : "start" }, `${i} ${brief(trace, i)}`));
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${middle + half + 24}`, class: "chart curve", role: "img",
    "aria-label": `Change for each token from ${first} on, at most ${number(most)} nats`,
  }, svg("line", { class: "zero", x1: left, x2: width, y1: middle, y2: middle }), ...bars, ...scale, ...ends);
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect(), px = ((event.clientX - box.left) / box.width) * width;
    goTo(first + Math.max(Math.floor((px - left) / unit), 0));
  });
  return picture;
}

panes.push((changed) => {
  if (["front", "layer", "lock", "size"].some((name) => changed.has(name))) drawWhatIf();
});
