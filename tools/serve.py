"""Serve a model over HTTP: python tools/serve.py --RESUME_MODEL ./log/NAME/best_model.pth [--SECTION_KEY VALUE ...]

Answers /predict, /features, /classes, /health, /ready and /metrics; the page at / is for people. See docs/serving.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command
from lib.commands.command import Command
from lib.errors import UserError

DESCRIPTION = (
    'Serve a trained model over HTTP. Images of concurrent requests are computed in batches; a checkpoint that '
    'replaces the one of RESUME_MODEL is loaded without losing a request. SIGTERM ends it after the last answer.'
)


def main() -> None:
    def read() -> Command:
        return read_command(sys.argv[1:], program='tools/serve.py', description=DESCRIPTION, needs_model=True)

    command = read()
    # torch is imported only after the command line is checked.
    try:
        from lib.service.command import serve_command
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition('.')[0] == 'lib':
            raise
        raise UserError(
            f'the package {error.name} is not installed; type: python -m pip install -r requirements-serve.txt'
        ) from None

    serve_command(command, read)


if __name__ == '__main__':
    cli_main(main, alone='it is one server (others get another --SERVE_PORT)')
