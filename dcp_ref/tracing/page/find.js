// Find: words (over several tokens, too), a regex, a kind, a range of lifetimes. All that is asked for must hold.

function tokensWith(trace, text, isRegex) {
  const found = new Set(), whole = trace.texts.join(""), from = [];
  trace.texts.reduce((at, each, j) => ((from[j] = at), at + each.length), 0);
  const pattern = new RegExp(isRegex ? text : text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "giu");
  let j = 0;
  for (const match of whole.matchAll(pattern)) {
    const end = match.index + match[0].length;
    while (j < trace.T && from[j] + trace.texts[j].length <= match.index) j++;
    for (let k = j; k < trace.T && from[k] < end; k++) if (trace.texts[k].length) found.add(k);
  }
  return found;
}

function find() {
  const trace = front(), text = $("find-text").value, kind = $("find-kind").value;
  const least = $("find-least").value, most = $("find-most").value, layers = shownLayers(trace, view.layer);
  if (!text && !kind && !least && !most) {
    $("find-count").textContent = "";
    match([]);
    return;
  }
  let holding = null;
  try {
    holding = text ? tokensWith(trace, text, $("find-regex").checked) : null;
  } catch {
    $("find-count").textContent = "This is not a regex that JavaScript knows.";
    match([]);
    return;
  }
  const life = (j) => Math.max(...layers.map((l) => trace.lifetime[l][j]));
  const matches = [...Array(trace.T).keys()].filter((j) => (!holding || holding.has(j)) &&
    (!kind || trace.kinds[j] === Number(kind)) && (!least || life(j) >= Number(least)) &&
    (!most || life(j) <= Number(most)));
  match(matches);
  const n = matches.length;
  $("find-count").textContent = n ? `${n} of ${trace.T} tokens` : "no token";
}

function match(tokens) {
  if (tokens.length || view.matches.size) change({ matches: new Set(tokens) });
}

// Locks the match after or before the locked token, from the start again at the end.
function jump(by) {
  const matches = [...view.matches].sort((a, b) => a - b), at = view.lock ?? -1;
  if (!matches.length) return;
  const next = by > 0 ? matches.find((j) => j > at) ?? matches[0] : matches.findLast((j) => j < at) ?? matches.at(-1);
  lockToken(next);
  $("find-count").textContent = `${matches.indexOf(next) + 1} of ${matches.length} tokens`;
}

$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  jump(1);
});
$("find-back").addEventListener("click", () => jump(-1));
$("find-text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !event.shiftKey) return;
  event.preventDefault();
  jump(-1);
});
for (const name of ["text", "regex", "kind", "least", "most"]) $(`find-${name}`).addEventListener("input", find);

panes.push((changed) => {
  if (changed.has("front")) {
    const trace = front(), counts = trace.kind_names.map((_, n) => trace.kinds.filter((kind) => kind === n).length);
    const chosen = $("find-kind").value;
    $("find-kind").replaceChildren(html("option", { value: "" }, "any kind"),
      ...trace.kind_names.map((name, n) => html("option", { value: n }, `${name} (${counts[n]})`)));
    $("find-kind").value = chosen;
  }
  if (changed.has("front") || changed.has("layer")) find();
});
