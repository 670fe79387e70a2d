"""Random traces that are consistent: what `Trace.to_dict` would give, were there such a model."""

import base64
import math

import numpy as np

from dcp_ref.tracing.page import page

REASONS = ["learned", "inherited", "window", "heavy", "budget", "rule"]
KINDS = ["whitespace", "punctuation", "digit", "rest of a word", "function word", "capitalised", "word"]
TEXTS = [" the", " sea", "\n", "한", "국어", " 🙂", "", "</script><img src=x onerror=alert(1)>", " old", "\t", ",",
         " man", "\n\n", "  ", "é", "<b>", "&amp;", "\u202e", "\x00", "ing", " 42", " Mr",
         "{{title}}", "--><!--", "\ud83d"]
WORDS = [" the", " sea", " looked", "ing", ",", " old", " man", " back", " at", ".", " It", " was", " a", " fine",
         " night"]


def b64(array):
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()


def random_trace(T, L, seed, r=4, plain=False, scores=True, what_if=True, **changed):
    """A trace of the learned rule: a token leaves in the first row that scores it at 0 or less. `plain`: of words."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, L, T, r)).astype(np.float32)
    beta = np.linspace(2.5, 1.0, L).astype(np.float32)
    s = q @ k.swapaxes(1, 2) / math.sqrt(r) + beta[:, None, None]
    gone = (s <= 0) & np.tri(T, k=-1, dtype=bool)
    end = np.where(gone.any(1), gone.argmax(1), T)  # [L, T]: the row that drops a token
    layer, position = np.nonzero(end < T)
    order = np.lexsort((position, layer, end[layer, position]))
    layer, position = layer[order], position[order]
    by = end[layer, position]
    score = s[layer, by, position]
    texts = [(WORDS if plain else TEXTS)[n] for n in rng.integers(len(WORDS if plain else TEXTS), size=T)]
    held = [{"layer": int(layer[0]), "i": int(by[0]), "j": int(position[0]), "first": int(by[0]),
             "delta": rng.normal(size=T - 1 - int(by[0])).tolist()}] if len(by) else []
    return {
        "format": "dcp_ref.trace", "version": 1, "model": "random", "policy": "learned", "threshold": 0.0,
        "backend": "numpy", "n_layer": L, "int_delay": 0, "propagate_in_depth": False, "prompt_tokens": max(T - 5, 1),
        "ids": rng.integers(1000, size=T).tolist(), "texts": texts, "kinds": rng.integers(len(KINDS), size=T).tolist(),
        "kind_names": KINDS, "reasons": REASONS,
        "drops": {"layer": layer.tolist(), "position": position.tolist(), "dropped_by": by.tolist(),
                  "score": score.tolist(), "margin": score.tolist(), "reason": [0] * len(by)},
        "lifetime": (end - np.arange(T)).tolist(),
        "live_counts": [[int(((np.arange(T) <= i) & (i < end[n])).sum()) for i in range(T)] for n in range(L)],
        "interaction": {"q": b64(q), "k": b64(k), "beta": beta.tolist(), "r": r} if scores else None,
        "parts": _parts(rng, layer, score - beta[layer], L) if scores else None,
        "counterfactuals": held if what_if else [],
        "everything": rng.normal(size=T - 1).tolist() if what_if else None,
    } | changed


def _parts(rng, layer, sums, L):
    def split(d):
        parts = rng.normal(size=3 + 2 * layer[d])
        return np.append(parts[:-1], sums[d] - parts[:-1].sum())

    names = ["embedding", "position", *(f"h.{n}.{part}" for n in range(L) for part in ("attn", "mlp"))]
    both = [b64(np.concatenate([split(d) for d in range(len(layer))] or [[]])) for _ in range(2)]
    return {"names": names, "query": both[0], "key": both[1]}


def written(path, *traces):
    """The page of these traces in a file; gives its address."""
    path.write_text(page(list(traces)), encoding="utf-8")
    return path.as_uri()
