"""C never points into memory that Python has not kept, wherever an interrupt comes."""

import types

import pytest

from dcp_ref import Config, native

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

from dcp_ref.native import memory
from dcp_ref.native.cache import NativeCache


@pytest.mark.parametrize("name", ["dcp_pool_list", "dcp_pool_add"])
def test_an_interrupt_right_after_c_was_shown_memory(monkeypatch, name):
    cache, lib, shown = NativeCache(Config(vocab_size=1, n_embd=4, n_layer=1, n_head=1)), memory.lib, []

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
