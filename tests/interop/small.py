"""Import the models of other libraries without their dependencies on language models.

Used by the scripts of the libraries where INTEROP_SMALL is set: `make test-interop-short`. The
modules of the models run as they are; hook points, which return their inputs, are stand-ins."""
import importlib.machinery
import sys
import types

ABSENT = (    # packages and modules that are imported beside the models
    'accelerate', 'accelerate.utils', 'datasets', 'nnsight', 'transformers', 'zstandard',
    'sae_lens.analysis', 'sae_lens.analysis.hooked_sae_transformer', 'sae_lens.config',
    'sae_lens.cache_activations_runner', 'sae_lens.evals', 'sae_lens.llm_sae_training_runner',
    'sae_lens.multi_sae_training_runner', 'sae_lens.pretokenize_runner', 'sae_lens.training',
    'sae_lens.training.activations_store', 'sae_lens.training.sae_trainer',
    'sae_lens.training.upload_saes_to_huggingface', 'dictionary_learning.buffer',
    'dictionary_learning.evaluation', 'dictionary_learning.training', 'sparsify.data',
    'sparsify.trainer')


class Absent(types.ModuleType):
    "Module that is not needed: its names can be imported, and raise an error when they are called."
    __path__ = ()

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name):
        if name.startswith('__'): raise AttributeError(name)
        def __init__(made, *args, **kwargs):
            raise ImportError(f'{self.__name__}.{name} must not be called here')
        return type(name, (), {'__init__': __init__})


def hook_modules():
    "Stand-ins for the two modules of transformer_lens that models of SAELens derive from."
    from torch import nn
    root = type('HookedRootModule', (nn.Module,), {'setup': lambda self: None})
    point = type('HookPoint', (nn.Identity,), {})
    for name in ('transformer_lens', 'transformer_lens.hook_points',
                 'transformer_lens.HookedTransformer'):
        sys.modules[name] = module = types.ModuleType(name)
        module.__path__, module.HookPoint, module.HookedRootModule = (), point, root


def install():
    "Make the packages importable."
    for name in ABSENT: sys.modules[name] = Absent(name)
    sys.modules['triton'] = None     # cannot be imported: sparsify would look for a GPU
    hook_modules()
