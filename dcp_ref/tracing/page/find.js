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

// What is asked for, as the fields have it.
function asked() {
  const number = (name) => ($(`find-${name}`).value === "" ? null : Number($(`find-${name}`).value));
  return { find: $("find-text").value, regex: $("find-regex").checked, kind: number("kind"), least: number("least"),
    most: number("most") };
}

function find() {
  const trace = front(), { find: text, kind, least, most } = view, layers = shownLayers(trace, view.layer);
  if (!text && kind === null && least === null && most === null) {
    $("find-count").textContent = "";
    match([]);
    return;
  }
  let holding = null;
  try {
    holding = text ? tokensWith(trace, text, view.regex) : null;
  } catch {
    $("find-count").textContent = "not a regex";
    match([]);
    return;
  }
  const life = (j) => Math.max(...layers.map((l) => trace.lifetime[l][j]));
  const matches = [...Array(trace.T).keys()].filter((j) => (!holding || holding.has(j)) &&
    (kind === null || trace.kinds[j] === kind) && (least === null || life(j) >= least) &&
    (most === null || life(j) <= most));
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
  lockToken(next, view.front);
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
for (const name of ["text", "regex", "kind", "least", "most"]) {
  $(`find-${name}`).addEventListener("input", () => change(asked()));
}

panes.push((changed) => {
  if (changed.has("front")) {
    const trace = front(), counts = trace.kind_names.map((_, n) => trace.kinds.filter((kind) => kind === n).length);
    $("find-kind").replaceChildren(html("option", { value: "" }, "any kind"),
      ...trace.kind_names.map((name, n) => html("option", { value: n }, `${name} (${counts[n]})`)));
  }
  if (!["front", "layer", "find", "regex", "kind", "least", "most"].some((name) => changed.has(name))) return;
  for (const [id, value] of [["text", view.find], ["kind", view.kind], ["least", view.least], ["most", view.most]]) {
    if ($(`find-${id}`).value !== String(value ?? "")) $(`find-${id}`).value = value ?? "";
  }
  $("find-regex").checked = view.regex;
  find();
});
