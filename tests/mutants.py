"""Small wrong edits, each of which some test must fail: `make mutants`.

Each edit is applied to a copy of the project, the extension is rebuilt where C changed, and the tests that could
notice are run. An edit that no test fails has survived: this script then exits with 1. The first three are the faults
of the paper's own code, the way they would look here. A run that was ended goes on where it was: what it found out is
in build/mutants.json, and counts until the mutant, its file or its tests change.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("dcp_ref", "csrc", "tests", "examples", "build_dcp.py", "setup.py", "pyproject.toml", "README.md", "LICENSE")
RESULTS = ROOT / "build" / "mutants.json"
MOST_SECONDS = 900  # of the tests of one mutant; unchanged ones take a few minutes at most
DECODING = ("tests/runtime/test_theorem.py", "tests/runtime/test_cache.py")
TRAINING = ("tests/training/test_step.py", "tests/training/test_training_runs.py")
PAPER = ("tests/paper/test_model.py", "tests/paper/test_layers.py", "tests/paper/test_sigmoid.py")
INSERT = "        tokens = tokens.without(gone).insert(x.k[row], x.v[row], x.k_int[row], pinned)  # (3)\n"
ATTEND = "        out, weights = attend(x.q[row], tokens.k, tokens.v, self.config.n_head, scale)  # (4)\n"
INTERACTION = "dcp_ref/interaction.py"
CACHES = ("tests/runtime/test_cache.py", "tests/runtime/test_cache_memory.py", "tests/runtime/test_cache_policies.py")
KERNELS = ("tests/native/test_kernels.py", "tests/native/test_invariance.py")
SIMD = ("tests/native/test_simd.py",)
STORED = ("tests/native/test_native.py", *CACHES, *KERNELS)
THREADS = ("tests/runtime/test_threads.py", "tests/native/test_invariance.py")
CACHE, DECODER, LOCK = (f"dcp_ref/runtime/{name}.py" for name in ("cache", "decoder", "lock"))
NATIVE_CACHE, NATIVE_DECODER, MEMORY = (f"dcp_ref/native/{name}.py" for name in ("cache", "decoder", "memory"))
ENGINE, BINDING = ("tests/runtime/test_engine.py",), ("tests/native/test_native.py",)
WALKS, BETWEEN = ("tests/native/test_decoder.py",), ("tests/runtime/test_any_line.py", "tests/runtime/test_reentry.py")
OWN_RULE = ("tests/runtime/test_own_rule.py",)
SAVING, NATIVE_SAVING = "dcp_ref/runtime/saving.py", "dcp_ref/native/saving.py"
SAVED = ("tests/runtime/test_saving.py",)
COUNTED = ("tests/runtime/test_stats.py",)
PIECES = ("tests/runtime/test_feeding.py", "tests/runtime/test_memory.py")
PINS = ("tests/runtime/test_pins.py",)
INTERRUPTED = ("tests/native/test_interrupted.py",)
JUDGE = "csrc/judge.c"
ATTEND_C = "csrc/attend.c"
STEP_C = "csrc/step.c"
CACHE_C = "csrc/cache.c"
SEQUENCE_C = "csrc/sequence.c"
SLOTS = "csrc/slots.c"
LINEAR = "csrc/linear.c"
TILE = "csrc/tile.h"
THREADS_C = "csrc/threads.c"
ATTENTION_C = "csrc/training_attention.c"
LANES_C = "csrc/training_lanes.c"
MASK_C = "csrc/training_mask.c"
WALK = "csrc/decode.c"
LAYERS, CONFIG, MODEL = (f"dcp_ref/{name}.py" for name in ("layers", "config", "model"))
LAYERS_C, ELEMENTWISE_C = "csrc/layers.c", "csrc/training_elementwise.c"
FOUND = ("tests/project/test_fuzz.py",)
REPLACING, FAILURES = ("tests/checkpoints/test_replacing.py",), ("tests/training/test_training_failures.py",)
NATIVE = ("tests/native/test_training_native.py",)
JOBS, CONTINUED = ("tests/corpus/test_job.py",), ("tests/corpus/test_continuing.py",)
STEP = "dcp_ref/training/step.py"
TEXT = ("tests/runtime/test_streaming.py", "tests/runtime/test_generation.py",
        "tests/checkpoints/test_tokenizer.py", "tests/checkpoints/test_tokenizer_files.py")
MEASURED = tuple(f"tests/analysis/test_{name}.py"
                 for name in ("perplexity", "calibration", "likelihood", "tasks", "zero_shot"))


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = DECODING


MUTANTS = [
    # The paper's own code: views of the values are permuted before attention uses them.
    Mutant("official 1 (C): compaction moves keys, not values", CACHE_C,
           "old + offset(s, j, kv)", "old + offset(t, j, kv)"),
    Mutant("official 1 (NumPy): a drop moves keys, not values", CACHE,
           "tokens.without(gone)", "tokens.without(gone)._replace(v=tokens.v[: (~gone).sum()])"),
    # ... all live tokens are lost when every slot after the first hole is dead.
    Mutant("official 2: a dead tail takes all", CACHE,
           "tokens.without(gone)",
           "tokens.without(np.ones_like(gone) if gone.any() and gone[gone.argmax() :].all() else gone)"),
    # ... depth propagation is applied in the dense pass, not in decoding.
    Mutant("official 3: no depth propagation in decoding", DECODER,
           "drops[-1] if drops and config.propagate_in_depth else None", "None"),
    # ... and in the loss: the sparsity term counts the constant ones on and above the diagonal.
    Mutant("official 13: sparsity counts the diagonal", INTERACTION, "k=-1, dtype=mask.dtype", "dtype=mask.dtype",
           PAPER),
    Mutant("tie kept (C)", JUDGE, "* scale + beta > policy->threshold)", "* scale + beta >= policy->threshold)"),
    Mutant("tie kept (NumPy)", CACHE, "~(s > self.threshold)", "~(s >= self.threshold)"),
    Mutant("tie kept (dense)", "dcp_ref/sigmoid.py", "return (s > 0).astype", "return (s >= 0).astype",
           (*DECODING, *PAPER)),
    Mutant("tie with a threshold kept (C)", JUDGE, "+ beta > policy->threshold)",
           "+ beta - policy->threshold >= (policy->threshold != 0 ? 0 : 0x1p-149f))"),
    Mutant("tie with a threshold kept (NumPy)", CACHE, "~(s > self.threshold)",
           "~((s > self.threshold) | ((s == self.threshold) & (self.threshold != 0)))"),
    Mutant("tie with a threshold kept (dense)", "dcp_ref/block.py", "        s -= threshold ",
           "        s -= threshold and np.nextafter(threshold, -np.inf) ", (*DECODING, *PAPER)),
    Mutant("a threshold taken from beta (C)", JUDGE, "* scale + beta > policy->threshold)",
           "* scale + (beta - policy->threshold) > 0)"),
    Mutant("delay off by one (C)", JUDGE, "<= policy->delay", "< policy->delay"),
    Mutant("delay off by one (NumPy)", CACHE, "<= self.config.int_delay", "< self.config.int_delay"),
    Mutant("delay off by one (dense)", INTERACTION, "k=-1 - min(delay, T)",
           "k=-1 - min(max(delay - 1, 0), T)", (*DECODING, *PAPER)),
    Mutant("NaN kept (C)", JUDGE, "(uint32_t)(products[p][r][j] * scale + beta > policy->threshold)",
           "(uint32_t)!(products[p][r][j] * scale + beta <= policy->threshold)"),
    Mutant("a token drops itself (C)", JUDGE, "        live[s->slot_of[i] / n] |= UINT32_C(1) <<",
           "        live[s->slot_of[i] / n] |= (uint32_t)(s->cache->shape.rank == 0 || s->rows == 1 || s->input->beta "
           "+ scores[s->slot_of[i] / n][i - scored][s->slot_of[i] % n] / sqrtf((float)s->cache->shape.rank) > 0) <<"),
    Mutant("a token drops itself (dense)", INTERACTION, "k=-1 - min(delay, T)", "k=-min(delay, T)",
           (*PAPER, *DECODING)),
    Mutant("drops after attending (NumPy)", CACHE, INSERT + ATTEND,
           INSERT.replace(".without(gone)", "") + ATTEND +
           "        tokens, weights = tokens.without(np.append(gone, False)), weights[~np.append(gone, False)]\n"),
    Mutant("beta's sign (C)", JUDGE, "* scale + beta >", "* scale - beta >"),
    Mutant("beta forgotten (engine)", DECODER, 'float(p["attn.int_bias"][0])', "0.0"),
    Mutant("scores not scaled by sqrt(r) (dense)", INTERACTION,
           "scale = 1 / math.sqrt(w_q.shape[1])", "scale = 1.0", (*PAPER, *DECODING)),
    Mutant("a dropped slot stays live (C)", SLOTS,
           "    memcpy(slots->bitmap, bitmap, slots->pages * sizeof *bitmap);\n", ""),
    Mutant("a reused slot keeps its old value (C)", ATTEND_C, "        put(values + d",
           "        if (slot > 0 || s->slots->seen < 3)\n            put(values + d"),
    Mutant("a reused slot keeps its old interaction key (C)", JUDGE,
           "        field_row(s, p, DCP_K_INT, c)[slot] =",
           "        if (slot > 0 || s->slots->seen < 3)\n            field_row(s, p, DCP_K_INT, c)[slot] ="),
    Mutant("a page taken from the pool keeps its bitmap (C)", SLOTS, "        slots->bitmap[p] = 0;\n", ""),
    Mutant("surplus pages are kept (C)", CACHE_C, "while (slots->pages > dcp_pages_for(slots->live, n))",
           "while (slots->pages > dcp_pages_for(slots->live, n) + 1)"),
    Mutant("weights share their memory", MEMORY, "self._left[:size], self._left[taken:]",
           "self._left[:size], self._left", ("tests/runtime/test_precision.py",)),
    Mutant("compaction leaves all but keys and values behind (C)", CACHE_C, "k <= DCP_REST; k++",
           "k < DCP_REST; k++"),
    Mutant("a fork does not count as an owner (C)", SEQUENCE_C, "*dcp_page_owners(from->page[p]) += 1;", "", CACHES),
    Mutant("a shared page is written to (C)", JUDGE, "    own_page(s, p);\n    positions_of", "    positions_of",
           CACHES),
    Mutant("compaction writes to a shared page (C)", CACHE_C, "            own_page(s, slot / n);\n", "", CACHES),
    Mutant("attention is added to shared sums (C)", JUDGE,
           "        for (size_t p = 0; p < s->slots->pages; p++)\n            own_page(s, p);", "        ;",
           (*CACHES, "tests/native/test_invariance.py")),
    Mutant("a copied page has its original's owners (C)", CACHE_C, "    *dcp_page_owners(own) = 1;\n", "", CACHES),
    Mutant("a copied page is not given up (C)", CACHE_C, "    s->left[s->n_left] = shared;\n    s->n_left++;\n", "",
           CACHES),
    Mutant("no room for the copies of pages (C)", SEQUENCE_C, " + pages_to_copy(slots, count[b], n, drops)", "",
           CACHES),
    Mutant("room for copies that nothing is written to (C)", SEQUENCE_C, "(drops || room > 0) && ", "", CACHES),
    Mutant("the owners are moved like a token (C)", CACHE_C, "size_t start[] = {0, row}", "size_t start[] = {0, 0}",
           CACHES),
    Mutant("a page is free before its last owner gives it up (C)", SLOTS, "if (*owners == 0)", "if (*owners <= 1)",
           ("tests/native/test_slots.py", "tests/native/test_slots_small_scope.py")),
    Mutant("a page that is taken keeps its number of owners (C)", SLOTS, "    *dcp_page_owners(page) = 1;\n", "",
           ("tests/native/test_slots_small_scope.py",)),
    Mutant("a feed in pieces pins the first rows (C)", NATIVE_DECODER, "else pinned[piece.start : piece.stop]",
           "else pinned", PIECES),
    Mutant("a feed in pieces pins the first rows (NumPy)", "dcp_ref/runtime/feeding.py",
           "else draft.pinned[self.start : self.stop]", "else draft.pinned", PIECES),
    Mutant("pieces end in the middle of a round", "dcp_ref/runtime/feeding.py",
           "// 2 // ROUND_ROWS, 1) * ROUND_ROWS", "// 2, 1)", PIECES),
    Mutant("pairs of a piece count its own rows", NATIVE_DECODER, "np.array([piece.start, 0], np.int32)",
           "np.array([0, 0], np.int32)", PIECES),
    Mutant("drafts are kept when a feed fails", NATIVE_DECODER,
           "            except CacheFull:\n                drafts.release()\n", "            except CacheFull:\n",
           PIECES),
    Mutant("drafts are kept when a feed is interrupted", NATIVE_DECODER,
           "would release them\n                drafts.release()\n", "would release them\n", PIECES),
    Mutant("drafts of what has changed are adopted (C)", SEQUENCE_C,
           "sequence[b]->layer[l].seen + count[b] != draft[b]->layer[l].seen", "0 * count[b]", PIECES),
    Mutant("the most is not what was owned before pages were given up (C)", STEP_C,
           "    note_peak(&cache->pool);\n", "", PIECES),
    # What is saved is restored, or refused.
    Mutant("tokens of other weights", SAVING, '"weights": weights}', '"weights": ""}', SAVED),
    Mutant("tokens of another policy", SAVING, '"policy": dataclasses.asdict(dataclasses.replace(policy, rule=None))',
           '"policy": {}', SAVED),
    Mutant("tokens of another config", SAVING, '"config": dataclasses.asdict(config)', '"config": {}', SAVED),
    Mutant("tokens of another rule of one's own", SAVING, '{"rule": rule}', '{"rule": None}', SAVED),
    Mutant("damaged bytes are read", SAVING, 'if metadata["sha256"] != _digest(metadata["cache"], tensors)', "if False",
           SAVED),
    Mutant("names and shapes are not in the digest", SAVING, 'digest.update(f"{name} {x.dtype} {x.shape}".encode())',
           "pass", SAVED),
    Mutant("saved positions in any order", SAVING, " or (np.diff(position) < 1).any()", "", SAVED),
    Mutant("saved positions beyond what was seen", SAVING, "position[-1] != seen - 1", "position[-1] >= 2**30", SAVED),
    Mutant("two tokens in one slot are restored", SAVING, " or len(np.unique(slot)) < N", "", SAVED),
    Mutant("a slot of no page is restored", SAVING, "slot.max() >= end or ", "", SAVED),
    Mutant("tensors of any shape are restored", SAVING, " or x.shape != shape", "", SAVED),
    Mutant("what is saved is written in place", SAVING, "(temporary / path.name).write", "path.write", SAVED),
    Mutant("a saved set that is being moved is not seen", SAVING, "current(path).read_bytes()", "path.read_bytes()",
           SAVED),
    Mutant("a restored sequence does not count for the bound (NumPy)", SAVING,
           "        cache.check_room(batch, draft)\n", "", SAVED),
    Mutant("a restored sequence has no pins (C)", NATIVE_SAVING, "            found.pins = 1\n", "", SAVED),
    Mutant("pins are not saved (C)", NATIVE_SAVING, ">> j % 32 & 1", ">> j % 32 & 0", SAVED),
    Mutant("a restore that fails keeps its pages (C)", NATIVE_SAVING,
           "        cache.release(handle)\n        raise", "        raise", SAVED),
    Mutant("what is saved changes meanwhile (C)", NATIVE_SAVING, "        draft.release()\n", "        pass\n", SAVED),
    Mutant("pages of a restored sequence are not asked for (C)", SEQUENCE_C,
           "    if (total > pool->n_free)\n        return DCP_ENOROOM;\n", "", SAVED),
    Mutant("a text that follows a saved one is too long", "dcp_ref/cli/caches.py",
           "if seen + len(row.prompt) > most", "if len(row.prompt) > most", ("tests/cli/test_cli_cache.py",)),
    Mutant("a saved text is not counted", "dcp_ref/cli/caches.py", "engine.fork(saved), seen",
           "engine.fork(saved), 0", ("tests/cli/test_cli_cache.py",)),
    # What was dropped is counted.
    Mutant("a budget's drops count as a window's (C)", JUDGE, "row, DCP_BUDGET)", "row, DCP_WINDOW)", COUNTED),
    Mutant("drops of the last sequence alone are counted (C)", STEP_C,
           "cache->dropped[input->layer * DCP_REASONS + k] += spans[b].by[k]",
           "cache->dropped[input->layer * DCP_REASONS + k] = spans[b].by[k]", COUNTED),
    Mutant("all layers count as the first (C)", STEP_C, "cache->dropped[input->layer * DCP_REASONS + k]",
           "cache->dropped[k]", COUNTED),
    Mutant("inherited drops count as learned (NumPy)", CACHE, " & (why == STAYS)] = LEARNED", "] = LEARNED", COUNTED),
    Mutant("a step's drops are not added (NumPy)", CACHE, "self._dropped[layer].copy()", "0 * self._dropped[layer]",
           COUNTED),
    Mutant("a result is lost where memory is refused", "dcp_ref/runtime/feeding.py",
           "        spare.clear()\n        return make()", "        raise", ("tests/runtime/test_refused_memory.py",)),
    Mutant("tokens that forks share count twice (NumPy)", "dcp_ref/runtime/live_tokens.py",
           "found = {id(tokens): len", "found = {(id(tokens), id(layers)): len", CACHES),
    Mutant("copies of shared tokens do not count (NumPy)", "dcp_ref/runtime/live_tokens.py",
           "owners[id(tokens)] > 1", "owners[id(tokens)] > 9999",
           ("tests/runtime/test_memory.py",)),
    Mutant("inherited drops a row late (C)", JUDGE, "pair[2 * s->n_inherited] <= (int32_t)row",
           "pair[2 * s->n_inherited] < (int32_t)row"),
    Mutant("a window one too wide (C)", JUDGE, "i - j >= policy->window", "i - j > policy->window", CACHES),
    Mutant("of equal heavy hitters the earlier stays (C)", JUDGE,
           "position_in(s, p, bits) < position_in(s, found->page, found->bit)",
           "position_in(s, p, bits) > position_in(s, found->page, found->bit)", CACHES),
    Mutant("a score drops a pinned token (C)", JUDGE, "unpinned(s, p, live[p] & ~keep)", "live[p] & ~keep", PINS),
    Mutant("a pinned token is inherited away (C)", JUDGE, "unpinned(s, p, bits & -bits)", "bits & -bits", PINS),
    Mutant("pinned tokens are candidates (C)", JUDGE, "    return unpinned(s, p, result);", "    return result;", PINS),
    Mutant("pins count in a budget (C)", JUDGE, "unpinned(s, p, live[p]); bits", "live[p]; bits", PINS),
    Mutant("every word of pins is the first (C)", JUDGE, "s->pinned[j / 32]", "s->pinned[0]", PINS),
    Mutant("pins of a later sequence are the first one's (C)", STEP_C, "input->sequence[b]->pinned[j / 32]",
           "input->sequence[0]->pinned[j / 32]", PINS),
    Mutant("pins of a later sequence are the first rows' (C)", STEP_C, "            row++;\n        }\n}",
           "            row += b == 0;\n        }\n}", PINS),
    Mutant("a fork has no pins (C)", SEQUENCE_C, "    to->pins = from->pins;\n", "", PINS),
    Mutant("a fork has the pins of nobody (C)", SEQUENCE_C, "    memcpy(to->pinned, from->pinned",
           "    memcpy(to->pinned, to->pinned", PINS),
    Mutant("a pinned token is dropped (NumPy)", CACHE, "        why[tokens.pinned] = STAYS\n", "", PINS),
    Mutant("pinned tokens are candidates (NumPy)", CACHE, "tokens.pinned[left],", "False,", PINS),
    Mutant("pins are dropped in all layers but the first (dense)", "dcp_ref/model.py",
           "own_kept = False if kept is None else kept[layer]",
           "own_kept = False if kept is None or layer else kept[layer]", PINS),
    Mutant("a budget of one more (C)", JUDGE, "if (found.n > policy->budget)", "if (found.n > policy->budget + 1)",
           CACHES),
    Mutant("a budget counts what is safe (C)", JUDGE, "(size_t)position_in(s, p, bits) > policy->delay)\n",
           "(size_t)position_in(s, p, bits) > 0 * policy->delay)\n", CACHES),
    Mutant("a budget drops the highest (C)", JUDGE, "value < found->value ||", "value > found->value ||", CACHES),
    Mutant("of equals the later leaves", "dcp_ref/choosing.py", "counted[np.argsort(value[counted], kind=\"stable\")]",
           "counted[::-1][np.argsort(value[counted[::-1]], kind=\"stable\")]",
           ("tests/paper/test_policies.py", *CACHES)),
    Mutant("a rule of one's own sees what is pinned", "dcp_ref/choosing.py", "asked = np.flatnonzero(~safe)",
           "asked = np.arange(len(position))", OWN_RULE),
    Mutant("a rule of one's own gets the numbers themselves", "dcp_ref/choosing.py", "s[asked], attention[asked])",
           "s[asked], attention[: len(asked)])", OWN_RULE),
    Mutant("a rule of one's own may answer with numbers", "dcp_ref/choosing.py", "answer.dtype != bool or ", "",
           OWN_RULE),
    Mutant("a rule of one's own has no scores", "dcp_ref/policies.py", "if self.learned or self.rule else 0",
           "if self.learned else 0", OWN_RULE),
    Mutant("rows attend to what they dropped (dense)", "dcp_ref/attention.py", "log_own[i:, live[drops(",
           "log_own[i + 1 :, live[drops(", (*CACHES, *OWN_RULE)),
    Mutant("a budget counts what is safe", "dcp_ref/policies.py", "self.budget, s, (i - position <= delay)",
           "self.budget, s, (i - position <= 0 * delay)", ("tests/paper/test_policies.py", *CACHES)),
    Mutant("a reused slot keeps its attention (C)", JUDGE,
           "            field_row(s, p, DCP_SUMS, h)[slot] = 0;\n", "            ;\n", CACHES),
    Mutant("heavy hitters of a prompt all at once (C)", STEP_C, "cache->policy.by_attention ? 1 : DCP_ROUND_ROWS",
           "DCP_ROUND_ROWS", CACHES),
    Mutant("a tile sees the slots of its first row (C)", ATTEND_C, "for (size_t r = i; r < i + rows; r++)",
           "for (size_t r = i; r < i + 1; r++)"),
    Mutant("dead slots get weight (C)", ATTEND_C, "? k_scale[j] : 1) : -INFINITY", "? k_scale[j] : 1) : 0"),
    Mutant("int8 values without their scales (C)", ATTEND_C, "? v_scale[j] : 0;", "? 1 : 0;", CACHES),
    Mutant("half floats: ties away from even (C)", ATTEND_C, "0xfff + (bits >> 13 & 1)", "0x1000", STORED),
    Mutant("half floats are half as large (C)", TILE, "* 0x1p112f", "* 0x1p111f", STORED),
    Mutant("half floats of an embedding are half as large (C)", "csrc/common.h", "number * 0x1p112f",
           "number * 0x1p111f", KERNELS),
    Mutant("e^x is never 0 (C)", "csrc/common.h", "return x < low ? 0 : p * power;", "return p * power;",
           ("tests/native/test_native.py",)),
    Mutant("the last panel is written whole (C)", LINEAR, "left = w->n_out - at, width = left < DCP_LANES ? left :",
           "left = w->n_out - at, width = left < DCP_LANES ? left + 1 :", KERNELS),
    Mutant("rows of 4096 bytes side by side (C)", LINEAR, "stride = dcp_stride(w->n_out)",
           "stride = w->n_out", KERNELS),
    Mutant("two halves of a word change places (C)", TILE, "(shared - 1 - k % shared)", "(k % shared)", KERNELS),
    Mutant("two halves of a word of an embedding change places (C)", "csrc/common.h", "(shared - 1 - k % shared)",
           "(k % shared)", KERNELS),
    Mutant("every piece of a panel is the first (C)", TILE, "(const char *)panel + offset(k, 0, type)",
           "(const char *)panel", SIMD),
    Mutant("every block has the rows of the first (C)", LINEAR, "x + row * dcp_stride(w->n_in)", "x", SIMD),
    Mutant("any instruction set is chosen (C)", THREADS_C, "i <= best_level()", "i <= 2", SIMD),
    Mutant("int8 columns without their scales (C)", LINEAR, "(scale ? scale[at + j] : 1)", "1", KERNELS),
    Mutant("nothing is added (C)", LINEAR, "(add ? add[first + j] : 0)", "0", KERNELS),
    Mutant("threads share their scratch (C)", STEP_C, "(size_t)omp_get_thread_num() *", "(size_t)0 *",
           THREADS),
    Mutant("more threads than asked for (C)", THREADS_C, "startable(threads > 0 && threads < most ? threads : most)",
           "startable(most)", THREADS),
    Mutant("a forked child has threads (C)", THREADS_C, "forked = 1;", "forked = 0;", THREADS),
    Mutant("a forked child goes on with what another thread left half done", LOCK, "lock.held = _Broken(lock.what)",
           "lock.held = threading.RLock()", THREADS),
    Mutant("a finalizer waits for a thread that never goes on", LOCK, "if sys.is_finalizing():", "if False:",
           ("tests/runtime/test_finalizing.py",)),
    Mutant("compacting leaves the values behind (C)", CACHE_C, "new + t * 4 * DCP_LANES",
           "new + s * 4 * DCP_LANES", CACHES),
    Mutant("trim keeps the memory (C)", SLOTS, "pool->area_bytes[k], MADV_DONTNEED", "0, MADV_DONTNEED",
           ("tests/native/test_slots.py", "tests/runtime/test_memory.py")),
    Mutant("a fork into a sequence that has tokens (C)", SEQUENCE_C, "if (sequence->layer[l].seen > 0)", "if (0)",
           ("tests/native/test_native.py",)),
    Mutant("a fork that is interrupted keeps its pages", NATIVE_CACHE, "except BaseException:", "except Exception:",
           BETWEEN),
    Mutant("a sequence that C has released is still known", NATIVE_CACHE, "Handles(", "Handles() or (", INTERRUPTED),
    Mutant("chunks without a bound", MEMORY, "min(pool.pages, CHUNK_BYTES // self.page_bytes)", "pool.pages", BINDING),
    Mutant("more than the need, or nothing", MEMORY, "            wanted = need\n", "", BINDING),
    Mutant("C is shown memory before it is kept", MEMORY,
           "        self._kept.append(chunk)\n        lib.dcp_pool_add(pool, chunk, wanted)",
           "        lib.dcp_pool_add(pool, chunk, wanted)\n        self._kept.append(chunk)",
           INTERRUPTED),
    Mutant("more free pages than there are (C)", SLOTS, "    if (more > pool->n_spare || ", "    if (",
           ("tests/native/test_slots.py",)),
    Mutant("positions off by one", DECODER, "np.arange(start, start + n, dtype=np.int64)",
           "np.arange(start, start + n, dtype=np.int64) - (start > 0)"),
    Mutant("a feed that does not come about has changed a sequence (NumPy)", CACHE,
           "layers=[list(layer) for layer in batch.layers], draft=True", "draft=True", BETWEEN),
    Mutant("a feed undoes what came in the middle of it (NumPy)", "dcp_ref/runtime/checks.py",
           "        if self._sequences is now: ", "        if True: ", ("tests/runtime/test_reentry.py",)),
    Mutant("a feed is lost when another came in the middle of it (NumPy)", DECODER,
           "committed = self._cache.commit(batch, draft)", "committed = self._cache.commit(batch, draft) or True",
           BETWEEN),
    Mutant("a batch outlives its sequences (NumPy)", CACHE, "not (batch.draft or self._current(batch)) or ", "",
           ("tests/runtime/test_checks.py",)),
    Mutant("a feed does not look again", NATIVE_DECODER, "lib.DCP_EINVAL and batch.starts == starts", "error",
           INTERRUPTED),
    Mutant("a feed that C refuses is passed over", NATIVE_DECODER,
           'raise RuntimeError("a sequence is in the middle of a step: finish it layer by layer")', "break", WALKS),
    Mutant("a prompt's last layer for other rows", DECODER, "x[wanted], y[wanted]", "x[-len(wanted) :], y[wanted]",
           WALKS),
    Mutant("a last position too many", "dcp_ref/runtime/checks.py", "before + count > config.n_positions",
           "before + count > config.n_positions + 1", ENGINE),
    Mutant("a dropped token comes back (dense)", INTERACTION,
           "return log_keep.cumsum(-2), (keep", "return log_keep, (keep",
           (*PAPER, *DECODING)),
    Mutant("a NaN brings back what is gone (dense)", INTERACTION,
           "np.logical_or.accumulate(keep == 0, axis=-2)", "keep == 0",
           (*PAPER, *NATIVE)),
    Mutant("gradient of the mask in its own row only", INTERACTION,
           "np.flip(np.flip(dlog_i, -2).cumsum(-2), -2)", "dlog_i",
           PAPER),
    Mutant("gradient of the mask up the rows", INTERACTION,
           "np.flip(np.flip(dlog_i, -2).cumsum(-2), -2)", "dlog_i.cumsum(-2)",
           PAPER),
    Mutant("the mask has the gradient of one head alone", "dcp_ref/attention.py", "da.sum(-3)", "da[..., 0, :, :]",
           PAPER),
    Mutant("gradient through saturated gates", "dcp_ref/sigmoid.py", "return np.where(inside, slope, 0)",
           "return np.where(p > 0, slope, 0)", PAPER),
    Mutant("no gradient to the masks of earlier layers", "dcp_ref/block.py",
           "dlog_handed = dlog_i + dlog_later", "dlog_handed = dlog_later", PAPER),
    Mutant("one Newton step too few", "dcp_ref/sigmoid.py", "for _ in range(3)", "for _ in range(1)", PAPER),
    Mutant("a step does not clip", STEP, "    clip(grads, norm, settings.clip)\n", "", TRAINING),
    Mutant("a step does not decay", STEP, "decay=settings.weight_decay", "decay=0.0", TRAINING),
    Mutant("a step at the peak rate", STEP, "adamw(state.params, grads, state.m, state.v, step=step, rate=rate",
           "adamw(state.params, grads, state.m, state.v, step=step, rate=settings.learning_rate", TRAINING),
    Mutant("a step at the last alpha", STEP, "schedules.alpha(step, settings.steps, settings.alpha_share) if",
           "schedules.ALPHA_END if", TRAINING),
    Mutant("a step without the sparsity loss", STEP, "gamma_of(settings, state, ids) if pruned else 0.0", "0.0",
           TRAINING),
    Mutant("a step's batch has no seed", STEP, "context, settings.seed, step)", "context, 0, step)", TRAINING),
    Mutant("a lane of a later query is left out (C)", ATTENTION_C, "key <= g->first + j ?", "key < g->first + j ?",
           NATIVE),
    Mutant("no gradient through the softmax's sum (C)", LANES_C, "(da[key][j] - dot[j])", "da[key][j]", NATIVE),
    Mutant("the mask's gradient of one head (C)", ATTENTION_C, "sum[key][j] += s.da", "sum[key][j] = s.da", NATIVE),
    Mutant("a gate scores itself (C)", MASK_C, "i > first + j + delay ?", "i >= first + j + delay ?", NATIVE),
    Mutant("no delay in training (C)", "dcp_ref/native/training.py", "min(delay, T)", "0", NATIVE),
    Mutant("Newton steps that stay where they are (C)", MASK_C, "next = p - (", "next = p + 0 * (", NATIVE),
    Mutant("the mask's gradient in its own row only (C)", MASK_C, "sum[j] += dlog_i[", "sum[j] = dlog_i[", NATIVE),
    Mutant("alpha_share is ignored", STEP, "settings.steps, settings.alpha_share)", "settings.steps, 1.0)", TRAINING),
    Mutant("the teacher is ignored", STEP, "kernels, wanted, distill", "kernels, None, distill", TRAINING),
    Mutant("frozen weights decay", "dcp_ref/training/optimizer.py",
           "    for name, g in grads.items():\n        p = params",
           "    for name in params.keys() - grads.keys():\n        params[name] *= 1 - rate * decay\n"
           "    for name, g in grads.items():\n        p = params", TRAINING),
    Mutant("the wanted share is ignored", STEP, "    if settings.target_kept is None:\n", "    if True:\n", TRAINING),
    Mutant("validation on the training text", "dcp_ref/training/loop.py", "state.config, valid, context",
           "state.config, tokens, context", TRAINING),
    # From text to ids and back.
    Mutant("half a character is shown", "dcp_ref/runtime/row.py", "len(window) - window.endswith(HALF)",
           "len(window)", TEXT),
    Mutant("a run of bytes is cut", "dcp_ref/runtime/row.py", "max(0, self._run - CONTEXT)",
           "max(0, len(self._ids) - CONTEXT)", TEXT),
    Mutant("an id without a text is drawn", "dcp_ref/runtime/generation.py", "x[row.undrawable] = -np.inf", "pass",
           TEXT),
    Mutant("a row that has ended keeps its pages", "dcp_ref/runtime/generation.py",
           "        if row.stop_reason is not None:\n            row.release(engine)\n", "", TEXT),
    Mutant("a stop string that began before is missed", "dcp_ref/runtime/row.py", "self.searched - len(s) + 1",
           "self.searched", TEXT),
    Mutant("generation_config.json is not obeyed", "dcp_ref/checkpoints/weights.py", 'if "eos_token_id" in told:',
           "if False:", TEXT),
    Mutant("a token of the older files is forgotten", "dcp_ref/checkpoints/tokenizer_settings.py",
           "_added(directory / ADDED, listed)", "{}", TEXT),
    Mutant("letters of an added token are bytes", "dcp_ref/checkpoints/tokenizer.py", "i not in added and ", "", TEXT),
    Mutant("a set that was cut short is read half", "dcp_ref/checkpoints/replacing.py",
           "return saved if saved.exists() else file", "return file", REPLACING),
    Mutant("a reader mixes two sets", "dcp_ref/checkpoints/replacing.py",
           "            if _stamp(directory) == before:\n                return result", "            return result",
           REPLACING),
    Mutant("a set is not on the disk when it is decided", "dcp_ref/checkpoints/replacing.py",
           "            _flush(file)\n", "", REPLACING),
    Mutant("a line that nobody reads costs steps", "dcp_ref/training/loop.py", "or failure or", "or", FAILURES),
    Mutant("a picture is drawn of steps that are not saved", "dcp_ref/training/loop.py", "or drawn or", "or",
           ("tests/training/test_metrics_plot.py",)),
    Mutant("a signal loses steps", "dcp_ref/training/loop.py", "last or stopped or", "last or",
           ("tests/training/test_signals.py",)),
    Mutant("an infinite score is no number (C)", MASK_C, "(fabsf(score[j]) == INFINITY)", "(score[j] == INFINITY)",
           NATIVE),
    Mutant("a NaN brings back what is gone (C)", MASK_C, "sum[j] = sum[j] == -INFINITY ? sum[j] : sum_now;",
           "sum[j] = sum_now;", NATIVE),
    Mutant("q, k and v are read with the strides of q", "dcp_ref/native/training.py", "if not alike or", "if",
           ("tests/native/test_training_arrays.py",)),
    Mutant("large seeds share their numbers", "dcp_ref/runtime/sampling.py", "if seed < 2**32 else", "if True else",
           ("tests/runtime/test_sampling.py",)),
    # What is measured of a model.
    Mutant("a token counts as context of its own", "dcp_ref/analysis/windows.py",
           "for n in scored]) - 1 if", "for n in scored]) if", MEASURED),
    Mutant("overlapping windows score twice", "dcp_ref/analysis/windows.py",
           " if fed[n] >= windows[n].scored]", "]", MEASURED),
    # Many documents.
    Mutant("all rows draw the same numbers", "dcp_ref/corpus/continuing.py",
           "row_stream(self.seed, number_of(id))", "row_stream(self.seed, 0)", CONTINUED),
    Mutant("scores are added in the order of the batch", "dcp_ref/corpus/scoring.py", "math.fsum(nats)", "sum(nats)",
           ("tests/corpus/test_scoring.py",)),
    Mutant("a part of other rows is kept", "dcp_ref/corpus/job.py",
           "elif name == part_files.name_of(part, job.form):", "elif name:", JOBS),
    Mutant("a part is not written whole", "dcp_ref/corpus/part_files.py",
           "replace_file(directory / made.name, made.content)",
           "(directory / made.name).write_bytes(made.content)", JOBS),
    Mutant("shards share parts", "dcp_ref/corpus/job.py", "% job.shard[1] != job.shard[0] - 1",
           "% job.shard[1] > job.shard[0] - 1", JOBS),
    Mutant("a kept token's window is one too long", "dcp_ref/analysis/calibration.py",
           "near = np.arange(T), (policy.window or 1) - 1",
           "near = np.arange(T), policy.window or 1", MEASURED),
    Mutant("endings of one context are fed to one sequence", "dcp_ref/analysis/likelihood.py",
           "child = engine.fork(parent)", "child = engine.new_sequence()", MEASURED),
    Mutant("a long context loses its end", "dcp_ref/analysis/likelihood.py",
           "context[-room:]", "context[:room]", MEASURED),
    Mutant("an option of winogrande has no blank", "dcp_ref/analysis/tasks.py", "(before + option, after)",
           "(before, option + after)", MEASURED),
    Mutant("the longest answer is normalised most", "dcp_ref/analysis/zero_shot.py",
           "each / length if", "each * length if", MEASURED),
    # The layers in C.
    Mutant("official 3 (C): no depth propagation in decoding", WALK, "model->propagate_in_depth ? *pairs : 0", "0",
           WALKS),
    Mutant("a layer inherits what the one before the last dropped (C)", WALK, "    b->inherited = b->dropped;\n", "",
           WALKS),
    Mutant("positions off by one (C)", WALK, "(int64_t)(b->start[i] + n)",
           "(int64_t)(b->start[i] + n - (b->start[i] > 0))", WALKS),
    Mutant("a prompt's last layer for other rows (C)", WALK, "        end += feed->count[i];\n",
           "        end += 1;\n", WALKS),
    Mutant("only the last rows go on, whichever are wanted (C)", WALK, "l + 1 == L && !feed->all", "l + 1 == L", WALKS),
    Mutant("the last panel is packed whole (C)", LINEAR, "width * sizeof *w", "DCP_LANES * sizeof *w",
           ("tests/native/test_c_example.py",)),
    # Tracing: the record, and what is asked of it.
    Mutant("trace: a step's rows begin at the first sequence's", "dcp_ref/runtime/generation.py",
           "row.dropped.append(Dropped(first,", "row.dropped.append(Dropped(0,", ("tests/tracing/test_record.py",)),
    Mutant("trace: the first layer inherits from the last", "dcp_ref/tracing/drops.py",
           "(layer > 0) & (before == by)", "before == by", ("tests/tracing/test_record.py",)),
    Mutant("trace: why without ln_1's bias", "dcp_ref/tracing/replay.py",
           "np.broadcast_to(b, (1, *parts.shape[1:]))", "np.zeros((1, *parts.shape[1:]))",
           ("tests/tracing/test_reasons.py",)),
    Mutant("kept: a pair is kept for good", "dcp_ref/block.py", "s[np.broadcast_to(kept, s.shape)] = np.inf",
           "s[np.logical_or.accumulate(np.broadcast_to(kept, s.shape), axis=-2)] = np.inf",
           ("tests/tracing/test_counterfactual.py",)),
    Mutant("kept: it is a candidate of heavy hitters", "dcp_ref/policies.py", "self.stays(i, position) | kept)",
           "self.stays(i, position))", ("tests/tracing/test_counterfactual.py", "tests/paper/test_model_policies.py")),
    Mutant("kept: what a window dropped before comes back", "dcp_ref/policies.py",
           "np.logical_or.accumulate(~(self.stays(i[:, None], i) | kept), axis=-2)",
           "~(self.stays(i[:, None], i) | kept)", ("tests/paper/test_model_policies.py",)),
    Mutant("a file of a trace: lifetimes are not checked", "dcp_ref/tracing/trace_files.py",
           "if (lifetime < 1).any() or", "if False and", ("tests/tracing/test_trace_files.py",)),
    # The files at the root that have none above.
    Mutant("a variance of numbers that are not centred (dense)", LAYERS, "(centred * centred).mean",
           "(x * x).mean", PAPER),
    Mutant("the variance has no gradient (dense)", LAYERS, " - n * (dn * n).mean(-1, keepdims=True))", ")", PAPER),
    Mutant("a token that occurs twice gets one gradient (dense)", LAYERS, "np.add.at(dwte, ids, dy)",
           "dwte[ids] += dy", PAPER),
    Mutant("the mean counts targets that are ignored (dense)", LAYERS, "n, at = max(counted.sum(), 1)",
           "n, at = max(counted.size, 1)", PAPER),
    Mutant("the slope of gelu_new (dense)", LAYERS, "(1 + 3 * b * x * x)) / 2", "(1 + b * x * x)) / 2", PAPER),
    Mutant("the student is the teacher (dense)", LAYERS, "p, log_p - log_q)", "p, log_q - log_p)",
           ("tests/training/test_teacher.py", *PAPER)),
    Mutant("a token attends to the next one (dense)", "dcp_ref/attention.py", "np.tri(q.shape[-2], dtype",
           "np.tri(q.shape[-2], k=1, dtype", PAPER),
    Mutant("layers are counted from 0 in the scale", CONFIG, "scale / (layer + 1) if",
           "scale / max(layer, 1) if", PAPER),
    Mutant("one size under two names", CONFIG, "fields.setdefault(name, fields[alias]) != fields[alias]",
           "fields.setdefault(name, fields[alias]) is None", ("tests/paper/test_config.py",)),
    Mutant("the feed-forward layer is three times as wide", CONFIG, "4 * self.n_embd", "3 * self.n_embd",
           ("tests/paper/test_config.py", *PAPER)),
    Mutant("between two shares the threshold is linear in the share", CONFIG,
           "np.interp(np.log(share), np.log(shares), thresholds)", "np.interp(share, shares, thresholds)",
           ("tests/paper/test_config.py",)),
    Mutant("a trained model has the card of the model that it began as", "dcp_ref/training/settings.py",
           "replace(config, kept_thresholds=())", "replace(config)", ("tests/cli/test_calibrate.py",)),
    Mutant("tied weights have the embedding's gradient alone", MODEL, "embedding_backward(dx, saved_embedding, dhead)",
           "embedding_backward(dx, saved_embedding)", PAPER),
    Mutant("the loss has no teacher", MODEL, "float(ce + gamma * r + distill * kl)", "float(ce + gamma * r)",
           ("tests/training/test_teacher.py", *PAPER)),
    Mutant("a trace is a list", "dcp_ref/__init__.py", "recording import trace", "recording import windows as trace",
           ("tests/tracing/test_record.py",)),
    Mutant("python -m dcp_ref has no exit code", "dcp_ref/__main__.py", "sys.exit(main())", "main()",
           ("tests/cli/test_cli.py",)),
    # The files in C that have none above.
    Mutant("a NaN is 0 after relu (C)", LAYERS_C, "x[i] < 0 ? 0 : x[i]", "x[i] > 0 ? x[i] : 0", KERNELS),
    Mutant("a variance of numbers that are not centred (C)", LAYERS_C, "sum_of(x, n, mean, 1)", "sum_of(x, n, 0, 1)",
           KERNELS),
    Mutant("int8 embeddings without their scales (C)", LAYERS_C, "(wte->scale ? x * wte->scale[id] : x)", "x", KERNELS),
    Mutant("gelu of half the number (C)", LAYERS_C, "0x1.6a09e6p-1f", "0x1.6a09e6p-2f", KERNELS),
    Mutant("the slope of gelu_new (C)", ELEMENTWISE_C, "(1 + 3 * b * square)", "(1 + b * square)", NATIVE),
    Mutant("gelu_new is 20 at most (C)", ELEMENTWISE_C, "(x[i] > 20 ? x[i] : near) * g", "near * g", NATIVE),
    Mutant("a lane is left out of a sum of exponentials (C)", ELEMENTWISE_C, "sum[0] += sum[j];",
           "sum[0] += j > 1 ? sum[j] : 0;", NATIVE),
    Mutant("all fields of a page are one (C)", "csrc/step.h", " + s->cache->field[field])", ")", DECODING),
    Mutant("float16 is int8, and int8 float16 (C)", "csrc/dcp.h", "DCP_FLOAT32, DCP_FLOAT16, DCP_INT8",
           "DCP_FLOAT32, DCP_INT8, DCP_FLOAT16", STORED),
    Mutant("a free slot that is not the lowest (C)", SLOTS, "    size_t p = 0;\n    while",
           "    size_t p = slots->pages > 1;\n    while", ("tests/native/test_slots_small_scope.py",)),
    Mutant("free pages are spare at once (C)", SLOTS, "        pool->n_free++;\n",
           "        pool->n_free++;\n        pool->pages -= pool->n_spare > 3;\n",
           ("tests/native/test_slots_small_scope.py", "tests/native/test_slots.py")),
    # What an interrupt, refused memory or a damaged file leaves.
    Mutant("a row whose release is interrupted forgets its sequence", "dcp_ref/runtime/row.py",
           "                engine.release(self.sequence)\n        self.sequence = None\n",
           "                gone, self.sequence = self.sequence, None\n                engine.release(gone)\n",
           BETWEEN),
    Mutant("a row that is interrupted keeps the others' pages", "dcp_ref/runtime/generation.py",
           "            at_the_end.callback(row.release, engine)\n", "            at_the_end.callback(len, rows)\n",
           BETWEEN),
    Mutant("half of a step is done (NumPy)", CACHE, "            after.append(tokens)\n",
           "            layers[layer] = tokens\n            after.append(tokens)\n", BETWEEN),
    Mutant("a sequence whose release is interrupted is kept", "dcp_ref/runtime/checks.py",
           "h != int(handle) and not self._released(sequence)", "h != int(handle)", BETWEEN),
    Mutant("an item that is nested too deeply", "dcp_ref/analysis/tasks.py", "except (ValueError, RecursionError) as",
           "except ValueError as", FOUND),
    Mutant("refused memory is a damaged tokenizer", "dcp_ref/checkpoints/tokenizer_files.py",
           "    if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):\n        return error\n", "",
           FOUND),
    Mutant("a token has two ids", "dcp_ref/checkpoints/tokenizer_files.py", "backend.get_vocab_size(with_added",
           "0 * backend.get_vocab_size(with_added", FOUND),
]


def main() -> int:
    """Run the unchanged project, then every mutant, or those whose name has a word given; returns the exit code."""
    mutants = [mutant for mutant in MUTANTS if not sys.argv[1:] or any(word in mutant.name for word in sys.argv[1:])]
    if not mutants:
        print(f"no mutant's name contains {' or '.join(map(repr, sys.argv[1:]))}")
        return 1
    if wrong := complaints(mutants):
        print("\n".join(wrong))
        return 1
    known = Known()
    left = [mutant for mutant in mutants if not known.killer(mutant)]
    print(f"{len(mutants) - len(left)} of {len(mutants)} mutants were killed by an earlier run of these files")
    survivors = try_all(left, known) if left else 0
    if survivors is None:
        return 1
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants killed")
    return survivors > 0


def complaints(mutants: list[Mutant]) -> list[str]:
    """What is wrong with this list: an edit must fit one place of its file, its tests must be there."""
    wrong = []
    for mutant in mutants:
        file = ROOT / mutant.file
        places = file.read_text(encoding="utf-8").count(mutant.old) if file.exists() else 0
        if places != 1:
            wrong.append(f"{mutant.name}: its text stands {places} times in {mutant.file}, not once")
        wrong += [f"{mutant.name}: there is no {test}" for test in mutant.tests if not (ROOT / test).exists()]
    return wrong


class Known:
    """What earlier runs found out: mutants that were killed, and tests that passed without any.

    A kill counts until the mutant, its file or one of its tests changes; a pass, until any file does.
    """

    def __init__(self) -> None:
        files = (file for name in NEEDED for file in (ROOT / name, *(ROOT / name).rglob("*"))
                 if file.is_file() and file.suffix not in (".pyc", ".so") and file.name != "_native.c")
        self._tree, self._lock = digest(files), threading.Lock()
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        self._killed: dict[str, list[str]] = found.get("killed", {})
        self.passed: list[str] = found.get("passed", []) if found.get("tree") == self._tree else []

    def killer(self, mutant: Mutant) -> str | None:
        """The test that killed this mutant, if that is known."""
        key, test = self._killed.get(mutant.name, ("", ""))
        return test if key == self._key(mutant) else None

    def add(self, mutant: Mutant, test: str) -> None:
        """Remember what killed a mutant."""
        with self._lock:
            self._killed[mutant.name] = [self._key(mutant), test]
            self._write()

    def add_passed(self, tests: Iterable[str]) -> None:
        """Remember tests that pass without any mutant."""
        with self._lock:
            self.passed = sorted({*self.passed, *tests})
            self._write()

    def _key(self, mutant: Mutant) -> str:
        files = [ROOT / name for name in (mutant.file, *mutant.tests)]
        return hashlib.sha256(f"{mutant.old} {mutant.new} {digest(files)}".encode()).hexdigest()

    def _write(self) -> None:
        """Replace the file whole, so that a run can be ended at any time."""
        RESULTS.parent.mkdir(exist_ok=True)
        new = RESULTS.with_suffix(".new")
        new.write_text(json.dumps({"tree": self._tree, "killed": self._killed, "passed": self.passed}, indent=1))
        new.replace(RESULTS)


def digest(files: Iterable[Path]) -> str:
    """A hash of the names and contents of files."""
    tree = hashlib.sha256()
    for file in sorted(files):
        tree.update(f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return tree.hexdigest()


def try_all(mutants: list[Mutant], known: Known) -> int | None:
    """How many mutants survive; None when the tests fail without any. Each processor has a copy of the project."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        copies: Queue[Path] = Queue()
        for copy in pool.map(copy_project, [Path(scratch) / str(i) for i in range(os.cpu_count() or 1)]):
            copies.put(copy)

        def run(mutant: Mutant) -> bool:
            copy = copies.get()
            try:
                test = killer(copy, mutant)
            finally:
                copies.put(copy)
            print(f"{'SURVIVED' if test is None else 'killed  '} {mutant.name:64} {test or ''}", flush=True)
            if test is not None:
                known.add(mutant, test)
            return test is None

        tests = sorted({test for mutant in mutants for test in mutant.tests} - set(known.passed))
        if tests and (failure := failing_test(Path(scratch) / "0", tests, None)):
            print(f"the tests fail without any mutant: {failure}")
            return None
        known.add_passed(tests)
        return sum(pool.map(run, mutants))


