"""One random GPT-2 in other programs, behind one small interface. transformers is here: `check` compares with it.

Weights are a flat dict of float32 arrays under Hugging Face's names (matrices [in, out], the head tied to wte). All
prompts of a batch have the same length and different tokens; every sequence holds its own keys and values.
"""

import contextlib
import inspect

import numpy as np

THREADS = 2


class Rival:
    """A loaded model with up to `rows` sequences of up to `room` tokens.

    A constructor raises ImportError where the program is not installed.
    """

    name = ""
    package = ""  # what to install with pip
    tolerance = 1e-3  # the error that its storage explains, in standard deviations of the logits
    checking = False  # whether `check` runs it: nothing is timed, and it may keep what `difference` needs
    last = ()  # each row's greedy token, which the next step feeds

    def start(self, prompts):
        """Forget all sequences and feed these prompts; `last` is then the first greedy token after each."""
        raise NotImplementedError

    def step(self):
        """Feed `last`, one token a row, compute every row's logits, and put the likeliest tokens into `last`."""
        raise NotImplementedError

    def logits(self):  # -> [rows, vocabulary]
        """The logits that `last` was chosen from. Only `check` needs them: they are not timed."""
        raise NotImplementedError

    def difference(self, logits, chosen):  # [rows, steps, vocabulary], [rows, steps]
        """Its logits minus those of the reference, at the last step since start(); it chose the tokens `chosen`."""
        return np.asarray(self.logits()) - logits[:, -1]

    def close(self):
        """Free the model and its caches."""
        self.__dict__.clear()


def layers_of(weights):
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))


class Transformers(Rival):
    """GPT2LMHeadModel with sdpa and DynamicCache. Prompts are fed one at a time, then their caches are concatenated."""

    name, package = "transformers f32", "transformers"

    def __init__(self, weights, heads, rows, room):
        import torch
        import transformers

        torch.set_num_threads(THREADS)
        (vocabulary, width), positions = weights["wte.weight"].shape, weights["wpe.weight"].shape[0]
        config = transformers.GPT2Config(
            vocab_size=vocabulary,
            n_positions=positions,
            n_embd=width,
            n_layer=layers_of(weights),
            n_head=heads,
            bos_token_id=None,
            eos_token_id=None,
        )
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.model = transformers.GPT2LMHeadModel(config).eval()
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.model.transformer.load_state_dict(tensors, assign=True)  # shares memory with `weights`
        self.model.lm_head.weight = self.model.transformer.wte.weight
        self.torch, self.cache_type = torch, transformers.DynamicCache
        known = inspect.signature(transformers.GPT2LMHeadModel.forward).parameters
        self.cache_name = "cache" if "cache" in known else "past_key_values"  # renamed in 5.x

    def forward(self, tokens, cache, keep=1):  # [rows, T] -> [rows, keep, vocabulary]
        with self.torch.inference_mode():
            ids = self.torch.tensor(tokens)
            options = {self.cache_name: cache, "use_cache": cache is not None, "logits_to_keep": keep}
            return self.model(ids, **options).logits

    def start(self, prompts):
        self.cache, caches, outs = None, [], []
        for prompt in prompts:
            caches.append(self.cache_type(config=self.model.config))
            outs.append(self.forward([prompt], caches[-1]))
        self.cache = caches[0] if len(caches) == 1 else self.joined(caches)
        self.take(self.torch.cat(outs))

    def joined(self, caches):
        """One cache of all rows; the parts of a layer are freed as soon as they are copied."""
        whole = self.cache_type(config=self.model.config)
        for i in range(len(caches[0].layers)):
            parts = [cache.layers[i] for cache in caches]
            whole.update(self.torch.cat([p.keys for p in parts]), self.torch.cat([p.values for p in parts]), i)
            for part in parts:
                part.keys = part.values = None
        return whole

    def take(self, out):
        self.out = out[:, -1]
        self.last = self.out.argmax(-1).tolist()

    def step(self):
        self.take(self.forward([[token] for token in self.last], self.cache))

    def logits(self):
        return self.out.numpy()


def random_weights(layers, width, vocabulary, positions, scale=None, seed=0):
    """Normal weights with deviation `scale`, or else 1 / sqrt(inputs), at which attention matters much more."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        deviation = scale or shape[0] ** -0.5
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)

    weights = {"wte.weight": normal(vocabulary, width), "wpe.weight": normal(positions, width)}
    sizes = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    for i in range(layers):
        for part, (rows, columns) in sizes.items():
            weights[f"h.{i}.{part}.weight"] = normal(rows * width, columns * width)
            weights[f"h.{i}.{part}.bias"] = normal(1, columns * width)[0] * np.float32(0.1)
    for norm in [f"h.{i}.ln_{j}" for i in range(layers) for j in (1, 2)] + ["ln_f"]:
        weights[f"{norm}.weight"] = 1 + normal(1, width)[0] * np.float32(0.1)
        weights[f"{norm}.bias"] = normal(1, width)[0] * np.float32(0.1)
    return weights


def check(rival, reference, prompts, steps=8):
    """Decode greedily and compare with transformers: {"tokens": shortfall, "logits": error, "tolerance"}.

    All are in standard deviations of the logits. The shortfall is how far, at worst, the reference's logit of a chosen
    token lies below the reference's largest logit: 0 is the same choice, a random token's is about 3. The error is the
    rms difference of logits (or of log probabilities). The tolerance is what the rival's storage explains.
    """
    rows = [list(prompt) for prompt in prompts]
    rival.checking = True
    rival.start(prompts)
    for _ in range(steps):
        for row, token in zip(rows, rival.last, strict=True):
            row.append(int(token))
        rival.step()
    kept = reference.forward(rows, None, keep=steps + 1).numpy()
    chosen = np.concatenate([np.array(rows)[:, -steps:], np.array(rival.last)[:, None]], axis=1)
    shortfall = (kept.max(-1) - np.take_along_axis(kept, chosen[..., None], -1)[..., 0]).max() / kept.std()
    error = np.sqrt(np.mean(rival.difference(kept, chosen) ** 2)) / kept.std()
    return {"tokens": float(shortfall), "logits": float(error), "tolerance": rival.tolerance}


def opened(kind, weights, heads, rows, room, **options):
    """(rival, what `check` says of it on a small model with the same head size), or None and a printed line.

    A rival that is less exact than its tolerance is timed all the same: its error is shown beside its speed.
    """
    small = random_weights(2, 128, 1000, 256)
    prompts = np.random.default_rng(1).integers(0, 1000, size=(3, 70)).tolist()
    try:
        with contextlib.closing(kind(small, 2, 3, 128, **options)) as probe:
            error = check(probe, Transformers(small, 2, 3, 128), prompts)
        return kind(weights, heads, rows, room, **options), error
    except ImportError as missing:
        print(f"{kind.__name__} skipped: pip install {kind.package} ({missing})")
    except (ValueError, RuntimeError) as refusal:
        print(f"{kind.__name__} refused: {refusal}")
    return None
