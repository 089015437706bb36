"""emp_kernels: fast scoring and selection of training samples for data pruning.

Scores each sample's logits (cross-entropy plus the predictive entropy, EMP, arXiv 2408.16031),
keeps the scores over epochs, selects the exact top k and gathers the kept rows.
"""

from . import distributed
from .cautions import EMPWarning
from .contrastive import score_contrastive
from .dataset import IndexedDataset
from .diagnostics import Diagnostics
from .epoch_mask import EpochMask
from .gathering import gather
from .hidden_features import HiddenFeatures
from .key_ids import KeyIds
from .linear import linear_cross_entropy, linear_log_prob_and_entropy, score_linear
from .log_probs import log_prob_and_entropy
from .loss import cross_entropy
from .pruning import score_and_select
from .ranking import Ranking, rank
from .results import LogProbs, SampleStatistics, Scores, Selection
from .sampler import EMPSampler
from .scoring import sample_statistics, score
from .selection import select
from .state import EMPState

__version__ = "0.1.0"

__all__ = [
    "Diagnostics",
    "EMPSampler",
    "EMPState",
    "EMPWarning",
    "EpochMask",
    "HiddenFeatures",
    "IndexedDataset",
    "KeyIds",
    "LogProbs",
    "Ranking",
    "SampleStatistics",
    "Scores",
    "Selection",
    "cross_entropy",
    "distributed",
    "gather",
    "linear_cross_entropy",
    "linear_log_prob_and_entropy",
    "log_prob_and_entropy",
    "rank",
    "sample_statistics",
    "score",
    "score_and_select",
    "score_contrastive",
    "score_linear",
    "select",
]
