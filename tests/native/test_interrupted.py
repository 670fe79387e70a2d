"""An interrupt right after a call of C: what C was shown is kept, what C has released is gone."""

import types

import pytest

from dcp_ref import Config, native

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

from dcp_ref.native import memory
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
