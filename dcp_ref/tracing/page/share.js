// Share: the Python that shows this, the address, and the text with its arrows as an SVG file.

// The pair to explain in Python: the locked token, and the one that dropped it or that reads now.
function pairOf(trace) {
  const l = explainedLayer(trace, view.lock), d = trace.dropOf[l * trace.T + view.lock];
  return { l, d, i: d >= 0 ? trace.drops.dropped_by[d] : Math.max(view.step, view.lock + 1), j: view.lock };
}

function counterfactualOf({ l, i, j }) {
  return `trace.counterfactual(${l}, ${i}, ${j})`;
}

function pythonOf(trace) {
  const threshold = Number.isFinite(trace.threshold) ? String(trace.threshold)
    : `float("${trace.threshold < 0 ? "-" : ""}inf")`;
  const options = [
    trace.policy === "learned" ? null : `policy=dcp_ref.policies.parse(${JSON.stringify(trace.policy)})`,
    isLearned(trace) ? `threshold=${threshold}` : null, trace.interaction ? "scores=True" : null,
  ].filter(Boolean);
  const shown = ["import dcp_ref", "", `model = dcp_ref.load(${JSON.stringify(trace.model)})`,
    `ids = [${trace.ids.join(", ")}]`, `trace = dcp_ref.trace(${["model", "ids", ...options].join(", ")})`];
  if (view.lock === null) return [...shown, "print(trace)"].join("\n");
  const pair = pairOf(trace), { l, d, i, j } = pair;
  if (i >= trace.T) return [...shown, "print(trace)"].join("\n");
  const said = `  # layer ${l}: ${named(trace, i)} ${d >= 0 ? "dropped" : "kept"} ${named(trace, j)}`;
  shown.push((isLearned(trace) ? `print(trace.why(${l}, ${i}, ${j}))` : "print(trace)") + said);
  if (d >= 0) shown.push(`print(${counterfactualOf(pair)})  # had it been kept`);
  return shown.join("\n");
}

async function copy(text, what, said = $("shared")) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = html("textarea", { "aria-hidden": "true", readonly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    copied = document.execCommand("copy");
    field.remove();
  }
  said.textContent = copied ? `Copied ${what}.` : "This browser does not let a page copy.";
}

function copyLink() {
  const more = location.protocol === "file:" ? ". It leads to the file on this computer: send the file with it" : "";
  copy(location.href.split("#")[0] + address(), `the address${more}`);
}

// The text as it is shown now: a copy of positions and colours into one drawing that needs no style sheet.
function svgOfText() {
  const pane = texts.find((each) => each.trace === front()), box = pane.list.getBoundingClientRect(), margin = 12;
  const width = Math.ceil(box.width) + 2 * margin, height = Math.ceil(box.height) + 2 * margin + 22;
  const style = getComputedStyle(pane.list), found = [];
  for (const chip of pane.chips) found.push(...chipPicture(pane, chip, box));
  const arrows = [...pane.arrows.querySelectorAll(".arrow")].map((group) => {
    const colour = layerColour(Number(group.dataset.layer), pane.trace.L), line = group.querySelector(".line");
    const dashes = group.classList.contains("out") ? "4 3" : null;
    return svg("path", { d: line.getAttribute("d"), fill: "none", stroke: colour, "stroke-width": 1.8,
      "stroke-dasharray": dashes });
  });
  for (const head of pane.arrows.querySelectorAll(".head")) {
    const fill = layerColour(Number(head.dataset.layer), pane.trace.L);
    arrows.push(svg("path", { d: head.getAttribute("d"), fill }));
  }
  const said = `${title(pane.trace)}, step ${view.step}. ${$("pointed").textContent}`;
  const picture = svg("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` }, svg("title", {}, said),
    svg("rect", { width, height, fill: cssColour("--page") }),
    svg("g", {
      transform: `translate(${margin} ${margin})`, "font-family": style.fontFamily, "font-size": style.fontSize,
    }, ...found, ...arrows),
    svg("text", {
      x: margin, y: height - 10, "font-size": 11, "font-family": "sans-serif", fill: cssColour("--quiet"),
    }, said));
  return new XMLSerializer().serializeToString(picture);
}

function chipPicture(pane, chip, box) {
  const { trace } = pane, j = Number(chip.dataset.j), layers = shownLayers(trace, view.layer);
  const rects = chip.getClientRects(), rect = rects[rects.length - 1];
  if (!rect) return [];
  const x = rect.left - box.left, y = rect.top - box.top, gone = chip.classList.contains("gone");
  const bands = layers.filter((l) => isLive(trace, l, j, view.step)).map((l) => svg("rect", {
    x: x + (layers.indexOf(l) * rect.width) / layers.length, y: y + rect.height - 4, height: 4,
    width: rect.width / layers.length, fill: layerColour(l, trace.L),
  }));
  const text = svg("text", { x: x + 1, y: y + rect.height * 0.72, fill: getComputedStyle(chip).color,
    "text-decoration": gone ? "line-through" : null }, chip.textContent);
  return [...bands, text];
}

function save(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  html("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  $("shared").textContent = `Saved ${name}.`;
}

$("copy-python").addEventListener("click", () => copy(pythonOf(front()), "the Python"));
$("copy-link").addEventListener("click", copyLink);
$("save-svg").addEventListener("click", () => save(`trace-step-${view.step}.svg`, svgOfText(), "image/svg+xml"));
$("python").closest("details").addEventListener("toggle", () => ($("python").textContent = pythonOf(front())));

panes.push(() => {
  if ($("python").closest("details").open) $("python").textContent = pythonOf(front());
});
