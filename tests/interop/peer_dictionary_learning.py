"Models of dictionary_learning; run in its environment, see peer.py."
import json

import torch
from peer import K, LATENTS, WIDTH, main, randomize    # first: it may make the library importable

from dictionary_learning.dictionary import (AutoEncoder, AutoEncoderNew, GatedAutoEncoder,
                                            JumpReluAutoEncoder)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary

CASES = {
    'standard': lambda: AutoEncoder(WIDTH, LATENTS), 'new': lambda: AutoEncoderNew(WIDTH, LATENTS),
    'gated': lambda: GatedAutoEncoder(WIDTH, LATENTS),
    'jumprelu': lambda: JumpReluAutoEncoder(WIDTH, LATENTS),
    'topk': lambda: AutoEncoderTopK(WIDTH, LATENTS, K),
    'batchtopk': lambda: BatchTopKSAE(WIDTH, LATENTS, K),
    'batchtopk-early': lambda: BatchTopKSAE(WIDTH, LATENTS, K),
    'matryoshka': lambda: MatryoshkaBatchTopKSAE(WIDTH, LATENTS, K, [4, 8])}


def write_all(folder):
    for name, make in CASES.items():
        model = randomize(make())
        if name in ('batchtopk', 'matryoshka'): model.threshold.fill_(0.2)
        if name == 'standard':                # its loader normalises other decoders
            model.decoder.weight.data /= model.decoder.weight.norm(dim=0)
        (folder/name).mkdir()
        torch.save(model.state_dict(), folder/name/'ae.pt')
        trainer = dict(dict_class=type(model).__name__, activation_dim=WIDTH, dict_size=LATENTS, k=K)
        config = {'trainer': trainer, 'buffer': {'ctx_len': 8}}
        (folder/name/'config.json').write_text(json.dumps(config))


def run(model, x):
    z = model.encode(x)
    return z, model.decode(z)


if __name__ == '__main__': main(write_all, lambda path: load_dictionary(str(path), 'cpu')[0], run)
