"""What comes right before a call of C or right after it: an interrupt, or a signal's handler that uses the engine."""

import types

import numpy as np
import pytest
from models import moderate_model

from dcp_ref import Config, Engine, native

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

from dcp_ref.native import decoder, memory
from dcp_ref.native.cache import NativeCache

CONFIG = Config(vocab_size=1, n_embd=4, n_layer=1, n_head=1)


@pytest.mark.parametrize("name", ["dcp_pool_list", "dcp_pool_add"])
def test_memory_that_c_was_shown_is_kept(monkeypatch, name):
    cache, lib, shown = NativeCache(CONFIG), memory.lib, []

    def interrupted(pool, memory, n):
        getattr(lib, name)(pool, memory, n)
        shown.append(memory)
        raise KeyboardInterrupt

    functions = {function: getattr(lib, function) for function in dir(lib)}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(memory, "lib", types.SimpleNamespace(**functions | {name: interrupted}))
        cache.reserve([cache.new_sequence()], [1])
    assert [kept for kept in cache._pages._kept if kept is shown[0]] == shown
    cache.reserve([cache.new_sequence()], [1])


def test_a_sequence_that_c_has_released_is_unknown(monkeypatch):
    cache = NativeCache(CONFIG)
    sequence = cache.new_sequence()

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache._sequences, "forget", interrupted)
        cache.release(sequence)
    with pytest.raises(ValueError, match=f"sequence {sequence} is unknown or was released"):
        cache.length(sequence)


def before_the_first_decode(monkeypatch, handler):
    """Calls `handler` when all is ready for C to decode."""
    lib, left = decoder.lib, [handler]

    def decode(*arguments):
        if left:
            left.pop()()
        return lib.dcp_decode(*arguments)

    functions = {function: getattr(lib, function) for function in dir(lib)}
    monkeypatch.setattr(decoder, "lib", types.SimpleNamespace(**functions | {"dcp_decode": decode}))


def test_a_feed_whose_sequence_is_released_meanwhile(monkeypatch):
    engine = Engine(moderate_model(), "native")
    sequence = engine.new_sequence()
    before_the_first_decode(monkeypatch, lambda: engine.release(sequence))
    with pytest.raises(ValueError, match=f"sequence {sequence} is unknown or was released"):
        engine.feed([sequence], [[1, 2]])


def test_a_feed_whose_free_pages_are_gone_meanwhile(monkeypatch):
    engine = Engine(moderate_model(), "native")
    expected = engine.feed([engine.new_sequence()], [[1, 2]])
    before_the_first_decode(monkeypatch, engine.trim)
    np.testing.assert_array_equal(engine.feed([engine.new_sequence()], [[1, 2]]), expected)
