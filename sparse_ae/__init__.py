"""Sparse autoencoders in PyTorch: codes, penalties, training, measuring, showing."""
__version__ = "0.1.0"

from .activations import (BatchTopK, CodeActivation, Gated, HardThreshold, JumpReLU, SoftThreshold,
                          TopK)
from .data import digits, image_patches, sparse_dictionary, train_val_split
from .encoders import MatchingPursuit, Unrolled
from .eval_viz import (dictionary, evaluate_sparse_autoencoder, match_dictionaries, plot_dictionary,
                       plot_reconstructions, plot_sparse_autoencoder_analysis,
                       plot_sparse_training_history)
from . import io  # gives the models save_pretrained and from_pretrained
from .callbacks import Callback, EarlyStopping, LogFile, TensorBoardLog, WandbLog
from .geometry import Contractive, Isometry
from .live_latents import AnnealedPNorm, AuxiliaryLoss, Resample
from .losses import (HoyerTarget, LayerSparsity, get_penalty, hoyer_sparseness,
                     hoyer_sparsity_loss, kl_divergence_sparsity_loss, l0_sparsity_loss,
                     l1_sparsity_loss, log_sparsity_loss, mean_activation, p_norm_sparsity_loss)
from .models import SparseAutoencoder, TiedWeightSparseAutoencoder
from .objectives import GateReconstruction, NestedReconstruction
from . import initialisation, presets  # give the models initialize, rescale and from_preset
from .reading import feature_contributions, local_dictionary
from .sparseness import hoyer_projection, lifetime_sparseness, population_sparseness
from .sweeps import plot_sweep, sweep
from .training import Trainer, TrainingDiverged, train_sparse_autoencoder_with_early_stopping
from .widgets import FeatureExplorer, LossPlayground, TrainingDashboard, compare_runs
