"Top-k encoder whose gradients are sparse."
from typing import NamedTuple

from torch import Tensor

from sparse_ae.activations import TopK
from sparse_ae.engines.sparse_codes import sparse_encode


class EncoderOutput(NamedTuple):
    top_acts: Tensor
    top_indices: Tensor
    pre_acts: 'Tensor|None'


def fused_encoder(x, W, b, k, activation):
    "The entries of a code have no order; those of `torch.topk` are in the order of the test."
    assert activation == 'topk'
    code = sparse_encode(x, W, b, TopK(k))
    values, indices = (t.view(len(code), k) for t in (code.values, code.pattern.col_indices))
    wanted = code.dense().detach().topk(k, sorted=False).indices
    places = indices.argsort(-1).gather(-1, wanted.argsort(-1).argsort(-1))
    return EncoderOutput(values.gather(-1, places), indices.gather(-1, places), None)
