"""llama.cpp as a rival, through llama-cpp-python's low-level C API."""

import ctypes
import tempfile
from pathlib import Path

import numpy as np
from rivals import THREADS, Rival, layers_of


class LlamaCpp(Rival):
    """llama.cpp with weights, and keys and values, in f32, f16 or q8_0.

    Flash attention is llama.cpp's default and computes in float16. Over float32 keys and values it copies the whole
    cache to float16 in every step, which is slower and not float32. So the default of `flash` is off for f32, and on
    for the others (values in q8_0 need it).

    Without `unified`, each sequence attends to a buffer of its own. With it, all share one buffer, and each row scores
    the cells of all sequences and masks those of the others.
    """

    package = "llama-cpp-python gguf"

    def __init__(self, weights, heads, rows, room, weight_type="f32", kv="f32", flash=None, unified=False, ubatch=512):
        import llama_cpp
        from gguf_file import write_gguf

        flash = kv != "f32" if flash is None else flash
        self.name = f"llama.cpp {weight_type}, kv {kv}" + ", flash attention" * (flash and kv == "f32")
        computed = "f16" if flash else kv
        # llama.cpp's gelu is a float16 table even where everything is stored in float32.
        self.tolerance = max({"f32": 5e-3, "f16": 0.02, "q8_0": 0.1}[kind] for kind in (weight_type, kv, computed))
        self.c, self.vocabulary, self.room = llama_cpp, weights["wte.weight"].shape[0], room
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(path, weights, layers_of(weights), heads, weight_type)
            parameters = llama_cpp.llama_model_default_params()
            parameters.use_mmap = False
            self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        self.context = llama_cpp.llama_init_from_model(
            self.model, self.parameters(rows, room, kv, flash, unified, ubatch)
        )
        if not self.context:
            raise ValueError(f"{self.name}: no context with these options")
        self.batch = llama_cpp.llama_batch_init(max(room, rows), 0, 1)

    def parameters(self, rows, room, kv, flash, unified, ubatch):
        stored = {"f32": self.c.GGML_TYPE_F32, "f16": self.c.GGML_TYPE_F16, "q8_0": self.c.GGML_TYPE_Q8_0}[kv]
        p = self.c.llama_context_default_params()
        p.n_ctx, p.n_seq_max, p.n_batch, p.n_ubatch = rows * -(-room // 256) * 256, rows, max(room, rows), ubatch
        p.n_threads = p.n_threads_batch = THREADS
        p.type_k = p.type_v = stored
        p.flash_attn_type = self.c.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else self.c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        p.kv_unified, p.no_perf = unified, True
        return p

    def feed(self, tokens, positions, sequences, wanted):  # -> [sum(wanted), vocabulary]
        """Decode these tokens, one entry each, and return the logits of the wanted ones."""
        self.batch.n_tokens = len(tokens)
        for i, entry in enumerate(zip(tokens, positions, sequences, wanted, strict=True)):
            self.batch.token[i], self.batch.pos[i], self.batch.seq_id[i][0], self.batch.logits[i] = entry
            self.batch.n_seq_id[i] = 1
        if status := self.c.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode: {status}")
        out = ctypes.cast(self.c.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(out, (sum(wanted), self.vocabulary))

    def start(self, prompts):
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), False)
        self.last, self.out, self.length = [], [], len(prompts[0])
        for i, prompt in enumerate(prompts):
            wanted = [0] * (len(prompt) - 1) + [1]
            self.out = self.feed(prompt, range(len(prompt)), [i] * len(prompt), wanted)
            self.last.append(int(self.out[0].argmax()))

    def step(self):
        rows = len(self.last)
        self.out = self.feed(self.last, [self.length] * rows, range(rows), [1] * rows)
        self.last = self.out.argmax(1).tolist()
        self.length += 1

    def logits(self):
        return self.out

    def close(self):
        self.c.llama_batch_free(self.batch)
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)
        super().close()
