"""The slots of the C cache through insert, drop, reuse and compact: one sequence, one layer, pages of 4 slots.

Watch for: a drop moves nothing, it leaves a hole (.). The next token (*) takes the lowest hole, so slots are not in the
order of positions; attention does not mind, as the plain cache beside it shows. Only when a whole page is too many do
the last page's tokens move, and the page goes back to the pool, for whichever sequence needs it next.
"""

import sys

import numpy as np

from dcp_ref import Config, native
from dcp_ref.native.cache import NativeCache
from dcp_ref.runtime.cache import KVCache

if not native.available():
    print(f"There are no slots to show: {native.missing()}")
    sys.exit()

config = Config(vocab_size=1, n_positions=16, n_embd=16, n_layer=1, n_head=1, int_n_embd=16)
cache = NativeCache(config, page_slots=4)
plain = KVCache(config)  # the same in NumPy: a list of live tokens, no slots
sequence = cache.new_sequence()
assert plain.new_sequence() == sequence
q, k, v = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)  # [positions, C] each
k_int = np.eye(16, dtype=np.float32)  # [positions, r]: the unit vectors, so s[i, j] = q_int[i, j] / sqrt(r)
q_int = np.ones((16, 16), np.float32)  # [positions, r]: positive scores, which keep ...
for i, dropped in {11: [4, 5], 13: [0, 2], 14: [1, 3, 7]}.items():
    q_int[i, dropped] = -1  # ... but when token i arrives it drops these, as learned weights would have it

print(f"q, k, v {q.shape}, q_int, k_int {k_int.shape}; a number is a token's position; free: pages in the pool\n")
print(f"arrives  drops   {'page 0':18}{'page 1':18}{'page 2':18}live slots  free  what happens")
differences = []
for i in range(16):
    before = cache.slot_table(sequence, layer=0)  # [pages, 4]: the position in each slot, -1 in a free one
    row = slice(i, i + 1)
    rows = q[row], k[row], v[row], q_int[row], k_int[row]
    out, dropped = cache.step(0, cache.reserve([sequence], [1]), *rows)  # [1, C], [n, 2]: (row, position)
    expected, _ = plain.step(0, plain.reserve([sequence], [1]), *rows)
    differences.append(np.abs(out - expected).max())
    assert (cache.live_positions(sequence, 0) == plain.live_positions(sequence, 0)).all()

    table = cache.slot_table(sequence, layer=0)  # [pages, 4]
    if len(table) < len(before):
        event = "drop, reuse, compact: page freed"
    elif len(table) > len(before):
        event = "insert into a new page"
    else:
        event = "drop, reuse the lowest hole" if dropped.size else "insert into the lowest free slot"
    pages = ["".join("   ." if p < 0 else f"*{p}".rjust(4) if p == i else f"{p:4d}" for p in page) for page in table]
    drops = " ".join(str(position) for _, position in dropped)
    live, slots, owned, reserved, *_ = cache.stats()
    free = (reserved - owned) // (owned // len(table))  # pages that the pool holds ready
    row_of_slots = "".join(f"{page:18}" for page in pages)
    print(f"{i:7d}  {drops:6}{row_of_slots:54}{live:5d}{slots:6d}{free:6d}  {event}")
print(f"\nOutputs of attention, C cache against plain list: largest difference {max(differences):.1e}")
