"""Plugin of pytest: where there is no GPU, tensors and modules that a test puts on one stay on the CPU.

    python -m pytest -p on_cpu FILE"""
import pytest
import torch
from torch.overrides import TorchFunctionMode


def is_gpu(value):
    return isinstance(value, (str, torch.device)) and torch.device(value).type == 'cuda'


class OnCPU(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {k: 'cpu' if k == 'device' and is_gpu(v) else v for k, v in (kwargs or {}).items()}
        if func is torch.Tensor.to: args = tuple('cpu' if i and is_gpu(v) else v for i, v in enumerate(args))
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    if torch.cuda.is_available():
        yield
        return
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda *args: None)
    with OnCPU(): yield
