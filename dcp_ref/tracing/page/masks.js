// Masks: a triangle a layer. Pixel (i, j), i downwards, is coloured where row i saw token j.
// Each triangle is painted once; the crosshair on top is of the style sheet, which reads --row and --column.

const painted = new Map(); // what paintMask gave, by trace, layer, size and whether scored
dark.addEventListener("change", () => painted.clear());

function maskOf(trace, l, size) {
  const name = [traces.indexOf(trace), l, size, scoredMasks()].join();
  if (!painted.has(name)) painted.set(name, paintMask(trace, l, size, scoredMasks()));
  return painted.get(name);
}

// The picture of a layer's mask, `size` pixels wide, in the layer's colour or with its scores.
function paintMask(trace, l, size, scored) {
  const canvas = document.createElement("canvas"), n = Math.max(1, Math.min(trace.T, size));
  canvas.width = canvas.height = n;
  const context = canvas.getContext("2d"), image = context.createImageData(n, n), pixels = image.data;
  const [r, g, b] = layerColour(l, trace.L).match(/\d+/g).map(Number), at = (p) => Math.floor((p * trace.T) / n);
  const most = scored ? largestMargin(trace, l, n) : 1, limit = Number.isFinite(trace.threshold) ? trace.threshold : 0;
  for (let y = 0; y < n; y++) {
    for (let x = 0; x <= y; x++) {
      const i = at(y), j = at(x);
      if (!isLive(trace, l, j, i)) continue;
      const share = scored && i !== j ? Math.sqrt(Math.min((score(trace, l, i, j) - limit) / most, 1) || 0) : 1;
      pixels.set([r, g, b, Math.round(255 * (scored ? 0.15 + 0.85 * Math.max(share, 0) : 1))], 4 * (y * n + x));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function largestMargin(trace, l, n) {
  const limit = Number.isFinite(trace.threshold) ? trace.threshold : 0, every = Math.ceil(trace.T / Math.min(n, 64));
  let most = 1e-9;
  for (let i = every; i < trace.T; i += every) {
    for (let j = 0; j < i; j += every) if (isLive(trace, l, j, i)) most = Math.max(most, score(trace, l, i, j) - limit);
  }
  return most;
}

function buildMasks() {
  const trace = front();
  $("mask-score-label").hidden = !trace.interaction;
  $("mask-score").checked = view.scored;
  const shares = percents(trace.shareKept), size = $("masks").clientWidth < 400 ? 88 : 132;
  $("triangles").replaceChildren(...shares.map((share, l) => {
    const canvas = html("canvas", { "aria-hidden": "true" });
    drawMask(canvas, maskOf(trace, l, 320), size);
    return html("button", {
      type: "button", class: "triangle", "aria-pressed": "false", "data-layer": l,
      "aria-label": `Enlarge the mask of layer ${l}: ${share} kept`,
      onclick: () => change({ mask: view.mask === l ? null : l }),
    }, html("span", { class: "cross" }, canvas), html("span", {}, swatch(l), `layer ${l}`));
  }));
}

function scoredMasks() {
  return view.scored && Boolean(front().interaction);
}

function enlarge() {
  const l = view.mask;
  $("large-mask").hidden = l === null;
  for (const button of $("triangles").children) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.layer) === l));
  }
  if (l === null) return;
  drawMask(largeCanvas, maskOf(front(), l, 1024), Math.min($("masks").clientWidth - 34, 640));
  largeCanvas.setAttribute("aria-label", `The mask of layer ${l}, enlarged`);
}

function drawMask(canvas, image, size) {
  const context = cleared(canvas, size, size);
  context.imageSmoothingEnabled = image.width > size;
  context.drawImage(image, 0, 0, size, size);
}

function drawCrosshairs() {
  const { T } = front(), column = looked();
  const share = (n) => ((Math.min(n, T - 1) + 0.5) / T).toFixed(5);
  $("masks").style.setProperty("--row", share(view.step));
  $("masks").style.setProperty("--column", column === null ? -1 : share(column)); // -1: out of sight
  if (view.mask !== null) nameCell(view.step, column);
}

function nameCell(i, j) {
  const trace = front(), l = view.mask, caption = $("large-mask").querySelector("figcaption");
  if (j === null || j > i || i >= trace.T) {
    caption.textContent = `Layer ${l}. Point at a cell to name it; click it to go to that step and token.`;
    return;
  }
  const scored = trace.interaction && i !== j ? `; score ${number(score(trace, l, i, j))}` : "";
  const state = isLive(trace, l, j, i) ? "sees" : trace.end[l * trace.T + j] === i ? "drops" : "no longer has";
  caption.textContent = i === j ? `Layer ${l}: ${named(trace, i)} sees itself.`
    : `Layer ${l}: ${named(trace, i)} ${state} ${named(trace, j)}${scored}.`;
}

function cellAt(event) {
  const box = largeCanvas.getBoundingClientRect(), { T } = front();
  const at = (share) => Math.min(Math.max(Math.floor(share * T), 0), T - 1);
  return { i: at((event.clientY - box.top) / box.height), j: at((event.clientX - box.left) / box.width) };
}

const largeCanvas = $("large-mask").querySelector("canvas");
largeCanvas.addEventListener("pointermove", (event) => {
  const { i, j } = cellAt(event);
  pointAt(j <= i ? j : null);
  nameCell(i, j);
});
largeCanvas.addEventListener("pointerleave", () => pointAt(null));
largeCanvas.addEventListener("click", (event) => {
  const { i, j } = cellAt(event);
  if (j <= i) change({ step: i, lock: j, layer: view.mask, point: null });
});
$("mask-score").addEventListener("change", () => change({ scored: $("mask-score").checked }));

panes.push((changed) => {
  const anew = ["front", "scored", "size"].some((name) => changed.has(name));
  if (anew) buildMasks();
  if (anew || changed.has("mask")) enlarge();
  drawCrosshairs();
});
