"""The usual service around a network, as tutorials show it: one pass of the network per request, in PyTorch.

python unbatched_service.py MODEL FORM, where FORM is `thread` (the route is a function, which FastAPI runs in a pool of
40 threads) or `coroutine` (the route computes in the event loop). The weights are those of MODEL, the preprocessing is
Pillow's and torchvision's.
"""

import io
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision.transforms import v2

from lib.commands.cli import read_command
from lib.commands.loaded_model import load_model

TOP_K = 5


def main() -> None:
    trained = load_model(read_command(['--RESUME_MODEL', sys.argv[1], '--RUN_DEVICE', 'cpu', '--RUN_ENGINE', 'torch']))
    model, names, preprocessing = trained.model.eval(), trained.class_names, trained.cfg.INPUT
    size = preprocessing.TEST_SIZE or preprocessing.SIZE
    transform = v2.Compose(
        [
            v2.Resize(size),
            v2.CenterCrop(size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocessing.MEAN, preprocessing.STD),
        ]
    )
    app = FastAPI()

    def answer(photo: bytes) -> list[dict]:
        image = transform(Image.open(io.BytesIO(photo)).convert('RGB'))
        with torch.inference_mode():
            best = model.classify(model.features(image[None])).softmax(1)[0].topk(TOP_K)
        return [{'name': names[c], 'probability': p} for p, c in zip(*map(torch.Tensor.tolist, best), strict=True)]

    if sys.argv[2] == 'thread':

        @app.post('/predict')
        def predict(file: UploadFile) -> list[dict]:
            return answer(file.file.read())
    else:

        @app.post('/predict')
        async def predict(file: UploadFile) -> list[dict]:
            return answer(await file.read())

    listening = socket.create_server(('127.0.0.1', 0))
    print(f'http://127.0.0.1:{listening.getsockname()[1]}', flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level='warning', access_log=False)).run([listening])


if __name__ == '__main__':
    main()
