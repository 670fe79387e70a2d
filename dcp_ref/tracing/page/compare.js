// Compare: two traces side by side, or only what differs; a swap puts the other one in front.

let chooseShow = () => {};

function comparable() {
  return traces.length > 1 && traces[0].T === traces[1].T && traces[0].L === traces[1].L &&
    traces[0].ids.every((id, n) => id === traces[1].ids[n]);
}

// The pairs (layer, token) that the two traces do not drop in the same step.
function differences(a, b) {
  const found = [];
  for (let j = 0; j < a.T; j++) {
    for (let l = 0; l < a.L; l++) if (a.end[l * a.T + j] !== b.end[l * a.T + j]) found.push({ l, j });
  }
  return found;
}

function buildCompare() {
  $("compare").hidden = $("differences").hidden = traces.length < 2;
  if (traces.length < 2) return;
  const choices = [{ value: "both", label: "side by side" }, { value: "one", label: "one at a time" }];
  if (comparable()) choices.splice(1, 0, { value: "differ", label: "only what differs" });
  chooseShow = radios($("compare-choice"), choices, (show) => change({ show }));
}

function shareTable(a, b) {
  const rows = Array.from({ length: Math.max(a.L, b.L) }, (_, l) => html("tr", {},
    html("th", { scope: "row" }, swatch(l), `layer ${l}`),
    ...[a, b].map((each) => html("td", { class: "figure" }, l < each.L ? percent(each.shareKept[l]) : "–"))));
  return html("table", {}, html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "share kept"),
    ...[a, b].map((each, n) => html("th", { scope: "col" }, `${"AB"[n]}: ${title(each)}`)))),
  html("tbody", {}, ...rows));
}

function differenceTable(a, b, pairs) {
  const end = (trace, l, j) => {
    const i = trace.end[l * trace.T + j];
    return i < trace.T ? `${i} ${quoted(trace, i)}` : "kept";
  };
  const rows = pairs.slice(0, 200).map(({ l, j }) => html("tr", {},
    html("th", { scope: "row" }, html("button", { type: "button", class: "link", onclick: () => explain(j, l) },
      `${j} ${quoted(a, j)}`)),
    html("td", {}, swatch(l), `layer ${l}`), html("td", {}, end(a, l, j)), html("td", {}, end(b, l, j))));
  return html("div", { class: "table-scroll tall", tabindex: "0", role: "group", "aria-label": "Tokens that differ" },
    html("table", {}, html("thead", {}, html("tr", {},
      ...["token", "layer", "A: dropped by", "B: dropped by"].map((text) => html("th", { scope: "col" }, text)))),
    html("tbody", {}, ...rows)));
}

function drawDifferences() {
  if (traces.length < 2) return;
  const a = front(), b = traces[1 - view.front], shown = [shareTable(a, b)];
  if (!comparable()) {
    shown.push(html("p", {}, "The two traces are of different texts or models: their tokens cannot be paired."));
  } else {
    const pairs = differences(a, b).filter(({ l }) => view.layer === null || view.layer === l);
    const longer = pairs.filter(({ l, j }) => a.end[l * a.T + j] > b.end[l * a.T + j]).length;
    const more = pairs.length > 200 ? " The first 200 are listed." : "";
    shown.push(html("p", {}, `${pairs.length} of ${a.T * shownLayers(a, view.layer).length} lifetimes differ: ` +
      `A keeps the token longer in ${longer}, B in ${pairs.length - longer}.${more}`));
    if (pairs.length) shown.push(differenceTable(a, b, pairs));
  }
  $("differences-body").replaceChildren(...shown);
}

$("swap").addEventListener("click", swap);

panes.push((changed) => {
  if (changed.has("size")) buildCompare();
  if (changed.has("show") || changed.has("size")) chooseShow(view.show);
  if (changed.has("front") || changed.has("layer")) drawDifferences();
});
