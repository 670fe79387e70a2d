"""What Scorer and Continuer share: a model that is loaded once, rows in, rows out, errors that stay in their rows."""

import functools
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dcp_ref import native, policies
from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.policies import Policy
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.sampling import check_integer

Result = dict[str, Any]  # a row's columns besides its id; `error` is "" where all went well
STORED = "weights"  # Engine's name for how matrices are stored


class Mapper:
    """A function of rows that holds an engine: a dict of columns in, a dict of columns out, in the rows' order.

    `id` and `text` are the names of the columns that it reads. `batch` is the most sequences decoded at once (None: as
    many as 1 GB holds, at most 64); with the NumPy backend it is 1, as there bits depend on the batch.
    `policy` is a Policy, or its name as in policies.parse; the other `engine` arguments are Engine's.
    It can be pickled: the copy loads the model again, and the system maps the file once for all processes.
    Raises CheckpointError, ValueError and RuntimeError as `load` and Engine do, and for a model without a tokenizer.
    """

    columns: ClassVar[tuple[str, ...]]  # the names of a Result, in order

    def __init__(self, model: str, id: str, text: str, batch: int | None, engine: dict[str, Any], own: dict[str, Any]
                 ) -> None:
        self.settings = {"model": model, "id": id, "text": text, "batch": batch, **engine, **own}
        self.id, self.text, self.own = id, text, own
        if batch is not None:
            check_integer("batch", batch, 1)
        self.model = weights.load(model)
        if self.model.tokenizer is None:
            raise ValueError(f"{model} has no tokenizer, and texts cannot be read without one")
        self.tokenizer: Tokenizer = self.model.tokenizer
        policy = engine.get("policy")
        if isinstance(policy, str):
            engine = engine | {"policy": policies.parse(policy)}
        self.engine = Engine(self.model, **engine)
        self.batch = 1 if self.engine.backend == "numpy" else batch
        self.fed: Callable[[int], object] | None = None  # told how many tokens each step has fed

    def __reduce__(self) -> Any:
        return functools.partial(type(self), **self.settings), ()

    def maker(self) -> "Callable[[], Mapper]":
        """What makes a mapper like this one beside others on a machine: on one thread, unless `threads` is given."""
        return functools.partial(type(self), **self.settings | {"threads": self.settings.get("threads") or 1})

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """The columns of these rows' results: their ids, and `columns`. Raises ValueError when a column is missing."""
        for name in (self.id, self.text):
            if name not in rows:
                raise ValueError(f"the rows have no column {name!r}, but {sorted(rows)}: give id and text their names")
        ids, texts = list(rows[self.id]), list(rows[self.text])
        results = self.results(ids, texts)
        return {self.id: rows[self.id], **{name: column([row[name] for row in results]) for name in self.columns}}

    def results(self, ids: Sequence[Any], texts: Sequence[Any]) -> list[Result]:
        """The result of each row."""
        raise NotImplementedError

    def failed(self, error: str) -> Result:
        """The result of a row with this error."""
        raise NotImplementedError

    def tokens_of(self, result: Result) -> int:
        """How many tokens were scored, or drawn."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """All that decides the bits of a result, in types that JSON can hold: what a manifest keeps."""
        engine = self.engine
        policy: Policy = engine.policy
        return {"task": type(self).__name__, "weights_sha256": weights.hash_of(self.model),
                "tokenizer_sha256": sha256_of_tokenizer(self.tokenizer), "policy": str(policy),
                "threshold": repr(float(engine.threshold)), STORED: engine.weights, "kv": engine.kv,
                "id": self.id, "text": self.text, **self.own, **arithmetic(engine.backend)}


def column(values: list[Any]) -> np.ndarray:
    """A column as an array: of numbers, where they are numbers or arrays, and else of objects."""
    if values and isinstance(values[0], (int, float, np.ndarray)):
        return np.array(values)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def text_of(value: Any) -> str:
    """A row's text. Raises ValueError when it is none."""
    if isinstance(value, str):
        return value
    raise ValueError(f"the text is a {type(value).__name__}, not a string")


def arithmetic(backend: str) -> dict[str, str]:
    """What computes here: the same bits come from the same backend, instruction set, and NumPy on a like processor."""
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return {"backend": backend, "simd": native.simd_level() if backend == "native" else "",
            "numpy": " ".join([np.__version__, *found])}


def sha256_of_tokenizer(tokenizer: Tokenizer) -> str:
    """A hash of the files that a tokenizer is saved as."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(directory)
        for file in sorted(Path(directory).iterdir()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
