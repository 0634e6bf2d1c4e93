"""Which fields the fingerprint of a run leaves out, and those of the shipped recipes: as before fields had marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.base.recipe import load_chain
from pipeline.base.config import per_attempt_fields
from pipeline.base.digests import fingerprint
from pipeline.pretrain.recipe import PretrainRecipe

RECIPES = Path(__file__).parents[3] / "jobs" / "recipes"

PER_ATTEMPT = {
    "workers": True,
    "resources": True,
    "max_restarts": True,
    "grace_seconds": True,
    "on_nonfinite": True,
    "max_skipped": True,
    "log_every": True,
    "checkpoint_every": True,
    "keep_last": True,
    "keep_every": True,
    "max_failed_saves": True,
    "save_patience_seconds": True,
    "checkpoint_blocks": True,
    "stream": {
        "workers",
        "ahead",
        "check",
        "max_damaged",
        "access",
        "cache_bytes",
        "patience_seconds",
        "stall_seconds",
        "audit",
    },
    "engine": {
        "zero_stage",
        "micro_batch_size",
        "offload_optimizer",
        "offload_parameters",
        "nvme_path",
        "pin_memory",
        "overlap_comm",
        "reduce_bucket_size",
        "allgather_bucket_size",
        "persistence_threshold",
    },
}

# Of the recipes with a dataset of digest "digest": computed with the code before fields were marked.
SHIPPED = {
    "augreg_b16_i21k": "af510bf85ce379adacb35fa4a5fc5a904cc10c732ffd3a410afdf7d28661b2ca",
    "augreg_h14_i21k": "9f288bf8206a9dce330dd648543af02a8827e4654c6949e690f4d83c8c587106",
    "augreg_l16_i21k": "10e59ed644726a5e06cecbf5d7ed59ffd1ffeed51754d145c00ea65e2a7853f2",
    "augreg_s16_i21k": "5f4f9fab7d28e5c7e9a0d0bab5c9562e73ca014446b9135e397240bd109143dd",
    "augreg_ti16_i21k": "38d55dbf8ab7c42dcae338f1af22e9a2e61b8cbd25dafe2bc995ae19f4f38642",
    "plain_b16_i1k": "c137783c20183a4ed26490b09742578719cc4468520f37d8832e96091c193643",
    "plain_h14_i1k": "711e085fe3781903c1ed3d0dd9a2fd3f63db9f2f0d52466a650987962a47ae0e",
    "plain_l16_i1k": "2ee5c51405fda3d1d92ab3aad5b58e08fbebe744ae77aa28faf1d9d3e6e48d4f",
    "plain_s16_i1k": "aa1c0c3959a42b60e5f5836b6cbd0026cff74a1161704c2f9f59eda652215a0d",
    "plain_ti16_i1k": "dbb4e42aa6f9e506c23f0201390552122daea79d7c310dfca0b400b07dfd9389",
    "tiny": "8d23de1c6e78c022a4454e1aadbc207fc8e98659ebbb8629669040cd954ce5c6",
    "vit_b16_i1k": "ef661fd0ee76ad05a268c27d13efec61106820c9b9cc4844cdf8a1a3c7fa1700",
    "vit_b16_i21k": "dea6e204b48e4e0158a695933067a1e9d9557c3ee4a431c37710c083f4c37c41",
    "vit_b16_jft": "e0f513385a74ec47e2b851fcb9c38ad341dbb33b23a281a8810e886dc4e24e32",
    "vit_b32_i1k": "a5a7d6fdabded20dd5b83ac92b62bbd512a28d1f440dd1f48a77ae483d307158",
    "vit_b32_i21k": "82c0c503fe8c31de70a2b5985ebb2e81c3c9b8682199593719ac4b879921789a",
    "vit_b32_jft": "0f982c2a406b69e07dc502b73bd88d5330dfde17c22f176e472bee7c0a6cc990",
    "vit_h14_i1k": "31c895296950054d8f0b84d10dbb5a416fd7cf464d6d17a959125d45efe1f0f5",
    "vit_h14_jft": "18fb5ce33a1af52387e12b83a2049c9d0af21858e61efbce6b2b41f2dd1bb452",
    "vit_l16_i1k": "0ed4620820285fcd07038cda464c8a4d7be091468a0f6a85c26c277c5bd78ba1",
    "vit_l16_i21k": "25c95ed24e307cccb8c0430dc41f1c2b79e696b78c670119bb7ed46a8d0bee9a",
    "vit_l16_jft": "fb3952b303edc0645427f8a275f047971124af06984d2d7aa21a47a6a9ccc83f",
    "vit_l32_i1k": "e1b520f71464512b6cf032803e93662ad881de069890cf02a76a9207f87a3dad",
    "vit_l32_i21k": "adf13fbdb3358695d2e923cdd023f153683f6d7d2e725c1516ed9de0343f81c5",
    "vit_l32_jft": "c2be8be1a2945247d2c05f7f6bc08f2f9e1c96536f79dea8e289f6207bda38f1",
}


def test_the_marks_stand_on_these_fields() -> None:
    marked = per_attempt_fields(PretrainRecipe)
    assert {name: set(inner) if isinstance(inner, dict) else inner for name, inner in marked.items()} == PER_ATTEMPT


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_has_the_fingerprint_it_always_had(name: str) -> None:
    recipe = load_chain(str(RECIPES / f"{name}.yaml"), []).pretrain
    assert recipe is not None
    assert fingerprint(recipe.fingerprinted("digest")) == SHIPPED[name]
