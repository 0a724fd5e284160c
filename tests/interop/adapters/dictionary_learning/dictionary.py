"""The interface of dictionary_learning on the models of this library, for the tests of that library.

A class has the parameters that a file of the library has. All it computes comes from the model that
the reader of files makes of them."""
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from sparse_ae.networks.conversions import (decoder_norms, from_model, scale_latents, to_model,
                                            unfold_decoder_bias)
from sparse_ae.networks.formats import read_weights


class Adapter(nn.Module):
    def __init__(self, activation_dim, dict_size):
        super().__init__()
        self.make_parameters(activation_dim, dict_size)
        for p in self.parameters():
            p.data = 0.3*torch.randn_like(p) if p.ndim == 2 else torch.zeros_like(p)

    def linear(self, activation_dim, dict_size, biased=True, decoder_biased=False):
        self.encoder = nn.Linear(activation_dim, dict_size, bias=biased)
        self.decoder = nn.Linear(dict_size, activation_dim, bias=decoder_biased)

    def layer(self):
        "Weights as the reader returns them."
        with tempfile.TemporaryDirectory() as folder:
            torch.save(self.state_dict(), Path(folder)/'ae.pt')
            config = {'trainer': {'dict_class': type(self).__name__}}
            (Path(folder)/'config.json').write_text(json.dumps(config))
            return read_weights(folder, 'dictionary_learning')

    def encode(self, x): return to_model(self.layer()).encode(x)
    def decode(self, z): return to_model(self.layer()).decode(z)

    def forward(self, x, output_features=False):
        z = self.encode(x)
        return (self.decode(z), z) if output_features else to_model(self.layer())(x)


class AutoEncoder(Adapter):
    def make_parameters(self, activation_dim, dict_size):
        self.linear(activation_dim, dict_size)
        self.bias = nn.Parameter(torch.zeros(activation_dim))

    def set_weights(self, layer):
        centred = unfold_decoder_bias(layer)
        for p, value in zip((self.encoder.weight, self.encoder.bias, self.decoder.weight, self.bias),
                            (centred.encoder_mat, centred.encoder_bias, centred.decoder_mat,
                             centred.decoder_bias)): p.data = value.to(p.dtype)

    def normalize_decoder(self):
        layer = self.layer()
        self.set_weights(scale_latents(layer, decoder_norms(layer)))

    def scale_biases(self, scale): self.set_weights(from_model(to_model(self.layer()).rescale(scale)))


class AutoEncoderNew(Adapter):
    def make_parameters(self, activation_dim, dict_size):
        self.linear(activation_dim, dict_size, decoder_biased=True)


class GatedAutoEncoder(Adapter):
    def make_parameters(self, activation_dim, dict_size):
        self.linear(activation_dim, dict_size, biased=False)
        self.decoder_bias = nn.Parameter(torch.zeros(activation_dim))
        for name in ('gate_bias', 'mag_bias', 'r_mag'):
            setattr(self, name, nn.Parameter(torch.zeros(dict_size)))


class JumpReluAutoEncoder(Adapter):
    def make_parameters(self, activation_dim, dict_size):
        self.W_enc = nn.Parameter(torch.zeros(activation_dim, dict_size))
        self.W_dec = nn.Parameter(torch.zeros(dict_size, activation_dim))
        for name, size in (('b_enc', dict_size), ('b_dec', activation_dim), ('threshold', dict_size)):
            setattr(self, name, nn.Parameter(torch.zeros(size)))
