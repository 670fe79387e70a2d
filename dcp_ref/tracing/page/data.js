// The traces: what was embedded, with arrays decoded and the few indices that every pane needs.
// T tokens, L layers, D drops, r dimensions of the score; [L, T] arrays are flat, row l at l * T.

const embedded = JSON.parse(document.getElementById("data").textContent);
const traces = embedded.traces.map(readTrace);
const paired = samePlaces(traces); // whether there are two traces of the same tokens and layers

function readTrace(raw) {
  const T = raw.ids.length, L = raw.n_layer, D = raw.drops.layer.length;
  const trace = {
    ...raw, T, L, D,
    threshold: { inf: Infinity, "-inf": -Infinity }[raw.threshold] ?? raw.threshold,
    dropOf: new Int32Array(L * T).fill(-1), // [L, T]: the drop that ended a token in a layer, -1 if none did
    dropsBy: Array.from({ length: T }, () => []), // [T]: the drops that a token made
    end: new Int32Array(L * T), // [L, T]: the first row in which a token is no longer live
    partsAt: new Int32Array(D + 1), // [D + 1]: where the parts of a drop begin
  };
  for (let d = 0; d < D; d++) {
    const l = raw.drops.layer[d];
    trace.dropOf[l * T + raw.drops.position[d]] = d;
    trace.dropsBy[raw.drops.dropped_by[d]].push(d);
    trace.partsAt[d + 1] = trace.partsAt[d] + 3 + 2 * l;
  }
  for (let l = 0; l < L; l++) for (let j = 0; j < T; j++) trace.end[l * T + j] = j + raw.lifetime[l][j];
  trace.shareKept = raw.lifetime.map((row) => {
    return T > 1 ? row.reduce((sum, n) => sum + n - 1, 0) / ((T * (T - 1)) / 2) : 1;
  });
  if (raw.interaction) {
    const { q, k, dtype } = raw.interaction;
    trace.interaction = { ...raw.interaction, q: floats(q, dtype), k: floats(k, dtype) };
  }
  if (raw.parts) {
    const { query, key, dtype } = raw.parts;
    trace.parts = { ...raw.parts, query: floats(query, dtype), key: floats(key, dtype) };
  }
  return trace;
}

function samePlaces([a, b]) {
  return b !== undefined && a.T === b.T && a.L === b.L && a.ids.every((id, n) => id === b.ids[n]);
}

function floats(base64, dtype) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  if (dtype !== "float16") return new Float32Array(bytes.buffer);
  return Float32Array.from(new Uint16Array(bytes.buffer), ofHalf);
}

function ofHalf(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
  return bits >> 15 ? -size : size;
}

function isLive(trace, l, j, i) {
  return j <= i && i < trace.end[l * trace.T + j];
}

// The layers to look at: the chosen one, or all of them.
function shownLayers(trace, layer) {
  return layer === null || layer >= trace.L ? [...Array(trace.L).keys()] : [layer];
}

// The terms of the score of pair (i, j): their sum and beta are the score.
function terms(trace, l, i, j) {
  const { q, k, r } = trace.interaction, scale = 1 / Math.sqrt(r);
  const qAt = (l * trace.T + i) * r, kAt = (l * trace.T + j) * r;
  return Array.from({ length: r }, (_, d) => q[qAt + d] * k[kAt + d] * scale);
}

function score(trace, l, i, j) {
  const { q, k, r, beta } = trace.interaction;
  let sum = 0;
  for (let d = 0, a = (l * trace.T + i) * r, b = (l * trace.T + j) * r; d < r; d++) sum += q[a + d] * k[b + d];
  return sum / Math.sqrt(r) + beta[l];
}

// The rows that judged token j in a layer: from the next one to the row that dropped it, or to the last.
function judges(trace, l, j) {
  const last = Math.min(trace.end[l * trace.T + j], trace.T - 1);
  return Array.from({ length: Math.max(last - j, 0) }, (_, n) => j + 1 + n);
}

// The parts of the score of drop d: names, and numbers for the query's hidden state and the key's.
function partsOf(trace, d) {
  const from = trace.partsAt[d], to = trace.partsAt[d + 1];
  const names = [...trace.parts.names.slice(0, to - from - 1), "ln_1.bias"];
  return { names, query: trace.parts.query.slice(from, to), key: trace.parts.key.slice(from, to) };
}

const UNSEEN = /[\u0000-\u001f\u007f\u00a0\u200b-\u200f\u2028-\u202e\u2066-\u2069]/g;

// How the text of a token is shown: what is invisible gets a sign.
function visible(text) {
  if (text === "") return "▫"; // a piece of a character, whose text stands at its last piece
  const signs = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u2028": "↵", "\u2029": "↵" };
  const shown = /^ +$/.test(text) ? text.replaceAll(" ", "␣") : text;
  return shown.replace(/\p{Surrogate}/gu, "\ufffd").replace(UNSEEN, (c) =>
    signs[c] ?? (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : "▫"));
}

function quoted(trace, j) {
  return `“${visible(trace.texts[j]).trim()}”`;
}

// The same where room is short, as in charts.
function brief(trace, j) {
  const text = [...visible(trace.texts[j]).trim()];
  return `“${text.length > 10 ? text.slice(0, 9).join("") + "…" : text.join("")}”`;
}

function named(trace, j) {
  return `${quoted(trace, j)} (token ${j})`;
}

function number(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  if (size === 0) return "0";
  const text = size < 0.001 ? size.toExponential(1) : size.toFixed(size >= 1000 ? 0 : digits);
  return (x < 0 ? "−" : "") + text;
}

function percent(share, digits = share < 0.0995 ? 1 : 0) {
  return `${(100 * share).toFixed(digits)}%`;
}

// The same of several shares, with a digit or two more where different ones would read alike.
function percents(shares) {
  const different = new Set(shares).size;
  for (const more of [0, 1, 2]) {
    const shown = shares.map((share) => percent(share, (share < 0.0995 ? 1 : 0) + more));
    if (new Set(shown).size >= different || more === 2) return shown;
  }
}
