"""Writes a GPT-2, given as arrays under Hugging Face's names, as a GGUF file for llama.cpp, without a vocabulary."""

import gguf
import numpy as np

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def translated(name):
    """GGUF's name of a tensor: h.3.attn.c_attn.weight -> blk.3.attn_qkv.weight."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("h."):
        return f"{NAMES[stem]}.{kind}"
    _, layer, part = stem.split(".", 2)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def is_quantized(name):
    """Whether it is a matrix that a decode step reads. Others stay float32, as in llama.cpp's own converter."""
    return name == "wte.weight" or (name.startswith("h.") and ".c_" in name and name.endswith("weight"))


def write_gguf(path, weights, layers, heads, kind):
    """Write the file; `kind` is f32, f16 or q8_0. GGUF stores matrices as [out, in]; a tied head is left out."""
    writer = gguf.GGUFWriter(path, "gpt2")
    positions, width = weights["wpe.weight"].shape
    writer.add_context_length(positions)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(weights["h.0.mlp.c_fc.weight"].shape[1])
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(weights["wte.weight"].shape[0])
    for name, array in weights.items():
        rows = np.ascontiguousarray(array.T if ".c_" in name and array.ndim == 2 else array)
        stored = TYPES[kind] if is_quantized(name) else gguf.GGMLQuantizationType.F32
        writer.add_tensor(translated(name), gguf.quants.quantize(rows, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
