"""Shared by the scripts that run within the environment of another library; needs torch and
safetensors only.

    python peer_NAME.py write FOLDER    models of every architecture with random weights, and codes
    python peer_NAME.py run FOLDER      codes and reconstructions of all models in FOLDER
"""
import os
import sys
from pathlib import Path

if os.environ.get('INTEROP_SMALL'):
    import small
    small.install()

import torch
from safetensors.torch import load_file, save_file

WIDTH, LATENTS, K = 6, 12, 3


def randomize(model, scale=0.4):
    "Replace all parameters by random numbers; nothing is normalised afterwards."
    with torch.no_grad():
        for p in model.parameters(): p.copy_(scale * torch.randn_like(p))
    return model.eval()


def main(write_all, load, encode_and_decode):
    command, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if command == 'write':
        save_file({'x': torch.randn(200, WIDTH)}, folder/'inputs.safetensors')
        write_all(folder)
    x = load_file(folder/'inputs.safetensors')['x']
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        with torch.no_grad():
            model = load(path)
            z, y = encode_and_decode(model, x.to(next(model.parameters()).dtype))
        save_file({'z': z.contiguous(), 'y': y.contiguous()}, folder/f'{path.name}.safetensors')
