"""The files of a checkpoint, as DeepSpeed names them, for a world size, ZeRO stage and dtype."""

from __future__ import annotations

MODEL_STATES = "mp_rank_00_model_states.pt"


def optimizer_file(rank: int, dtype: str) -> str:
    """The file with one rank's partition of the optimizer state."""
    return f"{'bf16_' if dtype == 'bf16' else ''}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def model_file(rank: int, zero_stage: int) -> str:
    """The file with the module's state that *rank* reads: one for all, or one per rank when weights are partitioned."""
    return f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if zero_stage == 3 else MODEL_STATES


def expected_files(world_size: int, zero_stage: int, dtype: str) -> set[str]:
    """Every file that the ranks together must have written."""
    files = {model_file(rank, zero_stage) for rank in range(world_size)}
    if zero_stage:
        files |= {optimizer_file(rank, dtype) for rank in range(world_size)}
    return files


def files_of_rank(rank: int, world_size: int, zero_stage: int, dtype: str) -> set[str]:
    """The files whose content *rank* needs to resume; of the others it only looks at the names."""
    files = {model_file(rank, zero_stage)}
    return files | {optimizer_file(rank, dtype)} if zero_stage else files
