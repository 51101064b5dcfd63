"""Runs main.py and keeps what each step leaves: python record_weights.py FILE main.py [OPTION ...].

FILE: the state_dict before the first step, and after each, as a list.
"""

import runpy
import sys
from pathlib import Path

import torch


def main() -> None:
    """Patch the step, then become the script."""
    file, script = Path(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(Path(script).parent))
    from lib.trainer import step

    take_step, states = step._step, []

    def recording(learner, mixed, global_step):
        def keep():
            states.append({name: tensor.clone() for name, tensor in learner.model.state_dict().items()})

        if not states:
            keep()
        done = take_step(learner, mixed, global_step)
        keep()
        torch.save(states, file)
        return done

    step._step = recording
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
