"""OpenVINO GenAI as a rival: continuous batching over paged attention, on the CPU."""

import hashlib
import tempfile
import warnings
from pathlib import Path

import numpy as np
from rivals import THREADS, Rival, Transformers

PAGE = 32  # tokens that it stores together, and evicts together
CONVERTED = Path(__file__).parents[1] / "build" / "openvino"  # converting GPT-2 small takes longer than most rows


class OpenVINO(Rival):
    """ContinuousBatchingPipeline, which gets token ids: the model has no tokenizer.

    Its scheduler feeds one prompt a step here, and decodes only when there is no prompt left: so when all have been
    fed, each sequence has one token, and each step gives one more to every sequence.

    `keep` evicts: of each sequence at least `keep` tokens stay, and at most PAGE - 1 more. These are its first page,
    its last two pages, and the pages that got most attention.
    """

    package = "openvino-genai optimum-intel nncf"

    def __init__(self, weights, heads, rows, room, weight_type="f32", kv="f32", keep=None):
        import openvino
        import openvino_genai

        self.name = f"OpenVINO {weight_type}, kv {kv}" + f", evicts all but {keep}" * (keep is not None)
        self.tolerance = {"f32": 1e-3, "int8": 0.1}[weight_type]
        self.genai, self.tensor, self.room, self.handles = openvino_genai, openvino.Tensor, room, []
        self.vocabulary = weights["wte.weight"].shape[0]
        properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": kv, "INFERENCE_NUM_THREADS": THREADS}
        self.pipe = openvino_genai.ContinuousBatchingPipeline(
            converted(weights, heads, weight_type), self.scheduler(rows, room, keep), "CPU", properties
        )

    def scheduler(self, rows, room, keep):
        config = self.genai.SchedulerConfig()
        config.enable_prefix_caching = config.dynamic_split_fuse = False
        config.max_num_seqs, config.max_num_batched_tokens = rows, room
        config.num_kv_blocks = self.pages = rows * (-(-room // PAGE) + 1)
        if keep is not None:
            config.use_cache_eviction = True
            config.cache_eviction_config = self.genai.CacheEvictionConfig(PAGE, 2 * PAGE, keep,
                                                                          self.genai.AggregationMode.NORM_SUM)
        return config

    def greedy(self, length):
        """What to generate: the likeliest token until the room is full. No token ends a text."""
        config = self.genai.GenerationConfig(max_new_tokens=self.room - length, ignore_eos=True, do_sample=False,
                                             logprobs=int(self.checking))
        config.set_eos_token_id(self.vocabulary)
        return config

    def start(self, prompts):
        self.forget()
        self.log_probabilities = []
        for i, prompt in enumerate(prompts):
            ids = self.tensor(np.array([prompt], np.int64))
            self.handles.append(self.pipe.add_request(i, ids, self.greedy(len(prompt))))
        while not all(handle.can_read() for handle in self.handles):
            self.pipe.step()
        self.take()

    def take(self):
        """Each sequence's newest token; an error unless every sequence has exactly one."""
        outputs = [handle.read()[0] for handle in self.handles]
        if any(len(output.generated_ids) != 1 for output in outputs):
            raise RuntimeError(f"{self.name}: a step gave {[len(output.generated_ids) for output in outputs]} tokens")
        self.last = [output.generated_ids[0] for output in outputs]
        if self.checking:
            self.log_probabilities.append([output.generated_log_probs[0] for output in outputs])

    def step(self):
        self.pipe.step()
        self.take()

    def difference(self, logits, chosen):
        """Of log probabilities of the tokens that it chose, in every step: it shows no logits."""
        log_probabilities = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        theirs = np.array(self.log_probabilities).T
        return theirs - np.take_along_axis(log_probabilities, chosen[..., None], -1)[..., 0]

    def forget(self):
        """Its scheduler frees cancelled sequences in the next step."""
        for handle in self.handles:
            handle.cancel()
        if self.handles:
            self.pipe.step()
        self.handles = []

    def close(self):
        self.forget()
        super().close()


def converted(weights, heads, weight_type):
    """The folder with these weights as OpenVINO's IR; they are converted where it is not there yet."""
    digest = hashlib.blake2b(str(heads).encode(), digest_size=8)
    for array in weights.values():
        digest.update(array)
    folder = CONVERTED / f"{digest.hexdigest()}-{weight_type}"
    if not folder.exists():
        CONVERTED.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CONVERTED) as unfinished:
            convert(Transformers(weights, heads, 1, 0).model, Path(unfinished, "model"), weight_type)
            Path(unfinished, "model").rename(folder)
    return folder


def convert(model, folder, weight_type):
    """Write a transformers model as IR, with weights in f32 or int8 (one scale and one zero for each output)."""
    import nncf
    import openvino
    import transformers
    from optimum.exporters.openvino import export_from_model
    from optimum.intel import OVConfig

    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings(action="ignore"):  # of tracing
        export_from_model(model, folder, task="text-generation-with-past", ov_config=OVConfig(dtype="fp32"))
    if weight_type == "int8":
        path = folder / "openvino_model.xml"
        small = nncf.compress_weights(openvino.Core().read_model(path), mode=nncf.CompressWeightsMode.INT8_ASYM)
        openvino.save_model(small, folder / "small.xml", compress_to_fp16=False)
        for suffix in (".xml", ".bin"):
            (folder / f"small{suffix}").replace(path.with_suffix(suffix))
