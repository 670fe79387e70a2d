"""Changes to the JSON in an input, which changed bytes would seldom leave readable: a value, a name, an item."""

import json
import random
from typing import Any

STRANGE = [None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**64, 10**30, 1e308, float("inf"), float("nan"), -0.0, 0.5,
           "", "0", "x", "\ud800", "\x00", "é", "../x", "a" * 300, [], [[]], {}, [0], [0, 0], [None], {"": 0},
           {"a": {}}]


def changed(data: bytes, seed: int) -> bytes | None:
    """The bytes with a change or more in their JSON; None where they have none.

    The JSON is all of the bytes, or all but the first, or the header of a safetensors file.
    """
    draw = random.Random(seed)
    length = int.from_bytes(data[:8], "little"), int.from_bytes(data[1:9], "little")
    for start, end in ((0, len(data)), (1, len(data)), (8, 8 + length[0]), (9, 9 + length[1])):
        try:
            value = json.loads(data[start:end].decode("utf-8"))
        except (ValueError, RecursionError):
            continue
        for _ in range(draw.choice([1, 1, 2, 5])):
            value = _edited(value, draw)
        text = json.dumps(value, ensure_ascii=draw.random() < 0.9).encode("utf-8", "surrogatepass")
        if start < 8:
            return data[:start] + text
        text += b" " * (-len(text) % 8)
        return data[: start - 8] + len(text).to_bytes(8, "little") + text + data[end:]
    return None


def _edited(value: Any, draw: random.Random) -> Any:
    """One change, somewhere in the value; it goes into a text that is JSON itself."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.dumps(_edited(json.loads(value), draw))
        except (ValueError, RecursionError):
            pass
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.1:
        return _other(value, draw)
    value = value.copy()
    key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
    what = draw.random()
    if what < 0.1:
        del value[key]
    elif what < 0.2 and isinstance(value, dict):
        value[draw.choice(["", "x", key + "x", "__metadata__"])] = value.pop(key)
    elif what < 0.2:
        value.insert(key, value[key])
    else:
        value[key] = _edited(value[key], draw)
    return value


def _other(value: Any, draw: random.Random) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and draw.random() < 0.5:
        return draw.choice([value + 1, value - 1, value * 2, -value, float(value), str(value)])
    if isinstance(value, str) and draw.random() < 0.3:
        return draw.choice([value + value, value[:-1], value.upper(), value + "\n"])
    return draw.choice(STRANGE)
