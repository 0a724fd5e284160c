"""Sparse autoencoders in PyTorch: codes, penalties, training, measuring, showing."""
__version__ = "0.1.0"

from .activations import (BatchTopK, CodeActivation, Gated, HardThreshold, JumpReLU,
                          MatchingPursuit, SoftThreshold, TopK, Unrolled)
from .callbacks import (Callback, EarlyStopping, LogFile, StopTraining, TensorBoardLog,
                        TrainingDiverged, WandbLog)
from .data import digits, image_patches, sparse_dictionary, train_val_split
from .eval_viz import (dictionary, evaluate_sparse_autoencoder, feature_contributions,
                       local_dictionary, match_dictionaries, plot_dictionary,
                       plot_reconstructions, plot_sparse_autoencoder_analysis,
                       plot_sparse_training_history)
from .losses import (HoyerTarget, get_penalty, hoyer_projection, hoyer_sparseness,
                     hoyer_sparsity_loss, kl_divergence_sparsity_loss, l0_sparsity_loss,
                     l1_sparsity_loss, lifetime_sparseness, log_sparsity_loss, mean_activation,
                     p_norm_sparsity_loss, population_sparseness)
from .models import SparseAutoencoder, TiedWeightSparseAutoencoder
from .regularizers import (Contractive, GateReconstruction, Isometry, LayerSparsity,
                           NestedReconstruction)
from .sparsity_control import AnnealedPNorm, AuxiliaryLoss, Resample
from .training import Trainer, train_sparse_autoencoder_with_early_stopping
from . import io, presets  # give the models save_pretrained, from_pretrained and from_preset
from .sweeps import plot_sweep, sweep
from .engines import dense, sparse_codes, cuda_graphs, stacked  # register themselves
from .lab.widgets import FeatureExplorer, LossPlayground, TrainingDashboard, compare_runs
