"""What tests of generation and of other libraries share: each architecture, and the folder that a
finished run exports."""

import inspect
import json
from pathlib import Path

import pytest

from data.tokenizer import SentencePieceTokenizer as Tokenizer
from data.tokenizer import train_tokenizer
from retnet.models.export import export_model
from tests.retnet.models.small_model import VOCABULARY, build_model


@pytest.fixture(params=["retnet", "nucleus_x"])
def architecture(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([inspect.getsource(json.decoder)], path, VOCABULARY)
    return Tokenizer(path)


@pytest.fixture
def exported(architecture, tokenizer, tmp_path) -> Path:
    """What a finished run leaves in its export folder; the model is `build_model(architecture)`."""
    model = build_model(architecture)
    export_model(model.config, model.state_dict(), tmp_path / "export")
    tokenizer.export(tmp_path / "export")
    return tmp_path / "export"
