"""Entry point of `iakd` and `python -m iakd`."""

import sys

from iakd.orchestration.fork_server import hand_over


def main() -> None:
    """Run the command line, in a warm process if there is one."""
    code = hand_over(sys.argv[1:])
    if code is not None:
        sys.exit(code)
    from iakd import cli

    cli.main()


if __name__ == "__main__":
    main()
