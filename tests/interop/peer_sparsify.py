"Models of sparsify; run in its environment, see peer.py."
import torch
from peer import K, LATENTS, WIDTH, main, randomize
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

CASES = {'topk': {}, 'topk-free': dict(normalize_decoder=False),
         'groupmax': dict(activation='groupmax'),
         'topk-expansion': dict(num_latents=0, expansion_factor=2),
         'skip': dict(skip_connection=True), 'transcoder': dict(transcode=True),
         'transcoder-skip': dict(transcode=True, skip_connection=True),
         'transcoder-groupmax-skip': dict(transcode=True, skip_connection=True,
                                          activation='groupmax')}


def write_all(folder):
    for name, keys in CASES.items():
        config = SparseCoderConfig(**{**dict(k=K, num_latents=LATENTS), **keys})
        randomize(SparseCoder(WIDTH, config)).save_to_disk(folder/name)


def run(model, x):
    values, latents, _ = model.encode(x)
    z = torch.zeros(len(x), model.num_latents, dtype=values.dtype).scatter(1, latents, values)
    return z, model(x).sae_out


if __name__ == '__main__': main(write_all, SparseCoder.load_from_disk, run)
