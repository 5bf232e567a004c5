"""Entry point of `iakd` and `python -m iakd`."""

import sys

from iakd.orchestration.fork_server import run_in_server


def main() -> None:
    """Run the command line, in the fork server if there is one."""
    code = run_in_server(sys.argv[1:])
    if code is not None:
        sys.exit(code)
    from iakd import cli

    cli.main()


if __name__ == "__main__":
    main()
