"""Sparse autoencoders in PyTorch: codes, penalties, training, measuring, showing."""
__version__ = "0.1.0"

from .data import digits, image_patches, train_val_split
from .eval_viz import (dictionary, evaluate_sparse_autoencoder, plot_dictionary,
                       plot_reconstructions, plot_sparse_autoencoder_analysis,
                       plot_sparse_training_history)
from . import io  # gives the models save_pretrained and from_pretrained
from .callbacks import Callback, EarlyStopping, LogFile, TensorBoardLog, WandbLog
from .geometry import Contractive, Isometry
from .live_latents import AuxiliaryLoss, Resample
from .losses import (LayerSparsity, get_penalty, hoyer_sparseness, hoyer_sparsity_loss,
                     kl_divergence_sparsity_loss, l1_sparsity_loss, mean_activation)
from .models import SparseAutoencoder, TiedWeightSparseAutoencoder
from .sweeps import plot_sweep, sweep
from .training import Trainer, TrainingDiverged, train_sparse_autoencoder_with_early_stopping
from .widgets import FeatureExplorer, LossPlayground, TrainingDashboard, compare_runs
