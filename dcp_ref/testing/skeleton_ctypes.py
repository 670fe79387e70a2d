"""A pruned cache to begin with, around a function in C: Python keeps the lists, C decides and attends.

    dcp-ref conformance mine:MyCache

The C below is compiled with `cc` when this file is imported; load your own library in its place.
"""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np

SOURCE = r"""
#include <math.h>

/* One token of one sequence: n live tokens at `position`, k and v [n + 1, C], of which the last are its own.
 * gone[j] is 1 already for what the layer before dropped; it is set for all that leave. weights [n + 1]: room to work.
 */
void token(float *out, unsigned char *gone, int n, int heads, int head_dim, int rank, int i, int delay, float beta,
           float threshold, float scale, const long long *position, const float *q, const float *k, const float *v,
           const float *q_int, const float *k_int, float *weights)
{
    int C = heads * head_dim;
    for (int j = 0; j < n; j++) {
        float s = 0;
        for (int c = 0; c < rank; c++)
            s += q_int[c] * k_int[j * rank + c];
        s = s / sqrtf((float)rank) + beta;
        if (!(s > threshold) && i - position[j] > delay) /* a tie or a NaN drops */
            gone[j] = 1;
    }
    for (int h = 0; h < heads; h++) {
        float most = -INFINITY, sum = 0;
        for (int j = 0; j <= n; j++) {
            weights[j] = 0;
            for (int d = h * head_dim; d < (h + 1) * head_dim; d++)
                weights[j] += q[d] * k[j * C + d] * scale;
            if ((j == n || !gone[j]) && weights[j] > most)
                most = weights[j];
        }
        for (int d = 0; d < head_dim; d++)
            out[h * head_dim + d] = 0;
        for (int j = 0; j <= n; j++) {
            if (j < n && gone[j])
                continue;
            float p = expf(weights[j] - most);
            sum += p;
            for (int d = h * head_dim; d < (h + 1) * head_dim; d++)
                out[d] += p * v[j * C + d];
        }
        for (int d = 0; d < head_dim; d++)
            out[h * head_dim + d] /= sum;
    }
}
"""


def built():
    """The library, compiled into a directory that is removed again: it stays loaded."""
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory) / "mine.c", Path(directory) / "mine.so"
        source.write_text(SOURCE)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", source, "-o", library, "-lm"], check=True)
        return ctypes.CDLL(str(library))


LIBRARY = built()


def pointer(x):
    """The address of an array's numbers."""
    return ctypes.c_void_p(x.ctypes.data)


class MyCache:
    """One list of live tokens for each sequence and layer."""

    supports = frozenset({"decode", "prompts", "ragged", "fork", "release", "threshold", "int_delay",
                          "propagate_in_depth"})
    expected_failures: dict[str, str] = {}  # noqa: RUF012 - a check that is known to fail, and why
    page_slots = None  # tokens in a page, where there are pages
    dtype = "float32"

    @classmethod
    def make(cls, config, policy, threshold=0.0):
        """A new cache for models of this shape."""
        cache = cls()
        cache.config, cache.threshold, cache.sequences = config, threshold, []
        return cache

    def new(self):
        """A handle of a new sequence."""
        widths = {"k": self.config.n_embd, "v": self.config.n_embd, "k_int": self.config.int_n_embd}
        empty = {name: np.zeros((0, n), np.float32) for name, n in widths.items()}
        empty |= {"position": np.zeros(0, np.int64), "seen": 0}
        self.sequences.append([dict(empty) for _ in range(self.config.n_layer)])
        return len(self.sequences) - 1

    def fork(self, handle):
        """A sequence of its own with the same tokens."""
        self.sequences.append([dict(layer) for layer in self.sequences[handle]])
        return len(self.sequences) - 1

    def release(self, handle):
        """The handle is not used again."""
        self.sequences[handle] = None

    def live(self, handle, layer):
        """Positions of the live tokens, ascending."""
        return self.sequences[handle][layer]["position"]

    def step(self, layer, batch, q, k, v, q_int, k_int, beta, inherited):
        """One layer of a step: out [N, C], and the (row, position) of each token that left this layer."""
        out, dropped, row = np.zeros_like(q), [], 0
        for handle, count in batch:
            tokens = self.sequences[handle][layer]
            for _ in range(count):
                new = {"k": k[row], "v": v[row], "k_int": k_int[row], "position": tokens["seen"]}
                both = {name: np.append(tokens[name], [x], axis=0) for name, x in new.items()}
                gone = np.isin(tokens["position"], inherited[inherited[:, 0] == row, 1]).astype(np.uint8)
                self.call(out[row], gone, tokens["seen"], both, q[row], q_int[row], beta, layer)
                left = np.append(gone == 0, True)
                dropped += [(row, position) for position in both["position"][~left]]
                tokens |= {name: x[left] for name, x in both.items()} | {"seen": tokens["seen"] + 1}
                row += 1
        return out, np.array(dropped, int).reshape(-1, 2)

    def call(self, out, gone, i, tokens, q, q_int, beta, layer):
        """Call your kernel."""
        config, f = self.config, ctypes.c_float
        weights = np.empty(len(gone) + 1, np.float32)
        LIBRARY.token(pointer(out), pointer(gone), len(gone), config.n_head, config.n_embd // config.n_head,
                      config.int_n_embd, i, config.int_delay, f(beta), f(self.threshold),
                      f(config.attention_scale(layer)), *(pointer(x) for x in (
                          tokens["position"], q, tokens["k"], tokens["v"], q_int, tokens["k_int"], weights)))
