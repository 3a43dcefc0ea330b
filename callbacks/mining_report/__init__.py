"""The report of a round of mining: numbers, tables, figures, crops of the hardest errors, and one page of all."""

from callbacks.mining_report.mined import MiningRound
from callbacks.mining_report.to_wandb import log_mining
from callbacks.mining_report.write import write_mining_report

__all__ = ["MiningRound", "log_mining", "write_mining_report"]
