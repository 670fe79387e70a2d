"""The text of a class to begin with, in three ways; each is a module beside this file, and conforms."""

from importlib import resources

SKELETONS = {"numpy": "a list of live tokens in NumPy", "torch": "a boolean mask in torch, without pages",
             "ctypes": "a function in C, called through ctypes"}


def skeleton(name: str) -> str:
    """The source of skeleton_NAME.py. Raises ValueError when there is none of this name."""
    if name not in SKELETONS:
        raise ValueError(f"skeleton {name!r} is not one of {', '.join(SKELETONS)}")
    return resources.files("dcp_ref.testing").joinpath(f"skeleton_{name}.py").read_text(encoding="utf-8")
