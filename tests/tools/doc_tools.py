"""The code in README and docs, and what it prints: found, run and compared.

A ```python block is run after those before it in its file; a block without a language right after it is what it prints.
Each line of an ```sh block is a command. A ```console block has commands after "$ ", and what they print.
"""

import contextlib
import io
import re
import shlex
from typing import NamedTuple

from dcp_ref.cli import command as cli

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NUMBER = r"[-+]?\d+\.\d+"


class Step(NamedTuple):
    """A piece of Python, or a command; `output` is what the document says it prints, None where it does not say."""

    python: bool
    code: str
    output: str | None


def steps(text):
    """What a document tells its reader to do, in its order."""
    found = []
    blocks = list(BLOCK.finditer(text))
    for n, block in enumerate(blocks):
        language, body = block.groups()
        if language == "python":
            after = blocks[n + 1] if n + 1 < len(blocks) else None
            says = after and after[1] == "" and not text[block.end() : after.start()].strip()
            found.append(Step(True, body, after[2] if says else None))
        if language == "sh":
            found += [Step(False, line, None) for line in joined(body).splitlines() if arguments(line)]
        if language == "console":
            for one in re.split(r"^\$ ", body, flags=re.M)[1:]:
                line, _, output = one.partition("\n")
                found.append(Step(False, line, output))
    return found


def joined(body):
    """Commands with their continued lines."""
    return re.sub(r"\\\n\s*", "", body)


def arguments(line):
    """The words of a command, without its comment."""
    return shlex.split(line, comments=True)


def run_python(code, namespace):
    """What the code prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "<document>", "exec"), namespace)
    return printed.getvalue()


def run_command(words, capsys):
    """What `dcp-ref` prints with these words after it; it must succeed."""
    capsys.readouterr()
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def assert_prints(got, says):
    """Equal to what a document says, where "..." is any text, and numbers may differ by 2 in their last place.

    Blanks at the ends of lines do not count.
    """
    got, says = ("\n".join(line.rstrip() for line in text.rstrip().splitlines()) for text in (got, says))
    pattern = "".join(f"({NUMBER})" if re.fullmatch(NUMBER, part) else ".*?" if part == "..." else re.escape(part)
                      for part in re.split(rf"({NUMBER}|\.\.\.)", says))
    match = re.fullmatch(pattern, got, re.S)
    assert match, f"it says:\n{says}\nbut prints:\n{got}"
    for there, here in zip(re.findall(NUMBER, says), match.groups(), strict=True):
        assert abs(float(there) - float(here)) <= 2.001 * 10.0 ** -len(there.split(".")[1]), f"{there} is {here}"