def copy_project(copy: Path) -> Path:
    """What the tests need, with the extension built in place."""
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, copy / name)
    build(copy)
    return copy


def build(copy: Path) -> None:
    """Build the extension; an edit that does not compile is a mistake in the list above."""
    shutil.rmtree(copy / "build", ignore_errors=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, env=os.environ | {"CFLAGS": "-O1"})
    if not list((copy / "dcp_ref").glob("_native*.so")):
        raise RuntimeError("the extension did not build")


def killer(copy: Path, mutant: Mutant) -> str | None:
    """The first test that fails with this edit; None when it survives. The copy is put right again."""
    file, built = copy / mutant.file, next((copy / "dcp_ref").glob("_native*.so"))
    right, extension = file.read_text(encoding="utf-8"), built.read_bytes()
    file.write_text(right.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        if mutant.file.startswith("csrc"):
            build(copy)
        return failing_test(copy, mutant.tests, MOST_SECONDS)
    finally:
        file.write_text(right, encoding="utf-8")
        built.write_bytes(extension)


def failing_test(copy: Path, tests: Iterable[str], seconds: float | None) -> str | None:
    """The name of the first failing test, or None. Tests that take longer than this have failed: they hang."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=no", *tests]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutants", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False,
                                timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"the tests were not done after {seconds} seconds"
    if result.returncode == 0:
        return None
    lines = result.stdout.splitlines()
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if failed else f"pytest exited with {result.returncode}: {lines[-1:]}"


if __name__ == "__main__":
    sys.exit(main())
