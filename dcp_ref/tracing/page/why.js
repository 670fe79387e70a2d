// Why: for the token looked at, who dropped it in each layer; for the locked one, the score and all it is made of.

const sorted = { by: "size" };

// The layer to explain: the chosen one, else the one that dropped the token first.
function explainedLayer(trace, j) {
  if (view.layer !== null && view.layer < trace.L) return view.layer;
  let best = 0;
  for (let l = 1; l < trace.L; l++) if (trace.end[l * trace.T + j] < trace.end[best * trace.T + j]) best = l;
  return best;
}

function reasonText(trace, d) {
  const { drops } = trace, reason = trace.reasons?.[drops.reason[d]] ?? REASONS[drops.reason[d]];
  const i = drops.dropped_by[d], j = drops.position[d], l = drops.layer[d];
  return {
    learned: `The score ${number(drops.score[d])} is not above the threshold ${number(trace.threshold)}.`,
    inherited: `An earlier layer had dropped it by then, and layer ${l} inherits that.`,
    window: `It was ${i - j} steps back, outside what the rule ${trace.policy} keeps.`,
    heavy: `It had got the least attention of the tokens that the rule ${trace.policy} may drop.`,
    budget: `The layer was full, and its score ${number(drops.score[d])} was the lowest.`,
    rule: `The rule ${trace.policy} dropped it.`,
  }[reason];
}

const REASONS = ["learned", "inherited", "window", "heavy", "budget", "rule"];

function drawWhy() {
  const trace = lookedTrace(), j = looked(), host = $("why-body");
  nameTrace([$("why-which")], trace);
  if (j === null || j >= trace.T) {
    host.replaceChildren(html("p", { class: "empty" },
      "Point at a token in the text to see which token dropped it in each layer. Click it to keep it here, with the " +
      "score and what the score is made of."));
    return;
  }
  const l = explainedLayer(trace, j), d = trace.dropOf[l * trace.T + j];
  const parts = [html("h3", { class: "one-line" }, named(trace, j)), layerTable(trace, l, j), headline(trace, l, j, d)];
  if (view.layer === null && d >= 0 && trace.L > 1) {
    parts.push(html("p", { class: "quiet" }, `Layer ${l} is explained, as it was the first to drop the token. Choose ` +
      "another in the table."));
  }
  if (view.lock === j && trace === front()) parts.push(...details(trace, l, j, d));
  else parts.push(html("p", { class: "quiet" }, "Click the token to lock it, and to see the history of its score."));
  host.replaceChildren(...parts);
}

// Whether what is shown depends on the step: a locked token that its layer still holds is judged by the step's token.
function judgedByStep() {
  const trace = front(), j = view.lock;
  return j !== null && j < trace.T && trace.dropOf[explainedLayer(trace, j) * trace.T + j] < 0;
}

function headline(trace, l, j, d) {
  if (d < 0) {
    return html("p", { class: "headline" }, swatch(l), html("b", {}, quoted(trace, j)),
      ` (token ${j}) is held by layer ${l} to the end` + (isPinned(trace, j) ? ": it is pinned." : "."));
  }
  const i = trace.drops.dropped_by[d];
  return html("p", { class: "headline" }, swatch(l), `In layer ${l}, `, html("b", {}, quoted(trace, i)),
    ` (token ${i}) dropped `, html("b", {}, quoted(trace, j)), ` (token ${j}). `,
    reasonText(trace, d));
}

function margin(trace, d) {
  return trace.drops.score[d] === null ? null : trace.drops.score[d] - trace.threshold;
}

// Above the sentence, so that it stays under the pointer that chooses a layer in it. A margin that is the score, as the
// threshold is 0, is not said twice.
function layerTable(trace, chosen, j) {
  const withMargin = isLearned(trace) && trace.threshold !== 0;
  const rows = trace.lifetime.map((_, l) => {
    const d = trace.dropOf[l * trace.T + j], i = d < 0 ? null : trace.drops.dropped_by[d];
    return html("tr", l === chosen ? { class: "chosen" } : {},
      html("th", { scope: "row" }, html("button", {
        type: "button", "aria-label": `Explain layer ${l}`, onclick: () => explain(j, l) }, swatch(l), `layer ${l}`)),
      ...(d < 0 ? [html("td", { colspan: withMargin ? "5" : "4", class: "quiet" }, "held to the end")] : [
        html("td", {}, html("button", {
          type: "button", class: "link", title: "Go to this step", onclick: () => goTo(i) }, brief(trace, i))),
        html("td", { class: "figure" }, String(i)),
        html("td", { class: "figure" }, String(i - j)),
        html("td", { class: "figure" }, number(trace.drops.score[d])),
        withMargin ? html("td", { class: "figure" }, number(margin(trace, d))) : null,
      ]));
  });
  const heads = ["", "dropped by", "at step", "held", "score", ...(withMargin ? ["margin"] : [])];
  return html("div", { class: "table-scroll", tabindex: "0", role: "group", "aria-label": "Who dropped it, by layer" },
    html("table", {}, html("thead", {}, html("tr", {}, ...heads.map((text) => {
      return text ? html("th", { scope: "col", title: MEANINGS[text] }, text) : html("td", {});
    }))), html("tbody", {}, ...rows)));
}

