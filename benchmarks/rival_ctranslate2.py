"""ctranslate2 as a rival: its own decode loop, stopped after each step by its callback."""

import tempfile
import threading

import numpy as np
from rivals import THREADS, Rival, Transformers


class CTranslate2(Rival):
    """generate_batch in a thread of its own, which step() lets go on by one token: its state ends when it returns.

    The callback gets each row's token as soon as it is sampled, and blocks after the last row's until the next step().
    So a step is one whole turn of ctranslate2's decode loop: forward, logits, argmax. The loop would end by itself at
    a token past the vocabulary, which never comes.
    """

    package = "ctranslate2"

    def __init__(self, weights, heads, rows, room, weight_type="float32"):
        import ctranslate2
        from ctranslate2.converters.transformers import GPT2Loader

        self.name, self.room = f"ctranslate2 {weight_type}", room
        self.tolerance = {"float32": 1e-3, "int8": 0.1}[weight_type]
        self.words = [f"t{i}" for i in range(weights["wte.weight"].shape[0])]
        spec = GPT2Loader().get_model_spec(Transformers(weights, heads, rows, room).model)
        spec.register_vocabulary(self.words)
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = self.words[0]
        spec.validate()
        spec.optimize()  # compute_type quantizes at load; quantization= here would overwrite `weights`, which it shares
        with tempfile.TemporaryDirectory() as folder:
            spec.save(folder)
            self.model = ctranslate2.Generator(
                folder, device="cpu", compute_type=weight_type, inter_threads=1, intra_threads=THREADS
            )
        self.view = ctranslate2.StorageView
        self.thread, self.error, self.stopped = None, None, False

    def generate(self):
        try:
            self.model.generate_batch(
                [[self.words[token] for token in row] for row in self.rows],
                include_prompt_in_result=False,
                max_length=self.room - len(self.rows[0]),
                end_token=[len(self.words)],
                sampling_topk=1,
                callback=self.sampled,
            )
        except Exception as error:  # step() raises it
            self.error = error
        self.ended = True
        self.done.release()

    def sampled(self, result):
        """The callback: keeps the token; after the last row's it waits for step(), stop() or the end of the program."""
        self.fresh[result.batch_id] = result.token_id
        if not self.stopped and len(self.fresh) == len(self.rows):
            self.done.release()
            while not self.go.acquire(timeout=1) and threading.main_thread().is_alive():
                pass
            self.stopped = self.stopped or not threading.main_thread().is_alive()
        return self.stopped

    def turn(self):
        self.done.acquire()
        if self.ended:
            raise RuntimeError("ctranslate2 ended its generation") from self.error
        self.last = [self.fresh[i] for i in range(len(self.rows))]
        for row, token in zip(self.rows, self.last, strict=True):
            row.append(token)

    def start(self, prompts):
        self.stop()
        self.rows, self.fresh, self.stopped, self.ended = [list(prompt) for prompt in prompts], {}, False, False
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self.generate)
        self.thread.start()
        self.turn()

    def step(self):
        self.fresh.clear()
        self.go.release()
        self.turn()

    def logits(self):
        """Ends the generation first, as the only worker is busy with it, then computes the logits anew."""
        self.stop()
        rows = np.array([row[:-1] for row in self.rows], dtype=np.int32)
        lengths = np.full(len(rows), rows.shape[1], dtype=np.int32)
        view = self.view.from_array
        return np.array(self.model.forward_batch(view(rows), view(lengths)))[:, -1]

    def stop(self):
        if self.thread is not None:
            self.stopped = True
            self.go.release()
            self.thread.join()
            self.thread = None

    def close(self):
        self.stop()
        super().close()
