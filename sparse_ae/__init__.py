"""Sparse autoencoders in PyTorch: codes, penalties, training, measuring, showing."""
__version__ = "0.1.0"

from .activations import (BackwardElimination, BatchTopK, CodeActivation, Gated, HardThreshold,
                          JumpReLU, MatchingPursuit, SoftThreshold, TopK, Unrolled)
from .callbacks import (AveragedWeights, Callback, EarlyStopping, LogFile, StopTraining,
                        TensorBoardLog, TrainingDiverged, WandbLog)
from .data import Rows, digits, image_patches, sparse_dictionary, train_val_split
from .eval_viz import (dictionary, evaluate_sparse_autoencoder, feature_contributions,
                       local_dictionary, match_dictionaries, plot_dictionary, plot_reconstructions,
                       plot_sparse_autoencoder_analysis, plot_sparse_training_history)
from .losses import (HoyerTarget, Metric, Penalty, get_penalty, hoyer_projection, hoyer_sparseness,
                     hoyer_sparsity_loss, kl_divergence_sparsity_loss, l0_sparsity_loss,
                     l1_sparsity_loss, lifetime_sparseness, log_sparsity_loss, mean_activation,
                     p_norm_sparsity_loss, population_sparseness)
from .models import SparseAutoencoder, TiedWeightSparseAutoencoder
from .options import TrainingOptions
from .regularizers import (Contractive, GateReconstruction, Isometry, LayerSparsity,
                           NestedReconstruction, Regularizer)
from .sparsity_control import AnnealedPNorm, AuxiliaryLoss, Resample
from .training import StepEngine, Trainer, train_sparse_autoencoder_with_early_stopping
from .sweeps import plot_sweep, sweep
from . import io, presets   # add save_pretrained, from_pretrained and from_preset to the models
from .engines import (cuda_graphs, dense, elimination, sparse_codes,   # add themselves to ENGINES
                      stacked, unrolled)
from .networks.capture import capture
from .networks.splice import evaluate_in_network, splice
from .networks.store import ActivationStore   # adds itself to the folders that commands open

_WIDGETS = ('FeatureExplorer', 'LossPlayground', 'TrainingDashboard', 'compare_runs')

def __getattr__(name):
    "Import the widgets when one of them is first used."
    if name not in _WIDGETS: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .lab import widgets
    return getattr(widgets, name)

__all__ = [
    'ActivationStore', 'AnnealedPNorm', 'AuxiliaryLoss', 'AveragedWeights',
    'BackwardElimination', 'BatchTopK', 'Callback', 'CodeActivation', 'Contractive',
    'EarlyStopping', 'FeatureExplorer', 'GateReconstruction', 'Gated', 'HardThreshold',
    'HoyerTarget', 'Isometry', 'JumpReLU', 'LayerSparsity', 'LogFile', 'LossPlayground',
    'MatchingPursuit', 'Metric', 'NestedReconstruction', 'Penalty', 'Regularizer', 'Resample',
    'Rows', 'SoftThreshold', 'SparseAutoencoder', 'StepEngine', 'StopTraining',
    'TensorBoardLog', 'TiedWeightSparseAutoencoder', 'TopK', 'Trainer', 'TrainingDashboard',
    'TrainingDiverged', 'TrainingOptions', 'Unrolled', 'WandbLog', 'capture', 'compare_runs',
    'dictionary', 'digits', 'evaluate_in_network', 'evaluate_sparse_autoencoder',
    'feature_contributions', 'get_penalty', 'hoyer_projection', 'hoyer_sparseness',
    'hoyer_sparsity_loss', 'image_patches', 'kl_divergence_sparsity_loss', 'l0_sparsity_loss',
    'l1_sparsity_loss', 'lifetime_sparseness', 'local_dictionary', 'log_sparsity_loss',
    'match_dictionaries', 'mean_activation', 'p_norm_sparsity_loss', 'plot_dictionary',
    'plot_reconstructions', 'plot_sparse_autoencoder_analysis', 'plot_sparse_training_history',
    'plot_sweep', 'population_sparseness', 'sparse_dictionary', 'splice', 'sweep',
    'train_sparse_autoencoder_with_early_stopping', 'train_val_split']
