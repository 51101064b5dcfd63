"""Export a trained model: python tools/export.py --RESUME_MODEL ./log/NAME/best_model.pth

To ONNX (EXPORT.FORMAT onnx), OpenVINO, torch.export or safetensors, in float32 or int8 (EXPORT.PRECISION). The result
is compared with PyTorch on images before it replaces an earlier file.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.commands.cli import cli_main, read_command

DESCRIPTION = (
    'Export a trained model to ONNX, OpenVINO, torch.export or safetensors, with its label map and preprocessing.'
)


def main() -> None:
    command = read_command(sys.argv[1:], program='tools/export.py', description=DESCRIPTION, needs_model=True)
    # torch is imported only after the command line is checked.
    from lib.commands.export import export
    from lib.commands.loaded_model import load_model
    from lib.runtime.log import LOGGER

    _, lines = export(load_model(command))
    for line in lines:
        LOGGER.info('%s', line)


if __name__ == '__main__':
    cli_main(main, alone='it converts one model')
