"""SAEDashboard and SAEBench on a small transformer; run in their environment, see test_viewers.py.

    python peer_viewers.py FOLDER    FOLDER/NAME: a model of this library; NAME-saelens: its files"""
import json
import os
import sys
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'
import torch
from datasets import Dataset
from sae_bench.evals.core.main import CoreEvalConfig, run_evals
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from sae_dashboard.components_config import (ActsHistogramConfig, Column, FeatureTablesConfig,
                                             LogitsHistogramConfig, LogitsTableConfig,
                                             SequencesConfig)
from sae_dashboard.layout import SaeVisLayoutConfig
from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
from sae_dashboard.sae_vis_runner import SaeVisConfig, SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import save_file
from transformer_lens import HookedTransformerConfig

from sparse_ae.models import BaseSparseAutoencoder
from sparse_ae.networks.viewers import ViewerAutoencoder

HOOK, WIDTH, LENGTH, TEXTS, VOCABULARY = 'blocks.0.hook_resid_post', 16, 24, 64, 40


class Tokenizer:
    "Special tokens, which SAELens reads; no text is tokenised."
    bos_token_id = eos_token_id = pad_token_id = sep_token_id = 0
    padding_side, name_or_path = 'right', 'random'


def transformer():
    config = HookedTransformerConfig(n_layers=1, d_model=WIDTH, n_ctx=LENGTH, d_head=8, n_heads=2,
                                     d_vocab=VOCABULARY, act_fn='relu', seed=0, device='cpu')
    model = HookedSAETransformer(config)
    model.tokenizer = Tokenizer()
    return model


def dashboards(encoder, model, tokens, latents):
    "Exchange JSON of SAEDashboard."
    layout = SaeVisLayoutConfig(columns=[Column(
        SequencesConfig(stack_mode='stack-all', buffer=None, compute_buffer=True, n_quantiles=5,
                        top_acts_group_size=4, quantile_group_size=2), ActsHistogramConfig(),
        LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3))])
    config = SaeVisConfig(hook_point=HOOK, features=list(range(latents)), device='cpu',
                          feature_centric_layout=layout)
    found = SaeVisRunner(config).run(encoder=encoder, model=model, tokens=tokens)
    names = NeuronpediaRunnerConfig(sae_set='demo', sae_path='', np_set_name='demo', outputs_dir='',
                                    n_prompts_total=TEXTS, n_tokens_in_prompt=LENGTH)
    names.model_id, names.layer = 'random', 0
    vocabulary = {token: f't{token}' for token in range(VOCABULARY)}
    return json.loads(NeuronpediaConverter.convert_to_np_json(model, found, names, vocabulary))


def core(sae, model, tokens):
    "Results of SAEBench's core evaluation: metrics, and figures of each latent."
    _, sae, _ = load_and_format_sae('demo', sae, 'cpu')
    data = Dataset.from_dict({'tokens': tokens.tolist()}).with_format('torch')
    store = ActivationsStore.from_sae(model, sae, data, context_size=LENGTH, streaming=False)
    computed = dict.fromkeys(('kl', 'ce_loss', 'l2_norms', 'sparsity_metrics', 'variance_metrics',
                              'featurewise_density_statistics',
                              'featurewise_weight_based_metrics'), True)
    config = CoreEvalConfig(batch_size_prompts=8, n_eval_reconstruction_batches=TEXTS // 8,
                            n_eval_sparsity_variance_batches=TEXTS // 8, context_size=LENGTH,
                            **{f'compute_{name}': value for name, value in computed.items()})
    json.dumps(sae.cfg.to_dict())
    return run_evals(sae, store, model, config)


def main(folder):
    torch.manual_seed(0)
    model = transformer()
    tokens = torch.randint(1, VOCABULARY, (TEXTS, LENGTH))
    tokens[:, 0] = 0
    with torch.no_grad(): _, cache = model.run_with_cache(tokens)
    save_file({'x': cache[HOOK], 'tokens': tokens, 'outputs': model.W_U.detach().T.contiguous()},
              folder/'network.safetensors')
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        if path.name.endswith('-saelens'): sae = SAE.load_from_disk(str(path))
        else: sae = ViewerAutoencoder(BaseSparseAutoencoder.from_pretrained(path), HOOK,
                                      model_name='random', context_size=LENGTH)
        metrics, latents = core(sae, model, tokens)
        result = dict(metrics=metrics, latents=latents,
                      dashboards=dashboards(sae, model, tokens, sae.cfg.d_sae))
        (folder/f'{path.name}.json').write_text(json.dumps(result))


if __name__ == '__main__': main(Path(sys.argv[1]))
