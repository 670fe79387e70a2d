"""Tokenizers of every kind that the library has, each learned from the same text."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

TEXT = "the old man looked at the sea, and the sea was grey. He didn't look back; the sea's waves were looking at him. "


def _trained(model, trainer, pre_tokenizer, decoder, normalizer=None):
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator([TEXT * 9], trainer)
    return backend


def byte_level():
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    backend = _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())
    backend.add_tokens(["café", "海"])
    return backend


def metaspace():
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"], show_progress=False)
    return _trained(models.BPE(unk_token="<unk>"), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


def byte_fallback():
    """As Llama's: characters that the vocabulary lacks are bytes."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<unk>", "</s>", *bytes_], show_progress=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    learned = _trained(model, trainer, pre_tokenizers.Metaspace(), decoders.Sequence(steps))
    return plain(learned, set(bytes_))


def plain(backend, names):
    """The same, but those tokens are in the vocabulary alone: they are not found in a text by their names."""
    fields = json.loads(backend.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] not in names]
    return tokenizers.Tokenizer.from_str(json.dumps(fields))


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    return _trained(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer(),
                    decoders.WordPiece(), normalizers.Lowercase())


def suffix():
    """As the first GPT's: a word ends in </w>."""
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"], end_of_word_suffix="</w>",
                                  show_progress=False)
    return _trained(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), trainer, pre_tokenizers.Whitespace(),
                    decoders.BPEDecoder("</w>"))


def unigram():
    trainer = trainers.UnigramTrainer(vocab_size=70, special_tokens=["<unk>", "</s>"], unk_token="<unk>",
                                      show_progress=False)
    return _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(prepend_scheme="first"),
                    decoders.Metaspace(prepend_scheme="first"))


KINDS = {kind.__name__: kind for kind in (byte_level, metaspace, byte_fallback, word_piece, suffix, unigram)}
