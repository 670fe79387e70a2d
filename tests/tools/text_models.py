"""A small random model with a tokenizer: it writes nonsense, half characters among it."""

import dataclasses

from models import SMALL, random_params

from dcp_ref import Model
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.config import Config

TEXT = "the old man looked at the sea, and the sea was grey; señor, 海は灰色 🌊, the naïve old man said. " * 3
TOKENIZER = Tokenizer.train([TEXT], 280)
CONFIG = dataclasses.replace(SMALL, vocab_size=TOKENIZER.vocab_size, n_positions=48, eos_token_id=TOKENIZER.eos_id)


def text_model(config: Config = CONFIG, seed: int = 0) -> Model:
    return Model(config, random_params(config, seed, "float32"), TOKENIZER)
