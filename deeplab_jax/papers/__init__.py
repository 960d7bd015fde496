"""The published rows of the papers as data: their configs, costs, states, and measured beside published scores."""

from deeplab_jax.papers.commands import row_commands
from deeplab_jax.papers.comparison import Comparison, compare
from deeplab_jax.papers.configs import evaluation_config, training_config, weights_config
from deeplab_jax.papers.costs import Costs, config_costs, row_costs
from deeplab_jax.papers.requirements import check_data, describe_protocol
from deeplab_jax.papers.rows import METRICS, PAPERS, Row, find_row, list_rows
from deeplab_jax.papers.states import STATES, Measurement, measurement_of, state_of

__all__ = [
    "METRICS",
    "PAPERS",
    "STATES",
    "Comparison",
    "Costs",
    "Measurement",
    "Row",
    "check_data",
    "compare",
    "config_costs",
    "describe_protocol",
    "evaluation_config",
    "find_row",
    "list_rows",
    "measurement_of",
    "row_commands",
    "row_costs",
    "state_of",
    "training_config",
    "weights_config",
]
