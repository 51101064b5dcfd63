"""Runs main.py and saves the weights after each step: python record_weights.py FILE main.py [OPTION ...].

FILE: a list of the state_dict before the first step and after each one.
"""

import runpy
import sys
from pathlib import Path

import torch


def main() -> None:
    """Patch the step, then become the script."""
    file, script = Path(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(Path(script).parent))
    from lib.trainer.step import TrainStep

    take_step, states = TrainStep.__call__, []

    def recording(self, mixed, global_step):
        def record():
            states.append({name: tensor.clone() for name, tensor in self.state.model.state_dict().items()})

        if not states:
            record()
        result = take_step(self, mixed, global_step)
        record()
        torch.save(states, file)
        return result

    TrainStep.__call__ = recording
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
