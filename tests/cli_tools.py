"""What the tests of the command share."""

from dcp_ref import cli


def call(capsys, *arguments):
    """Runs `dcp-ref ARGUMENTS`: (exit code, stdout, stderr)."""
    code = cli.main(list(arguments))
    return code, *capsys.readouterr()


def assert_refused(result, *words, code=2):
    """One line on stderr, with these words; nothing on stdout."""
    assert result[:2] == (code, ""), result
    assert result[2].startswith("dcp-ref ") and result[2].count("\n") == 1, result[2]
    for word in words:
        assert word in result[2], result[2]
