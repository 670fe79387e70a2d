// Compare: two traces side by side, with what differs marked, or one at a time. A is the first, whichever is explained.

let chooseShow = () => {};

// The ways to show two traces; the address may name one of these.
function shows() {
  return traces.length < 2 ? [] : paired ? ["both", "differ", "one"] : ["both", "one"];
}

// The pairs (layer, token) that the two traces do not drop in the same step: those farthest apart first.
function differences(a, b, layers) {
  const found = [];
  for (const l of layers) {
    for (let j = 0; j < a.T; j++) {
      const more = b.end[l * a.T + j] - a.end[l * a.T + j];
      if (more) found.push({ l, j, more });
    }
  }
  return found.sort((x, y) => Math.abs(y.more) - Math.abs(x.more) || x.j - y.j || x.l - y.l);
}

function buildCompare() {
  $("compare").hidden = $("differences").hidden = traces.length < 2;
  const labels = { both: "side by side", differ: "what differs", one: "one at a time" };
  const choices = shows().map((value) => ({ value, label: labels[value] }));
  chooseShow = radios($("compare-choice"), choices, (show) => change({ show }));
}

function shareTable(a, b) {
  const all = percents([...a.shareKept, ...b.shareKept]), shares = [all.slice(0, a.L), all.slice(a.L)];
  const rows = Array.from({ length: Math.max(a.L, b.L) }, (_, l) => html("tr", {},
    html("th", { scope: "row" }, swatch(l), `layer ${l}`),
    ...[0, 1].map((n) => html("td", { class: "figure" }, shares[n][l] ?? "–"))));
  return html("table", {}, html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "share kept"),
    ...[a, b].map((each, n) => html("th", { scope: "col" }, `${"AB"[n]}: ${title(each)}`)))),
  html("tbody", {}, ...rows));
}

const LISTED = 500;

function differenceTable(a, b, pairs) {
  const end = (trace, l, j) => {
    const i = trace.end[l * trace.T + j];
    return i < trace.T ? `${i} ${brief(trace, i)}` : "kept";
  };
  const rows = pairs.slice(0, LISTED).map(({ l, j, more }) => html("tr", {},
    html("th", { scope: "row" }, html("button", { type: "button", class: "link", onclick: () => explain(j, l) },
      `${j} ${brief(a, j)}`)),
    html("td", {}, swatch(l), String(l)), html("td", {}, end(a, l, j)), html("td", {}, end(b, l, j)),
    html("td", { class: "figure" }, `${"BA"[Number(more < 0)]} +${Math.abs(more)}`)));
  const heads = ["token", "layer", "A: dropped by", "B: dropped by", "held longer"];
  return html("div", { class: "table-scroll tall", tabindex: "0", role: "group", "aria-label": "Tokens that differ" },
    html("table", {}, html("thead", {}, html("tr", {}, ...heads.map((text) => html("th", { scope: "col" }, text)))),
      html("tbody", {}, ...rows)));
}

function drawDifferences() {
  if (traces.length < 2) return;
  const [a, b] = traces, shown = [shareTable(a, b)];
  if (!paired) {
    shown.push(html("p", {}, "The two traces are of different texts or models: their tokens cannot be paired."));
  } else {
    const layers = shownLayers(a, view.layer), pairs = differences(a, b, layers);
    const inA = pairs.filter(({ more }) => more < 0).length;
    const some = pairs.length > LISTED ? ` The ${LISTED} that differ most are listed.` : "";
    const all = () => html("button", { type: "button", onclick: () => change({ layer: null }) },
      swatch(view.layer), `only layer ${view.layer}: show all`);
    shown.push(html("p", {}, `${pairs.length} of ${a.T * layers.length} lifetimes differ: A holds the token longer ` +
      `in ${inA}, B in ${pairs.length - inA}.${some} `, view.layer === null ? null : all()));
    if (pairs.length) shown.push(differenceTable(a, b, pairs));
  }
  $("differences-body").replaceChildren(...shown);
}

$("swap").addEventListener("click", swap);

panes.push((changed) => {
  if (changed.has("size")) buildCompare();
  if (changed.has("show") || changed.has("size")) chooseShow(view.show);
  if (changed.has("front") || changed.has("show")) {
    $("swap").textContent = `${view.show === "one" ? "Show" : "Explain"} ${"BA"[view.front]}`;
    $("compare-note").textContent = view.show === "differ"
      ? "With a line above: what A and B drop at different steps." : `The panes explain ${"AB"[view.front]}.`;
  }
  if (changed.has("layer") || changed.has("size")) drawDifferences();
});
