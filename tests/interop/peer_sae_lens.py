"Models of SAELens; run in its environment, see peer.py."
import json
import os

os.environ['HF_HUB_OFFLINE'] = '1'
from peer import K, LATENTS, WIDTH, main, randomize
from sae_lens import (SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, GatedSAE,
                      GatedSAEConfig, JumpReLUSAE, JumpReLUSAEConfig, MatryoshkaBatchTopKTrainingSAE,
                      MatryoshkaBatchTopKTrainingSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE,
                      TopKSAEConfig)
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.transcoder import (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig,
                                      JumpReLUTranscoder, JumpReLUTranscoderConfig, SkipTranscoder,
                                      SkipTranscoderConfig, Transcoder, TranscoderConfig)

NARROW = 4     # output width of transcoders
SHAPE = dict(d_in=WIDTH, d_sae=LATENTS)
CASES = {   # name -> class, class of the configuration, its keys
    **{f'{name}{"" if subtracts else "-uncentred"}': (
           cls, config, dict(apply_b_dec_to_input=subtracts, **keys))
       for subtracts in (True, False) for name, cls, config, keys in (
           ('standard', StandardSAE, StandardSAEConfig, {}),
           ('topk', TopKSAE, TopKSAEConfig, dict(k=K)),
           ('topk-rescaled', TopKSAE, TopKSAEConfig,
            dict(k=K, rescale_acts_by_decoder_norm=True)),
           ('abstopk', AbsTopKSAE, AbsTopKSAEConfig, dict(k=K)),
           ('abstopk-rescaled', AbsTopKSAE, AbsTopKSAEConfig,
            dict(k=K, rescale_acts_by_decoder_norm=True)),
           ('jumprelu', JumpReLUSAE, JumpReLUSAEConfig, {}),
           ('gated', GatedSAE, GatedSAEConfig, {}),
           ('matching_pursuit', MatchingPursuitSAE, MatchingPursuitSAEConfig,
            dict(max_iterations=4, residual_threshold=0., stop_on_duplicate_support=False)),
           ('matching_pursuit-stops', MatchingPursuitSAE, MatchingPursuitSAEConfig, {}),
           ('matching_pursuit-residual', MatchingPursuitSAE, MatchingPursuitSAEConfig,
            dict(residual_threshold=1.5, stop_on_duplicate_support=False)))},
    'standard-float64': (StandardSAE, StandardSAEConfig, dict(dtype='float64')),
    'layer_norm': (StandardSAE, StandardSAEConfig, dict(normalize_activations='layer_norm')),
    'constant_norm': (StandardSAE, StandardSAEConfig,
                      dict(normalize_activations='constant_norm_rescale')),
    'layer_norm-topk': (TopKSAE, TopKSAEConfig, dict(
        k=K, normalize_activations='layer_norm', rescale_acts_by_decoder_norm=True)),
    'layer_norm-pursuit': (MatchingPursuitSAE, MatchingPursuitSAEConfig, dict(
        normalize_activations='layer_norm')),
    **{name: (cls, config, dict(d_out=NARROW, apply_b_dec_to_input=False))
       for name, cls, config in (
        ('transcoder', Transcoder, TranscoderConfig),
        ('transcoder-skip', SkipTranscoder, SkipTranscoderConfig),
        ('transcoder-jumprelu', JumpReLUTranscoder, JumpReLUTranscoderConfig),
        ('transcoder-jumprelu-skip', JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig))},
    'transcoder-square-skip': (SkipTranscoder, SkipTranscoderConfig,
                               dict(d_out=WIDTH, apply_b_dec_to_input=False)),
    'refused-transcoder-layer_norm': (SkipTranscoder, SkipTranscoderConfig, dict(
        d_out=NARROW, apply_b_dec_to_input=False, normalize_activations='layer_norm')),
}
BATCH = {'batchtopk': (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {}),
         'matryoshka': (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig,
                        dict(matryoshka_widths=[4, LATENTS]))}


def write_all(folder):
    for name, (cls, config, keys) in CASES.items():
        randomize(cls(config(**SHAPE, **keys))).save_model(folder/name)
    for name, (cls, config, keys) in BATCH.items():
        for rescales in (True, False):
            keys['rescale_acts_by_decoder_norm'] = rescales
            sae = randomize(cls(config(k=K, **SHAPE, **keys)))
            sae.topk_threshold.fill_(0.2)
            sae.save_inference_model(folder/f'{name}{"-rescaled" if rescales else ""}')
            checkpoint = folder/f'checkpoint-{name}{"-rescaled" if rescales else ""}'
            sae.save_model(checkpoint)
    for name in ('standard', 'topk', 'jumprelu', 'gated'):     # configurations of version 3 to 5
        sae = SAE.load_from_disk(str(folder/name))
        sae.save_model(folder/f'version5-{name}')
        config = dict(architecture=name, hook_name='blocks.0.hook_resid_pre', hook_layer=0,
                      dtype='torch.float32', activation_fn_str='relu', device='cpu', **SHAPE,
                      normalize_activations='none', finetuning_scaling_factor=False)
        if name == 'topk': config |= dict(architecture='standard', activation_fn_str='topk',
                                          activation_fn_kwargs={'k': K})
        (folder/f'version5-{name}/cfg.json').write_text(json.dumps(config))


def load(path):
    "A checkpoint of training is computed as the finished model that its weights give."
    name = path.name.removeprefix('checkpoint-')
    return SAE.load_from_disk(str(path.with_name(name)))


def run(sae, x):
    z = sae.encode(x)
    return z.to_dense(), sae(x)


if __name__ == '__main__': main(write_all, load, run)
