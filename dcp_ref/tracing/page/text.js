// The text: a chip a token, with a bar a layer that still holds it; struck out when none does.

const texts = []; // one for each trace that is shown: { trace, host, chips, arrows }

// Two traces stand in their order, A before B, whichever of them is explained.
function buildTexts() {
  texts.length = 0;
  const beside = traces.length > 1 && view.show !== "one";
  $("texts").replaceChildren(...(beside ? traces : [front()]).map(buildText));
  $("texts").classList.toggle("two", beside);
}

function buildText(trace, n) {
  const chips = trace.texts.map((text, j) => {
    const shown = visible(text.startsWith(" ") && text.trim() ? text.slice(1) : text);
    const chip = html("span", {
      class: "token", role: "option", "aria-selected": "false", id: n ? `other-${j}` : `token-${j}`, "data-j": j,
    }, shown);
    if (isPinned(trace, j)) chip.title = "pinned: nothing drops it";
    const pad = padding(shown, trace.L);
    if (pad > 1) chip.style.setProperty("--pad", `${pad}px`);
    return chip;
  });
  const list = html("div", {
    class: "tokens", role: "listbox", tabindex: "0",
    "aria-label": `Tokens of ${trace.model}, ${trace.policy}: up and down point at a token, Enter locks it`,
  });
  trace.texts.forEach((text, j) => {
    if (text.startsWith(" ") && text.trim()) list.append(" ");
    if (j === trace.prompt_tokens) chips[j].classList.add("generated-first");
    if (isPinned(trace, j)) chips[j].classList.add("pinned");
    list.append(chips[j]);
    if (text.includes("\n")) list.append("\n".repeat(text.split("\n").length - 1));
  });
  const arrows = svg("svg", { class: "arrows", "aria-hidden": "true" });
  const host = html("div", { class: "text-scroll" }, list, arrows);
  const which = traces.indexOf(trace);
  const pane = { trace, host, list, chips, arrows, drawn: [], locked: null, heading: null, places: null, top: 0 };
  texts.push(pane);
  host.addEventListener("scroll", () => (pane.top = host.scrollTop));
  const at = (event) => {
    const chip = event.target.closest(".token");
    return chip ? Number(chip.dataset.j) : null;
  };
  list.addEventListener("pointermove", (event) => event.pointerType !== "touch" && pointAt(at(event), which));
  list.addEventListener("pointerleave", () => pointAt(null));
  list.addEventListener("click", (event) => at(event) !== null && lockToken(at(event), which));
  list.addEventListener("keydown", (event) => pointByKeys(event, which, (by) => {
    return Math.min(Math.max((looked() ?? view.step - by) + by, 0), trace.T - 1);
  }));
  if (traces.length > 1) pane.heading = html("h3", {}, html("b", {}, letter(trace)), ` ${title(trace)}`);
  return html("div", { class: "text-column" }, pane.heading, host);
}

