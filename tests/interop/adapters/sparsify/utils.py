"Decoders of sparse codes: through the dense code, and from the entries alone."
import torch
from torch.nn import functional as F

from sparse_ae.engines.sparse_codes import SparseCode, SparsePattern, sparse_decode


def make_code(indices, values, latent_dim):
    "Code of the entries `(n, k)`."
    offsets = torch.arange(0, indices.numel() + 1, indices.shape[1], device=indices.device)
    return SparseCode(values.flatten(), SparsePattern(indices.flatten(), offsets, latent_dim))


def eager_decode(indices, values, W_dec):
    return F.linear(make_code(indices, values, W_dec.shape[1]).dense(), W_dec)


def triton_decode(indices, values, W_dec):
    return sparse_decode(make_code(indices, values, W_dec.shape[1]), W_dec,
                         W_dec.new_zeros(len(W_dec)))
