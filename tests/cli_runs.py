"""The command line, called from Python."""

from certbound import cli


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err
