"""Prints the most memory that this process ever had, in bytes, after the search for a pass key in
texts of each length named, in order."""

import sys
from resource import RUSAGE_SELF, getrusage

import torch

from retnet.evaluation.config import EvaluationConfig
from retnet.evaluation.passkey import find_passkeys
from tests.retnet.evaluation.questions import VOCABULARY, asked_of
from tests.retnet.models.small_model import build_model

torch.set_num_threads(1)
model = build_model("retnet", vocab_size=VOCABULARY, decoder_embed_dim=512)
config = EvaluationConfig(lengths=[1], passkey_depths=1, passkey_trials=1)
for length in map(int, sys.argv[1:]):
    with torch.no_grad():
        find_passkeys(asked_of(model, config=config, length=length))
    sys.stdout.write(f"{getrusage(RUSAGE_SELF).ru_maxrss * 1024}\n")
