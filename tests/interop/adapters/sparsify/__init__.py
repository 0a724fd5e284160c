"""The interface of sparsify on this library, for the tests of that library.

Trainer captures the outputs of the modules and trains a top-k model on each. What the tests read of
a model, `encoder.weight`, is that of this library's model, as its writer of files has it."""
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader

from sparse_ae import SparseAutoencoder
from sparse_ae import train_sparse_autoencoder_with_early_stopping as train
from sparse_ae.activations import TopK
from sparse_ae.networks.capture import Activations


@dataclass
class SaeConfig:
    expansion_factor: int
    k: int


@dataclass
class TrainConfig:
    sae: SaeConfig
    batch_size: int
    save_dir: str
    layers: list
    lr: float
    micro_acc_steps: int = 1
    log_to_wandb: bool = False


class Trainer:
    def __init__(self, config, dataset, model):
        self.config, self.tokens, self.model = config, dataset['input_ids'][:], model
        torch.manual_seed(0)
        width = model.config.hidden_size
        self.models = {f'h.{layer}': SparseAutoencoder(
            width, config.sae.expansion_factor*width, hidden_dims=(), decoder_norm='atom',
            activation=TopK(config.sae.k)) for layer in config.layers}
        self.saes = {name: SimpleNamespace(encoder=SimpleNamespace(weight=m.encoder_mat_1))
                     for name, m in self.models.items()}

    def fit(self):
        "Train for one epoch on batches of `batch_size` texts, in `micro_acc_steps` parts."
        rows = self.config.batch_size * self.tokens.shape[1]
        parts = self.config.micro_acc_steps
        for name, model in self.models.items():
            batches = Activations(self.model, f'transformer.{name}',
                                  DataLoader(self.tokens, self.config.batch_size), batch_size=rows)
            data = torch.cat(list(batches))
            train(model, data, data, num_epochs=1, learning_rate=self.config.lr, patience=1,
                  sparsity_type='none', batch_size=rows // parts, accumulate=parts, seed=0,
                  revive=None, verbose=0)