const MEANINGS = { held: "For how many steps the layer held it", margin: "The score less the threshold" };

function details(trace, l, j, d) {
  const colour = `var(--layer-${l})`, shown = [];
  if (!isLearned(trace) && !trace.interaction) return shown;
  if (!trace.interaction) {
    return [html("p", { class: "quiet" }, trace.note ?? "This trace holds no scores: record it with scores=True.")];
  }
  const i = d >= 0 ? trace.drops.dropped_by[d] : view.step > j ? view.step : trace.T - 1;
  const steps = judges(trace, l, j);
  if (steps.length) {
    const values = steps.map((step) => score(trace, l, step, j));
    shown.push(html("h3", {}, "Its score, at each step"),
      lineChart(steps, values, {
        limit: isLearned(trace) ? trace.threshold : null, marked: i, colour, width: chartWidth("why-body"),
        name: (step) => `${step} ${brief(trace, step)}`,
        label: `The score of ${named(trace, j)} in layer ${l}, from ${number(values[0])} to ${number(values.at(-1))}`,
      }),
      html("p", { class: "quiet" }, d >= 0 ? "It left when the line fell to the dashed threshold."
        : "The line stayed above the dashed threshold. Click it to choose a step."));
  }
  if (i > j && i < trace.T) shown.push(...sums(trace, l, i, j));
  if (d >= 0 && trace.parts) shown.push(...partsOfScore(trace, l, d));
  return shown;
}

function sums(trace, l, i, j) {
  const items = terms(trace, l, i, j).map((value, n) => ({ name: `q·k, dimension ${n}`, value }));
  const beta = { name: "beta of the layer", value: trace.interaction.beta[l], strong: true };
  const total = { name: "the sum", value: score(trace, l, i, j), strong: true };
  if (sorted.by === "size") items.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const many = items.length > 24, rest = items.slice(24).reduce((sum, each) => sum + each.value, 0);
  const kept = many && sorted.by === "size"
    ? [...items.slice(0, 24), { name: `${items.length - 24} more`, value: rest }] : items;
  const sort = html("div", { role: "radiogroup", class: "small", "aria-label": "Order of the bars" });
  const orders = ["size", "dimension"].map((by) => ({ value: by, label: `by ${by}` }));
  const mark = radios(sort, orders, (by) => {
    sorted.by = by;
    drawWhy();
  });
  mark(sorted.by);
  return [html("h3", {}, `What ${quoted(trace, i)} says of it: an exact sum`),
    html("p", { class: "quiet" }, "The score is the product of two short vectors, q and k, plus beta: a number that " +
      "the layer learned, the same for all pairs."), sort,
    barChart([...kept, beta, total], "The score as a sum", chartWidth("why-body"))];
}

function partsOfScore(trace, l, d) {
  const { names, query, key } = partsOf(trace, d);
  const { position, dropped_by: by } = trace.drops;
  const chart = (numbers, j) => {
    const items = names.map((name, n) => ({ name: partName(name), value: numbers[n] }));
    if (sorted.by === "size") items.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    items.push({ name: "sum without beta", value: numbers.reduce((sum, each) => sum + each, 0), strong: true });
    return [html("h4", {}, `in ${named(trace, j)}`),
      barChart(items, `Parts of the score from ${named(trace, j)}`, chartWidth("why-body"))];
  };
  return [html("h3", {}, "Where in the model the score comes from"),
    html("p", { class: "quiet" }, "A hidden state is a sum of what each earlier part wrote. Each chart splits the " +
      "score, without beta, by the parts of one of the two tokens."),
    ...chart(query, by[d]), ...chart(key, position[d])];
}

function partName(name) {
  const found = /^h\.(\d+)\.(attn|mlp)$/.exec(name);
  if (found) return `layer ${found[1]} ${found[2] === "attn" ? "attention" : "mlp"}`;
  return name === "ln_1.bias" ? "bias of ln_1" : name;
}

panes.push((changed) => {
  if (["front", "layer", "lock", "point", "pointIn", "size"].some((name) => changed.has(name)) ||
    (changed.has("step") && judgedByStep())) drawWhy();
});