// Pixels at both sides of a short token, so that its bars are wide enough to be told apart.
function padding(text, L) {
  const wanted = Math.min(Math.max(3 * L, 12), 30), wide = /^[.,;:'’!|]$/u.test(text) ? 4 : 8 * [...text].length;
  return (wanted - wide) / 2;
}

// Up and down point at the next token of an order that the pane knows; Enter locks the one pointed at.
function pointByKeys(event, which, next) {
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (by) pointAt(next(by), which);
  else if (event.key === "Enter" && looked() !== null) lockToken(looked(), which);
  else return;
  event.preventDefault();
}

function title(trace) {
  return [trace.model, trace.policy, isLearned(trace) ? `threshold ${number(trace.threshold, 2)}` : null]
    .filter(Boolean).join(" · ");
}

function isPinned(trace, j) {
  return trace.pinned?.includes(j) ?? false;
}

function isLearned(trace) {
  return trace.policy.startsWith("learned");
}

// A class a pattern of held layers: tokens that look alike share their style. All rules are made before the first step,
// as each later one would make the browser match every token again.
const patterns = new CSSStyleSheet();
const rules = new Map(); // from the class to its rule
const known = new Set(); // traces with the layers shown, whose patterns have rules
document.adoptedStyleSheets = [patterns];

function makePatterns(trace, layers) {
  const name = `${traces.indexOf(trace)}/${layers.length}/${layers[0]}`;
  if (known.has(name)) return;
  known.add(name);
  const keys = new Set();
  for (let j = 0; j < trace.T; j++) {
    for (const l of layers) keys.add(heldKey(trace, layers, j, trace.end[l * trace.T + j] - 1));
  }
  for (const key of keys) {
    const name = bandClass(key, layers), share = (key.split("1").length - 1) / layers.length;
    rules.set(name, `.${name} { --bands: ${bands(key, layers)}; --held: ${share.toFixed(3)}; }`);
  }
  patterns.replaceSync([...rules.values()].join("\n"));
}

// The gradient of the layers that a key holds: one digit a layer, 1 where it does.
function bands(key, layers) {
  const width = 100 / layers.length;
  const stops = layers.map((l, n) => {
    const colour = key[n] === "1" ? `var(--layer-${l})` : "transparent";
    return `${colour} ${(n * width).toFixed(2)}% ${((n + 1) * width).toFixed(2)}%`;
  });
  return `linear-gradient(90deg, ${stops.join(", ")})`;
}

function bandClass(key, layers) {
  return `held-${layers[0]}-${key}`;
}

function heldKey(trace, layers, j, i) {
  let key = "";
  for (const l of layers) key += isLive(trace, l, j, i) ? "1" : "0";
  return key;
}

function drawText(pane) {
  const { trace, chips, drawn } = pane, mine = paired || trace === front(); // whose tokens are locked and found
  const layers = shownLayers(trace, view.layer), step = Math.min(view.step, trace.T - 1);
  makePatterns(trace, layers);
  const other = view.show === "differ" ? traces.find((each) => each !== trace) : null;
  for (let j = 0; j < trace.T; j++) {
    const key = j > step ? "later" : heldKey(trace, layers, j, step);
    const same = other && layers.every((l) => trace.end[l * trace.T + j] === other.end[l * trace.T + j]);
    const found = mine && view.matches.has(j), now = j === step, locked = mine && j === view.lock;
    const point = j === view.point && (paired || trace === lookedTrace());
    const state = `${key}${layers.length}${layers[0]}${same ? "s" : ""}${other ? "o" : ""}${found ? "f" : ""}` +
      `${now ? "n" : ""}${locked ? "l" : ""}${point ? "p" : ""}`;
    if (drawn[j] === state) continue;
    drawn[j] = state;
    const looks = key === "later" ? "later" : key.includes("1") ? bandClass(key, layers) : "gone";
    chips[j].className = ["token", looks, same && "same", other && !same && "differs", found && "found", now && "now",
      locked && "locked", point && "point", j === trace.prompt_tokens && "generated-first",
      isPinned(trace, j) && "pinned"].filter(Boolean).join(" ");
  }
  chips[pane.locked]?.setAttribute("aria-selected", "false");
  pane.locked = mine && view.lock !== null && view.lock < trace.T ? view.lock : null;
  chips[pane.locked]?.setAttribute("aria-selected", "true");
  const active = looked() ?? step;
  if (active < trace.T) pane.list.setAttribute("aria-activedescendant", chips[active].id);
}

// Scrolls the text, and nothing else, so that a token can be seen.
function reveal(pane, j) {
  if (j === null || j >= pane.trace.T) return;
  const { tokens, height } = placesOf(pane), { y, bottom } = tokens[j];
  if (y < pane.top + 40) pane.top = Math.max(y - 60, 0);
  else if (bottom > pane.top + height - 20) pane.top = bottom - height + 60;
  else return;
  pane.host.scrollTop = pane.top;
}

// Where tokens stand, in pixels of the text: the middle of the upper edge, and the lower edge. Measured once a size, as
// each measurement makes the browser lay out the page.
function placesOf(pane) {
  if (!pane.places) {
    const origin = pane.list.getBoundingClientRect();
    const tokens = pane.chips.map((chip) => {
      const rects = chip.getClientRects(), rect = rects[rects.length - 1] ?? origin;
      return { x: rect.left - origin.left + rect.width / 2, y: rect.top - origin.top + 1,
        bottom: rect.bottom - origin.top };
    });
    const size = [pane.list.offsetWidth, pane.list.offsetHeight];
    pane.places = { tokens, size, height: pane.host.clientHeight };
  }
  return pane.places;
}

panes.push((changed) => {
  if (changed.has("show") || (changed.has("front") && view.show === "one") || !texts.length) buildTexts();
  for (const pane of texts) {
    if (changed.has("size")) pane.places = null;
    pane.heading?.classList.toggle("explained", pane.trace === front());
    drawText(pane);
    if (changed.has("step")) reveal(pane, view.step);
    if (changed.has("lock") && (paired || pane.trace === front())) reveal(pane, view.lock);
    drawArrows(pane);
  }
  drawPointed();
  $("own").checked = view.own;
});

$("own").addEventListener("change", () => change({ own: $("own").checked }));
