"""The command line: `python -m hf_wakesleep push OUTPUT_DIR` sends the stages that have not arrived on the Hub yet."""

import argparse

from transformers.utils import logging

from .stages.outbox import push_pending

logger = logging.get_logger(__name__)


def main() -> int:
    """Run the command line; the exit status is the number of stages to be sent yet, or 1 after an error."""
    parser = argparse.ArgumentParser(prog="python -m hf_wakesleep", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    push = commands.add_parser("push", help="send the stages of an output folder that have not arrived yet")
    push.add_argument("output_dir")
    push.add_argument("--token", help="token, if not that of the logged-in user")
    args = parser.parse_args()
    try:
        left = push_pending(args.output_dir, token=args.token)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    logger.warning(f"still to be sent: {', '.join(left)}" if left else "all stages have arrived")
    return len(left)


if __name__ == "__main__":
    raise SystemExit(main())
